"""Networks drawn at random are converted right: rewritten and lowered, in float64, against the module in PyTorch.

EXAMPLES=50 in the environment makes that many times more of them; `tests/fuzz/fuzz_modules.py` goes the whole way.
"""

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from equivalence import assert_computes_the_same, assert_same, captured
from random_modules import BATCH, network
from torch import Tensor, nn

from converter.capture.export import capture

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from fuzz_modules import run, samples

COUNT = 24 * int(os.environ.get("EXAMPLES", "1"))
FIRST = 100_000  # far from those that tests/fuzz/fuzz_modules.py begins with


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_a_random_network_is_converted_right(seed):
    made = network(seed)
    x = samples(made, BATCH, seed + 1)
    program = capture(made, [samples(made, 2, seed)])
    exact = run(copy.deepcopy(made).double(), x.double())
    assert_same(program.with_dtype(torch.float64).run(x.double()), exact, f"captured\n{made}")
    for format in (("tf", "onnx"), ("keras",))[seed % 2]:
        assert_computes_the_same(program, [x], format)


def broadcast_in_turn(x: Tensor) -> Tensor:
    packed = F.pixel_shuffle(F.max_pool2d(x, 3, 3, 1, 2), 2)
    moved = packed.permute(0, 2, 3, 1)
    return moved * packed * moved


def windows_of_a_transposed_convolution(x: Tensor) -> Tensor:
    return F.unfold(F.conv_transpose2d(x, torch.ones(4, 1, 3, 1), stride=3, groups=4), 1, stride=2)


class Unread(nn.Module):
    """A recurrent layer whose result nobody takes."""

    def __init__(self, kind: type[nn.Module]):
        super().__init__()
        self.unread, self.head = kind(4, 3, batch_first=True), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.unread(x)
        return self.head(x)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda kind: kind.__name__)
def test_a_recurrent_layer_that_nobody_reads_is_no_part_of_the_program(kind):
    """Its weights would be missed in the artifact."""
    program = captured(Unread(kind), (2, 6, 4))
    assert {node.target for node in program.graph.find_nodes(op="get_attr")} == {"head.weight", "head.bias"}


FOUND: dict[str, tuple[Callable, tuple[int, ...]]] = {
    "values whose factored dimensions broadcast in more turns than TensorFlow's kernels take": (
        broadcast_in_turn, (2, 4, 6, 8),
    ),
    "windows that leave pixels out, of a value whose batch a decomposition fixes": (
        windows_of_a_transposed_convolution, (2, 4, 3, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("function, shape", FOUND.values(), ids=FOUND)
def test_what_random_networks_have_found(function, shape):
    program = captured(function, shape)
    for format in ("tf", "onnx"):
        assert_computes_the_same(program, [torch.randn(shape, generator=torch.Generator().manual_seed(1))], format)
