"""The documentation site: it builds without warnings, and has every page and every command."""

import os
from html import unescape
from pathlib import Path
from re import sub

import pytest

import cli
import converter

ROOT = Path(__file__).parents[2]


def text_of(page: Path) -> str:
    return unescape(sub("<[^>]*>", "", page.read_text()))


@pytest.mark.slow
def test_site_has_every_page_command_and_function_and_needs_no_network(tmp_path):
    """One test: several would build it again in other processes."""
    if "CI" not in os.environ:
        pytest.importorskip("sphinx", reason='pip install -e ".[docs]"')
    from sphinx.cmd.build import main

    site = tmp_path / "html"
    how = ["-q", "-W", "--keep-going", "-c", str(ROOT / "docs"), "-d", str(tmp_path / "doctrees")]
    assert main([*how, str(ROOT), str(site)]) == 0

    pages = {page.relative_to(ROOT) for place in (ROOT.glob("*.md"), ROOT.glob("docs/**/*.md")) for page in place}
    assert [page for page in pages if not (site / page).with_suffix(".html").is_file()] == []
    assert "url=docs/index.html" in (site / "index.html").read_text()

    commands, functions = (text_of(site / f"docs/{name}.html") for name in ("command_reference", "api"))
    for name, command in cli.main.commands.items():
        assert f"convert {name} [OPTIONS]" in commands
        assert command.help is not None
        assert command.help.splitlines()[0].strip() in commands
    for name in (*converter.__all__, "testing.assert_equivalent"):
        assert f"converter.{name}(" in functions

    assert "PTC1001" in (site / "searchindex.js").read_text().upper()
    for name in ("search.html", "docs/index.html", "docs/api.html"):
        assert 'src="http' not in (site / name).read_text()
