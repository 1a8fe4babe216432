"""SavedModels of ours as TensorFlow's own converter turns them into TFLite: the same function, or refused by name.

The converter keeps 32 bits of some numbers and says nothing. Slices run by default; the systems, every kind of network
and random ones with -m systems.
"""

import re

import pytest
import torch
from equivalence import Call
from networks import KIND_NETWORKS, RANDOM_NETWORKS, SYSTEM_NETWORKS, Network, of_module, outcomes, selected
from torch import nn

ROLL = ("convert", "'tf.Roll' op is neither a custom op nor a flex op")
RECURRENT = ("convert", "'tf.TensorListReserve' op requires element_shape to be static")  # with a dynamic batch
REFUSED = {
    "Swin: roll, windows, mask": ROLL,
    "detector with a heat map and top-k": ("convert", "'tf.FloorDiv' op is neither a custom op nor a flex op"),  # int64
    "U-Net of volumes with gates": ("convert", "'tfl.prelu' op failed to verify .* within the rank 4"),
    "speech, convolutions and GRUs": RECURRENT,
    "speech, convolutions and an LSTM": RECURRENT,
}
QUICK = {"detector with anchors", "speech, relative attention and gated convolutions"}


def cuts(x):
    return (
        x[:, 1:], x[:, :, -3:], x[:, -9:2], x[:, :, ::2], x[..., 5:], x[:, :-1], x[:, -1], x[:, :, 1:-1], x[..., 2:99],
        x[:, -(2**62) :] + 1, torch.cat([x[:, 2:], x[:, :2]], 1),
    )  # fmt: skip


def written_to(x):
    y = x.clone()
    y[:, 2:] = 1.0
    y[:, :, -2:] = x[:, :, :2]
    y[:, -1] = 0.0
    y[:, :, 1::2] *= 2
    return y


SLICES = [
    of_module("slices with an open end", lambda: Call(cuts), (1, 6, 9, 8)),
    of_module("slices behind a convolution", lambda: nn.Sequential(nn.Conv2d(6, 6, 3), Call(cuts)), (1, 6, 11, 10)),
    of_module("slices that are written to", lambda: Call(written_to), (1, 6, 9, 8)),
]
DILATED = [
    of_module(
        "dilated convolutions",
        lambda: nn.Sequential(
            nn.Conv2d(6, 8, 3, dilation=2),
            nn.Conv2d(8, 8, 3, dilation=(1, 2), groups=8, padding=2),
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(4, 6, 3, dilation=2, groups=2, padding="same"),
        ),
        (1, 6, 9, 11),
    )
]
ROWS = [
    pytest.param(row, id=row.title, marks=[] if quick or row.title in QUICK else pytest.mark.systems)
    for quick, rows in (
        (True, [*SLICES, *DILATED]),
        (False, [*SYSTEM_NETWORKS, *KIND_NETWORKS, *RANDOM_NETWORKS]),
    )
    for row in rows
]


@pytest.fixture(scope="module")
def made(request, torchvision, tmp_path_factory):
    rows = selected(request, test_tflite_computes_the_same_or_is_refused_by_name)
    return outcomes(rows, "tf", "in_tflite.py", tmp_path_factory.mktemp("tflite"), {})


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_tflite_computes_the_same_or_is_refused_by_name(row: Network, made):
    outcome = made[row.title]
    if row in RANDOM_NETWORKS and outcome.failed:
        assert any(outcome.failed == step and re.search(reason, outcome.error) for step, reason in REFUSED.values())
    elif row.title in REFUSED:
        step, reason = REFUSED[row.title]
        assert outcome.failed == step, outcome.error
        assert re.search(reason, outcome.error)
    else:
        assert outcome.failed is None, outcome.error
        outcome.case.assert_agrees(outcome.results)
