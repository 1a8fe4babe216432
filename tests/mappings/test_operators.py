"""PyTorch's own sample inputs of its operators: none may be wrong. All of them: -m conformance."""

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
TABLE = Path(__file__).resolve().parents[2] / "docs" / "OPERATORS.md"
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


def test_committed_table_says_that_none_is_wrong():
    """None has broken the converter; nine of ten samples are right of core operators, and of those in the zoo."""
    text = TABLE.read_text()
    assert "wrong:" not in text
    assert "failed:" not in text
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    header = lines.index(["operators", "samples", "right", "refused", "wrong", "failed", "right of all"])
    summary = {
        cells[0].split(":")[0]: dict(zip(lines[header], cells, strict=True)) for cells in lines[header + 1 : header + 4]
    }
    assert [(row["wrong"], row["failed"]) for row in summary.values()] == [("none", "none")] * 3
    for group in ("core ATen", "used by a model of the zoo"):
        assert float(summary[group]["right of all"].rstrip("%")) >= 90


def test_committed_table_has_every_operator_of_the_suite():
    cells = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    measured = {row[0] for row in cells if row[0] in NAMES}
    left_out = {name for row in cells if len(row) == 2 for name in row[1].split(", ")}
    assert measured | left_out >= NAMES.keys()


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
