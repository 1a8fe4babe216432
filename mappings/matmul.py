"""Matrix products: batch and contracted axes have the same order on both sides, the rest stays as it is."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product as pairs
from typing import Any

import torch

from converter.ir.lazy_tensor import LazyTensor
from converter.plan.builder import PlanBuilder
from converter.plan.layout import Layout, Run, Runs, joint_order
from converter.plan.lazy_keras import backend, ops, tf
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value, arrange, elements
from mappings.linear import linear
from mappings.reductions import reduced

aten = torch.ops.aten
Label = Hashable


@maps(aten.matmul.default)
def matmul(plan, a, b):
    if isinstance(a, Constant) and isinstance(b, Constant):
        sources = tuple(dict.fromkeys((*a.sources, *b.sources)))
        product = LazyTensor.combine(torch.matmul, a.values, b.values)
        return Constant(product, a.dtype, sources, False, False, ("matmul", a.key, b.key))
    rank_a, rank_b = len(a.shape), len(b.shape)
    batch = list(range(max(rank_a, rank_b, 2) - 2))
    if is_linear(a, b):
        return linear(plan, a, b.permute(1, 0))
    of_a = [*batch[len(batch) - rank_a + 2 :], "m", "k"] if rank_a > 1 else ["k"]
    of_b = [*batch[len(batch) - rank_b + 2 :], "k", "n"] if rank_b > 1 else ["k"]
    return contract(plan, a, b, of_a, of_b, [*batch, *("m" for _ in of_a[1:2]), *("n" for _ in of_b[1:2])])


@maps(aten.bmm.default, aten.mm.default, aten.mv.default, aten.dot.default, aten.vdot.default)
def product(plan, a, b):
    return matmul(plan, a, b)


@maps(aten.addmm.default)
def add_product(plan, bias, a, b, beta=1, alpha=1):
    plain = isinstance(bias, Constant) and len(bias.shape) == 1 and (beta, alpha) == (1, 1)
    if plain and is_linear(a, b) and bias.shape == b.shape[1:]:
        return linear(plan, a, b.permute(1, 0), bias)
    return added(plan, bias, matmul(plan, a, b), beta, alpha)


@maps(aten.baddbmm.default)
def add_products(plan, bias, a, b, beta=1, alpha=1):
    return added(plan, bias, matmul(plan, a, b), beta, alpha)


@maps(aten.addbmm.default)
def add_sum_of_products(plan, bias, a, b, beta=1, alpha=1):
    return added(plan, bias, contract(plan, a, b, ["b", "m", "k"], ["b", "k", "n"], ["m", "n"]), beta, alpha)


def added(plan, bias, result, beta, alpha):
    if not plan.dtype.is_floating_point:
        beta, alpha = int(beta), int(alpha)

    def scaled(x, by):
        return x if by == 1 else x * by

    if beta == 0:  # PyTorch then ignores the bias values, even NaN
        return plan.elementwise(lambda x: scaled(x, alpha), result)
    return plan.elementwise(lambda x, y: scaled(x, alpha) + scaled(y, beta), result, bias)


@maps(aten.einsum.default)
def einsum(plan, equation, tensors, path=None):
    """Contract two operands at a time, from the left; first sum labels that only one of them has and nothing needs."""
    given, result = labels_of(equation, [len(t.shape) for t in tensors])
    total, of = tensors[0], given[0]
    for i, (other, of_other) in enumerate(zip(tensors[1:], given[1:], strict=True), start=2):
        wanted = {label for labels in given[i:] for label in labels} | set(result)
        total, of = summed(plan, total, of, wanted | set(of_other))
        other, of_other = summed(plan, other, of_other, wanted | set(of))
        kept = [label for label in dict.fromkeys((*of, *of_other)) if label in wanted]
        total, of = contract(plan, total, other, of, of_other, kept), kept
    total, of = summed(plan, total, of, set(result))
    layout = total.layout.permute([of.index(label) for label in result])
    return Value(layout, total.dtype, total.step)


def labels_of(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Return the labels of each operand and of the result; dimensions under an ellipsis get labels "0", "1", ..."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    widest = max((n - len(t.replace("...", "")) for t, n in zip(terms, ranks, strict=True) if "..." in t), default=0)

    def spelled(term: str, width: int) -> list[str]:
        before, dots, behind = term.partition("...")
        return [*before, *(map(str, range(widest - width, widest)) if dots else ()), *behind]

    given = [spelled(t, n - len(t.replace("...", ""))) for t, n in zip(terms, ranks, strict=True)]
    if any(len(set(of)) < len(of) for of in given):
        raise Unsupported("a diagonal")
    if arrow:
        return given, spelled(output, widest)
    every = [label for of in given for label in of]
    once = sorted(label for label in set(every) if label.isalpha() and every.count(label) == 1)
    return given, [*map(str, range(widest)), *once]


def summed(plan: PlanBuilder, x: Any, of: list, wanted: set) -> tuple[Any, list]:
    """Sum `x` over the dimensions whose label is not wanted, and return it with the remaining labels."""
    gone = [d for d, label in enumerate(of) if label not in wanted]
    if not gone:
        return x, of
    if isinstance(x, Constant):
        raise Unsupported("a sum of a constant")
    return reduced(plan, x, gone, False, lambda a, axes: ops.sum(a, axis=axes)), [n for n in of if n in wanted]


def is_linear(a, b) -> bool:
    """Return whether a weight is applied to features that are last in `a`."""
    if not isinstance(a, Value) or not isinstance(b, Constant) or len(b.shape) != 2 or len(a.shape) < 2:
        return False
    if not a.dtype.is_floating_point:  # a layer computes with floats
        return False
    features = a.layout.dims[-1]
    return set(a.layout.atoms[len(a.layout.atoms) - len(features) :]) == set(features)


@dataclass(frozen=True)
class Arrangement:
    """The order of an operand's atoms: leading ones, its own rows, contracted ones; `turned` means rows last."""

    lead: Run
    rows: Run
    contracted: Run
    turned: bool

    def axes(self, lead: Runs, left: bool) -> Runs:
        front = tuple(tuple(a for a in axis if a in self.lead) for axis in lead)
        while front and not front[0]:
            front = front[1:]
        return (*front, *((self.rows, self.contracted) if left != self.turned else (self.contracted, self.rows)))


def contract(
    plan: PlanBuilder,
    a: Value | Constant,
    b: Value | Constant,
    of_a: Sequence[Label],
    of_b: Sequence[Label],
    result: Sequence[Label],
) -> Value:
    """Multiply, and sum over the labels that `result` omits, as einsum does with one label per dimension.

    Of the ways to lay out the operands for a batched matrix product, it chooses the one that moves the fewest elements,
    then one that transposes no operand. A size of 1 is broadcast.
    """
    if isinstance(a, Constant) and isinstance(b, Constant):
        raise Unsupported("a product of constants")
    labels = tuple(dict.fromkeys((*result, *of_a, *of_b)))
    held = [labeled(x, of, labels) for x, of in ((a, of_a), (b, of_b))]
    layouts, held = plan.common_atoms(held)
    contracted = {n for d, label in enumerate(labels) if label not in result for n in layouts[0].dims[d]}
    shared = {n for n in layouts[0].size if n in layouts[1].size} - contracted

    ways = []
    lying = [layout.atoms for layout, x in zip(layouts, held, strict=True) if isinstance(x, Value)]
    for k, s in pairs(lying, lying):
        k_order, s_order = tuple(n for n in k if n in contracted), tuple(n for n in s if n in shared)
        for left in (0, 1):
            chosen = []
            for i, (layout, x) in enumerate(zip(layouts, held, strict=True)):
                fits = isinstance(x, Value) and as_it_lies(layout.atoms, k_order, s_order, left=i == left)
                rows = tuple(n for n in layout.atoms if n not in contracted and n not in shared)
                chosen.append(fits or Arrangement(s_order, rows, k_order, turned=False))
            lead = lead_axes(chosen, layouts)
            wanted = [c.axes(lead, left=i == left) for i, c in enumerate(chosen)]
            given = zip(layouts, wanted, held, strict=True)
            moved = [layout.to(axes)[1] for layout, axes, x in given if isinstance(x, Value)]
            turned = sum(c.turned for c in chosen) if len(lying) == 1 else 0  # then the result has the operand's order
            ways.append(((elements(moved), turned, left), chosen, lead, wanted))
    (_, _, left), chosen, lead, wanted = min(ways, key=lambda way: way[0])

    like = next(x for x in held if isinstance(x, Value))
    arrays = []
    for x, layout, axes in zip(held, layouts, wanted, strict=True):
        if isinstance(x, Value):
            arrays.append(plan.relayout(Value(layout, x.dtype, x.step), axes, "a matrix product"))
        else:
            step = plan.as_value(arrange(x, layout, axes)[0], like).step
            arrays.append(Value(Layout(layout.dims, axes, layout.size), x.dtype, step))
    first, second = (arrays[0], arrays[1]) if left == 0 else (arrays[1], arrays[0])
    of_first = "ki" if chosen[left].turned else "ik"
    of_second = "jk" if chosen[1 - left].turned else "kj"

    def multiply(x, y):
        if (of_first, of_second) == ("ik", "kj"):
            return ops.matmul(x, y)
        if backend.is_keras_tensor(x) or backend.is_keras_tensor(y):  # einsum transposes neither operand
            return ops.einsum(f"...{of_first},...{of_second}->...ij", x, y)
        return tf.matmul(x, y, transpose_a=of_first == "ki", transpose_b=of_second == "jk")

    dims = tuple(layouts[0].dims[d] or layouts[1].dims[d] for d, label in enumerate(labels) if label in result)
    size = {n: m for layout in layouts for n, m in layout.size.items() if n not in contracted}
    axes = (*lead, chosen[left].rows, chosen[1 - left].rows)
    return plan.call(multiply, first, second, layout=Layout(dims, axes, size))


def labeled(x: Value | Constant, of: Sequence[Label], labels: Sequence[Label]) -> Value | Constant:
    """Return `x` with one dimension for each of `labels`, of size 1 if it lacks the label."""
    if isinstance(x, Constant):
        order = [of.index(label) for label in labels if label in of]
        return x.permute(*order).reshape(*(x.shape[of.index(label)] if label in of else 1 for label in labels))
    dims = tuple(x.layout.dims[of.index(label)] if label in of else () for label in labels)
    return Value(Layout(dims, x.layout.axes, x.layout.size), x.dtype, x.step)


def as_it_lies(atoms: Run, contracted: Run, shared: Run, left: bool) -> Arrangement | None:
    """Arrange `atoms` as an operand of a matrix product without a move, or return None if impossible."""
    start = next((i for i, n in enumerate(atoms) if n in contracted), len(atoms))
    end = start + len(contracted)
    if atoms[start:end] != contracted:
        return None
    behind = atoms[end:]
    if any(n in shared for n in behind):
        return None
    lead, rows = atoms[:start], behind
    if not behind:  # the contracted atoms are last
        while lead and lead[-1] not in shared:
            lead, rows = lead[:-1], (lead[-1], *rows)
    own = tuple(n for n in lead if n not in shared)
    if lead != (*own, *shared) or (own and not rows):  # rows one by one, between shared axes, would be slow
        return None
    last = not behind
    turned = last != left if contracted and rows else False
    return Arrangement(lead, rows, contracted, turned)


def lead_axes(chosen: Sequence[Arrangement], layouts: Sequence[Layout]) -> Runs:
    """Return the axes before the matrices: the fewest that both operands can broadcast along, dynamic batch alone."""
    axes: list[Run] = []
    size = {n: m for layout in layouts for n, m in layout.size.items()}
    for atom in joint_order([c.lead for c in chosen]):
        known = axes and all(isinstance(size[n], int) for n in (axes[-1][-1], atom))
        if known and all((axes[-1][-1] in c.lead) == (atom in c.lead) for c in chosen):
            axes[-1] = (*axes[-1], atom)
        else:
            axes.append((atom,))
    return tuple(axes)
