"""PyTorch's own sample inputs of its operators: none may be wrong. All of them: -m conformance."""

import json
from pathlib import Path

import pytest
import torch
from keras import ops
from operator_conformance import Sample, check, conformance, out_of_scope, rule_for, samples_of
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten

import mappings
from converter.plan.registry import OperatorRecord

aten = torch.ops.aten
RECORDED = json.loads((Path(__file__).resolve().parents[2] / "docs/operators.json").read_text(encoding="utf-8"))
NAMES = {".".join(filter(None, (info.name, info.variant_test_name))): info for info in op_db}
FEW = list(NAMES)[::14]


def call(function, *arguments) -> Sample:
    leaves, spec = tree_flatten((arguments, {}))
    return Sample("float32 0", function, tuple(leaves), spec)


@pytest.mark.parametrize("name", FEW)
def test_no_sample_is_wrong(name):
    """Of every fourteenth operator, one sample of each type."""
    row = conformance(NAMES[name], most=1, artifacts=1)
    assert not [reason for reason in row["reasons"] if reason[0] != "refused"]


@pytest.mark.conformance
@pytest.mark.parametrize("name", NAMES)
def test_no_sample_of_any_operator_is_wrong(name):
    row = conformance(NAMES[name])
    assert not [reason for reason in row["reasons"] if reason[0] != "refused"]


def test_recorded_samples_say_that_none_is_wrong():
    """None has broken the converter; nine of ten samples are right of core operators, and of those in the zoo."""
    groups = {group["name"]: group for group in RECORDED["groups"]}
    assert [(group["wrong"], group["failed"]) for group in groups.values()] == [(0, 0)] * 3
    for name in ("core ATen", "used by a model of the zoo"):
        assert groups[name]["right"] >= 0.9 * (groups[name]["right"] + groups[name]["refused"])


def test_recorded_samples_cover_every_operator_of_the_suite():
    """Those that a newer PyTorch adds to it are tried here: none may be wrong, or break the converter."""
    left_out = {name for names in RECORDED["left_out"].values() for name in names}
    new = NAMES.keys() - {row["name"] for row in RECORDED["rows"]} - left_out
    assert not new or RECORDED["torch"] != torch.__version__.partition("+")[0]
    rows = [conformance(NAMES[name], most=3, artifacts=1) for name in new]
    assert not [reason for row in rows for reason in row["reasons"] if reason[0] != "refused"]


def test_a_wrong_mapping_is_found_and_blamed(monkeypatch):
    x = torch.linspace(-2, 2, 7)
    samples = [call(torch.neg, x), call(torch.exp, x), call(torch.neg, x.abs() + 1)]
    assert [o.status for o in check(samples, artifacts=True)] == ["right"] * 3
    wrong = OperatorRecord(lambda plan, x: plan.elementwise(ops.abs, x))
    monkeypatch.setitem(mappings.load().records, aten.neg.default, wrong)
    assert [o.status for o in check(samples)] == ["wrong", "right", "wrong"]


def test_an_artifact_that_differs_from_the_proof_is_found(monkeypatch):
    """A mapping that is right in float64 only."""
    wrong = OperatorRecord(
        lambda plan, x: plan.elementwise(lambda a: ops.exp(a) + (0.01 if "float32" in str(a.dtype) else 0), x)
    )
    monkeypatch.setitem(mappings.load().records, aten.exp.default, wrong)
    sample = call(torch.exp, torch.linspace(-2, 2, 7))
    assert check([sample])[0].status == "right"
    assert check([sample], artifacts=True)[0].status == "wrong"


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(torch.unique, id="unique"),
        pytest.param(torch.nonzero, id="nonzero"),
        pytest.param(lambda x: torch.masked_select(x, x > 0), id="masked_select"),
        pytest.param(lambda x: x[x > 0], id="an index by a mask"),
    ],
)
def test_sizes_that_depend_on_values_are_refused_by_name(function):
    (outcome,) = check([call(function, torch.linspace(-2, 2, 7))])
    assert outcome.status == "refused"
    assert "depends on values" in outcome.reason


def test_what_is_left_out_is_left_out_by_a_rule():
    assert rule_for(NAMES["bernoulli"]) == "random"
    assert rule_for(NAMES["fft.fft"]) == "fourier transform"
    assert rule_for(NAMES["add"]) == ""
    assert not any(out_of_scope(sample) for sample in samples_of(NAMES["add"], most=2))
    assert out_of_scope(call(torch.rand_like, torch.zeros(5))) == "random"
