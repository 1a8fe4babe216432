"""Verifying an artifact of ours does not search again for what its plan chose; the stamp says it."""

import logging

import numpy as np
import pytest
import torch
from equivalence import captured, planned
from torch import nn

from converter.lowering import planner
from converter.lowering.planner import make_plan
from converter.options import ArtifactOptions, LoadOptions
from converter.pipeline.build import build
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model
from converter.pipeline.verify import prove_stamped_weights
from converter.plan.builder import Choices
from converter.verification.prove import expected_tensors

logging.getLogger("torch.__trace").propagate = False
OTHERS = {"eager_moves": ["no_such_operator"], "channels_last_inputs": [], "channel_orders": {}}


class Heads(nn.Module):
    """Attention among channels: a plan that moves something, and saves movement by a choice."""

    def __init__(self):
        super().__init__()
        self.project, self.join = nn.Conv2d(6, 36, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x):
        batch, _, height, width = x.shape
        q, k, v = self.project(x).reshape(batch, 3, 4, 3, height * width).unbind(1)
        mixed = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        return self.join(mixed.reshape(batch, 12, height, width))


@pytest.fixture(scope="module")
def plan():
    found = planned(captured(Heads(), (2, 6, 5, 7)))
    assert found.choices != Choices()
    return found


def test_known_choices_give_the_plan_without_a_search(plan, monkeypatch):
    monkeypatch.setattr(planner, "search_layouts", pytest.fail)
    again = make_plan(plan.program, known=plan.choices.by_name())
    assert (again.choices, again.cost) == (plan.choices, plan.cost)


def test_choices_of_operators_that_are_not_there_are_searched_for(plan):
    assert make_plan(plan.program, known=OTHERS).choices == plan.choices


class Opened:
    """What a runner tells of an artifact's weights."""

    def __init__(self, tensors):
        self.held = tensors

    def tensors(self):
        return self.held

    def graph_as_written(self):
        return True


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return load_model(Heads().eval(), LoadOptions.of(input_shapes=["1,6,5,7"]), clock=Clock(None))


def everything_eager(stamp, source):
    names = [node.name for node in source.program.graph.nodes if node.op == "call_function"]
    return {**stamp["choices"], "eager_moves": names}


@pytest.mark.parametrize(
    "choices",
    [lambda stamp, source: stamp["choices"], lambda *_: None, lambda *_: OTHERS, everything_eager],
    ids=["those of its plan", "none, as of an older version", "of operators that are not there", "of another plan"],
)
def test_weights_hold_whatever_the_stamp_says_and_a_disturbed_one_does_not(source, choices):
    built = build(source, "keras", ArtifactOptions(), Clock(None))
    held = {name: np.asarray(one.array, np.float32) for name, one in expected_tensors(built, {}).items()}
    stamp = {"options": vars(ArtifactOptions()), "choices": choices(built.stamp(), source)}
    assert prove_stamped_weights(source, "keras", stamp, Opened(held), Clock(None))[0][0].holds
    disturbed = {name: array * np.float32(1.001) for name, array in held.items()}
    assert not prove_stamped_weights(source, "keras", stamp, Opened(disturbed), Clock(None))[0][0].holds
