"""Find attention between projections, for which Keras has one layer.

q, k, v = heads(linear(x)), heads(linear(y)), heads(linear(z))
linear(joined(softmax(q @ k.mT * scale) @ v)) -> multi_head_attention(x, y, z)

The middle may also be `scaled_dot_product_attention`; a mask is not supported. How heads are split and joined is not
matched by operator: the positions of elements are traced through any operators that move them, so one fused projection
and three separate ones look the same. The scores may be read too. Keras puts the batch first. If PyTorch has the time
first and does not transpose for this layer alone, the parts stay separate, because that moves less data.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program, module_path, tensor_name
from converter.ir.sizes import example_shape as known
from converter.rewrites.analysis.provenance import MOVING, moved_regions, trace_elements
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
assert custom_ops  # registers torch.ops.converter
PRODUCTS = {aten.matmul.default, aten.bmm.default}
NEARLY = 1e-12  # of the scale: the error of a square root in float64


@dataclass(frozen=True)
class Core:
    """The attention itself, between its heads.

    Attributes:
        end: the operator that gives its result.
        factor: scale of the scores, None for the default.
        turned: `key` is transposed.
        scores: the operator that gives the scores, if there is one.
        between: its other operators.
    """

    end: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    factor: float | None = None
    turned: bool = False
    dropout: float = 0.0
    scores: fx.Node | None = None
    between: tuple[fx.Node, ...] = ()


@dataclass(frozen=True)
class Projection:
    """A Linear and how heads are split from its result.

    Attributes:
        x: (batch, time, features).
        rows: (heads, width), the rows of its weight.
        extent: batch and time.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    rows: Tensor
    extent: tuple[int, int]
    between: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Found:
    """Attention with the projections before and after it.

    Attributes:
        projections: of query, key and value.
        last: the Linear after it, the last operator of `chain`, which leads there.
        columns: the columns of its weight that take the heads, one head after another.
        batch_first: the input of `last` has the batch first.
    """

    core: Core
    projections: tuple[Projection, ...]
    last: fx.Node
    chain: tuple[fx.Node, ...]
    columns: tuple[int, ...]
    batch_first: bool

    @property
    def inside(self) -> set[fx.Node]:
        return {self.core.end, *self.core.between, *self.chain, *(n for p in self.projections for n in p.between)}

    @property
    def weights(self) -> list[fx.Node]:
        return [*(p.weight for p in self.projections), bound_arguments(self.last).node("weight")]

    @property
    def biases(self) -> list[fx.Node | None]:
        return [*(p.bias for p in self.projections), bound_arguments(self.last).optional_node("bias")]

    @property
    def rows(self) -> list[list[int]]:
        return [p.rows.flatten().tolist() for p in self.projections]

    @property
    def readers(self) -> list[fx.Node]:
        """Return the readers of the scores outside of the match."""
        return [] if self.core.scores is None else [u for u in self.core.scores.users if u not in self.inside]

    @property
    def held(self) -> tuple:
        """Return a key that is equal for matches that become one layer called several times."""
        names = tuple(None if n is None else n.target for n in (*self.weights, *self.biases))
        return names, tuple(map(tuple, self.rows)), self.columns


def find_attention(program: Program) -> list[Change]:
    found = [match for node in program.graph.nodes if (match := read(program, node)) is not None]
    found = [match for match in found if not is_frozen(program, match)]
    changes, results = [], dict[fx.Node, fx.Node]()
    for match in with_weights_of_their_own(program, found):
        replace(program, match, results)
        changes.append(
            Change("projections and attention -> MultiHeadAttention", module_path(match.core.end), routine=True)
        )
    return changes


def is_frozen(program: Program, match: Found) -> bool:
    """Return whether a part is frozen: a saved Keras model forgets that for layers within a layer."""
    return any(program.is_frozen(n) for n in (*match.weights, *match.biases) if n is not None)


def with_weights_of_their_own(program: Program, found: list[Found]) -> list[Found]:
    """Return the matches that share no tensor with anything else; a shared one would become two variables."""
    users: dict[str, set[fx.Node]] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        users.setdefault(tensor_name(node), set()).update(node.users)
    held = {match.core.end: match.held for match in found}
    while True:
        inside: dict[tuple, set[fx.Node]] = {}
        for match in found:
            inside.setdefault(held[match.core.end], set()).update(match.inside)
        kept = []
        for match in found:
            tensors = [n for n in (*match.weights, *match.biases) if n is not None]
            if all(users[tensor_name(n)] <= inside[held[match.core.end]] for n in tensors):
                kept.append(match)
        if len(kept) == len(found):
            return kept
        found = kept


def read(program: Program, node: fx.Node) -> Found | None:
    core = read_core(node)
    if core is None:
        return None
    query, key, value = (read_projection(program, core, name) for name in ("query", "key", "value"))
    if query is None or key is None or value is None:
        return None
    heads, width = query.rows.shape
    if key.rows.shape != query.rows.shape or value.rows.shape[0] != heads or key.extent != value.extent:
        return None
    if query.extent[0] != key.extent[0]:
        return None
    if core.factor is not None and not math.isclose(core.factor, width**-0.5, rel_tol=NEARLY):
        return None
    match = read_result(program, core, (query, key, value))
    return match if match is not None and is_whole(match) else None


def is_whole(match: Found) -> bool:
    """Return whether nothing outside reads the inside and Keras' layer can hold everything."""
    biases = match.biases
    if any(b is None for b in biases) and any(b is not None for b in biases):
        return False  # Keras has all biases or none
    if biases[0] is not None and any(p.rows.shape[1] == 1 for p in match.projections):
        return False  # Keras applies biases of (heads, 1) to its second axis if that has the same length
    used = [(w.target, row) for w, rows in zip(match.weights, match.rows, strict=False) for row in rows]
    if len(set(used)) < len(used):
        return False  # a parameter would become two variables
    inside = match.inside
    if any(user not in inside for n in inside - {match.core.scores, match.last} for user in n.users):
        return False  # values that are read elsewhere would be computed twice
    if not match.readers:
        return True
    assert match.core.scores is not None  # it has readers
    known_sizes = all(isinstance(n, int) for n in match.core.scores.meta["val"].shape[-2:])
    # Keras returns the scores before dropout
    return known_sizes and not match.core.dropout and match.last < min(match.readers)


def replace(program: Program, match: Found, results: dict[fx.Node, fx.Node]) -> None:
    """Replace a match, and add its result to `results`, which later matches may take as inputs."""
    core, last = match.core, match.last
    with program.graph.inserting_before(last):
        given = [results.get(p.x, p.x) for p in match.projections]
        biases = [b for b in match.biases if b is not None]
        settings = (list(match.columns), len(match.projections[0].rows), core.dropout)
        arguments = (*given, match.weights, biases, *match.rows, *settings)
        both = program.insert_call(ours.multi_head_attention.default, arguments, like=core.end)
        result = program.insert_call(operator.getitem, (both, 0), like=core.end)
        if not match.batch_first:
            result = program.insert_call(aten.transpose.int, (result, 0, 1), like=core.end)
        if last.meta["val"].dim() == 2:
            result = program.insert_call(aten.reshape.default, (result, [-1, last.meta["val"].shape[1]]), like=core.end)
    readers = match.readers
    last.replace_all_uses_with(result)
    results[last] = result
    if core.scores is not None and readers:
        shape = core.scores.meta["val"].shape
        with program.graph.inserting_before(min(readers)):
            scores = program.insert_call(operator.getitem, (both, 1), like=core.end)
            if len(shape) == 3:
                scores = program.insert_call(aten.reshape.default, (scores, [-1, *shape[-2:]]), like=core.end)
        for reader in readers:
            reader.replace_input_with(core.scores, scores)


# -- the attention itself


def read_core(node: fx.Node) -> Core | None:
    if node.target is aten.scaled_dot_product_attention.default:
        arguments = bound_arguments(node)
        if arguments.value("attn_mask") is not None or arguments.number("dropout_p"):
            return None
        if arguments.flag("is_causal") or arguments.flag("enable_gqa"):
            return None
        query, key, value = (arguments.node(name) for name in ("query", "key", "value"))
        return Core(node, query, key, value, arguments.value("scale"))
    if node.target not in PRODUCTS:
        return None
    scores, value = factors(node)
    between, rate = [scores], 0.0
    if scores.target is ours.dropout.default:
        scores, rate = bound_arguments(scores).node("x"), bound_arguments(scores).number("rate")
        between.append(scores)
    if not is_softmax(scores):
        return None
    product, factor = unscaled(first_input(scores), between)
    if product.target not in PRODUCTS:
        return None
    left, right = factors(product)
    query, of_query = unscaled(left, between)
    key, of_key = unscaled(right, between)
    factor *= of_query * of_key
    return Core(node, query, key, value, factor, True, rate, scores, (*between, product))


def factors(product: fx.Node) -> tuple[fx.Node, fx.Node]:
    arguments = bound_arguments(product)
    return arguments.node("self"), arguments.node("mat2" if product.target is aten.bmm.default else "other")


def is_softmax(node: fx.Node) -> bool:
    """Return whether `node` is a softmax over the last dimension that keeps the type."""
    if node.target not in (aten.softmax.int, aten._softmax.default):
        return False
    arguments = bound_arguments(node)
    other_type = arguments.value("dtype" if node.target is aten.softmax.int else "half_to_float")
    return not other_type and arguments.integer("dim") in (-1, arguments.node("self").meta["val"].dim() - 1)


def unscaled(node: fx.Node, between: list[fx.Node]) -> tuple[fx.Node, float]:
    """Return the value before products with numbers, and their total factor; add the operators to `between`."""
    factor = 1.0
    while node.target in (aten.mul.Tensor, aten.div.Tensor):
        number = bound_arguments(node).value("other")
        if not isinstance(number, int | float):
            break
        factor *= number if node.target is aten.mul.Tensor else 1 / number
        between.append(node)
        node = first_input(node)
    return node, factor


# -- the projections before and after it


def read_projection(program: Program, core: Core, name: str) -> Projection | None:
    end = getattr(core, name)
    found = next(((s, r) for s, r in moved_regions(program, end) if s.target is aten.linear.default), None)
    if found is None:
        return None
    linear, region = found
    arguments = bound_arguments(linear)
    x, weight, bias = arguments.node("input"), arguments.node("weight"), arguments.optional_node("bias")
    positions = trace_elements(program, linear, region, end)
    if (
        positions is None
        or not program.is_tensor(weight)
        or x.meta["val"].dim() != 3
        or not bool((positions > 0).all())
    ):
        return None
    if core.turned and name == "key":
        positions = positions.mT
    cut = read_heads(positions.long() - 1, weight.meta["val"].shape[0])
    if cut is None:
        return None
    rows, tokens = cut
    batch, time = tokens.shape
    order = torch.arange(batch * time)
    if is_turned(x) and torch.equal(tokens, order.reshape(time, batch).mT):
        x = first_input(x)
    elif not torch.equal(tokens, order.reshape(batch, time)):
        return None
    if known(x.meta["val"].shape[:2]) != (batch, time):
        return None
    return Projection(x, weight, bias, rows, (batch, time), (linear, *region))


def is_turned(x: fx.Node) -> bool:
    """Return whether `x` was (batch, time, features) before, as in PyTorch's own layer with `batch_first`."""
    if x.target is not aten.transpose.int:
        return False
    return {bound_arguments(x).integer(name) % 3 for name in ("dim0", "dim1")} == {0, 1}


def read_heads(positions: Tensor, features: int) -> tuple[Tensor, Tensor] | None:
    """Return the features of each head, (heads, width), and the token at each place, (batch, time), or None.

    Args:
        positions: (batch, heads, time, width) or (batch * heads, time, width), in a tensor of tokens and `features`.
    """
    *_, time, width = positions.shape
    feature, token = ((x.reshape(-1, time, width)) for x in (positions % features, positions // features))
    heads = len(feature[:, 0, 0].unique())
    if len(feature) % heads:
        return None
    feature, token = (x.reshape(-1, heads, time, width) for x in (feature, token))
    rows, tokens = feature[0, :, 0], token[:, 0, :, 0]
    alike = bool((feature == rows[:, None]).all()) and bool((token == tokens[:, None, :, None]).all())
    return (rows, tokens) if alike else None


def read_result(program: Program, core: Core, projections: tuple[Projection, ...]) -> Found | None:
    query, _, value = projections
    (heads, width), (batch, time) = value.rows.shape, query.extent
    node, chain = core.end, list[fx.Node]()
    while len(node.users) == 1:
        (user,) = node.users
        if user.args[0] is not node:
            return None
        if user.target is aten.linear.default:
            break
        if user.target not in MOVING:
            return None
        node = user
        chain.append(node)
    else:
        return None
    if not chain or not program.is_tensor(bound_arguments(user).node("weight")):
        return None
    positions = trace_elements(program, core.end, chain, node)
    rank = node.meta["val"].dim()
    if positions is None or rank not in (2, 3) or not bool((positions > 0).all()):
        return None
    places = (positions.long() - 1).flatten(0, -2)
    columns = places // (width * time) % heads * width + places % width
    tokens = places // (width * time * heads) * time + places // width % time
    if not bool((columns == columns[0]).all()) or not bool((tokens == tokens[:, :1]).all()):
        return None
    if not torch.equal(columns[0].sort().values, torch.arange(heads * width)):
        return None
    for batch_first in (True, False):
        shape = (batch, time) if batch_first else (time, batch)
        order = torch.arange(batch * time).reshape(batch, time)
        fits = rank == 2 or known(node.meta["val"].shape[:2]) == shape
        if fits and torch.equal(tokens[:, 0], (order if batch_first else order.mT).flatten()):
            return Found(core, projections, user, (*chain, user), tuple(columns[0].argsort().tolist()), batch_first)
    return None
