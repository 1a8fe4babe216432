"""Rows of `mappings/unfold.py`."""

import torch.nn.functional as F
from torch import nn

from cases.common import EVEN

WINDOWS = {
    "unfold into tiles": (lambda x: F.unfold(x, (2, 4), stride=(2, 4)), EVEN),
    "unfold into tiles behind a convolution": (
        nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.Unfold(2, stride=2)),
        EVEN,
    ),
    "unfold into one window": (lambda x: F.unfold(x, (10, 8), stride=(10, 8)), EVEN),
    "fold of tiles": (
        lambda x: F.fold(F.unfold(x, (5, 2), stride=(5, 2)).relu(), (10, 8), (5, 2), stride=(5, 2)),
        EVEN,
    ),
}  # fmt: skip
