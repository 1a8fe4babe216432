"""A network that makes 1e7 of a rounding of 1: the first proof measures it by PyTorch's own, and still sees faults."""

import pytest
import torch
from equivalence import captured
from mutations.planting import called, planted, with_tensor
from torch import nn

from converter.lowering.planner import make_plan
from converter.options import ArtifactOptions, LoadOptions
from converter.pipeline.build import RewrittenModel, build
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model
from converter.verification.checked_rewrite import run_in_float64
from converter.verification.output_proofs import compare_function
from converter.verification.perturbation import run_perturbed
from converter.verification.prove import prove_function
from converter.verification.reference import take_reference

STEPS = 23  # each doubles the distance of two neighbors


class Tent(nn.Module):
    """The tent map, https://en.wikipedia.org/wiki/Tent_map, between two linear layers."""

    def __init__(self):
        super().__init__()
        self.before, self.norm, self.after = nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = torch.sigmoid(self.norm(self.before(x)))
        for _ in range(STEPS):
            x = 1 - torch.abs(1 - 2 * x)
        return self.after(x)


@pytest.fixture(scope="module")
def source(calibrate):
    torch.manual_seed(0)
    model = calibrate(Tent(), torch.randn(4, 12))
    return load_model(model, LoadOptions.of(input_shapes=["1,12"]), clock=Clock(None))


@pytest.fixture(scope="module")
def reference(source):
    taken = take_reference(source.program, source.module, seed=0, inputs=None, running=source.running)
    source.probe = taken.probe(source.program)
    return taken


@pytest.mark.slow
def test_what_only_amplifies_rounding_is_the_same_function(source, reference):
    proof = prove_function(reference, build(source, "keras", ArtifactOptions(), Clock(None)))
    assert proof.holds, proof.failures
    assert "PyTorch's own rounding there (limit 16x)" in proof.summary
    (output,) = proof.outputs
    assert output.max_abs > 1e-10 * output.scale  # else the network shows nothing


@pytest.mark.slow
def test_a_rewrite_that_rounds_otherwise_is_not_at_fault(source, reference):
    built = build(source, "onnx", ArtifactOptions(), Clock(None))
    assert any(change.name == "BatchNorm folded" for change in built.changes)
    inputs, expected = source.probe
    rounding = [abs(a - b).max() for a, b in zip(expected, run_in_float64(built.program, inputs), strict=True)]
    assert rounding > [1e-10 * abs(expected[0]).max()]  # else the network shows nothing
    assert prove_function(reference, built).holds


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer, relative",
    [(0, 1e-6), (0, 1e-12), (1, 1e-6)],
    ids=["before it is amplified", "as small as rounding in float64 nearly is", "after it was amplified"],
)
def test_a_fault_in_such_a_network_is_caught(source, reference, layer, relative):
    program = build(source, "keras", ArtifactOptions(), Clock(None)).program
    node = called(program, torch.ops.aten.linear)[layer]
    faulty = planted(program, node, with_tensor(lambda weight: weight.double() * (1 + relative)))
    plan = make_plan(faulty)
    built = RewrittenModel(source, "keras", ArtifactOptions(), faulty, [], plan.inputs, plan.outputs, plan)
    assert not prove_function(reference, built).holds


def test_pytorchs_own_rounding_in_float64_is_rounding(reference):
    for number, exact in enumerate(reference.float64[:2]):
        for moved in reference.perturbed_runs_in_float64(number):
            difference = abs(moved["output"] - exact["output"]).max()
            assert 0 < difference < 1e-6 * abs(exact["output"]).max()
    assert not compare_function(
        reference.float64, reference.float32, perturbed_runs=reference.perturbed_runs_in_float64
    ).holds


@pytest.mark.parametrize("limited", [torch.sigmoid, torch.tanh, torch.erf, lambda x: torch.softmax(x, 0)])
def test_a_choice_between_values_at_their_limit_is_seen_to_be_open(limited):
    program = captured(lambda x: limited(x).argmax(1), (2, 5))
    x = torch.tensor([[60.0, -3.0, 65.0, 0.0, 1.0], [1.0, 19.0, 0.5, 20.0, 20.0], [0.1, 0.2, 0.5, 0.4, 0.3]])
    classes = program.run(x)[0]
    others = run_perturbed(program, [x], torch.float32, 0)
    is_open = torch.stack([other[0] != classes for other in others]).any(0)
    ties = (limited(x) == limited(x).amax(1, keepdim=True)).sum(1) > 1
    assert ties.any()
    assert is_open.tolist() == ties.tolist()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_the_tail_of_gelu_is_moved_by_what_cancels_in_it(approximate, precision):
    """Its error is that of 1 + erf(x), which is near 0 there; its result alone would move by 1e-7 of itself."""
    program = captured(lambda x: nn.functional.gelu(x, approximate=approximate), (2, 5))
    x = torch.full((2, 5), -4.5)
    (exact,) = program.with_dtype(torch.float64).run(x.double())
    moved = max(abs(run[0].double() - exact).max().item() for run in run_perturbed(program, [x], precision, 0))
    eps = torch.finfo(precision).eps
    assert eps / 4 < moved < 20 * eps
