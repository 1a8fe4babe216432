"""The documentation site: it builds without warnings, and has every page and every command."""

import os
from html import unescape
from pathlib import Path
from re import sub

import pytest

import cli
import converter

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if "CI" not in os.environ:
        pytest.importorskip("sphinx", reason='pip install -e ".[docs]"')
    from sphinx.cmd.build import main

    work = tmp_path_factory.mktemp("site")
    how = ["-q", "-W", "--keep-going", "-c", str(ROOT / "docs"), "-d", str(work / "doctrees")]
    assert main([*how, str(ROOT), str(work / "html")]) == 0
    return work / "html"


def text_of(page: Path) -> str:
    return unescape(sub("<[^>]*>", "", page.read_text()))


@pytest.mark.slow
def test_site_has_every_page_and_begins_at_its_index(site):
    pages = {page.relative_to(ROOT) for place in (ROOT.glob("*.md"), ROOT.glob("docs/**/*.md")) for page in place}
    assert [page for page in pages if not (site / page).with_suffix(".html").is_file()] == []
    assert "url=docs/index.html" in (site / "index.html").read_text()


@pytest.mark.slow
def test_reference_has_every_command_and_function(site):
    commands, functions = (text_of(site / f"docs/{name}.html") for name in ("command_reference", "api"))
    for name, command in cli.main.commands.items():
        assert f"convert {name} [OPTIONS]" in commands
        assert command.help is not None
        assert command.help.splitlines()[0].strip() in commands
    for name in (*converter.__all__, "testing.assert_equivalent"):
        assert f"converter.{name}(" in functions


@pytest.mark.slow
def test_search_works_without_a_network(site):
    assert (site / "searchindex.js").is_file()
    assert "PTC1001" in (site / "searchindex.js").read_text().upper()
    for page in ("search.html", "docs/index.html", "docs/api.html"):
        assert 'src="http' not in (site / page).read_text()
