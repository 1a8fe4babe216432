"""Find what the inputs of a comparison do not exercise.

These are channels and modules that are at a limit for all inputs, comparisons and limits whose other side is never
taken, and rows of tables that are never read. Agreement says nothing about them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from converter.errors import Note
from converter.ir.aten import bound_arguments, is_view
from converter.ir.program import Program, default_dtype, module_path, read_attribute, tensor_name, write_attribute

aten = torch.ops.aten
NAMED = 5  # of what is not exercised; the others are counted
UNEXERCISED_SHARE = 0.05  # of the parameters

COMPARISONS = {
    getattr(packet, overload)
    for packet in (aten.eq, aten.ne, aten.gt, aten.ge, aten.lt, aten.le)
    for overload in ("Scalar", "Tensor")
}
# Of an operand and its result, which elements are within the operator's limits.
Within = Callable[[Tensor, Tensor], Tensor]
LIMITS: dict[object, Within] = {
    aten.relu.default: lambda x, y: y > 0,
    aten.relu6.default: lambda x, y: (y > 0) & (y < 6),
    aten.hardtanh.default: lambda x, y: x == y,
    aten.clamp.default: lambda x, y: x == y,
    aten.clamp_min.default: lambda x, y: x == y,
    aten.clamp_max.default: lambda x, y: x == y,
    aten.threshold.default: lambda x, y: x == y,
    aten.hardsigmoid.default: lambda x, y: (y > 0) & (y < 1),
    aten.hardswish.default: lambda x, y: y != 0,
}
LOOKUPS = {
    aten.embedding.default, aten.index.Tensor, aten.index_select.default, aten.gather.default, aten.slice.Tensor,
    aten.select.int,
}  # fmt: skip
# Results whose derivative is zero although they depend on their operand.
WITHOUT_DERIVATIVE = {
    aten.round.default, aten.floor.default, aten.ceil.default, aten.trunc.default, aten.sign.default,
    aten.round.decimals, *COMPARISONS,
}  # fmt: skip


def reached_by_inputs(program: Program) -> set[fx.Node]:
    """Return the nodes that depend on the values of an input."""
    reached: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" or (
            node.op == "call_function"
            and node.target is not aten.sym_size.int
            and any(n in reached for n in node.all_input_nodes)
        ):
            reached.add(node)
    return reached


@dataclass
class Coverage:
    """What the inputs exercised so far.

    Attributes:
        within: for each operator with limits, the channels that had an element within, and whether any was outside.
        taken: the results that each comparison had.
        rows: of each table, which were read.
    """

    program: Program
    within: dict[fx.Node, tuple[np.ndarray, bool]] = field(default_factory=dict)
    taken: dict[fx.Node, tuple[bool, bool]] = field(default_factory=dict)
    rows: dict[fx.Node, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        reached = reached_by_inputs(self.program)
        self._watched = {node for node in reached if node.target in LIMITS or node.target in COMPARISONS}
        self._tables = {
            n for n in reached if n.target is aten.embedding.default and n.all_input_nodes[0].op == "get_attr"
        }
        self._needed = Counter(n for node in self._watched | self._tables if (n := self._operand(node)) is not None)

    def _operand(self, node: fx.Node) -> fx.Node | None:
        """Return the node whose value is needed to tell what this one exercises, besides its own."""
        if node in self._tables:
            return node.all_input_nodes[1]
        return node.all_input_nodes[0] if node.target in LIMITS else None

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the program's results, and note what the inputs exercise."""
        if not self._watched and not self._tables:
            return self.program.run(*inputs)
        results: dict[fx.Node, Tensor] = {}
        operands: dict[fx.Node, Tensor] = {}
        wanted, left = set(self.program.results), self._needed.copy()
        for node, value in self.program.walk(inputs):
            if node in wanted:
                results[node] = value
            if node in left:
                operands[node] = value
            if node in self._watched and node.target in COMPARISONS:
                true, false = self.taken.get(node, (False, False))
                self.taken[node] = true or bool(value.any()), false or not bool(value.all())
            elif (operand := self._operand(node) if node in self._watched | self._tables else None) is not None:
                if node in self._tables:
                    table = node.all_input_nodes[0]
                    self.rows.setdefault(table, np.zeros(table.meta["val"].shape[0], bool))[
                        operands[operand].numpy()
                    ] = True
                else:
                    self._note_limits(node, operands[operand], value)
                left[operand] -= 1
                if not left[operand]:
                    del operands[operand]
        return [results[node] for node in self.program.results]

    def _note_limits(self, node: fx.Node, operand: Tensor, result: Tensor) -> None:
        inside = LIMITS[node.target](operand, result)
        axis = channel_axis(node)
        live = (inside.any() if axis is None else inside.any(tuple(d for d in range(inside.ndim) if d != axis))).numpy()
        before, outside = self.within.get(node, (live, False))
        self.within[node] = live | before if live.shape == before.shape else live, outside or not bool(inside.all())

    def missing(self) -> Iterator[str]:
        """Yield what was not exercised, in words."""
        for node, (live, outside) in self.within.items():
            dead = int((~live).sum())
            where = f"`{module_path(node) or node.name}`"
            if live.ndim and 0 < dead < live.size:
                yield f"{dead} of {live.size} channels of {where}, which never leave a limit"
            elif dead:
                yield f"{where}, which never leaves a limit"
            elif not outside:
                yield f"the limit of {where}"
        for node, (true, false) in self.taken.items():
            if true != false:
                line = f"`{module_path(node)}`" if module_path(node) else f"`{node.name}`"
                yield f"a comparison in {line}, which is always {str(true).lower()}"
        for table, read in self.rows.items():
            if not read.all():
                yield f"{int((~read).sum())} of {read.size} rows of `{', '.join(self.program.origin(table).sources)}`"

    def note(self) -> Note | None:
        """Return the note on what was not exercised, or None."""
        missing = list(dict.fromkeys(self.missing()))
        if not missing:
            return None
        more = f"; and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        text = f"Not exercised by the inputs: {'; '.join(missing[:NAMED])}{more}. Give inputs that do with --inputs."
        return Note(text, code="PTC5505")


WEIGHTED = {
    aten.linear.default, aten.mm.default, aten.addmm.default, aten.bmm.default, aten.matmul.default,
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
}  # fmt: skip
MULTIPLYING = WEIGHTED | {aten.mul.Tensor}


def zero_weights_note(program: Program, outputs: Mapping[str, Sequence[np.ndarray]]) -> Note | None:
    """Return the note on outputs that are the same for all inputs because some weights are all zeros, or None.

    Args:
        outputs: the results of all rounds, by name.
    """
    alike = {name for name, rounds in outputs.items() if all((a == a[:1]).all() for a in rounds if a.ndim)}
    if not alike:
        return None
    live: set[fx.Node] = set()
    zeros: dict[fx.Node, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            live.add(node)
        elif node.op == "call_function" and node.target is not aten.sym_size.int:
            held = [n for n in node.all_input_nodes if node.target in MULTIPLYING and program.is_tensor(n)]
            zero = next((n for n in held if program.query(n, lambda tensor: not bool(tensor.any()))), None)
            if zero is None or zero is bound_arguments(node).values.get("bias"):
                live.update([node] if live.intersection(node.all_input_nodes) else [])
            elif live.intersection(node.all_input_nodes):
                zeros[node] = ", ".join(program.origin(zero).sources)
    silent = [
        name for name, node in zip(program.outputs, program.results, strict=True) if name in alike and node not in live
    ]
    if not silent or not zeros:
        return None
    listed = ", ".join(f"`{name}`" for name in dict.fromkeys(zeros.values()))
    text = (
        f"All values of {listed} are 0, so {', '.join(f'`{name}`' for name in silent)} is the same for every input, "
        "and no comparison can prove anything. Convert trained weights. To check the conversion of the architecture, "
        "give these other values first, for example with torch.nn.init.normal_."
    )
    return Note(text, code="PTC5509")


def channel_axis(node: fx.Node) -> int | None:
    """Return the axis of an operator's channels: the last one behind a Linear, else dimension 1."""
    rank = node.meta["val"].ndim
    if rank < 2:
        return None
    before = node
    while before.all_input_nodes and before.target not in (aten.linear.default, aten.addmm.default, aten.mm.default):
        before = before.all_input_nodes[0]
        if before.target is aten.convolution.default or str(before.target).startswith("aten.conv"):
            return 1
    return rank - 1 if before.op == "call_function" else 1


def unexercised_parameters(
    program: Program, rounds: Sequence[Sequence[Tensor]], whole: Collection[str] = ()
) -> float | None:
    """Return the share of parameter elements that no output depends on for any of these inputs, by their gradients.

    Buffers that are weights of a convolution, a Linear or a product of matrices count as parameters.
    What is compared or rounded counts as an output, because the derivative of its result is zero.

    Args:
        whole: tensors that count as exercised if one of their elements is.

    Returns:
        None where gradients do not tell: a result has none.
    """
    read = dict.fromkeys(
        str(n.target)
        for n in program.graph.find_nodes(op="get_attr")
        if n.users and (program.trainable(n) or _is_weight(n))
    )
    names = [name for name in read if read_attribute(program.graph_module, name).is_floating_point()]
    raised = program.with_dtype(torch.float64)
    steps = (n for n in reached_by_inputs(raised) if n.target in WITHOUT_DERIVATIVE)
    output = raised.graph.output_node()
    results: Any = output.args[0]
    output.args = ((*results, *dict.fromkeys(n for step in steps for n in step.all_input_nodes)),)
    raised.graph_module.recompile()
    for name in names:
        write_attribute(
            raised.graph_module, name, torch.nn.Parameter(read_attribute(program.graph_module, name).detach())
        )
    parameters = {name: read_attribute(raised.graph_module, name) for name in names}
    seen = {name: torch.zeros_like(parameter, dtype=torch.bool) for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    for inputs in rounds:
        with torch.enable_grad(), default_dtype(torch.float64):
            results = raised.graph_module(*(x.double() if x.dtype == torch.float32 else x for x in inputs))
            loss = sum(
                (r * torch.randn(r.shape, generator=generator, dtype=torch.float64)).sum()
                for r in results
                if r.requires_grad
            )
            if not isinstance(loss, Tensor):
                return None
            try:
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            except RuntimeError:  # an operator has no derivative
                return None
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                seen[name] |= gradient != 0
    for name in seen.keys() & whole:
        seen[name] |= seen[name].any()
    used = _elements_read(raised, parameters)
    total = sum(int(elements.sum()) for elements in used.values())
    return sum(int((~seen[name] & elements).sum()) for name, elements in used.items()) / total if total else None


def _elements_read(program: Program, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tell for each element whether the graph reads it; slices and positions that are constants may leave some out.

    Args:
        program: in float64.
        parameters: its tensors that require gradients, by name.
    """
    constant: set[fx.Node] = set()
    for node in program.graph.nodes:
        computed = node.op == "call_function" and node.all_input_nodes and constant.issuperset(node.all_input_nodes)
        if node.op == "get_attr" or computed:
            constant.add(node)
    last = {n for node in program.graph.nodes if node not in constant for n in node.all_input_nodes} & constant
    needed, pending = set(last), [*last]
    while pending:
        fresh = [n for n in pending.pop().all_input_nodes if n not in needed]
        needed.update(fresh)
        pending += fresh
    interpreter = fx.Interpreter(program.graph_module)
    with torch.enable_grad(), default_dtype(torch.float64):
        for node in program.graph.nodes:
            if node in needed:
                interpreter.env[node] = interpreter.run_node(node)
        results = [x for node in last if isinstance(x := interpreter.env[node], Tensor) and x.requires_grad]
        gradients = torch.autograd.grad([x.sum() for x in results], list(parameters.values()), allow_unused=True)
    return {name: x != 0 for (name, _), x in zip(parameters.items(), gradients, strict=True) if x is not None}


def _is_weight(node: fx.Node) -> bool:
    return any(user.target in WEIGHTED or (is_view(user) and _is_weight(user)) for user in node.users)


def tables(program: Program) -> set[str]:
    """Return the floating-point tensors that are read row by row, such as an embedding's and a slice of positions."""
    nodes = program.graph.find_nodes(op="get_attr")
    read = (node for node in nodes if any(map(_reads_rows, node.users)))
    return {tensor_name(node) for node in read if program.values(node).dtype.is_floating_point}


def _reads_rows(node: fx.Node) -> bool:
    return node.target in LOOKUPS or (is_view(node) and any(map(_reads_rows, node.users)))
