"""README's commands, run as written there. Set-up and tests are run by `.ci/run`, in an environment of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE)
CONVERSIONS = [block for block in BLOCKS if block.startswith("convert ")]
COMMANDS = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=lambda conversion: Path(conversion.split()[1]).name)
def test_conversion_as_written(conversion: str, tmp_path: Path):
    (tmp_path / "sample_models").symlink_to(REPOSITORY / "sample_models")
    run = subprocess.run(
        ["bash", "-euc", conversion], cwd=tmp_path, env=COMMANDS, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert len(list(tmp_path.iterdir())) == 1 + conversion.count("--to "), "an artefact is missing, or a file too many"


@pytest.mark.parametrize("mark", ["set-up", "main job", "tests"])
def test_block_that_scripts_look_for_is_there(mark: str):
    assert f"<!-- {mark} -->\n```sh\n" in (REPOSITORY / "README.md").read_text()
