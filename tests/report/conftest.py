"""Reports of real conversions, for the tests of the page and of the JSON Schema."""

import json
from typing import Any

import pytest
import torch
from torch import nn

import converter
from converter.batch.journal import Entry
from converter.batch.results import BatchReport
from converter.report.failures import Failure

HOSTILE = "<script>alert(1)</script>\x1b[31m\"'" + "x" * 100_000


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.out(x.mean((2, 3)))


@pytest.fixture(scope="session")
def reports(tmp_path_factory) -> dict[str, Any]:
    """What `to_dict` gives of a conversion, a verification, a summary, a failure and a batch."""
    torch.manual_seed(0)
    model, folder = Net().eval(), tmp_path_factory.mktemp("reports")
    made = converter.convert(model, to="onnx", output=folder / "net.onnx", input_shapes=["1,3,8,9"], trace=True)
    verified = converter.verify(model, folder / "net.onnx")
    summary = converter.inspect(model, input_shapes=["1,3,8,9"], check=["onnx"], plan=True)
    entry = Entry("a b/net", "a b/net.pt", "failed", 1, "no memory", {}, "", 1.5, 1, codes=("PTC9001",))
    fine = Entry("fine", "fine.pt", "verified", 0, "", {"fine.onnx": 1 << 30}, "", 2.5, 1, already_done=True)
    other = Entry("../out", "out.pt", "verified", 0, "", {"out.onnx": 1 << 20}, "", 0.5, 1)
    conversion = {"schema": 1, "models": [made.to_dict()], "command": "convert net.pt --to onnx"}
    return {
        "conversion": conversion,
        "strangers": _with_hostile_names(conversion),
        "conversion alone": made.to_dict(),
        "verification": verified.to_dict(),
        "summary": summary.to_dict(),
        "failure": Failure("m.pt", "CheckpointError", "PTC1001", "empty", None, "Try another.", 4).to_dict(),
        "batch": BatchReport((entry, other, fine), (), ("left.pt",), 2.0).to_dict(),
    }


def _with_hostile_names(conversion: dict[str, Any]) -> dict[str, Any]:
    report = json.loads(json.dumps(conversion))
    (model,) = report["models"]
    artifact = model["artifacts"][0]
    model["source"] = artifact["trace"][0]["module"] = artifact["inputs"][0]["name"] = HOSTILE
    artifact["proofs"][2]["tensors"][0]["sources"] = [HOSTILE]
    model["notes"] = [{"text": HOSTILE, "code": HOSTILE}]
    return report
