"""Capture a module with example inputs as one functional ATen graph (`torch.export`)."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError, UserErrorType
from torch.export import Dim, ExportedProgram
from torch.nn.modules.batchnorm import _NormBase

from converter.capture.alias_analysis import ReadOldValues
from converter.capture.control_flow import computes, freeze_and_check
from converter.capture.diagnostics import explain_export_error, first_line, module_of, needs_values, user_frame
from converter.capture.dynamic_shapes import (
    ANY_BATCH,
    Conditions,
    Free,
    Range,
    any_ranges,
    batch_is_free,
    conditions_of,
    dims,
    double_factors,
    example_sizes,
    input_shapes,
    is_bounded,
    name_sizes,
    names_of,
    other_sizes,
    period,
    resized,
    tighten,
    unresolved,
    unrestricted,
)
from converter.capture.import_exported import from_exported
from converter.capture.input_shapes import BATCH, FreeSize
from converter.capture.known_values import known_values
from converter.capture.run_forward import run_forward
from converter.capture.sizes_as_numbers import noting_numbers
from converter.compat.export_patches import exporting
from converter.compat.patches import PADS, SIZES_AS_UNKNOWN, Patch
from converter.errors import CaptureError, ConversionError, Note
from converter.ir.program import Program
from converter.ir.sizes import symbolic_shape
from converter.options import CaptureOptions

UNASKED = CaptureOptions()
_NOT_DYNAMIC = ("PTC2007", "PTC2009")


def capture(
    module: nn.Module,
    inputs: Sequence[Tensor],
    fixed_batch: bool = False,
    free: Free = (),
    how: CaptureOptions = UNASKED,
    runs: bool = False,
) -> Program:
    """Capture `module`, in eval mode, called with `inputs`; their dimension 0 is the batch and stays dynamic.

    A model that works for only one batch size is captured for that of `inputs`, and the program's notes say so.

    Args:
        free: the other dynamic dimensions of each input; their restrictions are noted.
        how: what is frozen or accepted, and torch.export's mode. Example inputs are given, whatever it says of them.
        runs: the module is known to run on `inputs`.

    Raises:
        CaptureError: the forward fails, or does something `torch.export` cannot take.
    """
    if not runs:
        run_forward(module, inputs)
    reason = failure = ""
    if not fixed_batch and any(x.ndim for x in inputs):
        reason = failure = _why_not_one(module, inputs)
    if not fixed_batch and any(x.ndim for x in inputs) and not reason:
        doubled, batch = [_at_least_two(x) for x in inputs], Dim("batch", min=1)
        try:
            with noting_numbers() as lines:
                program = _captured(module, doubled, free, batch, how)
                program.averaging = averaging_norms(module)
                return program
        except CaptureError:
            raise
        except Exception as error:
            reason, failure = _why_specialized(error, lines), _failure_of_two(module, inputs)
            if not failure and not how.strict and "specialized" in str(error):
                with contextlib.suppress(Exception):  # the first error says more
                    # Strict mode reads bytecode, in which int(size) and len(tensor) stay symbols.
                    program = _captured(module, doubled, free, batch, replace(how, strict=True))
                    if has_plain_sizes(program):
                        program.averaging = averaging_norms(module)
                        return program
    try:
        program = _captured(module, inputs, free, None, how)
    except CaptureError:
        raise
    except Exception as error:
        raise explain_export_error(error, module) from error
    program.averaging = averaging_norms(module)
    if reason:
        why = f"the model does not take other sizes: {failure}" if failure else reason
        text = f"Converted for batch {program.fixed_batch} only; {why}"
        program.notes.append(Note(text, code="PTC2501"))
    return program


def has_plain_sizes(program: Program) -> bool:
    """Return whether all sizes are polynomials of the dynamic ones, without rounding."""
    return all(n.is_polynomial(*n.free_symbols) for n in _dynamic_sizes(program))


def has_known_sizes(program: Program) -> bool:
    """Return whether all sizes are computed from those of the inputs."""
    known = {symbol for x in program.placeholders for n in x.meta["val"].shape if isinstance(n, torch.SymInt)
             for symbol in n.node.expr.free_symbols}  # fmt: skip
    return all(n.free_symbols <= known for n in _dynamic_sizes(program))


def _dynamic_sizes(program: Program) -> list[sympy.Expr]:
    values = [node.meta.get("val") for node in program.graph.nodes]
    tensors = [x for value in values for x in (value if isinstance(value, (list, tuple)) else (value,))]
    shapes = [symbolic_shape(x) for x in tensors if isinstance(x, Tensor)]
    return [n for shape in shapes for n in shape if not isinstance(n, int)]


def averaging_norms(module: nn.Module) -> frozenset[str]:
    """Return the paths of the batch norms that average the statistics of all batches."""
    parts = module.named_modules()
    return frozenset(path for path, part in parts if isinstance(part, _NormBase) and part.momentum is None)


def _captured(module: nn.Module, inputs: Sequence[Tensor], free: Free, batch: Any, how: CaptureOptions) -> Program:
    """Export; if forward makes a number of a dynamic size, in strict mode, in which int(size) stays a size."""
    if not names_of(free):
        shapes = tuple({0: batch} if x.ndim else None for x in inputs) if batch is not None else None
        return _exported(module, inputs, shapes, how)

    def captured(strict: bool) -> tuple[Program, Mapping[str, Range]]:
        return _captured_with_sizes(module, inputs, free, batch, replace(how, strict=strict))

    try:
        program, ranges = captured(how.strict)
    except CaptureError as error:
        if error.code in _NOT_DYNAMIC and not how.strict:
            with contextlib.suppress(Exception):  # the first error says more
                return _described(*captured(True), free)
        raise
    if not how.strict and is_bounded(ranges, free):
        with contextlib.suppress(Exception):  # what was captured is right, for fewer sizes
            whole, wider = captured(True)
            if not is_bounded(wider, free):
                program, ranges = whole, wider
    return _described(program, ranges, free)


def _captured_with_sizes(
    module: nn.Module, inputs: Sequence[Tensor], free: Free, batch: Any, how: CaptureOptions
) -> tuple[Program, Mapping[str, Range]]:
    """Export, restricting dynamic sizes as torch.export requires, and run the model at sizes that were not traced."""
    examples = example_sizes(free, inputs)
    ranges = any_ranges(free)
    asserted = False
    while True:
        try:
            program = _exported(module, inputs, _dynamic_shapes(inputs, free, ranges, batch), how, asserted)
        except CaptureError:
            raise
        except Exception as error:
            conditions = _conditions(error, module, inputs, free, ranges, batch, how)
            if conditions is None:
                raise
            left = tighten(conditions, ranges, examples)
            if left == ranges:
                if asserted:
                    raise unresolved(free, first_line(error)) from error
                asserted = True
            elif general := _captured_for_every_remainder(module, inputs, free, ranges, conditions, batch, how):
                return general
            ranges = left
            continue
        failure = left_failure = _failure_elsewhere(module, inputs, free, ranges, program if asserted else None)
        if failure is None:
            return program, ranges
        while left_failure is not None:
            stricter = double_factors(ranges, examples)
            if stricter is None:
                raise failure
            ranges = stricter
            left_failure = _failure_elsewhere(module, inputs, free, ranges)


def _conditions(
    error: Exception, module: nn.Module, inputs: Sequence[Tensor], free: Free, ranges: Mapping[str, Range], batch: Any,
    how: CaptureOptions,
) -> Conditions | None:  # fmt: skip
    """Return torch.export's conditions on each dynamic size, None if `error` has another cause, such as the batch."""
    violated = isinstance(error, UserError) and error.error_type is UserErrorType.CONSTRAINT_VIOLATION
    violated = violated or (isinstance(error, ConversionError) and error.code == "PTC2037")  # of 16*T, T was asked
    if not violated and not isinstance(error, AssertionError):  # torch.export's, of bounds that are fractions
        return None
    shapes = tuple(
        ({0: Dim.AUTO} if batch is not None and x.ndim else {}) | sizes or None
        for x, sizes in zip(inputs, unrestricted(free, ranges), strict=True)
    )
    try:
        exported = _export(module, inputs, shapes, how.strict, asserted=False)
    except Exception:  # the first error says more
        return None
    if batch is None:
        return conditions_of(exported, free)
    if any(isinstance(shape[0], int) for shape in input_shapes(exported) if shape):
        return None
    batched = [({0: FreeSize(BATCH)} if x.ndim else {}) | dict(sizes) for x, sizes in zip(inputs, free, strict=True)]
    found = conditions_of(exported, batched)
    return found if batch_is_free(found) else None


def _dynamic_shapes(inputs: Sequence[Tensor], free: Free, ranges: Mapping[str, Range], batch: Any) -> Any:
    named = zip(inputs, dims(free, ranges), strict=True)
    return tuple(({0: batch} if batch is not None and x.ndim else {}) | sizes or None for x, sizes in named)


def _described(program: Program, ranges: Mapping[str, Range], free: Free) -> Program:
    """Name the program's sizes, and note what restricts them."""
    name_sizes(program, free)
    program.batch_is_named = ranges.get(BATCH) == ANY_BATCH
    program.notes += [note for name, held in ranges.items() if (note := held.described(name))]
    return program


MOST_REMAINDERS = 64  # a model runs at each


def _captured_for_every_remainder(
    module: nn.Module, inputs: Sequence[Tensor], free: Free, ranges: Mapping[str, Range], conditions: Conditions,
    batch: Any, how: CaptureOptions,
) -> tuple[Program, Mapping[str, Range]] | None:  # fmt: skip
    """Return a program for all sizes of a model that pads or crops to multiples; None if it is not one.

    torch.export asks whether a size is a multiple, because forward does or because strides depend on it, and then keeps
    only sizes that answer as the examples do. A program captured off multiples has the pad; of no elements, it is right
    for multiples too. Each is compared with the model at all remainders, and at smaller sizes down to the first that
    the model does not take.
    """
    periods = {name: period(conditions.get(name, ()), name) for name in ranges}
    remainders = math.lcm(*(n or MOST_REMAINDERS + 1 for n in periods.values()))
    if not 1 < remainders <= MOST_REMAINDERS:
        return None
    examples = example_sizes(free, inputs)
    steps = {name: held.factor for name, held in ranges.items() if name != BATCH or periods[name] != 1}
    starts = {name: 2 * remainders * step for name, step in steps.items()}
    least = {name: -(-ranges[name].least // step) * step for name, step in steps.items()}

    def call(sizes: Mapping[str, int]) -> tuple[list[Tensor], Any]:
        tensors = [resized(x, held, {**examples, **sizes}) for x, held in zip(inputs, free, strict=True)]
        return tensors, run_forward(module, tensors)

    lowest = dict(starts)
    calls: list[tuple[list[Tensor], Any]] = []
    for above in range(remainders, -max(starts.values()), -1):
        sizes = {name: max(starts[name] + above * step, least[name]) for name, step in steps.items()}
        if calls and sizes == lowest:
            break
        try:
            calls.append(call(sizes))
        except CaptureError:
            break
        lowest = sizes
    if len(calls) <= remainders:
        return None
    ranges = {name: replace(held, least=lowest.get(name, held.least)) for name, held in ranges.items()}
    off = calls[remainders - 1][0]
    with contextlib.suppress(CaptureError):  # the first error says more
        calls += [call(starts | {name: 3 * starts[name] + step}) for name, step in steps.items()]

    def pad_of_a_period(before: Any) -> Any:
        def pad(input: Tensor, pad: Sequence[Any], *given: Any, **named: Any) -> Any:
            left = [n % remainders if isinstance(n, torch.SymInt) else n for n in pad]
            return before(input, left, *given, **named)

        return pad

    whole = {
        name: replace(held, least=max(held.least, remainders * steps.get(name, 0))) for name, held in ranges.items()
    }
    unknown, dropped = (SIZES_AS_UNKNOWN, lambda _: True), (PADS, pad_of_a_period)
    tries: tuple[
        tuple[Sequence[Tensor], Mapping[str, Range], bool, Sequence[tuple[Patch, Callable[[Any], Any]]]], ...
    ] = (
        (off, ranges, how.strict, ()),
        (inputs, ranges, how.strict, (unknown,)),
        (off, ranges, how.strict, (unknown, dropped)),
        (off, whole, how.strict, (unknown, dropped)),
        (off, whole, True, (unknown,)),
    )
    for traced, allowed, strict, patches in tries:
        shapes = _dynamic_shapes(traced, free, allowed, batch)
        with contextlib.suppress(Exception), contextlib.ExitStack() as applied:  # the first error says more
            for patch, make in patches:
                applied.enter_context(patch.applied(make))
            program = _exported(module, traced, shapes, replace(how, strict=strict), asserted=True)
            if has_known_sizes(program) and all(computes(program, tensors, expected) for tensors, expected in calls):
                return program, allowed
    return None


def _exported(
    module: nn.Module, inputs: Sequence[Tensor], shapes: Any, how: CaptureOptions, asserted: bool = False
) -> Program:
    """Export with torch.export in the requested mode, then by fallbacks if that needs a tensor's values.

    Unless it is strict, the fallbacks are strict mode, which keeps numbers out of tensors, then known values of the
    module's own tensors. If control flow may be frozen, the last one keeps the branches taken for these inputs.

    Args:
        asserted: restrictions of dynamic sizes become assertions in the program, which are dropped.
    """

    def program_of(strict: bool) -> Program:
        exported = _export(module, inputs, shapes, strict, asserted)
        return _noting_names(from_exported(exported, how.reads_old_values), module)

    try:
        return program_of(how.strict)
    except CaptureError:
        raise
    except Exception as error:
        if not needs_values(error):
            raise
        if not how.strict:
            with contextlib.suppress(Exception):  # the first error says more
                return program_of(True)
            with contextlib.suppress(Exception), known_values(module) as known:
                program = program_of(False)
                program.values_read = known.read
                return program
        if not how.freeze_control_flow:
            raise
        with exporting():
            drafted = torch.export.draft_export(module, tuple(inputs), dynamic_shapes=_for_forward(module, shapes))
        program = _noting_names(from_exported(drafted, how.reads_old_values), module)
        with ReadOldValues() if how.reads_old_values else contextlib.nullcontext():
            freeze_and_check(program, module, user_frame(error) or module_of(error, module) or "forward")
        return program


def _failure_elsewhere(
    module: nn.Module, inputs: Sequence[Tensor], free: Free, ranges: Mapping[str, Range], program: Program | None = None
) -> CaptureError | None:
    """Return the error of the model, or of the program compared with it, at sizes other than those traced, or None."""
    for sizes in other_sizes(ranges):
        shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
        tensors = [resized(x, held, sizes) for x, held in zip(inputs, free, strict=True)]
        try:
            expected = run_forward(module, tensors)
            if program is not None and not computes(program, tensors, expected):
                return unresolved(free, f"what it captures is not the model at {shown}")
        except CaptureError as error:
            return CaptureError(
                f"The model does not accept every size: at {shown} it fails: {error.what.partition(': ')[2]}",
                code="PTC2013",
                where=error.where,
                fix="Give numbers in --input-shape for the sizes that must be fixed.",
            )
    return None


def _why_not_one(module: nn.Module, inputs: Sequence[Tensor]) -> str:
    """Return the model's error on a batch of 1, as one that computes batch statistics raises; "" if there is none."""
    if not any(x.ndim and x.shape[0] > 1 for x in inputs):
        return ""
    try:
        with torch.no_grad():
            module(*(x[:1].clone() if x.ndim else x.clone() for x in inputs))
    except Exception as error:
        return f"of 1 example, {first_line(error)}"
    return ""


def _noting_names(program: Program, module: nn.Module) -> Program:
    """Note parameters that were renamed: names in graphs consist of ASCII letters only."""
    given = list(inspect.signature(module.forward).parameters)
    if len(given) >= len(program.inputs):
        for name, kept in zip(given, program.inputs, strict=False):
            if not name.isascii():
                text = f"Input `{name}` is named `{kept}`: names can contain only ASCII letters, digits and _."
                program.notes.append(Note(text, code="PTC2503"))
    return program


def _at_least_two(x: Tensor) -> Tensor:
    """Double a batch of 1, which torch.export would take for a constant."""
    return x if x.ndim == 0 or x.shape[0] > 1 else torch.cat([x, x])


def _why_specialized(error: Exception, used: Sequence[str]) -> str:
    """Return why a batch could not stay dynamic; `used` are the lines that turn sizes into numbers."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "batch" in line and ("specialized" in line or "satisfy" in line)]
    if any("specialized" in line for line in telling):
        place = f": {used[-1]}" if used else ""
        return f"forward uses the batch size as a number, in a branch or a loop{place}"
    return (telling or lines or [type(error).__name__])[0]


def _failure_of_two(module: nn.Module, inputs: Sequence[Tensor]) -> str:
    """Return the model's error on a batch of another size than that of `inputs`; "" if there is none."""
    try:
        with torch.no_grad():
            module(*(torch.cat([x, x]) if x.ndim else x.clone() for x in inputs))
    except Exception as error:
        return first_line(error)
    return ""


def _export(module: nn.Module, inputs: Sequence[Tensor], shapes: Any, strict: bool, asserted: bool) -> ExportedProgram:
    with exporting():
        return torch.export.export(
            module, tuple(inputs), dynamic_shapes=_for_forward(module, shapes), strict=strict,
            prefer_deferred_runtime_asserts_over_guards=asserted,
        )  # fmt: skip


def _for_forward(module: nn.Module, shapes: Any) -> Any:
    """Group `dynamic_shapes` of `*args` in one more tuple; return others as they are."""
    if shapes is None:
        return None
    parameters = list(inspect.signature(module.forward).parameters.values())
    for i, parameter in enumerate(parameters[: len(shapes)]):
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return (*shapes[:i], shapes[i:])
    return shapes
