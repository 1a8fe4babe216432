"""The documentation site: `sphinx-build -W -c docs . docs/_build`, from the repository's root.

The root is the source folder, so that links between README.md, SECURITY.md and docs/ are the same as in the repository.
"""

from sphinx.application import Sphinx

project = "pt-convert"
html_title = "pt-convert"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**"]
exclude_patterns = ["docs/_build"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
myst_heading_anchors = 3
default_role = "code"  # docstrings have single backquotes
smartquotes = False  # "--to" is not an en dash
autodoc_typehints = "description"

html_theme = "furo"
html_copy_source = False
html_additional_pages = {"index": "to_index.html"}
templates_path = ["templates"]


def setup(app: Sphinx) -> None:
    """Leave the pages of errors out of the sidebar, which has ERRORS.md: it lists them."""

    def list_elsewhere(app: Sphinx, _: object) -> None:
        for page in app.env.found_docs:
            if page.startswith("docs/errors/"):
                app.env.metadata[page]["orphan"] = True

    app.connect("env-updated", list_elsewhere)
