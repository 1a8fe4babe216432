"""What each tensor of a `.tflite` file must be: TensorFlow's converter renames, transposes, scales and cuts weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from converter.artifacts.runtime.graph_digest import is_weight
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Origin
from converter.verification.array_arrangement import arranged, comparable, digest
from converter.verification.weight_proof import FOLDED_ULP, Expected

if TYPE_CHECKING:
    from converter.lowering.frozen_constants import FrozenConstant
    from converter.plan.steps import Constant

MOST_PIECES = 8


@dataclass(frozen=True)
class _Candidate:
    """What a tensor of the file may hold.

    Attributes:
        array: in the file's precision.
        required: what it must be, which is in float64 where the plan computed it.
        constant: what the graph has.
        exact: it has the values of the checkpoint's tensors.
        values: of the plan's constant that it is, if it is one.
    """

    array: np.ndarray
    required: np.ndarray
    constant: FrozenConstant
    exact: bool
    values: LazyTensor | None = None

    def arranged(self, tensor: np.ndarray, rounding: np.ndarray | None = None) -> ArrayLike | None:
        """Return `required` in the arrangement of a tensor that holds this, transposed; None if it does not."""
        if self.values is not None and rounding is None:
            return moved_to(tensor, self.array, self.values)
        how = arranged(_values(self.array), _values(tensor), rounding)
        if how is None or how.reordered:
            return None
        return np.atleast_1d(self.required).transpose(how.order).reshape(tensor.shape)

    def rounding(self) -> np.ndarray:
        scale = np.abs(self.array).max(initial=0.0).astype(np.float32)
        return np.full(np.atleast_1d(self.array).shape, FOLDED_ULP * np.spacing(scale))


def moved_to(tensor: np.ndarray, array: np.ndarray, values: LazyTensor) -> LazyTensor | None:
    """Return `values`, which are now `array`, in the arrangement of a tensor that holds them transposed, or None."""
    how = arranged(_values(array), _values(tensor))
    if how is None or how.reordered:
        return None
    held, order, shape = np.atleast_1d(array).shape, tuple(map(int, how.order)), tensor.shape
    return values.map(lambda values: values.reshape(held).permute(order).reshape(shape))


def expected_constants(
    constants: Sequence[FrozenConstant],
    tensors: Mapping[str, np.ndarray],
    origins: Mapping[str, Origin],
    described: Callable[[Constant], Sequence[str]] = lambda _: (),
) -> dict[str, Expected]:
    """Return what the file's tensors must be, by name, as far as they hold a constant of the graph.

    A tensor may hold it transposed; where none does, multiplied by another constant or added to it, negated, or a part.

    Args:
        constants: what the graph that was converted computes of the weights alone.
        origins: of the program's tensors.
        described: returns what rearranges a constant of the plan.
    """
    candidates = [_candidate(constant) for constant in constants if constant.array.size]
    floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype.kind == "f" and tensor.size}
    found = _matches(candidates, floats, nearly=True)
    matched = {id(one.constant) for pairs in found.values() for one, _ in pairs}
    left = {name: tensor for name, tensor in floats.items() if name not in found}
    sizes = {tensor.size for tensor in left.values() if is_weight(tensor)}
    open_ones = [c for c in candidates if id(c.constant) not in matched or c.array.size in sizes]
    unmatched = {id(c) for c in candidates if id(c.constant) not in matched}
    ends, wanted = {_ends(tensor) for tensor in left.values()}, {digest(_values(tensor)) for tensor in left.values()}
    derived = (new for one in open_ones for new in _derived(one, candidates, unmatched, sizes, ends))
    found |= _matches([new for new in derived if digest(_values(new.array)) in wanted], left, nearly=False)
    return {
        name: Expected(
            next((array for _, array in pairs if isinstance(array, LazyTensor)), pairs[0][1]),
            tuple(dict.fromkeys(s for one, _ in pairs for t in one.constant.sources for s in origins[t].sources)),
            all(one.exact for one, _ in pairs),
            how=", ".join(_steps(pairs[0][0], tensors[name], described)),
        )
        for name, pairs in found.items()
    }


def _steps(one: _Candidate, tensor: np.ndarray, described: Callable[[Constant], Sequence[str]]) -> list[str]:
    """Return what rearranges a constant, in the plan and then by the converter."""
    steps = list(described(one.constant.constants[0])) if len(one.constant.constants) == 1 else []
    shapes = [tuple(size for size in array.shape if size > 1) for array in (one.constant.array, tensor)]
    return steps + (["transposed by the converter"] if shapes[0] != shapes[1] else [])


def is_of_graph(tensor: np.ndarray) -> bool:
    """Return whether the digest of the graph covers a tensor that holds no weight."""
    return not is_weight(tensor)


def _matches(
    candidates: Sequence[_Candidate], tensors: Mapping[str, np.ndarray], nearly: bool
) -> dict[str, list[tuple[_Candidate, ArrayLike]]]:
    """Return the candidates that each tensor holds, which are equal if they are several, and what it must be."""
    by_digest: dict[tuple[int, int], list[_Candidate]] = defaultdict(list)
    by_size: dict[int, list[_Candidate]] = defaultdict(list)
    for one in candidates:
        by_digest[digest(_values(one.array))].append(one)
        by_size[one.array.size].append(one)
    found = {}
    for name, tensor in tensors.items():
        exact = [(one, one.arranged(tensor)) for one in by_digest.get(digest(_values(tensor)), ())]
        pairs = [(one, array) for one, array in exact if array is not None]
        if not pairs and nearly and is_weight(tensor):
            rounded = (replace(one, values=None) for one in by_size.get(tensor.size, ()))
            near = ((one, one.arranged(tensor, one.rounding())) for one in rounded)
            pairs = [(replace(one, exact=False), array) for one, array in near if array is not None]
        if pairs:
            found[name] = pairs
    return found


def _candidate(constant: FrozenConstant) -> _Candidate:
    if len(constant.constants) == 1 and (held := constant.constants[0].array()).size == constant.array.size:
        required = held.reshape(constant.array.shape)
        if np.array_equal(required.astype(constant.array.dtype), constant.array, equal_nan=True):
            one = constant.constants[0]
            return _Candidate(constant.array, required, constant, one.exact, one.values)
    return _Candidate(constant.array, constant.array, constant, False)


def _ends(array: np.ndarray, size: int | None = None) -> tuple[int, float, float]:
    """Return the size of an array, its least and its greatest number."""
    return array.size if size is None else size, float(array.min()), float(array.max())


def _derived(
    one: _Candidate,
    others: Sequence[_Candidate],
    unmatched: set[int],
    sizes: Collection[int],
    ends: Collection[tuple[int, float, float]],
) -> Iterator[_Candidate]:
    """Yield what the converter makes of a constant: cut, scaled or shifted, by a number or one for each channel.

    Args:
        unmatched: the ids of what no tensor holds, which may be added to another constant.
        sizes: of the tensors that are still to be explained.
        ends: `_ends` of them. What is made of a channel's least and greatest number tells those of the whole.
    """
    array, last = one.array, one.array.shape[-1] if one.array.ndim else 1
    factors: dict[bytes, list[_Candidate]] = defaultdict(list)
    for other in others:
        lost = {id(one), id(other)} & unmatched
        alike = other.array.shape == array.shape and lost == {id(one), id(other)}
        if other.array.size in (1, last) or alike or (lost and _widened_size(array, other.array) in sizes):
            factors[other.array.tobytes()].append(other)
    columns = array.reshape(-1, last)
    limits = np.stack([columns.min(0), columns.max(0)])
    for same in (*factors.values(), []):
        factor = same[0].array if same else np.array([-1], np.float32)
        factor = factor.reshape(-1) if factor.size in (1, last) else factor
        constant, parts, given = one.constant, [one.values], None
        if any(other.constant.sources for other in same):
            constant = replace(constant, constants=(*constant.constants, *same[0].constant.constants))
            parts.append(same[0].values if len(same) == 1 else None)
        else:
            given = factor
        for compute in _NUMPY:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                if factor.size in (1, last):
                    made_ends = _ends(_NUMPY[compute](limits, factor), array.size)
                    if made_ends not in ends and not math.isnan(made_ends[1]):
                        continue
                made = _NUMPY[compute](array, factor)
            lazy = [part for part in parts if part is not None]
            values = None
            if len(lazy) == len(parts):
                function = partial(_computed, compute, array.shape, factor.shape, given)
                values = LazyTensor(function, tuple(lazy), made.shape, torch.float32)
            yield replace(one, array=made, required=made, constant=constant, exact=False, values=values)
    for axis, size in enumerate(array.shape):
        if 1 < size <= MOST_PIECES:
            for i in range(size):
                part = partial(torch.select, dim=axis, index=i)
                values = None if one.values is None else one.values.map(partial(_reshaped, shape=array.shape)).map(part)
                yield replace(one, array=array.take(i, axis), required=one.required.take(i, axis), values=values)


def _widened_size(one: np.ndarray, other: np.ndarray) -> int | None:
    """Return the size of what both are broadcast to, if it is more than either has."""
    try:
        size = math.prod(np.broadcast_shapes(one.shape, other.shape))
    except ValueError:
        return None
    return size if size > max(one.size, other.size) else None


def _times_inverse(values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return values * torch.reciprocal(factor)


_NUMPY: dict[Callable[..., torch.Tensor], Callable[..., np.ndarray]] = {
    torch.mul: np.multiply,
    torch.div: np.divide,
    _times_inverse: lambda values, factor: values * np.reciprocal(factor),
    torch.add: np.add,
    torch.sub: np.subtract,
}


def _computed(
    compute: Callable[..., torch.Tensor],
    shape: tuple[int, ...],
    operand_shape: tuple[int, ...],
    given: np.ndarray | None,
    values: torch.Tensor,
    factor: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what the converter computes of a constant's values, and of another's or the array `given`."""
    operand = torch.from_numpy(given) if factor is None else factor
    return compute(values.reshape(shape), operand.reshape(operand_shape).to(values.device))


def _reshaped(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return values.reshape(shape)


def _values(array: np.ndarray) -> np.ndarray:
    return comparable(np.atleast_1d(array))
