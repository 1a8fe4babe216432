"""The captured program: one functional ATen graph with its tensors as attributes, so that it can run."""

from __future__ import annotations

import copy
import linecache
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import sympy
import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from converter.errors import ConversionError, Note
from converter.ir.aten import ASSERTIONS, has_effects, returned
from converter.ir.banded_convolutions import use_bands
from converter.ir.lazy_tensor import Compute, LazyTensor
from converter.ir.sizes import SYMBOLIC, numbers_for_sizes, with_numbers

aten = torch.ops.aten
T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """The origin of a tensor of the program.

    Attributes:
        sources: names of the checkpoint's tensors that it was made from.
        exact: it holds the source's values, at most in another order; otherwise it was computed.
    """

    sources: tuple[str, ...]
    exact: bool = True


@dataclass
class Program:
    """A functional ATen graph, its tensors, and the names of its inputs and outputs that the user sees.

    Attributes:
        graph_module: placeholders are the user's inputs, `get_attr` nodes the tensors. It returns a tuple. Tensors that
            a rewrite computed are float64 whatever their nominal type (`meta["val"].dtype` of the node); `with_dtype`
            gives a program of one precision.
        origins: for each tensor, the checkpoint's tensors that it comes from.
        deferred: the tensors that are computed when they are read; on the module they have only a shape.
        fixed_batch: the batch size, if the program allows no other.
        precision: the float type that integers become where nothing else decides (3 * 0.5 in a tensor of integers).
        inlined_sources: the checkpoint's tensors that a rewrite made a part of the graph, and what they became.
        frozen: the checkpoint's parameters with `requires_grad=False`.
        tied: tensors that are both an embedding's table and a Linear's weight, and become one variable.
        averaging: paths of the batch norms whose momentum is None, which is 0.0 in the graph; None if unknown.
        values_read: it is right only for the values that the module's own tensors had when it was captured.
        frozen_flow: it holds only one path of a forward that branches on values.
        size_names: the user's names for the symbols of dynamic sizes.
        limited: the symbols of dynamic sizes whose limits the user gives, at which the program is compared.
        refuses_ones: dynamic sizes may not be 1, for which capture allows other results.
        batch_is_named: the batch is the size of that name, wherever it stands, in place of each input's first one.
        pixels: inputs of floats whose values are pixels, 0 to 255.
        exact_infinities: an infinity in an input is treated as PyTorch does, also where zero weights multiply it.
        debug: verify the program after each rewrite.
    """

    graph_module: fx.GraphModule
    inputs: list[str]
    outputs: list[str]
    origins: dict[str, Origin]
    fixed_batch: int | None = None
    deferred: dict[str, LazyTensor] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    precision: torch.dtype = torch.float32
    inlined_sources: dict[str, str] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    tied: set[str] = field(default_factory=set)
    size_names: dict[sympy.Symbol, sympy.Expr] = field(default_factory=dict)
    limited: frozenset[sympy.Symbol] = frozenset()
    refuses_ones: bool = False
    batch_is_named: bool = False
    frozen_flow: bool = False
    averaging: frozenset[str] | None = None
    values_read: bool = False
    pixels: frozenset[str] = frozenset()
    exact_infinities: bool = False
    debug: bool = False

    @property
    def graph(self) -> fx.Graph:
        return self.graph_module.graph

    @property
    def bytes_of_weights(self) -> int:
        """Return the bytes of the tensors that operators read."""
        read = {tensor_name(node): node.meta["val"] for node in self.graph.find_nodes(op="get_attr") if node.users}
        return sum(value.numel() * value.itemsize for value in read.values())

    @property
    def placeholders(self) -> list[fx.Node]:
        return self.graph.find_nodes(op="placeholder")

    @property
    def results(self) -> list[fx.Node]:
        return returned(self.graph)

    def copy(self) -> Program:
        """Return a program with its own graph; tensors are shared until a rewrite replaces them."""
        memo = {id(t): t for t in (*self.graph_module.parameters(), *self.graph_module.buffers())}
        return replace(
            self,
            graph_module=copy.deepcopy(self.graph_module, memo),
            inputs=list(self.inputs),
            outputs=list(self.outputs),
            origins=dict(self.origins),
            deferred=dict(self.deferred),
            notes=list(self.notes),
            inlined_sources=dict(self.inlined_sources),
            tied=set(self.tied),
            size_names=dict(self.size_names),
        )

    def size_name(self, size: Any) -> str:
        """Return a dynamic size under the user's name, or as an expression of symbols if it has none."""
        expression = size.node.expr if isinstance(size, torch.SymInt) else size
        return str(sympy.sympify(expression).subs(self.size_names))

    @property
    def batch_symbols(self) -> set[sympy.Symbol]:
        """Return the symbols of the batch: the one of that name, or those of the inputs' first sizes."""
        if self.batch_is_named:
            return {symbol for symbol, name in self.size_names.items() if name == sympy.Symbol("batch")}
        first = [size for node in self.placeholders for size in node.meta["val"].shape[:1]]
        return {s for size in first if isinstance(size, torch.SymInt) for s in size.node.expr.free_symbols} - {
            *self.size_names
        }

    def run(self, *inputs: Tensor) -> list[Tensor]:
        if self.deferred:
            return self.with_dtype(self.precision).run(*inputs)
        with torch.no_grad(), default_dtype(self.precision):
            return list(self.graph_module(*inputs))

    def walk(self, inputs: Sequence[Tensor]) -> Iterator[tuple[fx.Node, Any]]:
        """Yield every node with its result, in order; results live until their last use."""
        interpreter = fx.Interpreter(self.graph_module)
        interpreter.env = {}
        interpreter.args_iter = iter(inputs)
        for node in self.graph.nodes:
            if node.op == "output":
                return
            with torch.no_grad(), default_dtype(self.precision):
                result = interpreter.run_node(node)
            interpreter.env[node] = result
            yield node, result.detach() if isinstance(result, Tensor) else result
            del result  # it would live while the next node runs
            for used in interpreter.user_to_last_uses.get(node, []):
                del interpreter.env[used]

    # -- tensors

    def is_tensor(self, node: object) -> TypeGuard[fx.Node]:
        return isinstance(node, fx.Node) and node.op == "get_attr"

    def tensor(self, node: fx.Node) -> Tensor:
        """Return the values of a tensor node; a lazy tensor is computed."""
        return self.values(node).compute()

    def query(self, node: fx.Node, question: Callable[[Tensor], T]) -> T:
        """Return `question` of the values. Prefer this to `tensor`: the question can be asked of other weights too."""
        return self.values(node).query(question)

    def values(self, node: fx.Node) -> LazyTensor:
        """Return the values as a lazy tensor."""
        name = tensor_name(node)
        return self.deferred.get(name) or LazyTensor.of(read_attribute(self.graph_module, name).detach())

    def origin(self, node: fx.Node) -> Origin:
        return self.origins[tensor_name(node)]

    def merged_origin(self, nodes: Iterable[fx.Node], *, exact: bool = False) -> Origin:
        """Return the origin of a tensor that is made from several; it is exact if it may be and all of theirs are."""
        origins = [self.origin(node) for node in nodes]
        sources = dict.fromkeys(source for origin in origins for source in origin.sources)
        return Origin(tuple(sources), exact and all(origin.exact for origin in origins))

    def inline_sources(self, node: fx.Node, became: str) -> None:
        """Note that a rewrite made the sources of a tensor a part of the graph, and what they became."""
        self.inlined_sources |= dict.fromkeys(self.origin(node).sources, became)

    def trainable(self, node: fx.Node) -> bool:
        """Return whether the tensor is a parameter, or made from one."""
        return isinstance(read_attribute(self.graph_module, tensor_name(node)), nn.Parameter)

    def is_frozen(self, node: fx.Node) -> bool:
        """Return whether the tensor is made only from parameters with `requires_grad=False`."""
        sources = self.origin(node).sources
        return bool(sources) and self.frozen.issuperset(sources)

    def new_tensor(
        self,
        name: str,
        value: Tensor | LazyTensor,
        before: fx.Node,
        origin: Origin,
        *,
        trainable: bool,
        dtype: torch.dtype | None = None,
    ) -> fx.Node:
        """Add a `get_attr` node for `value` under `name` (made unique), placed before another node.

        Args:
            dtype: of the tensor in PyTorch; by default that of the value, or float32 if it was computed in float64.
        """
        while name in self.origins:
            name += "_"
        self._write(name, value, trainable)
        self.origins[name] = origin
        with self.graph.inserting_before(before):
            node = self.graph.get_attr(name)
        dtype = dtype or (torch.float32 if value.dtype == torch.float64 else value.dtype)
        fake = before.meta["val"]
        node.meta = {"val": fake.new_empty(value.shape, dtype=dtype), **module_meta(before)}
        return node

    def _write(self, name: str, value: Tensor | LazyTensor, trainable: bool) -> None:
        self.deferred.pop(name, None)
        if isinstance(value, LazyTensor):
            self.deferred[name] = value
            value = torch.empty(value.shape, dtype=value.dtype, device="meta")
        kept = nn.Parameter(value, requires_grad=False) if trainable else value
        write_attribute(self.graph_module, name, kept)

    @cached_property
    def _reads(self) -> dict[str, list[fx.Node]]:
        """The nodes that read each tensor; those that a rewrite adds later have names of their own."""
        found: dict[str, list[fx.Node]] = {}
        for node in self.graph.find_nodes(op="get_attr"):
            found.setdefault(tensor_name(node), []).append(node)
        return found

    def replace_tensor(
        self, node: fx.Node, value: Tensor | LazyTensor, origin: Origin, users: Sequence[fx.Node]
    ) -> None:
        """Give `users` of the tensor `node` another value, under its own name if nothing else reads it."""
        twins = self._reads.get(tensor_name(node), [node])
        if any(user not in users for twin in twins for user in twin.users):
            changed = self.new_tensor(f"{node.target}_changed", value, node, origin, trainable=self.trainable(node))
            for user in users:
                user.replace_input_with(node, changed)
            return
        self._write(tensor_name(node), value, self.trainable(node))
        self.origins[tensor_name(node)] = origin
        node.meta = node.meta | {"val": node.meta["val"].new_empty(value.shape)}

    def insert_call(self, target: Any, args: tuple, like: fx.Node) -> fx.Node:
        """Insert a call at the graph's insert point, with the metadata that capture would have given it.

        Raises:
            ConversionError: the call is right for only one value of a dynamic size.
        """
        node = self.graph.call_function(target, args)
        fakes = tree_map_only(fx.Node, lambda n: n.meta["val"], args)
        with enable_python_dispatcher():  # PyTorch's C++ reads dynamic sizes as numbers, which fixes them
            node.meta = {"val": target(*fakes), **module_meta(like)}
        self.refuse_fixed_sizes(f"{target} in {module_path(like) or 'the model itself'}")
        return node

    def refuse_fixed_sizes(self, after: str) -> None:
        """Check that every dynamic size of an input is still dynamic.

        Computing a shape (a reshape to the example's batch) can fix a size silently, for all programs of a capture.

        Raises:
            ConversionError: a dynamic size has become a number.
        """
        for name, node in zip(self.inputs, self.placeholders, strict=True):
            for dim, n in enumerate(node.meta["val"].shape):
                if isinstance(n, torch.SymInt) and n.node.expr.is_number:
                    raise ConversionError(
                        f"Dimension {dim} of input `{name}` was dynamic, and is {n.node.expr} after {after}.",
                        code="PTC2037",
                        fix="This is a bug in pt-convert. Please report it with the model.",
                    )

    def cleanup(self) -> None:
        """Drop unused nodes after a rewrite, check the graph and recompile it."""
        self.refuse_fixed_sizes("a rewrite")
        self.graph.eliminate_dead_code(has_effects)
        self.graph.lint()
        self.graph_module.recompile()

    # -- invariants

    def verify(self, after: str, like: Program | None = None, emitted: Collection[OpOverload] = ()) -> None:
        """Check what every program holds to, after the step named `after`.

        Args:
            like: the program before the step; inputs and outputs stay as they were, and custom operators are those
                that it has or that are in `emitted`.

        Raises:
            ConversionError: something does not hold; the error names the step, the node, its module and line.
        """
        custom = None if like is None else {*emitted, *(node.target for node in like.graph.nodes)}
        numbers = numbers_for_sizes(self.placeholders)
        defined: set[fx.Node] = set()
        for node in self.graph.nodes:
            reason = self._why_invalid(node, defined, custom, numbers)
            if not reason and like is not None and node.op == "output":
                reason = self._why_other_interface(like, numbers)
            if reason:
                raise ConversionError(
                    f"{after} left an invalid program: `{node.name}` ({node.target}) {reason}.",
                    code="PTC3010",
                    where=place_of(node),
                    fix="This is a bug in pt-convert. Please report it with the model.",
                )
            defined.add(node)

    def _why_invalid(
        self,
        node: fx.Node,
        defined: Collection[fx.Node],
        custom: Collection[Any] | None,
        numbers: Mapping[sympy.Symbol, int],
    ) -> str:
        if late := [n.name for n in node.all_input_nodes if n not in defined]:
            return f"reads {', '.join(late)} before it is defined"
        if node.op == "output":
            named = len(self.results) == len(set(self.outputs)) and len(self.placeholders) == len(set(self.inputs))
            return "" if named else f"does not match the names {self.inputs} and {self.outputs}"
        held = node.meta.get("val")
        if held is None:
            return "has no metadata"
        if node.op == "placeholder":
            return ""
        if node.op == "get_attr":
            if node.target not in self.origins:
                return "has no origin"
            tensor = read_attribute(self.graph_module, node.target)
            computed = (held.dtype, tensor.dtype) == (torch.float32, torch.float64)
            dtype = torch.float32 if computed else tensor.dtype
            return _difference(held, torch.empty(tensor.shape, dtype=dtype, device="meta"), numbers)
        return _why_not_allowed(node, custom) or _why_other_result(node, numbers)

    def _why_other_interface(self, like: Program, numbers: Mapping[sympy.Symbol, int]) -> str:
        if (self.inputs, self.outputs) != (like.inputs, like.outputs):
            return f"has other names than {like.inputs} and {like.outputs}"
        now, before = ([*p.placeholders, *p.results] for p in (self, like))
        for name, a, b in zip((*self.inputs, *self.outputs), now, before, strict=True):
            if free_unbacked_symbols(b.meta["val"]):
                continue  # a rewrite may learn the number
            if reason := _difference(a.meta["val"], with_numbers(b.meta["val"], numbers), numbers):
                return f"changes `{name}`, which {reason}"
        return ""

    # -- precision

    def with_dtype(self, dtype: torch.dtype) -> Program:
        """Return the same program with every float32, in tensors and operators, as `dtype` (float32 or float64).

        For float64, a tensor is raised or computed at its first read, while the program runs, so it takes no memory
        before. For float32, all tensors are computed up front.
        """
        result = self.copy()
        result.precision = dtype
        if dtype == torch.float64:
            use_bands(result.graph)
        for node in list(result.graph.nodes):
            if node.op == "get_attr":
                result._tensor_at(node, dtype)
            elif dtype != torch.float32:
                node.args = tree_map_only(torch.dtype, lambda d: dtype if d == torch.float32 else d, node.args)
                node.kwargs = tree_map_only(torch.dtype, lambda d: dtype if d == torch.float32 else d, node.kwargs)
        result.deferred.clear()
        result._drop_unread()
        result.graph_module.recompile()
        return result

    def _drop_unread(self) -> None:
        """Remove the tensors that no node reads, which rewrites leave: an export looks at each many times."""
        read = set()
        for node in self.graph.find_nodes(op="get_attr"):
            path, _, name = tensor_name(node).rpartition(".")
            read.add((self.graph_module.get_submodule(path), name))
        for module in self.graph_module.modules():
            for held in (module._parameters, module._buffers):
                for name in [name for name in held if (module, name) not in read]:
                    del held[name]

    def _tensor_at(self, node: fx.Node, dtype: torch.dtype) -> None:
        values = self.values(node)
        wanted = dtype if node.meta["val"].dtype == torch.float32 else values.dtype
        deferred = node.target in self.deferred
        if not node.users or (values.dtype == wanted and not deferred):
            return
        if wanted != torch.float64:
            self._write(tensor_name(node), values.compute().to(wanted), self.trainable(node))
            return
        with self.graph.inserting_before(min(node.users)):
            if deferred:
                module = f"computed_{node.name}"
                self.graph_module.add_module(module, Compute(values.map(lambda tensor: tensor.to(wanted))))
                read = self.graph.call_module(module)
            else:
                read = self.graph.call_function(aten.to.dtype, (node, wanted))
        node.replace_all_uses_with(read, delete_user_cb=lambda user: user is not read)
        if deferred:
            self.graph.erase_node(node)


def _why_not_allowed(node: fx.Node, custom: Collection[Any] | None) -> str:
    """Return why an operator cannot be in a program, or ""."""
    if node.op != "call_function":
        return f"is a {node.op}"
    if not isinstance(node.target, OpOverload):
        numbers = not any(isinstance(leaf, Tensor) for leaf in tree_leaves(node.meta["val"]))
        return "" if node.target is operator.getitem or numbers else "is not an ATen operator"
    if node.target._schema.is_mutable or node.target in ASSERTIONS:
        return "has an effect"
    if custom is not None and node.target.namespace not in ("aten", "prims") and node.target not in custom:
        return "is not an operator of this stage"
    return ""


def _why_other_result(node: fx.Node, numbers: Mapping[sympy.Symbol, int]) -> str:
    """Return how the metadata differs from the operator's result on tensors without values, or "".

    A node that was found right is not run again until its operator, its arguments or their metadata change.
    """
    given = tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, node.kwargs))
    held = tree_leaves(node.meta["val"])
    call = (node.target, *tree_leaves(given), *held)
    if _is_same_call(call, node.meta.get("verified", ())):
        return ""
    if not any(free_unbacked_symbols(leaf) for leaf in held if isinstance(leaf, Tensor | SYMBOLIC)):
        args, kwargs = tree_map(lambda leaf: _without_values(leaf, numbers), given)
        assert callable(node.target)
        try:
            results = tree_leaves(node.target(*args, **kwargs))
        except Exception as error:
            return f"fails on tensors without values: {type(error).__name__}: {error}"
        if len(results) != len(held):
            return f"has metadata of {len(held)} results, not {len(results)}"
        read = {user.args[1] for user in node.users if user.target is operator.getitem}
        for i, (one, result) in enumerate(zip(held, results, strict=True)):
            reason = _difference(one, result, numbers)
            if reason and (isinstance(node.meta["val"], Tensor) or i in read):  # others depend on the kernel
                return reason
    node.meta["verified"] = call
    return ""


def _is_same_call(first: tuple, second: tuple) -> bool:
    return len(first) == len(second) and all(
        a is b or (type(a) is type(b) and isinstance(a, int | float) and a == b)
        for a, b in zip(first, second, strict=True)
    )


def _without_values(leaf: Any, numbers: Mapping[sympy.Symbol, int]) -> Any:
    return torch.device("meta") if isinstance(leaf, torch.device) else with_numbers(leaf, numbers)


def _difference(held: Any, wanted: Any, numbers: Mapping[sympy.Symbol, int]) -> str:
    """Return how metadata differs from what is wanted, which is in numbers, or ""."""
    held = with_numbers(held, numbers)
    if not isinstance(held, Tensor) or not isinstance(wanted, Tensor):
        return "" if type(held) is type(wanted) and held == wanted else f"has metadata {held}, not {wanted}"
    kinds = [f"{one.dtype} {tuple(one.shape)}" for one in (held, wanted)]
    return "" if kinds[0] == kinds[1] else f"has metadata of {kinds[0]}, not {kinds[1]}"


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def read_attribute(module: nn.Module, name: str) -> Tensor:
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    return getattr(module, last)


def write_attribute(module: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter or buffer under a dotted name, adding missing modules along the path."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    module._parameters.pop(last, None)
    module._buffers.pop(last, None)
    if isinstance(value, nn.Parameter):
        module.register_parameter(last, value)
    else:
        module.register_buffer(last, value)


def tensor_name(node: fx.Node) -> str:
    """Return the name of the tensor that a `get_attr` node reads."""
    assert isinstance(node.target, str), node.format_node()
    return node.target


def module_meta(node: fx.Node) -> dict:
    return {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}


def module_path(node: fx.Node) -> str:
    """Return the dotted path of the module that called this operator, or "" for the model itself."""
    stack: Mapping[str, tuple] = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else re.sub(r"@\d+", "", path)


def module_class(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    kind = list(stack.values())[-1][1] if stack else ""
    return kind if isinstance(kind, str) else kind.__name__


_PACKAGE = str(Path(__file__).parents[1])  # what capture puts in place of PyTorch's functions is not the user's


def source_line(node: fx.Node) -> str:
    """Return the innermost line of the user's code for this operator, as `file:line: code`, or "" if unknown."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in ', node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    own = [frame for frame in frames if "/torch/" not in frame[0] and not frame[0].startswith(_PACKAGE)]
    name, line = (own or frames)[-1]
    return f"{name}:{line}: {linecache.getline(name, int(line)).strip()}"


def place_of(node: fx.Node) -> str:
    """Return the module and the line of the user's code for this operator."""
    path, line = module_path(node), source_line(node)
    module = f"module `{path}`" if path else "the model itself"
    return f"{module}, {line}" if line else module


def operator_rows(found: Mapping[Any, Sequence[fx.Node]]) -> list[tuple[str, int, str, str]]:
    """Return for each operator: its name, the count of its nodes, their module paths, and a source line."""
    return [
        (
            str(target),
            len(nodes),
            ", ".join(dict.fromkeys(module_path(node) or "(model)" for node in nodes)),
            source_line(nodes[0]),
        )
        for target, nodes in found.items()
    ]
