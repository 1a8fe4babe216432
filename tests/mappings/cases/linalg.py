"""Rows of `mappings/linalg.py`."""

import torch
from equivalence import Call
from torch import nn

from cases.common import IMAGE, last, spread
from converter.plan.registry import find_operator

MATRICES = {
    "inverse, determinants": (
        lambda x: (
            torch.linalg.inv(spread(x, 5)),
            torch.linalg.det(spread(x, 5)),
            *torch.linalg.slogdet(spread(x, 4)),
        ),
        IMAGE,
    ),
    "inverse of channels last": (lambda x: torch.linalg.inv(spread(last(x), 5)), IMAGE),
    "cholesky": (
        lambda x: tuple(
            torch.linalg.cholesky(spread(x, 5) @ spread(x, 5).transpose(2, 3), upper=upper) for upper in (True, False)
        ),
        IMAGE,
    ),
    "solve": (
        lambda x: (
            torch.linalg.solve(spread(x, 5), x[..., :5, :3]),
            torch.linalg.solve(spread(x, 5), x[..., :3, :5], left=False),
            torch.linalg.solve(spread(x, 5), x[..., :5, 0]),
        ),
        IMAGE,
    ),
    "solve_triangular": (
        lambda x: tuple(
            torch.linalg.solve_triangular(spread(x, 5), b, upper=upper, left=left, unitriangular=ones)
            for upper, left, ones, b in (
                (True, True, False, x[..., :5, :3]),
                (False, True, True, x[..., :5, :3]),
                (True, False, True, x[..., :3, :5]),
                (False, False, False, x[..., :3, :5]),
            )
        ),
        IMAGE,
    ),
    "products of matrices and vectors": (
        Call(
            lambda self, x: (torch.mv(x[0, 0, :, :5], self.v), torch.dot(x[0, 0, 0, :5], self.v)),
            v=nn.Parameter(torch.zeros(5)),
        ),
        IMAGE,
    ),
}

if find_operator("aten::cholesky"):
    MATRICES["cholesky by its old name"] = (
        lambda x: tuple(torch.cholesky(spread(x, 5) @ spread(x, 5).mT, upper=upper) for upper in (True, False)),
        IMAGE,
    )
