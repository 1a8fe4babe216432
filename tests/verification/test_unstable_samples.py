"""A model that computes on with its choice between equals is not compared there; PyTorch says where."""

import contextlib

import numpy as np
import pytest
import torch
from equivalence import Call, captured
from torch import nn

from converter.verification.reference import take_reference
from converter.verification.unstable_samples import alike, computes_on_choices, stable_samples

SCORES = (2, 8)


def best(x, count=3):
    """What stands at the places of the highest scores; large ones are all 1.0."""
    scores, places = x.sigmoid().topk(count)
    return scores, torch.cos(x).gather(1, places)


@pytest.mark.parametrize(
    "function, does",
    [
        pytest.param(best, True, id="values are gathered at the places"),
        pytest.param(lambda x: x.sort(1).indices % 3, True, id="computed with"),
        pytest.param(lambda x: x[torch.arange(x.shape[0]), x.argmax(1)], True, id="an index"),
        pytest.param(lambda x: x.topk(3), False, id="places are only returned"),
        pytest.param(lambda x: x.topk(3).values * 2, False, id="values alone are as continuous as their source"),
        pytest.param(lambda x: x.argmax(1), False, id="a class"),
    ],
)
def test_whether_a_model_computes_on_its_choices(function, does):
    assert computes_on_choices(captured(function, SCORES)) == does


def test_samples_with_equal_scores_are_open():
    program = captured(best, SCORES)
    x = torch.tensor([[3.0, 1, 4, -1, 5, -9, 2, -6], [90, 80, -3, 70, 60, 50, 85, 75], [-1, 1, 0.5, 2, 3, 0, -2, -3]])
    np.testing.assert_array_equal(stable_samples(program, [x], 3, seed=0), [True, False, True])


def peaks(x, choose):
    """What stands at the places that are chosen of scores of which many are exactly 0."""
    return torch.cos(x).gather(1, choose(x.relu()))


@pytest.mark.parametrize(
    "choose, held",
    [
        pytest.param(lambda scores: scores.topk(3).indices, [True, False], id="topk"),
        pytest.param(lambda scores: scores.sort(1, descending=True).indices[:, :3], [True, False], id="sort"),
        pytest.param(lambda scores: scores.argsort(1)[:, 5:], [True, False], id="argsort"),
        pytest.param(lambda scores: scores.kthvalue(5, 1, True).indices, [True, False], id="kthvalue"),
        pytest.param(
            lambda scores: torch.sort(scores, stable=True, dim=1).indices[:, :3], [True, True], id="stable sort"
        ),
        pytest.param(lambda scores: scores.max(1, True).indices, [True, True], id="the first of the largest"),
    ],
)
def test_scores_that_stay_equal_are_open_where_pytorch_leaves_their_order_open(choose, held):
    program = captured(lambda x: peaks(x, choose), SCORES)
    x = torch.tensor([[3.0, 1, 4, -1, 5, 9, 2, 6], [-1, -2, 3, -3, -4, -5, 2, -6]])
    np.testing.assert_array_equal(stable_samples(program, [x], 2, seed=0), held)


@pytest.mark.parametrize(
    "expected, other, held",
    [
        ([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0 + 1e-8], [3.0, 3.9]], [True, False]),
        ([[1, 2], [3, 4]], [[1, 2], [4, 3]], [True, False]),
        ([[np.inf, 1.0], [np.nan, 1.0]], [[np.inf, 1.0], [0.0, 1.0]], [True, False]),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.5], [False, False]),
    ],
    ids=["floats", "integers", "infinities", "an output without samples"],
)
def test_alike_in_each_sample(expected, other, held):
    np.testing.assert_array_equal(alike(np.asarray(expected), np.asarray(other), 2, 1e-6), held)


def reference_of(module: nn.Module):
    program = captured(module, SCORES)
    module = module if isinstance(module, nn.Module) else Call(module)
    return take_reference(program, None, seed=0, inputs=None, running=contextlib.nullcontext)


@pytest.mark.slow
def test_a_reference_leaves_open_samples_out_and_says_so():
    reference = reference_of(Call(lambda x: best(x * 20)))
    told = [description for description in reference.compared_on.rounds if "left out" in description]
    assert told
    assert all("choices depend on rounding" in description for description in told)
    for each, outputs in zip(reference.rounds, reference.float64, strict=True):
        (images,) = each.arrays.values()
        assert {len(array) for array in outputs.values()} == {len(images)}
    usual = [description for description in reference.compared_on.rounds if description.startswith("normal")]
    assert len(usual) == 2
    assert not any("all" in description for description in usual)


@pytest.mark.slow
def test_usual_samples_whose_scores_are_equal_are_left_out_unless_none_remains():
    reference = reference_of(Call(lambda x: best(x * 35)))
    assert [d for d in reference.compared_on.rounds if d.startswith("normal")] == [
        "normal, batch 1 (2 left out, whose choices depend on rounding)",
        "normal, batch 1: left out, because choices depend on rounding",
    ]
    whole = reference_of(Call(lambda x: best(x * 0 + 50)))
    assert [d for d in whole.compared_on.rounds if d.startswith("normal")] == ["normal, batch 1", "normal, batch 3"]


@pytest.mark.slow
def test_the_users_samples_with_equal_scores_are_left_out_by_number_with_their_labels():
    program = captured(lambda x: peaks(x, lambda scores: scores.topk(3).indices), SCORES)
    apart, equal = [3, 1, 4, -1, 5, 9, 2, 6], [-1, -2, 3, -3, -4, -5, 2, -6]

    def compared(*samples):
        given = {program.inputs[0]: np.asarray(samples, "float32"), "labels": np.arange(len(samples))}
        reference = take_reference(program, None, seed=0, inputs=given, running=contextlib.nullcontext)
        rounds = reference.rounds[reference.first_given :]
        told = [description for description in reference.compared_on.rounds if description.startswith("given")]
        return next(iter(rounds[0].arrays.values())).tolist(), reference.labels.tolist(), told

    why = "left out, because choices depend on the order of equal scores"
    told = [f"given, samples 0 to 3 (1, 3 {why})"]
    assert compared(apart, equal, apart, equal) == ([apart, apart], [0, 2], told)
    assert compared(equal, equal) == ([equal, equal], [0, 1], ["given, samples 0 to 1"])
    samples, labels, told = compared(*[equal] * 32, apart)
    numbers = ", ".join(map(str, range(32)))
    assert (samples, labels) == ([apart], [32])
    assert told == ["given, samples 32 to 32", f"given, samples 0 to 31: {numbers} {why}"]


def test_a_model_without_such_choices_is_compared_on_everything():
    reference = reference_of(Call(lambda x: (x * 20).sigmoid().topk(3).values))
    assert not [d for d in reference.compared_on.rounds if "left out" in d]
