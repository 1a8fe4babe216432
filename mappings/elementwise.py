"""Operators that treat every element alike, so they take any layout."""

import torch

from converter.ir.program import module_class
from converter.plan.lazy_keras import backend, layers, ops
from converter.plan.precision import dtype_name
from converter.plan.registry import maps
from converter.plan.steps import Constant, Value

aten = torch.ops.aten


def sign(a):
    """Return the sign of `a`, 0 for NaN."""
    dtype = backend.standardize_dtype(a.dtype)
    return ops.cast(a > 0, dtype) - ops.cast(a < 0, dtype)


# Exact in every precision: `keras.ops.gelu`, `leaky_relu` and others round to float32 internally.
UNARY = {
    aten.abs.default: ops.abs,
    aten.ceil.default: ops.ceil,
    aten.cos.default: ops.cos,
    aten.erf.default: ops.erf,
    aten.exp.default: ops.exp,
    aten.floor.default: ops.floor,
    aten.log.default: ops.log,
    aten.neg.default: ops.negative,
    aten.reciprocal.default: ops.reciprocal,
    aten.rsqrt.default: ops.rsqrt,
    aten.sign.default: sign,
    aten.sin.default: ops.sin,
    aten.sqrt.default: ops.sqrt,
    aten.square.default: ops.square,
}
ACTIVATIONS = {
    aten.relu.default: ("relu", ops.relu),
    aten.relu6.default: ("relu6", ops.relu6),
    aten.silu.default: ("silu", ops.silu),
    aten.sigmoid.default: ("sigmoid", ops.sigmoid),
    aten.tanh.default: ("tanh", ops.tanh),
    aten.hardswish.default: ("hard_silu", ops.hard_silu),
    aten.hardsigmoid.default: ("hard_sigmoid", ops.hard_sigmoid),
    aten.log_sigmoid.default: ("log_sigmoid", ops.log_sigmoid),
}


ROUNDING = {aten.ceil.default, aten.floor.default, aten.round.default, aten.trunc.default}


def activate(plan, x, name, function):
    """Apply a layer with the module's name if the model has a module for it, else an operator."""
    if module_class(plan.node).startswith("torch.nn.modules.activation"):
        return plan.layer(layers.Activation, {"activation": name}, x, layout=x.layout)
    return arithmetic(plan, function, x)


def unary(target, function):
    """Map an operator of one tensor; integers and booleans are cast to the type of the result first."""

    def mapping(plan, x):
        if plan.dtype == torch.bool or (target in ROUNDING and not plan.dtype.is_floating_point):
            return x
        return arithmetic(plan, function, x)

    maps(target)(mapping)


for target, function in UNARY.items():
    unary(target, function)
for target, (name, function) in ACTIVATIONS.items():
    maps(target)(lambda plan, x, name=name, function=function: activate(plan, x, name, function))


@maps(aten.hardtanh.default)
def hardtanh(plan, x, min_val=-1.0, max_val=1.0):
    if not x.dtype.is_floating_point:  # PyTorch truncates the bounds
        low, high = int(min_val), int(max_val)
        return plan.elementwise(lambda a: ops.minimum(ops.maximum(a, low), high), x)
    if (min_val, max_val) == (0, 6):
        return activate(plan, x, "relu6", ops.relu6)
    return plan.elementwise(lambda a: ops.clip(a, min_val, max_val), x)


@maps(aten.leaky_relu.default)
def leaky_relu(plan, x, negative_slope=0.01):
    return plan.elementwise(lambda a: ops.where(a > 0, a, a * negative_slope), x)


@maps(aten.elu.default)
def elu(plan, x, alpha=1, scale=1, input_scale=1):
    def exact(a):
        below = scale * alpha * ops.expm1(ops.minimum(a, 0) * input_scale)
        return ops.where(a > 0, scale * a, below)

    return plan.elementwise(exact, x)


@maps(aten.gelu.default)
def gelu(plan, x, approximate="none"):
    if approximate == "tanh":  # https://arxiv.org/abs/1606.08415
        return plan.elementwise(
            lambda a: 0.5 * a * (1 + ops.tanh((2 / torch.pi) ** 0.5 * (a + 0.044715 * a * a * a))), x
        )
    return plan.elementwise(lambda a: a * 0.5 * (1 + ops.erf(a * 2**-0.5)), x)


@maps(aten.add.Tensor)
def add(plan, x, other, alpha=1):
    if plan.dtype == torch.bool:
        return arithmetic(plan, ops.logical_or, x, other) if alpha else identity(plan, x)
    return arithmetic(plan, lambda a, b: sum_of(a, b if alpha == 1 else b * alpha), x, other)


def sum_of(a, b):
    """Add a and b, avoiding how `keras.ops.add` treats a second operand that looks like a bias.

    It adds one like (1, C, 1, 1) along any axis that has C elements, the last one first.
    """
    if not hasattr(a, "shape") or not hasattr(b, "shape") or not looks_like_bias(b) or a.shape == b.shape:
        return a + b
    return a - (-b) if looks_like_bias(a) else b + a


def looks_like_bias(x) -> bool:
    return len([n for n in x.shape if n is None or n > 1]) == 1


@maps(aten.sub.Tensor)
def subtract(plan, x, other, alpha=1):
    return arithmetic(plan, lambda a, b: a - b if alpha == 1 else a - b * alpha, x, other)


@maps(aten.rsub.Scalar, aten.rsub.Tensor)
def reverse_subtract(plan, x, other, alpha=1):
    return arithmetic(plan, lambda a, b: b - a * alpha, x, other)


@maps(aten.mul.Tensor)
def multiply(plan, x, other):
    return arithmetic(plan, ops.logical_and if plan.dtype == torch.bool else lambda a, b: a * b, x, other)


@maps(aten.div.Tensor)
def divide(plan, x, other):
    return arithmetic(plan, lambda a, b: a / b, x, other)


@maps(aten.pow.Tensor_Scalar)
def power(plan, x, exponent):
    if exponent == 2:
        return arithmetic(plan, lambda a: a * a, x)
    return arithmetic(plan, lambda a: ops.power(a, exponent), x)


def arithmetic(plan, function, *operands, dtype=None):
    """Apply `function` to operands cast to `dtype`, by default to the type that PyTorch gives the result."""
    target = dtype or plan.dtype
    needs_cast = [isinstance(o, Value | Constant) and o.dtype != target for o in operands]

    def apply(*arrays):
        raised = [
            ops.cast(a, dtype_name(target)) if cast and not isinstance(a, int | float) else a
            for a, cast in zip(arrays, needs_cast, strict=True)
        ]
        return function(*raised)

    return plan.elementwise(apply, *operands)


@maps(
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
)
def identity(plan, x, memory_format=None):
    return x


@maps(aten._to_copy.default, aten.to.dtype, aten.type_as.default)
def cast(plan, x, *_, **__):
    target = plan.dtype
    return x if x.dtype == target else plan.elementwise(lambda a: ops.cast(a, dtype_name(target)), x)
