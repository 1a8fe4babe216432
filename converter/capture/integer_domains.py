"""The integers that a program's inputs may hold, as far as its graph shows."""

from __future__ import annotations

import operator
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import OpOverload

from converter.ir.aten import bound_arguments, first_input, is_view
from converter.ir.program import Program, default_dtype

aten = torch.ops.aten

# Operators whose result holds the integers of their operand.
COPYING = {
    aten._to_copy, aten.cat, aten.clone, aten.flip, aten.index_select, aten.repeat, aten.roll, aten.stack,
}  # fmt: skip
CUTTING = {aten.select, aten.slice, aten.unbind}
SHIFTING = {aten.bitwise_left_shift, aten.bitwise_right_shift, aten.__lshift__, aten.__rshift__}
# The argument that holds indices, or numbers of bits.
INDICES = dict.fromkeys(SHIFTING, "other") | {
    aten.embedding: "indices", aten._embedding_bag: "indices", aten.embedding_bag: "indices", aten.gather: "index",
    aten.index: "indices", aten.index_put: "indices", aten.index_select: "index", aten.one_hot: "self",
    aten.scatter: "index", aten.scatter_add: "index", aten.scatter_reduce: "index", aten.index_add: "index",
    aten.index_copy: "index", aten.index_fill: "index", aten.index_reduce: "index", aten.take: "index",
    aten.take_along_dim: "indices", aten.cross_entropy_loss: "target", aten.nll_loss: "target",
    aten.nll_loss_nd: "target", aten.nll_loss_forward: "target", aten.nll_loss2d_forward: "target",
}  # fmt: skip
FROM_THE_END = {aten.index, aten.index_put, aten.take}  # these take -1 as the last row
ADDING = {aten.cumsum, aten.sum}  # what is counted is usually 0 or 1
COMPARING = {aten.eq, aten.ne, aten.gt, aten.ge, aten.lt, aten.le}
# Operators whose other operand, a number, shows how large the integers are.
SHIFTED = {aten.add, aten.sub, aten.rsub}
LIMITING = {aten.clamp, aten.clamp_min, aten.clamp_max, aten.hardtanh, *COMPARING}
DIVIDING = {aten.div, aten.floor_divide, aten.remainder, aten.fmod}
ELEMENTWISE = {aten.mul, aten.neg, aten.abs, aten.relu, *SHIFTED, *DIVIDING, *LIMITING} - COMPARING
EDGES = (1 << 24, 1 << 31, 1 << 53)
UNKNOWN = 2  # rows that any table has
MOST = 256
FAR = 1 << 12  # of integers that are converted to floats, if nothing shows that they are larger
FURTHEST = 1 << 24  # of those; float32 does not hold every integer beyond
FAR_IN_INTEGERS = (1 << 31) - 1
TIMES = 16  # what they are compared with or divided by
MASKING = -1e3  # a factor that turns a mask into what is added to scores
TRIES = 4
MOST_COLUMNS = 256

Sizes = Mapping[sympy.Symbol, int]


@dataclass(frozen=True)
class IntegerDomain:
    """The integers that an input may hold.

    Attributes:
        low, high: usual ones are in [low, high).
        far: the lowest and the highest of unusual ones, or None if there are no others.
        telling: integers at which the graph may behave differently.
        columns: what each column along the last axis may hold, if they differ; then that is all.
    """

    low: int = 0
    high: int = UNKNOWN
    far: tuple[int, int] | None = None
    telling: tuple[int, ...] = ()
    columns: tuple[IntegerDomain, ...] = ()


def integer_domains(program: Program, sizes: Sequence[Sizes]) -> dict[fx.Node, IntegerDomain]:
    """Return what every input of integers may hold.

    An index is within the smallest table that it is an index of. Where arithmetic lies between an input and an index,
    the graph is run up to the index to find which integers it takes; if that tells nothing, they are 0 and 1. Integers
    that are no indices are usually 0 to 255, and sometimes of both signs, up to 4096 and as large as the numbers that
    they are compared with show. Those of a mask, as in (1 - mask) * -1e9, are 0 and 1.

    Args:
        sizes: choices of all dynamic sizes.
    """
    inputs = {node: _columns(node) for node in program.placeholders if _holds_integers(node)}
    parts = [part for columns in inputs.values() for column in columns for part in column]
    limits = {part: list(_limits(part)) for part in parts}
    computed: dict[fx.Node, ComputedIndices] = {}
    for together in _with_common_indices([part for part, found in limits.items() if None in found]):
        computed |= dict.fromkeys(together, ComputedIndices(program, together, sizes))
    domains = {}
    for node, columns in inputs.items():
        found = [_common([_domain(part, limits[part], computed.get(part)) for part in column]) for column in columns]
        domains[node] = found[0] if found.count(found[0]) == len(found) else IntegerDomain(columns=tuple(found))
    return domains


def _domain(node: fx.Node, limits: Sequence[int | None], computed: ComputedIndices | None) -> IntegerDomain:
    known = [limit for limit in limits if limit is not None]
    dtype = torch.iinfo(node.meta["val"].dtype)
    if computed is not None:
        domain = computed.domains[node]
    elif known:
        domain = IntegerDomain(high=min(known))
    elif _is_mask(node):
        domain = IntegerDomain(high=2)
    else:
        high = min(MOST, dtype.max + 1)
        reach = min(max([FAR, *(TIMES * int(abs(n)) for n in _numbers(node))]), FURTHEST)
        far = (dtype.min, dtype.max) if dtype.max < FAR_IN_INTEGERS else (-reach, reach)
        domain = IntegerDomain(high=high, far=None if far == (0, high - 1) else far)
    lowest, highest = domain.far or (domain.low, domain.high - 1)
    if not limits and not _is_mask(node):
        lowest, highest = dtype.min, dtype.max
    ends = {domain.low, domain.high - 1} if limits else set()  # such as the row of padding
    telling = {n for n in ends | _telling(node, not limits) if lowest <= n <= highest}
    if computed is not None:  # -100 may be taken where -1 is not
        telling |= {n for n in _telling(node, False) if dtype.min <= n <= dtype.max and computed.takes(node, n)}
    return replace(domain, telling=tuple(sorted(telling)))


def _columns(node: fx.Node) -> list[list[fx.Node]]:
    """Return the nodes that are each column of an input, if its columns are all that is read; else the input itself."""
    last = node.meta["val"].ndim - 1
    size = node.meta["val"].shape[last] if last > 0 else None
    readers = list(_readers(node))
    if not isinstance(size, int) or size > MOST_COLUMNS or any(_packet(user) not in CUTTING for user in readers):
        return [[node]]
    columns: list[list[fx.Node]] = [[] for _ in range(size)]
    for user in readers:
        if bound_arguments(user).value("dim") not in (last, -1):
            return [[node]]
        items = [*user.users] if _packet(user) is aten.unbind else [user]
        for item in items:
            place = _place(item)
            if not isinstance(place, int) or not -size <= place < size:
                return [[node]]
            columns[place].append(item)
    return columns


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what reads an input's values, in place of slices that cut nothing off."""
    for user in node.users:
        whole = _packet(user) is aten.slice and user.args[2:3] in ((), (0,)) and user.args[3:4] in ((), (sys.maxsize,))
        if whole:
            yield from _readers(user)
        elif _packet(user) is not aten.sym_size:
            yield user


def _place(item: fx.Node) -> Any:
    """Return the place of a column that a node cuts out of an input, or None if it is more than a column."""
    if item.target is operator.getitem:
        return item.args[1]
    values = bound_arguments(item).value
    if _packet(item) is aten.select:
        return values("index")
    start, end = values("start"), values("end")
    return start if isinstance(start, int) and isinstance(end, int) and start >= 0 and end == start + 1 else None


def _common(domains: Sequence[IntegerDomain]) -> IntegerDomain:
    """Return what all readers of a column take; 0 and 1 if there are none, or they have nothing in common."""
    if len(domains) < 2:
        return domains[0] if domains else IntegerDomain()
    low, high = max(one.low for one in domains), min(one.high for one in domains)
    if low >= high:
        return IntegerDomain()
    ranges = [one.far or (one.low, one.high - 1) for one in domains]
    far = max(least for least, _ in ranges), min(most for _, most in ranges)
    telling = sorted({n for one in domains for n in one.telling if far[0] <= n <= far[1]})
    return IntegerDomain(low, high, None if far == (low, high - 1) else far, tuple(telling))


def _telling(node: fx.Node, free: bool) -> set[int]:
    """Return the integers that an input's are compared with or limited to, and their neighbors.

    If they are `free` of tables and not converted to floats, numbers of both signs around the largest that float32,
    int32 and float64 hold are among them.
    """
    for held in filter(_holds_integers, _integers_behind(node)):
        free = free and not any(map(_holds_floats, held.users))
    numbers = {int(n) for n in _numbers(node, SHIFTED | LIMITING) if abs(n) < FAR_IN_INTEGERS}
    found = {n + step for n in numbers for step in (-1, 0, 1)}
    return found | ({sign * (n + step) for n in EDGES for step in (-1, 0, 1) for sign in (1, -1)} if free else set())


def _numbers(node: fx.Node, of: Container[Any] = SHIFTED | LIMITING | DIVIDING) -> Iterator[float]:
    """Yield the integers at which such operators, elementwise behind an input, change what they do."""
    for user in _elementwise_behind(node):
        if (packet := _packet(user)) in of:
            numbers = (n for n in user.args if isinstance(n, int | float) and abs(n) < float("inf"))
            yield from (-n if packet is aten.add else n for n in numbers)


def _is_mask(node: fx.Node) -> bool:
    """Return whether integers are subtracted from 1, or as floats multiplied by what no score survives."""
    for user in _elementwise_behind(node, COPYING):
        numbers = [n for n in user.args if isinstance(n, int | float)]
        if (_packet(user) is aten.rsub and numbers[:1] == [1]) or (_packet(user) is aten.sub and user.args[0] == 1):
            return True
        if _packet(user) is aten.mul and _holds_floats(user) and any(n <= MASKING for n in numbers):
            return True
    return False


def _elementwise_behind(node: fx.Node, through: Container[Any] = COPYING | ELEMENTWISE) -> dict[fx.Node, None]:
    """Return the operators that compute with what an input holds and without weights, element by element.

    Args:
        through: operators that others may be behind of; views always are.
    """
    behind: dict[fx.Node, None] = {}
    pending = [node]
    while pending:
        for user in pending.pop().users:
            if user not in behind and all(n.op != "get_attr" for n in user.all_input_nodes):
                behind[user] = None
                pending += [user] if _packet(user) in through or is_view(user) else []
    return behind


def _with_common_indices(inputs: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """Group inputs that indices are computed of together."""
    groups: list[tuple[list[fx.Node], set[Any]]] = []
    for node in inputs:
        together, reads = [node], set(_reads_behind([node]))
        for group in [group for group in groups if group[1] & reads]:
            groups.remove(group)
            together, reads = group[0] + together, group[1] | reads
        groups.append((together, reads))
    return [together for together, _ in groups]


class ComputedIndices:
    """Indices that a program computes of integers alone, to find which integers keep them within their tables."""

    def __init__(self, program: Program, inputs: Sequence[fx.Node], sizes: Sequence[Sizes]):
        self.program, self.inputs, self.sizes = program, inputs, sizes
        self.reads = list(_reads_behind(inputs))
        needed: set[fx.Node] = set()
        pending = [node for _, node in self.reads]
        while pending:
            if (node := pending.pop()) not in needed:
                needed.add(node)
                pending += [] if node in inputs else node.all_input_nodes
        self.steps = [node for node in program.graph.nodes if node in needed]
        sized = [node for node in self.steps if _packet(node) is aten.sym_size]
        read = {node for step in needed.difference(sized, inputs) for node in step.all_input_nodes}
        self.known = all(_is_of_integers(program, node) for node in read)
        behind = {later for node in inputs for later in _integers_behind(node)}
        rounded = any(_holds_floats(node) and not _is_index(node) for node in {*self.steps, *behind})
        numbers = [TIMES * abs(n) for node in self.steps for n in node.args if isinstance(n, int)]
        self.reach = min(max([FAR, *numbers]), FURTHEST) if rounded else FAR_IN_INTEGERS

    @cached_property
    def base(self) -> int:
        """An integer that the indices take if all inputs hold it, or 0."""
        shown = [int(n) for node in self.inputs for n in _numbers(node) if 1 < n < FAR_IN_INTEGERS]
        tried = ((n, dict.fromkeys(self.inputs, (n, n))) for n in (0, 1, *shown) if self.known)
        return next((n for n, held in tried if self.largest(held) is not None), 0)

    def takes(self, node: fx.Node, number: int) -> bool:
        """Return whether the indices take a number in one input."""
        others = dict.fromkeys(self.inputs, (self.base, self.base))
        return self.known and self.largest(others | {node: (number, number)}) is not None

    @cached_property
    def domains(self) -> dict[fx.Node, IntegerDomain]:
        """What each input may hold: two integers if the indices do not tell."""
        base = self.base
        if not self.known:
            return dict.fromkeys(self.inputs, IntegerDomain(base, base + UNKNOWN))
        orders = permutations(self.inputs) if len(self.inputs) < TRIES else [self.inputs]
        far = max(
            (self.far(order, base) for order in orders), key=lambda far: min(high - low for low, high in far.values())
        )
        for _ in range(TRIES):
            corners = [{node: (ends[n], ends[n]) for node, ends in far.items()} for n in (0, 1)]
            if all(self.largest(held, seed) is not None for seed, held in enumerate([*corners, *[far] * TRIES])):
                return {node: self.usual(node, base, ends) for node, ends in far.items()}
            far = {node: (base - (base - low) // 2, base + (high - base) // 2) for node, (low, high) in far.items()}
        return dict.fromkeys(self.inputs, IntegerDomain(base, base + UNKNOWN))

    def far(self, order: Sequence[fx.Node], base: int) -> dict[fx.Node, tuple[int, int]]:
        """Return the furthest integers of each input, of the first one as far as they go, of others beside those."""
        ends = [dict.fromkeys(order, (base, base)) for _ in (0, 1)]
        for node in order:
            for held, direction in zip(ends, (-1, 1), strict=True):
                last = self.last(node, base, direction, held)
                held[node] = (last, last)
        return {node: (ends[0][node][0], ends[1][node][1]) for node in order}

    def last(self, node: fx.Node, base: int, direction: int, held: Mapping[fx.Node, tuple[int, int]]) -> int:
        """Return the last integer in a direction that the indices take where the other inputs hold what they do."""
        limits = torch.iinfo(node.meta["val"].dtype)
        within, beyond = 0, min(self.reach, limits.max - base if direction > 0 else base - limits.min) + 1
        tried = beyond - 1
        while beyond - within > 1:
            one = base + direction * tried
            taken = self.largest({**held, node: (one, one)}) is not None
            within, beyond = (tried, beyond) if taken else (within, tried)
            tried = (within + beyond) // 2
        return base + direction * within

    def usual(self, node: fx.Node, base: int, far: tuple[int, int]) -> IntegerDomain:
        """Return the domain whose usual integers end where they give the index that is furthest from that of `base`."""
        most = min(base + UNKNOWN - 1, far[1])
        if not any(_packet(later) in ADDING for later in _integers_behind(node)):
            others = dict.fromkeys(self.inputs, (base, base))
            rows = [_rows(user, read, self.sizes[0]) for user, read in self.reads]
            tried = (*rows, *(base + (1 << bits) for bits in range(1, self.reach.bit_length())))
            first = self.largest(others) or 0

            def distance(end: int) -> int:
                return abs((self.largest(others | {node: (end, end)}) or 0) - first)

            most = max(sorted({min(end - 1, far[1]) for end in tried if end > base + 1}), key=distance)
        return IntegerDomain(base, most + 1, None if far == (base, most) else far)

    def largest(self, held: Mapping[fx.Node, tuple[int, int]], seed: int = 0) -> int | None:
        """Return the largest index that inputs within these limits give, or None if one is outside of its table."""
        found = [self._largest(held, sizes, seed) for sizes in self.sizes]
        return None if None in found else max(index for index in found if index is not None)

    def _largest(self, held: Mapping[fx.Node, tuple[int, int]], sizes: Sizes, seed: int) -> int | None:
        generator = torch.Generator().manual_seed(seed)
        interpreter = fx.Interpreter(self.program.graph_module)
        for node in self.steps:
            if node.op == "placeholder" or node in held:
                low, high = held.get(node, (0, 1))
                value = node.meta["val"]
                shape = [size_with(n, UNKNOWN, sizes) for n in value.shape]
                interpreter.env[node] = torch.randint(low, high + 1, shape, generator=generator).to(value.dtype)
                continue
            try:
                with torch.no_grad(), default_dtype(self.program.precision):
                    interpreter.env[node] = interpreter.run_node(node)
            except (IndexError, RuntimeError):  # an index that gives an index is outside of its table
                return None
        largest = 0
        for user, node in self.reads:
            indices = interpreter.env[node]
            if not indices.numel():
                continue
            low, high, rows = int(indices.min()), int(indices.max()), _rows(user, node, sizes)
            if high >= rows or low < (-rows if _packet(user) in FROM_THE_END else 0):
                return None
            largest = max(largest, high)
        return largest


def _is_of_integers(program: Program, node: fx.Node) -> bool:
    """Return whether a node is neither an input of floats nor a weight."""
    if node.op == "placeholder":
        return not node.meta["val"].dtype.is_floating_point
    return node.op != "get_attr" or not program.trainable(node)


def _reads_behind(nodes: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield the operators that take as indices what comes of these nodes through integers, each with that node."""
    for held in dict.fromkeys(later for node in nodes for later in _integers_behind(node)):
        for user in held.users:
            if _is_index_of(user, held):
                yield user, held


def _limits(node: fx.Node) -> Iterator[int | None]:
    """Yield the rows of every table that integers index, or None where arithmetic lies between."""
    seen, pending = {node}, [node]
    while pending:
        held = pending.pop()
        for user in held.users:
            if user in seen and _packet(user) not in INDICES:
                continue
            packet = _packet(user)
            if _is_index_of(user, held):
                yield _rows(user, held)
            elif packet in COPYING or packet is None or is_view(user):
                seen.add(user)
                if _holds_integers(user):
                    pending.append(user)
            elif any(_reads_behind([user])):
                yield None


def _rows(user: fx.Node, indices: fx.Node, known: Mapping[sympy.Symbol, int] | None = None) -> int:
    """Return the rows of the table that a node indexes, or the bits of what it shifts, for these dynamic sizes."""
    packet, arguments = _packet(user), bound_arguments(user)
    if packet is aten.one_hot:
        classes = arguments.value("num_classes")
        return classes if isinstance(classes, int) and classes > 0 else UNKNOWN
    if packet in SHIFTING:
        return torch.iinfo(user.meta["val"].dtype).bits
    table = first_input(user).meta["val"].shape
    if packet is aten.index:
        sizes = [table[dim] for dim, index in enumerate(arguments.value("indices")) if index is indices]
    elif packet is aten.take:
        sizes = [first_input(user).meta["val"].numel()]
    elif packet in (aten.embedding, aten._embedding_bag, aten.embedding_bag):
        sizes = [table[0]]
    elif INDICES[packet] == "target":  # a class of each row
        sizes = [table[1 if len(table) > 1 else 0]]
    else:
        dim = arguments.values.get("dim")
        sizes = [table[dim]] if isinstance(dim, int) and table else []
    return min((size_with(n, UNKNOWN, known) for n in sizes), default=UNKNOWN)


def _integers_behind(node: fx.Node) -> set[fx.Node]:
    """Return all nodes that integers reach through integers."""
    behind, pending = {node}, [node]
    while pending:
        held = pending.pop()
        if _holds_integers(held):
            fresh = [user for user in held.users if user not in behind]
            behind.update(fresh)
            pending += fresh
    return behind


def _is_index_of(user: fx.Node, node: fx.Node) -> bool:
    """Return whether `user` takes what `node` holds as indices, or as numbers of bits."""
    packet = _packet(user)
    return packet in INDICES and _reaches(bound_arguments(user).values.get(INDICES[packet]), node)


def _is_index(node: fx.Node) -> bool:
    return _packet(node) in INDICES


def _holds_integers(node: fx.Node) -> bool:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, torch.Tensor) and not first.dtype.is_floating_point and first.dtype != torch.bool


def _holds_floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _packet(node: fx.Node) -> Any:
    return node.target.overloadpacket if isinstance(node.target, OpOverload) else None


def _reaches(argument: Any, node: fx.Node) -> bool:
    return node in argument if isinstance(argument, (list, tuple)) else argument is node


def size_with(size: Any, symbols: int, known: Mapping[sympy.Symbol, int] | None = None) -> int:
    """Return a size with each symbol as its known value, or else as `symbols`."""
    if isinstance(size, int):
        return size
    expression = sympy.sympify(size.node.expr).subs(known or {})
    return int(expression.subs(dict.fromkeys(expression.free_symbols, symbols)))
