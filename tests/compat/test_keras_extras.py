"""Keras does without packages that it imports where they are installed; everybody else imports them."""

import sys

import pytest
from click.testing import CliRunner

from cli import main
from converter.compat.keras_extras import EXTRAS, KerasExtras, hide_keras_extras


@pytest.fixture
def hidden(monkeypatch, tmp_path):
    """Hide the packages; each has a stand-in."""
    for name in EXTRAS:
        (tmp_path / f"{name}.py").write_text("")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, KerasExtras)])
    hide_keras_extras()
    yield
    for name in EXTRAS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize(
    "importer, found", [("keras.src.wrappers", False), ("keras", False), ("kerastuner", True), ("nets", True)]
)
def test_only_keras_does_without(hidden, name, importer, found):
    held = {"__name__": importer}
    exec(f"try:\n    import {name}\nexcept ImportError:\n    {name} = None\n", held)
    assert (held[name] is not None) == found
    assert name not in sys.modules or found
    exec(f"import importlib\n{name} = importlib.import_module({name!r})", {"__name__": "nets"})


def test_a_command_hides_them_once(hidden):
    for _ in range(2):
        assert CliRunner().invoke(main, ["doctor", "--help"]).exit_code == 0
    assert [type(finder) for finder in sys.meta_path].count(KerasExtras) == 1
