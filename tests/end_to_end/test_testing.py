"""`converter.testing`, as a user's test suite has it, and what verification costs: no TensorFlow for ONNX."""

import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from converter.errors import UsageError
from converter.testing import assert_equivalent

SHAPES = ["1,3,8,7"]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1))
        self.head = nn.Linear(5, 2)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.body(self.stem(image).relu())
        return {"maps": x, "scores": self.head(x.mean((2, 3)))}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "two.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Two().eval(), (torch.rand(1, 3, 8, 7),), file, dynamo=False, input_names=["image"],
            output_names=["maps", "scores"], dynamic_axes={"image": {0: "batch"}},
        )  # fmt: skip
    return file


@pytest.mark.slow
def test_equivalent_artifact_passes_with_its_figures(exported: Path):
    report = assert_equivalent(Two().eval(), exported, input_shapes=SHAPES)
    assert [output.name for output in report.proofs[0].outputs] == ["maps", "scores"]


@pytest.mark.slow
@torch.no_grad()
def test_another_model_fails_with_the_outputs_and_where_they_part(exported: Path):
    other = Two().eval()
    other.body[2].weight[3, 1] += 0.1
    with pytest.raises(AssertionError) as failure:
        assert_equivalent(other, exported, input_shapes=SHAPES)
    message = str(failure.value)
    assert f"{exported} is not the function of Two" in message
    for part in ("maps: round 1", "scores: round 1", "differs first in body.2", "aten.conv2d", "expected Statistics("):
        assert part in message


@pytest.mark.slow
@torch.no_grad()
def test_fault_in_one_output_names_no_other(exported: Path):
    other = Two().eval()
    other.head.bias += 0.1
    with pytest.raises(AssertionError, match="differs first in head") as failure:
        assert_equivalent(other, exported, input_shapes=SHAPES)
    assert "maps:" not in str(failure.value)


@torch.no_grad()
def test_dead_output_is_not_proven(tmp_path: Path):
    dead = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    dead[0].bias -= 100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(dead, (torch.rand(1, 3, 8, 7),), tmp_path / "dead.onnx", dynamo=False)
    with pytest.raises(AssertionError, match="is not proven to be the function"):
        assert_equivalent(dead, tmp_path / "dead.onnx", input_shapes=SHAPES)


def test_unknown_explanation_is_a_wrong_call(exported: Path):
    with pytest.raises(UsageError, match="Unknown difference: softmin"):
        assert_equivalent(Two().eval(), exported, input_shapes=SHAPES, accept=["softmin"])


@pytest.mark.slow
def test_verifying_onnx_imports_no_tensorflow_and_gives_the_same_figures_again(tmp_path: Path, exported: Path):
    """Neither here nor in the process that opens the artifact: whoever imports it meets an error in its place."""
    for name in ("tensorflow", "keras"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError({name!r})")
    script = f"""
        import json, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import converter
        from test_testing import Two

        def verified(**options):
            report = converter.verify(Two().eval(), {str(exported)!r}, input_shapes=["1,3,8,7"], **options).to_dict()
            return report | {{"timings": None}}

        reports = [verified(trace=True), verified(trace=True), verified(weights=True)]
        held = sorted({{"tensorflow", "keras"}} & sys.modules.keys())
        print(json.dumps([reports[0] == reports[1], [report["status"] for report in reports], held]))
    """
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == [True, ["verified"] * 3, []]
