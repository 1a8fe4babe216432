"""Sizes and inputs that several families use. No two axes of a shape have the same size."""

import torch
import torch.nn.functional as F
from equivalence import Call, Input
from torch import nn

aten = torch.ops.aten
ours = torch.ops.converter
CUBE = (2, 6, 6, 6)
EVEN = (2, 6, 10, 8)
FLOATS = (2, 6, 9)
IMAGE = (2, 6, 9, 8)
SEQUENCE = (2, 6, 11)
TOKENS = (2, 6, 11)
VOLUME = (2, 4, 5, 7, 6)
INTS = Input((2, 6, 9), torch.int64)
MASK = Input((2, 6, 9), torch.bool)
PICKS = Input((2, 4, 11), torch.int64, 0, 6)
TIES = Input(TOKENS, torch.int64, -2, 3)
TOKEN_MASK = Input(TOKENS, torch.bool)


def constant(*values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype)


def last(x):
    """Channels last, so that what follows must not take the array for PyTorch's order."""
    return F.max_pool2d(x, 1)


def of_convolution(function):
    """`function` of what lies channels last."""
    return Call(lambda self, x: function(self.conv(x)), conv=nn.Conv2d(6, 4, 1))


def parameter(*shape):
    return nn.Parameter(torch.zeros(shape))


def split_channels(x):
    """Channels in an order that a view made: two atoms, physically the other way round."""
    return x.view(-1, 2, 3, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


def spread(x, size):
    """Square matrices that are far from singular."""
    return torch.tanh(x[..., :size, :size]) + 3 * torch.eye(size)
