"""What the terminal draws of a model."""

import pytest

from converter.console.render import _branches


@pytest.mark.parametrize(
    "paths, drawn",
    [
        pytest.param(
            ["", "stem", "stem.conv", "stem.norm", "head"],
            ["(model)", "├ stem", "│ ├ conv", "│ └ norm", "└ head"],
            id="a last child ends its parent's guide",
        ),
        pytest.param(
            ["", "a", "a.0", "a.0.x", "b"],
            ["(model)", "├ a", "│ └ 0", "│   └ x", "└ b"],
            id="no guide below a last child",
        ),
        pytest.param(
            ["", "stage", "stage2", "stage2.conv"],
            ["(model)", "├ stage", "└ stage2", "  └ conv"],
            id="a name that begins like another is no child of it",
        ),
        pytest.param(
            ["stem.conv", "stem", "stages.0.conv"],
            ["stem.conv", "stem", "stages.0.conv"],
            id="an exported program has paths without their parents",
        ),
        pytest.param(["", "a.b.c", "a.b.d"], ["(model)", "├ a.b.c", "└ a.b.d"], id="parents left out in the middle"),
        pytest.param([], [], id="nothing"),
    ],
)
def test_modules_are_a_tree(paths: list[str], drawn: list[str]):
    assert [guides + name for guides, name in _branches(paths)] == drawn
