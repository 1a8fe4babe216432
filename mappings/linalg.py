"""Factorizations and solutions that Keras supports too, of matrices in the last two dimensions.

Results that are unique only up to signs or order (singular vectors, eigenvectors) are not mapped, because libraries
choose differently.
"""

import numpy as np
import torch

from converter.plan.layout import Layout
from converter.plan.lazy_keras import backend, ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value
from mappings.expand import expanded
from mappings.gather_scatter import number
from mappings.sort import is_used

aten = torch.ops.aten


def of_matrices(plan, function, *operands, shape, dtype=None):
    """Apply `function` to matrices with their batch dimensions in PyTorch's order."""
    like = next(o for o in operands if isinstance(o, Value))
    held = [plan.in_torch_order(plan.as_value(o, like), "matrices last") for o in operands]
    given = [plan.relayout(h, tuple(h.layout.dims), "matrices last") for h in held]
    return plan.call(function, *given, layout=Layout.of(shape), dtype=dtype or operands[0].dtype)


def with_status(plan, result, at=1):
    """Add the status number of PyTorch's `_ex` functions, which reports errors; 0 means none."""
    status = expanded(plan, number(0, torch.int32), plan.shape(at)) if is_used(plan, at) else None
    return [result, status]


@maps(aten.linalg_inv.default)
def inverse_alone(plan, x):
    return of_matrices(plan, ops.inv, x, shape=plan.shape())


@maps(aten.linalg_inv_ex.default)
def inverse(plan, x, *, check_errors=False):
    return with_status(plan, of_matrices(plan, ops.inv, x, shape=plan.shape(0)))


def factor(upper):
    """Return the Cholesky function; PyTorch reads only the triangle that it writes, Keras only the lower."""
    if not upper:
        return ops.cholesky
    return lambda a: ops.swapaxes(ops.cholesky(ops.swapaxes(a, -1, -2)), -1, -2)


@maps(aten.linalg_cholesky_ex.default)
def cholesky_with_status(plan, x, *, upper=False, check_errors=False):
    return with_status(plan, of_matrices(plan, factor(upper), x, shape=plan.shape(0)))


@maps("aten::cholesky", aten.linalg_cholesky.default)  # PyTorch 2.14.1 no longer has the first name
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
    if is_used(plan, 1) or is_used(plan, 2):
        raise Unsupported("the factors from which the solution was computed")
    value, status = with_status(plan, solution(plan, a, b, plan.shape(0), left), 3)
    return [value, None, None, status]


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
    """Solve a triangular system; `unitriangular` takes the diagonal as ones."""
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


# -- spectra. Singular vectors and eigenvectors are known only up to a sign, which libraries choose differently.

OPEN = "vectors whose signs are not determined; the values alone can be converted"


@maps(aten._linalg_svd.default)
def singular_values(plan, x, full_matrices=False, compute_uv=True, *, driver=None):
    if is_used(plan, 0) or is_used(plan, 2):
        raise Unsupported(OPEN)
    values = of_matrices(plan, lambda a: ops.svd(a, full_matrices=False, compute_uv=False), x, shape=plan.shape(1))
    return [None, values, None]


@maps(aten._linalg_eigh.default)
def eigenvalues(plan, x, UPLO="L", compute_v=True):  # noqa: N803 as in the operator's schema
    """Compute a symmetric matrix's eigenvalues; both libraries read only one triangle, Keras the lower."""
    if is_used(plan, 1):
        raise Unsupported(OPEN)
    upper = UPLO.upper() == "U"
    values = of_matrices(plan, lambda a: ops.eigh(ops.swapaxes(a, -1, -2) if upper else a)[0], x, shape=plan.shape(0))
    return [values, None]


@maps(aten.linalg_pinv.atol_rtol_tensor, aten.linalg_pinv.atol_rtol_float)
def pseudo_inverse(plan, x, *, atol=None, rtol=None, hermitian=False):
    """Zero singular values up to `rtol` (default: the larger side, times the type's epsilon) times the largest."""
    atol, rtol = (t.scalar() if isinstance(t, Constant) and t.is_scalar else t for t in (atol, rtol))
    if isinstance(rtol, Value | Constant) or atol not in (None, 0.0):
        raise Unsupported("an absolute or a computed tolerance")
    larger = max(x.shape[-2:])

    def function(a):
        least = larger * float(np.finfo(backend.standardize_dtype(a.dtype)).eps) if rtol is None else rtol
        if hermitian:  # PyTorch reads only the lower triangle
            a = ops.tril(a) + ops.swapaxes(ops.tril(a, -1), -1, -2)
        return ops.pinv(a, rcond=least)

    return of_matrices(plan, function, x, shape=plan.shape())


@maps(aten.linalg_qr.default)
def orthogonal_triangular(plan, a, mode="reduced"):
    """Compute a QR factorization; both libraries use Householder reflections, so the signs agree."""
    if mode == "r" and is_used(plan, 0):
        orthogonal = expanded(plan, number(0.0, a.dtype), plan.shape(0))
    else:
        orthogonal = factor_of(plan, a, mode, 0)
    return [orthogonal, factor_of(plan, a, mode, 1)]


def factor_of(plan, a, mode, position):
    if not is_used(plan, position):
        return None
    keras_mode = "complete" if mode == "complete" else "reduced"
    return of_matrices(plan, lambda a: ops.qr(a, mode=keras_mode)[position], a, shape=plan.shape(position))
