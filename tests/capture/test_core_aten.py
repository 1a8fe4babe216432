"""Programs that were decomposed to core ATen before they were saved convert as those that were not."""

import pytest
import torch
from equivalence import assert_same, in_float64, planned, run_in_float64
from torch import nn
from torch._ops import OpOverload

from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model


class Decomposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.up, self.groups = nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, groups=2), nn.GroupNorm(2, 6)
        self.dilated, self.layer = nn.Conv1d(6, 4, 3, dilation=2), nn.LayerNorm(4)
        self.volume, self.head = nn.Conv3d(1, 2, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        y = self.groups(self.up(nn.functional.gelu(self.norm(self.conv(x)))))
        z = self.head(self.layer(self.dilated(y.flatten(2)).transpose(1, 2)))
        return z.softmax(-1), self.volume(y[:, None]).mean((1, 2))


@pytest.mark.slow
def test_convolutions_and_norms_of_core_aten_have_their_names(tmp_path):
    torch.manual_seed(0)
    module, x = Decomposed().eval(), torch.randn(2, 3, 16, 12)
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(module, (x,), dynamic_shapes=shapes).run_decompositions()
    torch.export.save(exported, tmp_path / "core.pt2")
    program = load_model(tmp_path / "core.pt2", LoadOptions.of(), clock=Clock(None)).program
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    names = {target.overloadpacket.__name__ for target in targets if isinstance(target, OpOverload)}
    assert {"conv2d", "conv_transpose2d", "conv1d", "conv3d", "layer_norm", "group_norm", "batch_norm"} <= names
    wanted = [program.with_dtype(torch.float64).run(*in_float64((x,)))]
    with torch.no_grad():
        assert_same(list(module(x)), [result.float() for result in wanted[0]], "the program", bound=1e-4)
    for results, right in zip(run_in_float64(planned(program), (x,)), wanted, strict=True):
        assert_same(results, right, "the plan")
