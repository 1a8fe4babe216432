"""Multiplication by a constant matrix along one axis: resampling and averaging that are exact in every precision."""

import numpy as np
import torch

from converter.ir.lazy_tensor import LazyTensor
from converter.plan.lazy_keras import ops
from converter.plan.steps import Constant


def multiplied(plan, x, dim, matrix, reason):
    """Multiply dimension `dim` of `x` by `matrix`, a float64 array (new size, old size), without a transpose."""
    size = matrix.shape[0]
    if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(size)):
        return x
    x, axis = plan.isolate_axis(x, dim, reason)
    last = axis == len(x.layout.axes) - 1
    held = np.ascontiguousarray(matrix.T if last else matrix)
    constant = Constant(
        LazyTensor.of(torch.from_numpy(held)), x.dtype, (), False, False, ("matrix", held.shape, held.tobytes())
    )
    layout, _ = x.layout.resize_dim(dim, size)
    return plan.call(lambda m, a: along(a, m, axis), plan.as_value(constant, x), x, layout=layout)


def along(array, matrix, axis):
    """Multiply `axis` of `array` by `matrix`, which is (new, old), or (old, new) for the last axis."""
    shape = [-1 if n is None else n for n in array.shape]
    before, size, behind = shape[:axis], shape[axis], shape[axis + 1 :]
    if not behind:  # Keras transposes if the first operand has more than two axes
        return ops.reshape(ops.matmul(ops.reshape(array, (-1, size)), matrix), (*before, matrix.shape[1]))
    columns = array if before and len(behind) == 1 else ops.reshape(array, (*before, size, joined(behind)))
    return ops.reshape(ops.matmul(matrix, columns), (*before, matrix.shape[0], *behind))


def joined(sizes):
    return -1 if -1 in sizes else int(np.prod(sizes))
