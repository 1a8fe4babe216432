"""Patch PyTorch while `torch.export` captures, so that it decomposes little."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._sympy.functions import FloatTrueDiv, IntTrueDiv, ToFloat

from converter.compat import patches
from converter.compat.packed_sequences import CODE, layer_of_either
from converter.compat.parts_of_sizes import joined, split, stacked

aten = torch.ops.aten
RECURRENT = {
    "lstm": aten.lstm.input, "gru": aten.gru.input, "rnn_tanh": aten.rnn_tanh.input, "rnn_relu": aten.rnn_relu.input,
}  # fmt: skip


class _WholeRecurrentOps:
    """Replaces PyTorch's functions of that name: capture would trace them step by step, half a second each."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch._VF, name)
        if name not in RECURRENT:
            return function

        def whole(x: Tensor, states: Any, weights: Any, *settings: Any) -> Any:
            if not isinstance(weights, (list, tuple)):  # a packed sequence: its second argument is the batch sizes
                return function(x, states, weights, *settings)
            held = [states] if isinstance(states, Tensor) else list(states)
            return tuple(torch.ops.converter.recurrent(name, x, held, list(weights), *settings))

        return whole


def _pool_size(before: Any) -> Any:
    """Compute the size of a pool that rounds up without asking what is certain, which would restrict a dynamic size.

    At most `padding + stride - 1` elements remain after the last whole window, so no window that reaches further can
    begin past the image. Of smaller ones, the last begins at the image's last element or before it
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxPool2d.html, ceil_mode).
    PyTorch's C++ reads the length of a sequence as a number: the sequence becomes an image of one row.
    """

    def size(size: Any, kernel: int, front: int, behind: int, stride: int, dilation: int, ceil_mode: bool) -> Any:
        reach = dilation * (kernel - 1) + 1
        if ceil_mode and isinstance(size, torch.SymInt):
            return (size + front + min(behind - reach + stride, 0) - 1) // stride + 1
        return before(size, kernel, front, behind, stride, dilation, ceil_mode)

    return size


def _pool_of_sequence(before: Any) -> Any:
    """Pool a sequence of dynamic length, which PyTorch's C++ reads as a number, as an image of one row."""

    def max_pool1d(
        input: Tensor, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> Tensor:
        length: Any = input.shape[-1]
        if not isinstance(length, torch.SymInt):
            return before(input, kernel_size, stride, padding, dilation, ceil_mode)
        kernel, by, pad, apart = map(_number, (kernel_size, stride or kernel_size, padding, dilation))
        row = input.unsqueeze(-2)
        return F.max_pool2d(row, (1, kernel), (1, by), (0, pad), (1, apart), ceil_mode).squeeze(-2)

    return max_pool1d


def _parts(before: Any) -> Any:
    """Keep a dynamic size in `chunk`, which PyTorch's C++ reads as a number."""

    def chunk(input: Tensor, chunks: int, dim: int = 0) -> Any:
        size: Any = input.shape[dim]
        if not isinstance(size, torch.SymInt):
            return before(input, chunks, dim)
        each = (size + chunks - 1) // chunks
        if (chunks - 1) * each >= size:  # there are fewer parts; this restricts the size
            return before(input, chunks, dim)
        ends = [*(i * each for i in range(chunks)), size]
        return tuple(input.narrow(dim, ends[i], ends[i + 1] - ends[i]) for i in range(chunks))

    return chunk


def _parts_of_tensor(before: Any) -> Any:
    """Keep a dynamic size in `tensor_split`, which PyTorch's C++ reads as a number."""

    def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> Any:
        size: Any = input.shape[dim]
        count = indices_or_sections
        if not isinstance(size, torch.SymInt) or not isinstance(count, int) or isinstance(count, bool):
            return before(input, count, dim)
        if size < count:  # there are empty parts; this restricts the size
            return before(input, count, dim)
        parts, start = [], 0
        for i in range(count):
            length = (size + (count - 1 - i)) // count
            parts.append(input.narrow(dim, start, length))
            start = start + length
        return tuple(parts)

    return tensor_split


def _along(before: Any) -> Any:
    """Keep dynamic sizes in `take_along_dim`, which PyTorch's C++ reads as numbers."""

    def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
        sizes = (*input.shape, *indices.shape)
        if dim is None or input.dim() != indices.dim() or not any(isinstance(n, torch.SymInt) for n in sizes):
            taken: Tensor = before(input, indices, dim)
            return taken
        dim %= input.dim()
        others = [[*x.shape[:dim], *x.shape[dim + 1 :]] for x in (input, indices)]
        shape = torch.broadcast_shapes(*others)
        whole, places = (x.expand(*shape[:dim], x.shape[dim], *shape[dim:]) for x in (input, indices))
        return whole.gather(dim, places)

    return take_along_dim


def _maxima_of(rank: int) -> Callable[[Any], Any]:
    """Keep a dynamic size in a pool of maxima to (None, 5), which PyTorch's C++ reads as a number."""

    def make(before: Any) -> Any:
        def adaptive_max_pool(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
            first = input.dim() - rank
            sizes = list(output_size) if isinstance(output_size, (list, tuple)) else [output_size] * rank
            kept = [first + i for i, n in enumerate(sizes) if n is None or _is_same(n, input.shape[first + i])]
            if return_indices or not any(isinstance(input.shape[d], torch.SymInt) for d in kept):
                return before(input, output_size, return_indices)
            rest = [d for d in range(first, first + rank) if d not in kept]
            out = [sizes[d - first] for d in rest]
            if all(n == 1 for n in out):
                return input.amax(rest, keepdim=True) if rest else input
            order = [*range(first - 1), *kept, first - 1, *rest]  # what keeps its size is pooled as more samples
            turned = input.permute(order)
            samples, channels = turned.shape[: len(order) - len(rest) - 1], input.shape[first - 1]
            pools = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d}
            pooled = pools[len(rest)](turned.reshape(math.prod(samples), channels, *turned.shape[-len(rest) :]), out)
            return pooled.reshape(*samples, channels, *out).permute([order.index(d) for d in range(len(order))])

        return adaptive_max_pool

    return make


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether two are the same dynamic size, without a guard."""
    return all(isinstance(n, torch.SymInt) for n in (one, other)) and one.node.expr == other.node.expr


def _line(before: Any) -> Any:
    """Keep a dynamic size in `linspace`, which PyTorch's C++ reads as a number."""

    def linspace(start: Any, end: Any, steps: Any, *given: Any, **named: Any) -> Tensor:
        if not isinstance(steps, torch.SymInt) or given or isinstance(start, Tensor) or isinstance(end, Tensor):
            line: Tensor = before(start, end, steps, *given, **named)
            return line
        places = torch.ones(steps, **named).cumsum(0) - 1  # from both ends to the middle, as PyTorch counts
        last = places[-1:]
        step = (end - start) / last.clamp(min=1)
        middle = ((last + 1) / 2).floor().clamp(min=1)
        return torch.where(places < middle, start + step * places, end - step * (last - places))

    return linspace


def _whole_quotients(before: Any) -> Any:
    """Keep int(4 * n / 4.0) the size n: torch.export would have a rounded size, which no shape equals.

    Swin's own repository computes its batch so: int(windows.shape[0] / (H * W / size / size)).
    """

    def whole(cls: type, number: sympy.Expr) -> sympy.Expr | None:
        if isinstance(number, FloatTrueDiv | IntTrueDiv):
            base, divisor = (part.args[0] if isinstance(part, ToFloat) else part for part in number.args)
            if divisor.is_number and float(divisor).is_integer() and base.is_polynomial(*base.free_symbols):
                exact = sympy.expand(base / sympy.Integer(int(divisor)))
                if all(n.is_Integer for n in sympy.Poly(exact, *sorted(base.free_symbols, key=str)).coeffs()):
                    return exact
        found: sympy.Expr | None = before(number)
        return found

    return classmethod(whole)


def _divmod(before: Any) -> Any:
    """Divide numbers by the operators that dynamic sizes have."""

    def divide(number: Any, divisor: Any, /) -> Any:
        if all(isinstance(n, int | torch.SymInt) for n in (number, divisor)):
            return number // divisor, number % divisor
        return before(number, divisor)

    return divide


def _remainder(before: Any) -> Any:
    """Keep sizes dynamic in `math.fmod` by a positive integer, where it is the remainder."""

    def fmod(number: Any, divisor: Any, /) -> Any:
        if isinstance(number, int | torch.SymInt) and isinstance(divisor, int) and number >= 0 and divisor > 0:
            return number % divisor
        return before(number, divisor)

    return fmod


def _of_numbers(compute: Callable[..., Any]) -> Callable[[Any], Any]:
    """Keep dynamic sizes in a function of NumPy, which makes numbers of them, by Python's or PyTorch's own."""

    def make(before: Any) -> Any:
        def computed(*numbers: Any, **named: Any) -> Any:
            if all(isinstance(number, int | float | torch.SymInt | torch.SymFloat) for number in numbers) and not named:
                return compute(*numbers)
            return before(*numbers, **named)

        for method in ("accumulate", "at", "outer", "reduce", "reduceat"):
            setattr(computed, method, getattr(before, method))
        return computed

    return make


OF_NUMPY: Mapping[str, Callable[..., Any]] = {
    "ceil": math.ceil, "floor": math.floor, "maximum": torch.sym_max,
}  # fmt: skip


def _number(value: Any) -> int:
    """Return an argument of one number, given as such or in a list."""
    return value if isinstance(value, int) else value[0]


NAMES = {
    "axis": "dim", "x": "input", "a": "input",
    **dict.fromkeys(("indices", "sections", "tensor_indices_or_sections"), "indices_or_sections"),
}  # fmt: skip
"""Names that functions of PyTorch take besides their own, or in other overloads (`torch.tensor_split`)."""


def _in_any_spelling(make: Callable[[Any], Callable[..., Any]]) -> Callable[[Any], Callable[..., Any]]:
    """Let a replacement be called with every name of an argument that the original takes.

    Calls that the replacement has no signature for go to the original.
    """

    def made(before: Any) -> Callable[..., Any]:
        replacement = make(before)
        signature = inspect.signature(replacement)

        @functools.wraps(replacement)
        def call(*args: Any, **named: Any) -> Any:
            known = {n if n in signature.parameters else NAMES.get(n, n): value for n, value in named.items()}
            try:
                bound = signature.bind(*args, **known)
            except TypeError:
                return before(*args, **named)
            return replacement(*bound.args, **bound.kwargs)

        return call

    return made


def _unread(mask: Any, is_causal: bool | None = None, size: Any = None) -> bool:
    """Leave the mask's values unread: it is applied in any case."""
    return bool(is_causal)


FUNCTIONS: tuple[tuple[patches.Patch, Callable[[Any], Callable[..., Any]]], ...] = (
    (patches.SEQUENCE_POOLS, _pool_of_sequence),
    (patches.PARTS, _parts),
    (patches.PARTS_OF_TENSORS, _parts),
    (patches.UNEVEN_PARTS, _parts_of_tensor),
    (patches.UNEVEN_PARTS_OF_TENSORS, _parts_of_tensor),
    (patches.EQUAL_PARTS, split),
    *((patch, stacked if name == "stack" else joined) for name, patch in patches.JOINED_PARTS.items()),
    *((patch, _along) for patch in (patches.PLACES, patches.PLACES_OF_TENSORS)),
    *((patch, _maxima_of(rank)) for rank, patch in patches.ADAPTIVE_MAXIMA.items()),
    (patches.LINES, _line),
)
"""What models call by name. The replacements have the names of the first overload's arguments."""
REPLACEMENTS: tuple[tuple[patches.Patch, Callable[[Any], Any]], ...] = (
    (patches.RECURRENT_LAYERS, lambda _: _WholeRecurrentOps()),
    *((patch, lambda _, name=name: CODE[name]) for name, patch in patches.PACKED_SEQUENCES.items()),
    *((patch, layer_of_either) for patch in patches.LAYERS_OF_PACKED),
    (patches.CAUSAL_MASKS, lambda _: _unread),
    (patches.POOL_SIZES, _pool_size),
    (patches.QUOTIENTS, _whole_quotients),
    (patches.QUOTIENTS_AND_REMAINDERS, _divmod),
    (patches.REMAINDERS, _remainder),
    *((patch, _of_numbers(OF_NUMPY[patch.name])) for patch in patches.NUMPY),
    *((patch, _in_any_spelling(make)) for patch, make in FUNCTIONS),
)


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Patch PyTorch as `REPLACEMENTS` has it, and silence it."""
    with contextlib.ExitStack() as applied:
        applied.enter_context(quiet())
        for patch, make in REPLACEMENTS:
            applied.enter_context(patch.applied(make))
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence torch.export's warnings and printed graphs: they concern its implementation, not the user's model."""
    unread = io.StringIO()
    loggers = [*map(logging.getLogger, ("torch._guards", "torch._subclasses.fake_tensor"))]
    levels = [logger.level for logger in loggers]
    for logger in loggers:  # strict capture logs there what it also raises
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
