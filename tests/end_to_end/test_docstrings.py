"""Examples in the docstrings of the public API, run as written, one after the other."""

import doctest
from pathlib import Path

import pytest
import torch

import converter
from converter.testing import assert_equivalent

EXAMPLES = {
    "convert": converter.convert,
    "verify": converter.verify,
    "assert_equivalent": assert_equivalent,
    "sync": converter.sync,
    "inspect": converter.inspect,
    "Preprocessing": converter.Preprocessing,
    "into": converter.into,
    "pull": converter.pull,
    "convert_many": converter.convert_many,
    "check_many": converter.check_many,
    "sync_many": converter.sync_many,
}


@pytest.mark.slow
def test_examples_give_what_they_show(tmp_path, monkeypatch):
    """They share the model and the file of the first."""
    import keras

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"converter": converter, "keras": keras, "Path": Path, "torch": torch, **EXAMPLES}
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for name, documented in EXAMPLES.items():
        test = parser.get_doctest(documented.__doc__ or "", names, name, None, 0)
        assert test.examples, name
        said: list[str] = []
        runner.run(test, out=said.append, clear_globs=False)
        names = test.globs
        assert said == [], "".join(said)
