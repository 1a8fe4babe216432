"""Faults planted in small networks are caught. All of them, in artifacts too: benchmarks/planted_faults.py."""

import logging

import pytest
from mutations.edges import EDGES
from mutations.faults import PROGRAM_FAULTS
from mutations.proving import Bench, Runners, artifact_mutants, program_mutants
from mutations.sequences import ARCHITECTURES

pytestmark = pytest.mark.slow

logging.getLogger("torch.__trace").propagate = False
WEIGHTS = {"one weight off by a thousandth", "two equal-shaped weights swapped", "through float16"}
CONSTANTS = {"constant through float16", "constant off by a hundredth"}


@pytest.fixture(scope="module")
def runners():
    with Runners() as started:
        yield started


@pytest.fixture(scope="module")
def in_rewrites(runners):
    """One of every kind in every architecture, in what is exported to ONNX: proof 1 runs it in PyTorch."""
    return {name: list(program_mutants(Bench(name, runners), "rewrite", 1, False)) for name in (*ARCHITECTURES, *EDGES)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_proof_1_catches_every_fault_of_a_rewrite(in_rewrites, name):
    mutants = in_rewrites[name]
    assert len(mutants) >= 8
    assert [m for m in mutants if m.missed] == []


@pytest.mark.parametrize("name", EDGES)
def test_proof_1_catches_every_fault_where_a_tolerance_may_hide_it(in_rewrites, name):
    mutants = in_rewrites[name]
    assert len([m for m in mutants if not m.equivalent]) >= 2
    assert [m for m in mutants if m.missed] == []


def test_every_kind_of_fault_is_one_somewhere(in_rewrites):
    found = {m.fault for mutants in in_rewrites.values() for m in mutants if not m.equivalent}
    only_lowered = {"mask of attention a token too late"}  # where masks are constants by then
    assert set(PROGRAM_FAULTS) - found <= only_lowered
    assert len(found) >= 40


@pytest.mark.parametrize("name", ["mobile net", "language model"])
def test_proof_1_catches_every_fault_of_a_mapping(runners, name):
    assert [m for m in program_mutants(Bench(name, runners), "mapping", 1, False) if m.missed] == []


@pytest.mark.parametrize("format, name", [("onnx", "ResNeXt"), ("tf", "super-resolution"), ("keras", "GRU")])
def test_changed_weights_and_constants_of_an_artifact_are_caught_by_proof_3(runners, format, name):
    mutants = list(artifact_mutants(Bench(name, runners), format, 1, only=WEIGHTS | CONSTANTS))
    planted = {m.fault for m in mutants}
    assert planted >= {"one weight off by a thousandth", "through float16"}
    assert ("two equal-shaped weights swapped" in planted) == (name != "GRU")  # no two of its tensors have one shape
    assert all(m.caught["weights"] for m in mutants), mutants


HIDDEN = {
    "mixed magnitudes": {"a probability off by 4e-4", "a fill off by a millionth"},
    "integers at the edges": {"the last bit of integers lost", "integers within 32 bits"},
}


@pytest.mark.parametrize(
    "name, place",
    [
        *((name, place) for name in HIDDEN for place in ("mapping", "mapping, SavedModel", "rewrite, PyTorch")),
        ("mixed magnitudes", "mapping, LiteRT"),
    ],
)
def test_what_large_values_may_hide_is_caught_by_both_proofs_in_every_format(runners, name, place):
    lite = "LiteRT" in place
    bench = Bench(name, runners, batch=1 if lite else None)
    faults = {"a probability off by 4e-4"} if lite else HIDDEN[name]
    mutants = list(program_mutants(bench, place, 1, True, only=faults))
    assert {m.fault for m in mutants} == faults
    for mutant in mutants:
        assert mutant.caught["function"], mutant
        assert mutant.caught["artifact"], mutant
