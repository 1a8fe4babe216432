"""Factorisations and solutions that Keras has too, of matrices in the last two dimensions.

Those that are unique up to signs or order only (QR, SVD, eigenvectors) are not mapped: libraries choose differently.
"""

import torch
from keras import ops

from converter.layout import Layout
from converter.plan import Value
from converter.registry import maps
from mappings.addressing import number
from mappings.expansion import expanded
from mappings.ordering import is_used

aten = torch.ops.aten


def of_matrices(plan, function, *operands, shape, dtype=None):
    """`function` of matrices with their batch dimensions in PyTorch's order."""
    like = next(o for o in operands if isinstance(o, Value))
    held = [plan.as_torch(plan.as_value(o, like), "matrices last") for o in operands]
    given = [plan.request(h, tuple(h.layout.dims), "matrices last") for h in held]
    return plan.call(function, *given, layout=Layout.of(shape), dtype=dtype or operands[0].dtype)


def with_status(plan, result):
    """PyTorch's `_ex` functions return a number that says what went wrong; 0 is nothing."""
    status = expanded(plan, number(0, torch.int32), plan.shape(1)) if is_used(plan, 1) else None
    return [result, status]


@maps(aten.linalg_inv.default)
def inverse_alone(plan, x):
    return of_matrices(plan, ops.inv, x, shape=plan.shape())


@maps(aten.linalg_inv_ex.default)
def inverse(plan, x, *, check_errors=False):
    return with_status(plan, of_matrices(plan, ops.inv, x, shape=plan.shape(0)))


def factor(upper):
    """Of a symmetric matrix both libraries read one triangle only: PyTorch the one that it writes, Keras the lower."""
    if not upper:
        return ops.cholesky
    return lambda a: ops.swapaxes(ops.cholesky(ops.swapaxes(a, -1, -2)), -1, -2)


@maps(aten.linalg_cholesky_ex.default)
def cholesky_with_status(plan, x, *, upper=False, check_errors=False):
    return with_status(plan, of_matrices(plan, factor(upper), x, shape=plan.shape(0)))


@maps(aten.cholesky.default, aten.linalg_cholesky.default)
def cholesky(plan, x, upper=False):
    return of_matrices(plan, factor(upper), x, shape=plan.shape())


@maps(aten._linalg_det.default)
def determinant(plan, x):
    return [of_matrices(plan, ops.det, x, shape=plan.shape(0)), None, None]


@maps(aten._linalg_slogdet.default)
def sign_and_log_determinant(plan, x):
    return [of_matrices(plan, lambda a, i=i: ops.slogdet(a)[i], x, shape=plan.shape(i)) for i in (0, 1)] + [None, None]


@maps(aten._linalg_solve_ex.default)
def solve_with_factors(plan, a, b, *, left=True, check_errors=False):
    return [solution(plan, a, b, plan.shape(0), left), None, None, None]


@maps(aten.linalg_solve.default)
def solve(plan, a, b, *, left=True):
    return solution(plan, a, b, plan.shape(), left)


def solution(plan, a, b, shape, left):
    vector = len(b.shape) == 1 or (len(b.shape) == len(a.shape) - 1 and tuple(b.shape) == tuple(a.shape[:-1]))

    def function(a, b):
        b = ops.expand_dims(b, -1) if vector else b
        a, b = (a, b) if left else (ops.swapaxes(a, -1, -2), ops.swapaxes(b, -1, -2))
        x = ops.solve(a, b)
        x = x if left else ops.swapaxes(x, -1, -2)
        return ops.squeeze(x, -1) if vector else x

    b = expanded(plan, b, shape)
    a = expanded(plan, a, (*shape[: len(shape) - (1 if vector else 2)], *a.shape[-2:]))
    return of_matrices(plan, function, a, b, shape=shape)


@maps(aten.linalg_solve_triangular.default)
def solve_triangular(plan, a, b, *, upper, left=True, unitriangular=False):
    """With the diagonal taken as ones where `unitriangular`."""
    shape = plan.shape()
    size = a.shape[-1]

    def function(a, b):
        if unitriangular:
            one = ops.eye(size, dtype=a.dtype)
            a = a * (1 - one) + one
        a = ops.triu(a) if upper else ops.tril(a)
        if left:
            return ops.solve_triangular(a, b, lower=not upper)
        turned = ops.solve_triangular(ops.swapaxes(a, -1, -2), ops.swapaxes(b, -1, -2), lower=upper)
        return ops.swapaxes(turned, -1, -2)

    b = expanded(plan, b, shape)
    a = expanded(plan, a, (*shape[:-2], *a.shape[-2:]))
    return of_matrices(plan, function, a, b, shape=shape)
