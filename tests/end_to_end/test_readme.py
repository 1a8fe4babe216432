"""Commands and examples of README.md and the guides, run as written; `.ci/run` runs set-up and tests."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import converter
from converter.console.signals import SIGNALS
from converter.report.failures import WORST_FIRST

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
GUIDES = [
    REPOSITORY / f"docs/{name}.md"
    for name in (
        "ANDROID",
        "ARTIFACTS",
        "BATCH",
        "CHECKPOINTS",
        "COMMANDS",
        "CUSTOM_OPERATORS",
        "FINE_TUNING",
        "LAYOUTS",
        "LIMITS",
        "PATTERNS",
        "PEERS",
        "PROOFS",
        "PYTHON",
        "VERIFY",
    )
]
TEXT = "\n".join([README, *(guide.read_text() for guide in GUIDES)])
COMMANDS = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
MARKS = {
    "install": "sh",
    "set-up": "sh",
    "main job": "sh",
    "main job says": "text",
    "after the main job": "python",
    "tests": "sh",
}


def blocks(language: str, mark: str | None = None) -> list[str]:
    """The code blocks of a language, all or those under a mark."""
    above = rf"^<!-- {mark} -->\n" if mark else "^"
    return re.findall(rf"{above}```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


CONVERSIONS = [block for block in blocks("sh") if block.startswith("convert ")]
(MAIN_JOB,) = blocks("sh", "main job")


def run(command: list[str], folder: Path, environment: dict[str, str] = COMMANDS) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def shell(commands: str, folder: Path) -> str:
    return run(["bash", "-euc", commands], folder).stderr


def empty_folder(folder: Path) -> Path:
    (folder / "sample_models").symlink_to(REPOSITORY / "sample_models")
    return folder


@pytest.fixture(scope="module")
def main_job(tmp_path_factory) -> tuple[Path, str]:
    """The folder in which the main job was run, and what it said."""
    folder = empty_folder(tmp_path_factory.mktemp("readme"))
    return folder, shell(MAIN_JOB, folder)


@pytest.mark.slow
def test_main_job_writes_three_artifacts(main_job):
    written = {path.name for path in main_job[0].iterdir()}
    assert {"digits_focus_saved_model", "digits_focus.keras", "digits_focus.onnx"} <= written


@pytest.mark.slow
def test_main_job_says_what_is_shown(main_job):
    """Figures differ between machines, lines do not."""
    (shown,) = blocks("text", "main job says")
    said = [in_general(line.strip("│ ")) for line in main_job[1].splitlines()]
    for line in shown.splitlines():
        assert in_general(line.strip()) in said, line
    assert "99.4 % before, 99.4 % after; all of 360 predictions the same" in main_job[1]


def in_general(line: str) -> str:
    """Without errors and times, and without the width of the first column."""
    line = re.sub(r"\d\.\de-\d\d|\d+\.\d ?(?=x|s$|ulp)", "N ", line)
    return re.sub(r" {2,}", "  ", line)


@pytest.mark.slow
def test_artifacts_are_used_as_shown(main_job):
    (example,) = blocks("python", "after the main job")
    done = run([sys.executable, "-c", example], main_job[0])
    assert done.stdout.split() == re.findall(r"# (\d.*%)$", example, re.MULTILINE) * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "commands",
    [block for block in CONVERSIONS if block != MAIN_JOB],
    ids=lambda block: "-".join(Path(word).name for word in block.split()[1:3]),
)
def test_other_commands_work_as_written(main_job, commands: str):
    shell(commands, main_job[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "example", blocks("python", "example"), ids=["boxes", "fine-tuning", "from nobuco", "from Python", "another tool's"]
)
def test_example_works_as_written(tmp_path: Path, example: str, request: pytest.FixtureRequest):
    environment = COMMANDS
    if "import timm" in example:
        environment = COMMANDS | request.getfixturevalue("environment_with_torchvision")
        if find_spec("timm") is None:
            pytest.skip("timm is not installed")
    done = run([sys.executable, "-c", example], tmp_path, environment)
    assert done.stdout.startswith("verified\n")
    assert set(re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE)) <= set(done.stdout.splitlines())


@pytest.mark.slow
def test_operator_of_ones_own_is_mapped_as_written(tmp_path: Path):
    mark = "an operator of one's own"
    for name in ("net.py", "my_ops.py"):
        (text,) = blocks("python", f"{mark}: {name}")
        (tmp_path / name).write_text(text)
    (commands,) = blocks("sh", mark)
    said = shell(commands, tmp_path)
    assert re.search(r"(?<!not )\bverified\b", said)


def shuffled(x: Tensor) -> Tensor:
    return x.view(len(x), 3, 4, 10, 8).transpose(1, 2).reshape(len(x), 12, 10, 8)


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, first: nn.Module, function: Callable[[Tensor], Tensor], second: nn.Module):
        super().__init__()
        self.first, self.function, self.second = first, function, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "channels, function, second, operators",
    [
        pytest.param(12, lambda x: x[:, [*range(1, 12), 0]], nn.Conv2d(12, 5, 3), {"Conv2D": 2}, id="channel index"),
        pytest.param(12, lambda x: x.flip(1), nn.Conv2d(12, 5, 3), {"Conv2D": 2}, id="flip"),
        pytest.param(12, shuffled, nn.Conv2d(12, 5, 3), {"Conv2D": 2}, id="channel shuffle"),
        pytest.param(12, nn.PixelShuffle(2), nn.Conv2d(3, 5, 3), {"Conv2D": 2, "DepthToSpace": 1}, id="pixel shuffle"),
        pytest.param(
            3, nn.PixelUnshuffle(2), nn.Conv2d(12, 5, 3), {"Conv2D": 2, "SpaceToDepth": 1}, id="pixel unshuffle"
        ),
        pytest.param(4, nn.Flatten(), nn.Linear(4 * 10 * 8, 5), {"Conv2D": 1, "Reshape": 1, "MatMul": 1}, id="flatten"),
    ],
)
def test_pattern_becomes_what_the_table_says(tmp_path: Path, channels: int, function, second, operators: dict):
    torch.manual_seed(0)
    model = Between(nn.Conv2d(3, channels, 3, padding=1), function, second).eval()
    report = converter.convert(model, to=["tf"], output=tmp_path / "model", input_shapes=["1,3,10,8"])
    assert report.status == "verified"
    assert report.artifacts[0].operators == operators | {"BiasAdd": 2}


@pytest.mark.parametrize("mark", MARKS)
def test_block_that_scripts_look_for_is_there(mark: str):
    assert len(blocks(MARKS[mark], mark)) == 1


def test_the_readme_is_read_in_a_minute_and_its_links_lead_somewhere():
    assert len(README.encode()) <= 7 * 1024
    for page in (REPOSITORY / "README.md", *GUIDES):
        for link in re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"


@pytest.mark.slow
def test_the_picture_is_of_what_is_written():
    import focus_picture

    assert focus_picture.PAGE.read_text() == focus_picture.document(), "run: python docs/generate/focus_picture.py"


@pytest.mark.slow
def test_the_pictures_of_layouts_are_of_what_is_written():
    import layout_pictures

    for page, text in layout_pictures.documents().items():
        assert page.read_text() == text, "run: python docs/generate/layout_pictures.py"


@pytest.mark.slow
def test_the_recording_shows_what_the_main_job_says(main_job):
    import recording

    said = re.sub(r"[\s│]", "", in_general(main_job[1]))
    shown = [re.sub(r"[\s│]", "", in_general(line)) for line in recording.lines(recording.PAGE.read_text())]
    for part in ("Focus->", "channelorderfolded", "1samefunction", "3sameweights", "datamovement", "BatchNormfolded"):
        (line,) = (line for line in shown if line.startswith(part))
        assert line.partition("(limit")[0] in said


@pytest.mark.parametrize(
    "figure, page, source",
    [
        ("| 87 of 87 |", "ZOO", "87 architectures were run; 87 of them are verified in all three formats."),
        ("| 3735 of 3735 |", "VERIFICATION", "3735 of 3735 faults caught"),
        ("| 97 % |", "OPERATORS", "97.2% |"),
        ("nobuco, litert-torch | 1, 5, 7 |", "questions/focus-row-major", "| 4 slices, 1 concatenation |"),
        ("nobuco, litert-torch | 1, 5, 7 |", "questions/focus-row-major", "| 6 slices, 1 concatenation |"),
    ],
)
def test_figures_are_those_of_the_pages(figure: str, page: str, source: str):
    assert figure in README
    assert source in (REPOSITORY / f"docs/{page}.md").read_text()


def test_architectures_without_a_move_are_counted():
    rows = [
        row["operators"] for row in json.loads((REPOSITORY / "docs/movement.json").read_text()) if row["format"] == "tf"
    ]
    still = sum(not row["Transpose"] and not row["Gather"] for row in rows)
    assert f"| of {len(rows)} architectures, no transpose or gather in the SavedModel | {still} |" in README


def test_exit_statuses_are_those_of_the_command():
    statuses = re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)
    assert sorted(map(int, statuses)) == sorted({*WORST_FIRST, *(128 + number for number in SIGNALS)})
