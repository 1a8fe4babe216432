"""Rows of `mappings/expand.py`."""

import torch
from equivalence import Call

from cases.common import TOKENS, parameter

EXPANSION = {
    "a class token in front of every example": (
        Call(lambda self, x: torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1), token=parameter(1, 1, 11)),
        TOKENS,
    ),
    "a constant repeated along the batch and an axis": (
        Call(lambda self, x: torch.cat([self.c.expand(x.shape[0], 4, 11), x], 1), c=parameter(1, 11)),
        TOKENS,
    ),
    "a value repeated along the batch": (lambda x: x.mean(0, keepdim=True).expand(x.shape[0], 6, 11) + 1, TOKENS),
    "a value repeated along an axis in front of the batch": (lambda x: x.expand(3, -1, -1, -1) * 2, TOKENS),
    "zeros, ones and a number for every example": (
        lambda x: (
            torch.cat([torch.zeros(x.shape[0], 2, 11), x, torch.ones(x.shape[0], 1, 11)], 1),
            x.new_full((x.shape[0], 3), 1.5),
            torch.full((x.shape[0], 4), 7),
            torch.full_like(x, 2) + x.new_zeros((x.shape[0], 6, 1)),
            x.new_ones((x.shape[0], 3)),
            torch.zeros_like(x),
            torch.ones_like(x),
        ),
        TOKENS,
    ),
    "a tensor filled by its shape alone is a constant": (
        lambda x: x + torch.cat([x.new_zeros((2, 11)), x.new_full((4, 11), 3.0)]),
        TOKENS,
    ),
}
