"""Linear layers: features may come in any order, the kernel's rows follow."""

from itertools import chain

import torch

from converter.plan.layout import Layout
from converter.plan.lazy_keras import layers, ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported
from mappings.elementwise import sum_of
from mappings.embedding import is_tied, table_layer
from mappings.reductions import reduced

aten = torch.ops.aten


@maps(aten.linear.default, produces=-1)
def linear(plan, x, weight, bias=None):
    if not isinstance(weight, Constant):
        raise Unsupported("a weight that depends on the input")
    if is_tied(plan, weight) and len(x.shape) > 1:
        return scores(plan, x, weight, bias)
    if len(x.shape) == 1:
        return plan.reshape(features_last(plan, plan.reshape(x, (1, *x.shape)), weight, bias), plan.shape())
    return features_last(plan, x, weight, bias)


def features_last(plan, x, weight, bias, name=None):
    dim = len(x.shape) - 1
    axes = x.layout.dim_last(dim)
    if not plan.stock and sum(not isinstance(x.layout.size[a], int) for run in axes[:-1] for a in run) <= 1:
        axes = (tuple(chain(*axes[:-1])), axes[-1])  # TensorFlow fuses a product of two axes with its activation
    x = plan.relayout(x, axes if len(axes) > 1 else ((), *axes), "features last")  # a layer needs a batch, even of 1
    layout = x.layout
    kernel = weight.index_select(1, layout.index(layout.dims[dim], layout.axes[-1]))
    units = weight.shape[0]
    fresh = max(layout.size, default=-1) + 1
    run = (fresh,) if units != 1 else ()
    kept = {a: n for a, n in layout.size.items() if a not in layout.dims[dim]}
    result = Layout((*layout.dims[:-1], run), (*layout.axes[:-1], run), kept | dict.fromkeys(run, units))
    result, emitted = plan.choose_channel_order(result, dim)
    kernel = kernel.index_select(0, emitted).permute(1, 0)
    bias = None if bias is None else bias.index_select(0, emitted)
    if len(layout.axes) == 2:
        plain = {"units": units, "use_bias": bias is not None}
        return plan.layer(layers.Dense, plain, x, weights=(kernel, bias), layout=result, name=name)
    # Dense would transpose an input of more than two axes
    letters = "abcdefghijklmnop"[: len(layout.axes) - 1]
    config = {
        "equation": f"{letters}y,yz->{letters}z",
        "output_shape": (*(n if isinstance(n, int) else None for n in layout.physical_shape[1:-1]), units),
        "bias_axes": "z" if bias is not None else None,
    }
    if met_at_several_sizes(plan):
        config |= {"equation": "...y,yz->...z", "output_shape": units}
    return plan.layer(layers.EinsumDense, config, x, weights=(kernel, bias), layout=result, name=name)


def met_at_several_sizes(plan):
    """Return whether Linears on values of other sizes share the operator's weight: one layer must take them all."""
    weight = plan.node.args[1] if plan.node.target is aten.linear.default else None
    if weight is None or not plan.program.is_tensor(weight):
        return False
    twins = [n for n in plan.program.graph.find_nodes(op="get_attr") if n.target == weight.target]
    users = {user for twin in twins for user in twin.users if user.target == plan.node.target}
    return len({tuple(map(str, user.args[0].meta["val"].shape[1:])) for user in users}) > 1


def scores(plan, x, table, bias):
    """Score each row of an embedding's table with the layer that looks rows up."""
    dim = len(x.shape) - 1
    x = plan.relayout(x, (*x.layout.dim_last(dim)[:-1], x.layout.dims[dim]), "features last, in an embedding's order")
    layout, _ = x.layout.resize_dim(dim, table.shape[0])
    y = table_layer(plan, x, table, layout, reverse=True)
    return y if bias is None else plan.elementwise(sum_of, y, bias)


@maps(aten.bilinear.default)
def bilinear(plan, first, second, weight, bias=None):
    """Compute the sum over i, j of first[i] weight[o, i, j] second[j].

    It is a Linear of the first to (o, j), then its product with the second.
    """
    if not isinstance(weight, Constant):
        raise Unsupported("a weight that depends on the input")
    if isinstance(first, Constant) or isinstance(second, Constant):
        raise Unsupported("an operand that does not depend on the input")
    out, into, other = weight.shape
    batch = first.shape[:-1]
    flat = weight.permute(0, 2, 1).reshape(out * other, into)
    rows = plan.reshape(first, (*batch, into) if batch else (1, into))
    rows = plan.reshape(features_last(plan, rows, flat, None), (*batch, out, other))
    products = plan.elementwise(lambda a, b: a * b, rows, plan.reshape(second, (*batch, 1, other)))
    summed = reduced(plan, products, [-1], False, lambda a, axes: ops.sum(a, axis=axes))
    return summed if bias is None else plan.elementwise(sum_of, summed, bias)
