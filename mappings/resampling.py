"""Resampling."""

import numpy as np
import torch
from keras import layers, ops

from converter.layout import channels_last_result
from converter.plan import Unsupported
from converter.registry import maps

aten = torch.ops.aten


@maps(aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default, channels_last=True)
def upsample_nearest2d(plan, x, output_size=None, scale_factors=None, *_):
    x, _ = plan.channels_last(x)
    shape = plan.shape()
    old, new = x.shape[2:], shape[2:]
    if not all(isinstance(n, int) for n in (*old, *new)):
        raise Unsupported("an unknown size")
    layout = channels_last_result(x.layout, shape, channels=1)
    if all(n % m == 0 for n, m in zip(new, old, strict=True)):
        factors = tuple(n // m for n, m in zip(new, old, strict=True))
        return plan.layer(layers.UpSampling2D, {"size": factors, "interpolation": "nearest"}, x, layout=layout)
    scales = [
        1 / f if f else m / n for f, m, n in zip(scale_factors or (None, None), old, new, strict=True)
    ]
    rows, columns = (
        np.minimum(np.floor(np.arange(n, dtype="float32") * np.float32(s)), m - 1).astype("int32")
        for n, m, s in zip(new, old, scales, strict=True)
    )
    return plan.call(lambda a: ops.take(ops.take(a, rows, axis=1), columns, axis=2), x, layout=layout)
