"""From a module and example inputs to one functional ATen graph (`torch.export`)."""

from __future__ import annotations

import contextlib
import inspect
import keyword
import operator
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind
from torch.utils._pytree import GetAttrKey, MappingKey, SequenceKey, tree_flatten_with_path, tree_unflatten

from converter.aliasing import overlapping_writes
from converter.compat.export_patches import RECURRENT, exporting, quiet
from converter.effects import drop_tokens
from converter.errors import CaptureError
from converter.free_sizes import (
    Free,
    Range,
    amended,
    dims,
    doubled,
    example_sizes,
    hold_everywhere,
    name_sizes,
    names_of,
    others,
    resized,
    unresolved,
)
from converter.frozen_flow import freeze_checked
from converter.functional import make_functional
from converter.ir import custom_ops
from converter.ir.aten import ASSERTIONS
from converter.ir.program import Origin, Program, source_line, write_attribute
from converter.known_values import known_values
from converter.uncapturable import failing, first_line, module_of, needs_values, refuse_draws, uncapturable, user_frame

aten = torch.ops.aten

RESERVED = set(dir(fx.GraphModule(nn.Module(), fx.Graph())))
DROPOUTS = {aten.dropout.default, aten.feature_dropout.default}


def capture(
    module: nn.Module,
    inputs: Sequence[Tensor],
    fixed_batch: bool = False,
    free: Free = (),
    freeze: bool = False,
    strict: bool = False,
    runs: bool = False,
) -> Program:
    """Capture `module`, in eval mode, called with `inputs`; their dimension 0 is the batch and stays free.

    A model that works for one batch size only is captured for that of `inputs`, and the program says so in its notes.

    Args:
        free: the dimensions of each input that stay free besides; what restricts them is noted.
        freeze: where forward decides by values, keep what it decides for `inputs`, and note that.
        strict: only by way of Python's bytecode.
        runs: it was seen to run on `inputs`.

    Raises:
        CaptureError: the forward fails, or does something `torch.export` cannot take.
    """
    if not runs:
        run_forward(module, inputs)
    reason = ""
    if not fixed_batch and any(x.ndim for x in inputs):
        reason = _why_not_one(module, inputs)
    if not fixed_batch and any(x.ndim for x in inputs) and not reason:
        try:
            return _captured(module, [_at_least_two(x) for x in inputs], free, Dim("batch", min=1), freeze, strict)
        except CaptureError:
            raise
        except Exception as error:
            reason = _why_specialised(error)
    try:
        program = _captured(module, inputs, free, None, freeze, strict)
    except CaptureError:
        raise
    except Exception as error:
        raise uncapturable(error, module) from error
    if reason:
        program.notes.append(f"converted for batch {program.fixed_batch} only, the model takes no other: {reason}")
    return program


def _captured(
    module: nn.Module, inputs: Sequence[Tensor], free: Free, batch: Any, freeze: bool, strict: bool
) -> Program:
    """With what `torch.export` says of free sizes worked in, and the model run at other sizes than those traced."""
    if not names_of(free):
        shapes = tuple({0: batch} if x.ndim else None for x in inputs) if batch is not None else None
        return _exported(module, inputs, shapes, freeze, strict)
    examples = example_sizes(free, inputs)
    ranges = dict.fromkeys(names_of(free), Range())
    asserted = False
    while True:
        named = zip(inputs, dims(free, ranges), strict=True)
        shapes = tuple(({0: batch} if batch is not None and x.ndim else {}) | sizes or None for x, sizes in named)
        try:
            program = _exported(module, inputs, shapes, freeze, strict, asserted)
        except CaptureError:
            raise
        except Exception as error:
            left = amended(error, free, ranges, examples)
            if left == ranges:
                if asserted or not hold_everywhere(error, free, ranges):
                    if told := unresolved(error, free):
                        raise told from error
                    raise
                asserted = True
            ranges = left
            continue
        failure = left_failure = _failure_elsewhere(module, inputs, free, ranges)
        if failure is None:
            name_sizes(program, free)
            program.notes += [note for name, held in ranges.items() if (note := held.described(name))]
            return program
        while left_failure is not None:
            stricter = doubled(ranges, examples)
            if stricter is None:
                raise failure
            ranges = stricter
            left_failure = _failure_elsewhere(module, inputs, free, ranges)


def _exported(
    module: nn.Module, inputs: Sequence[Tensor], shapes: Any, freeze: bool, strict: bool, asserted: bool = False
) -> Program:
    """By torch.export as it stands; where that meets a tensor's values, by way of the bytecode, which keeps numbers out
    of tensors, and then with the values of the module's own tensors known; with `freeze` at last by what the inputs at
    hand decide.

    Args:
        asserted: what restricts free sizes is left to assertions in the program, which are dropped.
    """
    try:
        return _noting_names(from_exported(_export(module, inputs, shapes, strict, asserted)), module)
    except CaptureError:
        raise
    except Exception as error:
        if not needs_values(error):
            raise
        if not strict:
            with contextlib.suppress(Exception):  # the first way's error says more
                return _noting_names(from_exported(_export(module, inputs, shapes, True, asserted)), module)
            with contextlib.suppress(Exception), known_values(module) as known:
                program = _noting_names(from_exported(_export(module, inputs, shapes, False, asserted)), module)
                program.values_read = known.read
                return program
        if not freeze:
            raise
        with exporting():
            drafted = torch.export.draft_export(module, tuple(inputs), dynamic_shapes=_for_forward(module, shapes))
        program = _noting_names(from_exported(drafted), module)
        freeze_checked(program, module, user_frame(error) or module_of(error, module) or "forward")
        return program


def _failure_elsewhere(
    module: nn.Module, inputs: Sequence[Tensor], free: Free, ranges: Mapping[str, Range]
) -> CaptureError | None:
    """What the model says to other sizes than those at which it was traced."""
    for sizes in others(ranges):
        try:
            run_forward(module, [resized(x, held, sizes) for x, held in zip(inputs, free, strict=True)])
        except CaptureError as error:
            shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
            return CaptureError(
                f"the model does not take every size: at {shown} it fails: {error.what.partition(': ')[2]}",
                where=error.where,
                cure="give numbers in --input-shape for the sizes that it has to know",
            )
    return None


def _why_not_one(module: nn.Module, inputs: Sequence[Tensor]) -> str:
    """What the model says to a batch of 1, as one that takes its statistics does; "" if it takes it."""
    if not any(x.ndim and x.shape[0] > 1 for x in inputs):
        return ""
    try:
        with torch.no_grad():
            module(*(x[:1].clone() if x.ndim else x.clone() for x in inputs))
    except Exception as error:
        return f"of 1 example, {first_line(error)}"
    return ""


def _noting_names(program: Program, module: nn.Module) -> Program:
    """Graphs have names of ASCII letters only: a parameter of another name goes by what is left of it."""
    given = list(inspect.signature(module.forward).parameters)
    if len(given) >= len(program.inputs):
        for name, kept in zip(given, program.inputs, strict=False):
            if not name.isascii():
                program.notes.append(f"input `{name}` is called `{kept}`: names are of ASCII letters, digits and _")
    return program


def _at_least_two(x: Tensor) -> Tensor:
    """A batch of 1 would be taken for a constant."""
    return x if x.ndim == 0 or x.shape[0] > 1 else torch.cat([x, x])


def _why_specialised(error: Exception) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "batch" in line and ("specialized" in line or "satisfy" in line)]
    if any("specialized" in line for line in telling):
        return "its forward has the batch as a number: it decides by it, or loops over it"
    return (telling or lines or [type(error).__name__])[0]


def from_exported(exported: ExportedProgram) -> Program:
    """An `ExportedProgram` as a `Program`: made functional, tensors as attributes, batch norm and dropout whole."""
    _keep_dropouts(exported.graph_module)
    _refuse_overlapping_writes(exported.graph_module)
    if not make_functional(exported.graph_module):
        with quiet():
            exported = exported.run_decompositions({})
    _name_recurrent_layers(exported.graph_module)
    signature = exported.graph_signature
    graph_module = fx.GraphModule(nn.Module(), exported.graph)
    graph = graph_module.graph
    drop_tokens(graph)
    tokens: list[fx.Node] = []
    inputs: list[str] = []
    origins: dict[str, Origin] = {}
    tensors = {**exported.constants, **exported.state_dict, **exported.tensor_constants}
    for spec, node in zip(signature.input_specs, graph.find_nodes(op="placeholder"), strict=True):
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(node.meta.get("val"), torch.Tensor):
                inputs.append(node.name)
            elif node.users:
                raise CaptureError(f"input `{node.name}` is not a tensor", cure="pass it through a wrapper module")
            else:
                graph.erase_node(node)
            continue
        if spec.kind is InputKind.TOKEN:
            tokens.append(node)
            continue
        if not isinstance(tensors.get(spec.target), torch.Tensor):
            raise CaptureError(f"the program holds `{spec.target}`, which is no tensor ({spec.kind.name})")
        name = _attribute_name(spec.target, origins)
        write_attribute(graph_module, name, tensors[spec.target])
        origins[name] = Origin((spec.target,))
        with graph.inserting_before(node):
            attribute = graph.get_attr(name)
        attribute.meta = dict(node.meta)
        node.replace_all_uses_with(attribute)
        graph.erase_node(node)

    output = graph.output_node()
    results = [
        node
        for spec, node in zip(signature.output_specs, output.args[0], strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    names = _output_names(exported, len(results))
    kept = [(n, r) for n, r in zip(names, results, strict=True) if _is_tensor(r)]
    output.args = (tuple(r for _, r in kept),)
    for node in tokens:
        graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target in ASSERTIONS:
            graph.erase_node(node)
    frozen = frozenset(n for n, t in tensors.items() if isinstance(t, nn.Parameter) and not t.requires_grad)
    program = Program(graph_module, inputs, [n for n, _ in kept], origins, frozen=frozen)
    if len(kept) < len(results):
        program.notes.append("outputs that are no tensors were left out")
    _restore_batch_norm(program)
    _free_views(program)
    program.finish()
    _refuse_state(program, signature)
    refuse_draws(program.graph)
    program.graph_module.recompile()
    first = program.placeholders[0].meta["val"].shape if program.placeholders else ()
    if first and isinstance(first[0], int):
        program.fixed_batch = first[0]
    return program


def run_forward(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """Call the module as the user would, so that a failure speaks of their layers and not of tracing."""
    inside: list[str] = []

    def leave(*_: Any) -> None:
        inside.pop()

    hooks = []
    for name, child in module.named_modules():
        if not isinstance(child, torch.jit.ScriptModule):  # which takes no hooks
            hooks.append(child.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
            hooks.append(child.register_forward_hook(leave))
    try:
        with torch.no_grad():
            return module(*(x.clone() for x in inputs))
    except Exception as error:
        raise failing(error, module, inside[-1] if inside else "", inputs) from error
    finally:
        for hook in hooks:
            hook.remove()


def _export(module: nn.Module, inputs: Sequence[Tensor], shapes: Any, strict: bool, asserted: bool) -> ExportedProgram:
    with exporting():
        return torch.export.export(
            module, tuple(inputs), dynamic_shapes=_for_forward(module, shapes), strict=strict,
            prefer_deferred_runtime_asserts_over_guards=asserted,
        )  # fmt: skip


def _for_forward(module: nn.Module, shapes: Any) -> Any:
    """`dynamic_shapes` for a forward that takes `*args` groups them in one more tuple; others take them as they are."""
    if shapes is None:
        return None
    parameters = list(inspect.signature(module.forward).parameters.values())
    for i, parameter in enumerate(parameters[: len(shapes)]):
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return (*shapes[:i], shapes[i:])
    return shapes


def _name_recurrent_layers(graph_module: fx.GraphModule) -> None:
    """As PyTorch's own operators again."""
    for node in graph_module.graph.find_nodes(op="call_function", target=custom_ops.recurrent._opoverload):
        kind, x, states, *rest = node.args
        node.target, node.args = RECURRENT[kind], (x, states if kind == "lstm" else states[0], *rest)
    graph_module.recompile()


def _attribute_name(name: str, taken: Container[str]) -> str:
    """`name`, unless it is a keyword or an attribute of every `GraphModule`, as `graph` and `code` are."""
    first, *rest = [f"{part}_" if keyword.iskeyword(part) else part for part in name.split(".")]
    if first in RESERVED:
        first += "_"
    name = ".".join((first, *rest))
    while name in taken:
        name += "_"
    return name


def _refuse_state(program: Program, signature: ExportGraphSignature) -> None:
    """A forward may count its calls, but what it returns must not hang on a tensor that it changes itself.

    Raises:
        CaptureError: it does.
    """
    read = {
        source for node in program.graph.find_nodes(op="get_attr") for source in program.origins[node.target].sources
    }
    changed = sorted(read & set(signature.buffers_to_mutate.values()))
    if changed:
        names = ", ".join(f"`{name}`" for name in changed)
        raise CaptureError(
            f"forward changes {names} and reads what the call before left there: a converted model keeps no state",
            cure="pass the state in as an input, or keep it as it is in eval mode",
        )


def _refuse_overlapping_writes(graph_module: fx.GraphModule) -> None:
    """
    Raises:
        CaptureError: an assignment in place reads what it has already written.
    """
    found = overlapping_writes(graph_module)
    if found:
        raise CaptureError(
            "an assignment in place reads elements that it writes too: what PyTorch makes of it hangs on the processor",
            where=source_line(found[0]) or None,
            cure="assign a clone, as in x[1:] = x[:-1].clone()",
        )


def _keep_dropouts(graph_module: fx.GraphModule) -> None:
    """Decomposition would make clones of them.

    Raises:
        CaptureError: one that drops in eval mode too.
    """
    for node in graph_module.graph.nodes:
        if node.target in DROPOUTS:
            if node.args[2]:
                raise CaptureError(
                    "a dropout drops at random in eval mode too",
                    where=source_line(node) or None,
                    cure="call it as F.dropout(x, rate, training=self.training), or use nn.Dropout; a .pt2 is to be "
                    "exported of model.eval()",
                )
            node.target, node.args, node.kwargs = (
                custom_ops.dropout._opoverload,
                (node.args[0], float(node.args[1])),
                {},
            )
    graph_module.recompile()


def _restore_batch_norm(program: Program) -> None:
    """Decomposition leaves `_native_batch_norm_legit...` and its first item: one `batch_norm` again."""
    decomposed = (aten._native_batch_norm_legit_no_training.default, aten._native_batch_norm_legit.no_stats)
    for node in [n for target in decomposed for n in program.graph.find_nodes(op="call_function", target=target)]:
        x, weight, bias, *statistics, momentum, eps = node.args
        mean, variance, training = (None, None, True) if len(statistics) == 1 else (*statistics, False)
        with program.graph.inserting_before(node):
            whole = program.call(
                aten.batch_norm.default, (x, weight, bias, mean, variance, training, momentum, eps, False), node
            )
        for item in list(node.users):
            if item.target is operator.getitem and item.args[1] == 0:
                item.replace_all_uses_with(whole)


def _free_views(program: Program) -> None:
    """A view asks for a tensor that lies right in memory, which rewrites need not keep: reshape does not ask."""
    for target in (aten.view.default, aten._unsafe_view.default):
        for node in program.graph.find_nodes(op="call_function", target=target):
            node.target = aten.reshape.default


def _is_tensor(result: Any) -> bool:
    """And not a number, as a size that forward returns is."""
    return isinstance(result, fx.Node) and isinstance(result.meta.get("val"), Tensor)


def _output_names(exported: ExportedProgram, count: int) -> list[str]:
    """Names by the structure that forward returns: dictionary keys and attributes stay, positions are numbered."""
    spec = exported.call_spec.out_spec
    paths = [path for path, _ in tree_flatten_with_path(tree_unflatten(list(range(spec.num_leaves)), spec))[0]]
    names: list[str] = []
    for path in paths if len(paths) == count else [(SequenceKey(i),) for i in range(count)]:
        name = "_".join(str(_read_key(key)) for key in path)
        by_key = bool(path) and not isinstance(path[0], SequenceKey)
        name = (name if by_key else f"output_{name}".rstrip("_")) or "output"
        while name in names:
            name += "_"
        names.append(name)
    return names


def _read_key(key: Any) -> Any:
    match key:
        case SequenceKey():
            return key.idx
        case MappingKey():
            return key.key
        case GetAttrKey():
            return key.name
    return key
