"""The values that a program's inputs may take, as far as its graph shows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch

from converter.capture.bag_offsets import offsets_of_bags
from converter.capture.dynamic_shapes import LEAST, Range
from converter.capture.input_shapes import BATCH
from converter.capture.integer_domains import IntegerDomain, integer_domains, size_with
from converter.capture.random_inputs import InputSpec
from converter.capture.sequence_lengths import lengths_of_sequences
from converter.errors import CaptureError
from converter.ir.program import Program

SAMPLES = 512
ELEMENTS = 1 << 23  # limit for the round of many samples, counting all activations
LARGE_ACTIVATION = 1 << 26  # elements
BATCH_HINT = 4


def input_specs(program: Program) -> list[InputSpec]:
    """Describe the program's inputs, with integers in the range that the graph shows."""
    drawn = [values for values, _ in _size_choices(program)] + _equal_values(program)
    specs, domains = [], integer_domains(program, drawn)
    for name, node in zip(program.inputs, program.placeholders, strict=True):
        value = node.meta["val"]
        shape = tuple(n if isinstance(n, int) else _size_text(program, n, i) for i, n in enumerate(value.shape))
        dtype = str(value.dtype).removeprefix("torch.")
        held = domains.get(node, IntegerDomain())
        columns = [
            InputSpec(name, shape[:-1], dtype, one.low, one.high, one.telling, far=one.far) for one in held.columns
        ]
        source = lengths_of_sequences(program, node) or offsets_of_bags(program, node)
        pixels = name in program.pixels
        specs.append(
            InputSpec(name, shape, dtype, held.low, held.high, held.telling, pixels, source, held.far, tuple(columns))
        )
    return specs


def _size_text(program: Program, size: torch.SymInt, dim: int) -> str | int:
    if times := _times_the_batch(program, size):
        return times * program.fixed_batch if program.fixed_batch else BATCH if times == 1 else f"{times}*{BATCH}"
    if dim == 0 and size.node.expr.free_symbols & program.batch_symbols and not program.batch_is_named:
        return program.fixed_batch or BATCH
    return program.size_name(size)


def _times_the_batch(program: Program, size: torch.SymInt) -> int | None:
    """Return the number that gives a size when multiplied by the batch, or None."""
    for symbol in program.batch_symbols & size.node.expr.free_symbols:
        times = size.node.expr / symbol
        return int(times) if times.is_Integer else None
    return None


def many_samples(program: Program) -> int:
    """Return how many samples, at the largest sizes drawn, take about as much work as one sample of a large model.

    If they are few, return 0.
    """
    per_sample = sum(_activations(program))
    samples = min(SAMPLES, ELEMENTS // max(per_sample, 1))
    return samples if samples >= BATCH_HINT and program.fixed_batch is None else 0


def most_samples(program: Program) -> int:
    """Return how many samples may run together: two of a model with large activations, which several steps hold."""
    return 2 if max(_activations(program), default=0) > LARGE_ACTIVATION else 3


def _activations(program: Program) -> Iterator[int]:
    """Yield the elements of each operator's results for one sample, at the largest sizes drawn."""
    sizes: dict[sympy.Symbol, int] = {}
    for values, batches in _size_choices(program):
        for symbol, size in values.items():
            sizes[symbol] = 1 if symbol in batches else max(size, sizes.get(symbol, 1))
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if node.op == "call_function" and isinstance(tensor, torch.Tensor):
                yield size_with(tensor.numel(), 1, sizes)


def dynamic_size_choices(program: Program) -> list[dict[str, int]]:
    """Return two choices of every dynamic size but the batch, by the text of its expression; [] if there is none."""
    return [_by_name(program, values) for values, _ in _size_choices(program) if _free_dimensions(program)]


def equal_sizes(program: Program) -> list[dict[str, int]]:
    """Return one choice of the dynamic sizes but the batch in which all symbols are equal; [] if that is impossible."""
    return [_by_name(program, values) for values in _equal_values(program)]


def _equal_values(program: Program) -> list[dict[sympy.Symbol, int]]:
    symbols, known = _size_symbols(program)
    values = {symbol: _within(bounds, 4) for symbol, bounds in symbols.items()}
    if len(values) < 2:
        return []
    size = max(values.values())
    if any(_within(bounds, size - max(_lowest(bounds), LEAST)) != size for bounds in symbols.values()):
        return []
    return [dict.fromkeys(values, size) | known]


def sizes_of_one(program: Program) -> dict[str, int]:
    """Return the dynamic sizes but the batch with each symbol 1, which capture leaves aside; {} if it is excluded."""
    symbols, known = _size_symbols(program)
    if not symbols or any(_lowest(bounds) > LEAST for bounds in symbols.values()):
        return {}
    return _by_name(program, dict.fromkeys(symbols, 1) | known)


def size_ranges(program: Program) -> dict[str, dict[int, Range]]:
    """Return the limits of dynamic sizes but the batch, by input and dimension, outside of which results are wrong."""
    found: dict[str, dict[int, Range]] = {}
    for name, node in zip(program.inputs, program.placeholders, strict=True):
        for dim, size in enumerate(node.meta["val"].shape):
            if dim and not isinstance(size, int) and (limits := _limits_of(program, size)) is not None:
                found.setdefault(name, {})[dim] = limits
    return found


def _limits_of(program: Program, size: Any) -> Range | None:
    expression = size.node.expr
    symbols = sorted(expression.free_symbols, key=str)
    if len(symbols) != 1:
        return None
    factor, rest = int(expression.coeff(symbols[0])), int(expression.subs(symbols[0], 0))
    bounds = size.node.shape_env.var_to_range.get(symbols[0])
    if expression != factor * symbols[0] + rest or factor < 1 or bounds is None:
        return None
    least = _lowest(bounds) if program.refuses_ones or _lowest(bounds) > LEAST else 0
    most = factor * int(bounds.upper) + rest if bounds.upper.is_Integer else None
    if rest or (factor == 1 and not least and most is None):
        return None if not least and most is None else Range(1, factor * least + rest, most)
    return Range(factor, factor * least, most)


def _lowest(bounds: Any) -> int:
    return LEAST if bounds is None else int(bounds.lower)


def _size_symbols(program: Program) -> tuple[dict[sympy.Symbol, Any], dict[sympy.Symbol, int]]:
    """Return the bounds of every symbol in dynamic sizes but the batch, and a size for those of the batch."""
    ((_, batches), *_) = _size_choices(program)
    symbols: dict[sympy.Symbol, Any] = {}
    for size in _free_dimensions(program):
        ranges = size.node.shape_env.var_to_range
        symbols |= {s: ranges.get(s) for s in sorted(size.node.expr.free_symbols - batches, key=str)}
    return symbols, dict.fromkeys(batches, BATCH_HINT)


def _by_name(program: Program, values: Mapping[sympy.Symbol, int]) -> dict[str, int]:
    return {program.size_name(n): int(n.node.expr.subs(values)) for n in _free_dimensions(program)}


def _free_dimensions(program: Program) -> list[Any]:
    found = []
    for node in program.placeholders:
        for dim, size in enumerate(node.meta["val"].shape):
            first = dim == 0 and program.batch_symbols and not program.batch_is_named
            if isinstance(size, torch.SymInt) and not first and not _times_the_batch(program, size):
                found.append(size)
    return found


def _size_choices(program: Program) -> list[tuple[dict[sympy.Symbol, int], set[sympy.Symbol]]]:
    """Return two choices of every symbol in the inputs' shapes, and which of these belong to the batch."""
    known = program.batch_symbols
    choices = []
    for step in (1, 2):
        values = dict.fromkeys(known, BATCH_HINT)
        for size in _free_dimensions(program):
            ranges = size.node.shape_env.var_to_range
            for symbol in sorted(size.node.expr.free_symbols - values.keys(), key=str):
                apart = len(values) - len(known)  # no two sizes alike, so that swapped height and width show
                bounds = ranges.get(symbol)
                if symbol in program.limited:  # at the ends of the user's range
                    values[symbol] = int(bounds.lower if (step + apart) % 2 else bounds.upper)
                else:
                    values[symbol] = _within(bounds, 3 * step + 2 * apart)
        choices.append((values, known))
    return choices


def _within(bounds: Any, above: int) -> int:
    """Return a size within its bounds, above the minimum."""
    highest = bounds.upper if bounds is not None else sympy.oo
    wanted = max(_lowest(bounds), LEAST) + above
    return int(highest) if highest.is_finite and wanted > highest else wanted


def export_shapes(program: Program) -> tuple[dict[int, Any] | None, ...]:
    """Return the program's dynamic dimensions for `torch.export.export`, with an input's first one named batch."""
    named: dict[sympy.Symbol, Any] = {}

    def free(size: torch.SymInt, dim: int) -> Any:
        expression = size.node.expr
        (symbol,) = expression.free_symbols
        factor, rest = int(expression.coeff(symbol)), int(expression.subs(symbol, 0))
        if expression != factor * symbol + rest:
            raise CaptureError(
                f"A dynamic size has the form {expression}, which is not supported.",
                code="PTC2019",
                fix="Export the model with sizes of the form a * dim + b.",
            )
        if symbol not in named:
            bounds = size.node.shape_env.var_to_range.get(symbol)
            lowest, highest = (int(bounds.lower), bounds.upper) if bounds is not None else (0, sympy.oo)
            is_batch = dim == 0 and symbol not in program.size_names
            limits = {"min": 1 if is_batch else lowest} | ({"max": int(highest)} if highest.is_Integer else {})
            name = program.size_name(symbol)  # H, or H/4 if only multiples of 4 are allowed
            named[symbol] = torch.export.Dim(
                BATCH if is_batch else name if name.isidentifier() else f"_{re.sub(r'[^A-Za-z0-9]+', '_', name)}",
                **limits,
            )
        whole = named[symbol] if factor == 1 else factor * named[symbol]
        return whole + rest if rest else whole

    found = []
    for node in program.placeholders:
        shape = node.meta["val"].shape
        found.append({d: free(n, d) for d, n in enumerate(shape) if not isinstance(n, int)} or None)
    return tuple(found)
