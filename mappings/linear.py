"""Linear layers: features are taken in any order, the kernel's rows follow."""

import torch
from keras import layers

from converter.layout import Layout
from converter.plan import Constant, Unsupported
from converter.registry import maps

aten = torch.ops.aten


@maps(aten.linear.default, produces=-1)
def linear(plan, x, weight, bias=None):
    if not isinstance(weight, Constant):
        raise Unsupported("a weight that is computed from the input")
    if len(x.shape) == 1:
        raise Unsupported("an input without a batch dimension")
    dim = len(x.shape) - 1
    axes = x.layout.last(dim)
    x = plan.request(x, axes if len(axes) > 1 else ((), *axes), "features last")  # a layer takes a batch, if of one
    layout = x.layout
    kernel = weight.take(1, layout.index(layout.dims[dim], layout.axes[-1]))
    units = weight.shape[0]
    fresh = max(layout.size, default=-1) + 1
    run = (fresh,) if units != 1 else ()
    kept = {a: n for a, n in layout.size.items() if a not in layout.dims[dim]}
    result = Layout((*layout.dims[:-1], run), (*layout.axes[:-1], run), kept | dict.fromkeys(run, units))
    result, emitted = plan.produced(result, dim)
    kernel = kernel.take(0, emitted).permute(1, 0)
    bias = None if bias is None else bias.take(0, emitted)
    if len(layout.axes) == 2:
        plain = {"units": units, "use_bias": bias is not None}
        return plan.layer(layers.Dense, plain, x, weights=(kernel, bias), layout=result)
    # Dense would transpose more than two axes on its way
    letters = "abcdefghijklmnop"[: len(layout.axes) - 1]
    config = {
        "equation": f"{letters}y,yz->{letters}z",
        "output_shape": (*(n if isinstance(n, int) else None for n in layout.physical_shape[1:-1]), units),
        "bias_axes": "z" if bias is not None else None,
    }
    return plan.layer(layers.EinsumDense, config, x, weights=(kernel, bias), layout=result)
