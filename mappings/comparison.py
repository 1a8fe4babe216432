"""Comparisons, logic, bits and choices. Operands of different types are cast to the type that PyTorch compares in."""

from itertools import zip_longest

import torch
from torch import fx

from converter.plan.lazy_keras import ops
from converter.plan.precision import dtype_name
from converter.plan.registry import maps
from mappings.elementwise import arithmetic

aten = torch.ops.aten
COMPARISONS = {
    aten.eq: ops.equal,
    aten.ne: ops.not_equal,
    aten.lt: ops.less,
    aten.le: ops.less_equal,
    aten.gt: ops.greater,
    aten.ge: ops.greater_equal,
}
LOGICAL = {
    aten.logical_and.default: ops.logical_and,
    aten.logical_or.default: ops.logical_or,
    aten.logical_xor.default: ops.logical_xor,
}
# for each operator its function for booleans and for integers
BITWISE = {
    (aten.bitwise_and, aten.__and__): (ops.logical_and, ops.bitwise_and),
    (aten.bitwise_or, aten.__or__): (ops.logical_or, ops.bitwise_or),
    (aten.bitwise_xor, aten.__xor__): (ops.logical_xor, ops.bitwise_xor),
    (aten.bitwise_left_shift, aten.__lshift__): (None, ops.bitwise_left_shift),
    (aten.bitwise_right_shift, aten.__rshift__): (None, ops.bitwise_right_shift),
}


def as_array(operand, dtype):
    """Convert a scalar to an array of type `dtype`; return arrays unchanged."""
    return operand if hasattr(operand, "shape") else ops.convert_to_tensor(operand, dtype_name(dtype))


def common_type(plan):
    """Return the type in which PyTorch compares the operator's first two arguments."""
    return torch.result_type(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in plan.node.args[:2]))


def compare(plan, function, a, b):
    dtype = common_type(plan)
    held = torch.int32 if dtype == torch.bool else dtype
    return arithmetic(plan, lambda a, b: function(as_array(a, held), as_array(b, held)), a, b, dtype=held)


for packet, function in COMPARISONS.items():
    for target in (packet.Tensor, packet.Scalar):
        maps(target)(lambda plan, a, b, function=function: compare(plan, function, a, b))


def truth_of(plan, function, *operands):
    """Apply `function` to whether the operands' elements are nonzero."""
    booleans = [getattr(o, "dtype", None) == torch.bool for o in operands]

    def apply(*arrays):
        return function(
            *(
                as_array(a, torch.bool) if known or not hasattr(a, "shape") else ops.not_equal(a, 0)
                for a, known in zip(arrays, booleans, strict=True)
            )
        )

    return plan.elementwise(apply, *operands)


for target, function in LOGICAL.items():
    maps(target)(lambda plan, a, b, function=function: truth_of(plan, function, a, b))


@maps(aten.logical_not.default)
def logical_not(plan, x):
    return truth_of(plan, ops.logical_not, x)


@maps(aten.bitwise_not.default)
def bitwise_not(plan, x):
    return plan.elementwise(ops.logical_not if x.dtype == torch.bool else ops.bitwise_not, x)


def bits(plan, functions, a, b):
    dtype = plan.dtype
    function = functions[0] if dtype == torch.bool else functions[1]

    def apply(a, b):
        a, b = as_array(a, dtype), as_array(b, dtype)
        shapes = zip_longest(reversed(a.shape), reversed(b.shape), fillvalue=1)
        if dtype != torch.bool and any(of_a == 1 != of_b for of_a, of_b in shapes):
            a = ops.add(a, ops.zeros_like(b))  # Keras takes the shape of the first operand for that of the result
        return function(a, b)

    return arithmetic(plan, apply, a, b)


for packets, functions in BITWISE.items():
    for packet in packets:
        named = {"Tensor"} if packet in (aten.__lshift__, aten.__rshift__) else set()  # capture names it by the other
        for name in {"Tensor", "Tensor_Scalar", "Scalar", "Scalar_Tensor"} & set(packet.overloads()) - named:
            maps(getattr(packet, name))(lambda plan, a, b, functions=functions: bits(plan, functions, a, b))


@maps(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(plan, condition, x, other):
    dtype = plan.dtype

    def chosen(c, a, b):
        a, b = (ops.cast(as_array(n, dtype), dtype_name(dtype)) for n in (a, b))
        return ops.where(as_array(c, torch.bool), a, b)

    return plan.elementwise(chosen, condition, x, other)


@maps(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(plan, x, mask, value):
    return where(plan, mask, value, x)


OF_FLOATS = {
    aten.isfinite.default: ops.isfinite,
    aten.isinf.default: ops.isinf,
    aten.isnan.default: ops.isnan,
    aten.signbit.default: ops.signbit,
}
for target, function in OF_FLOATS.items():
    maps(target)(lambda plan, x, function=function: plan.elementwise(function, x))
