"""How each tensor of an artifact is computed from the checkpoint, as data that can be stored and read safely.

A recipe is read from an artifact, which anybody may have written: its text is bounded, it names operators of a fixed
list only, and each runs on tensors without values first, so that shapes and work are bounded too.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch._ops import OpOverload

from converter.ir.lazy_tensor import digest
from converter.ir.program import default_dtype

aten = torch.ops.aten
LARGEST_TEXT = 1 << 24  # bytes of JSON
MOST_WORK = 256  # elements computed for each element of checkpoint and artifact
LEAST_BUDGET = 1 << 26
# Numbers, or shapes that depend on values, which code can branch on.
EXITS = frozenset({"_local_scalar_dense", "equal", "is_nonzero", "allclose", "nonzero"})
OPERATORS = frozenset(
    name
    for name in """
    view.default _unsafe_view.default permute.default transpose.int t.default unsqueeze.default squeeze.default
    squeeze.dim squeeze.dims expand.default slice.Tensor select.int split.Tensor split_with_sizes.default unbind.int
    diagonal.default unfold.default alias.default detach.default clone.default _to_copy.default cat.default
    stack.default index_select.default index.Tensor gather.default flip.default roll.default repeat.default
    constant_pad_nd.default tril.default triu.default slice_scatter.default select_scatter.default view.dtype
    fill.Scalar fill.Tensor where.self lift_fresh.default lift_fresh_copy.default repeat_interleave.self_int
    masked_fill.Scalar masked_fill.Tensor select_backward.default copy_.default fill_.Scalar fill_.Tensor zero_.default
    add_.Tensor sub_.Tensor mul_.Tensor div_.Tensor zeros.default ones.default full.default arange.default arange.start
    arange.start_step eye.default eye.m linspace.default scalar_tensor.default new_zeros.default new_ones.default
    new_full.default zeros_like.default ones_like.default full_like.default add.Tensor add.Scalar sub.Tensor
    sub.Scalar rsub.Scalar rsub.Tensor mul.Tensor mul.Scalar div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode
    neg.default rsqrt.default sqrt.default reciprocal.default square.default pow.Tensor_Scalar pow.Tensor_Tensor
    pow.Scalar exp.default exp2.default expm1.default log.default log2.default log1p.default abs.default
    sign.default floor.default ceil.default round.default trunc.default remainder.Scalar remainder.Tensor
    fmod.Scalar fmod.Tensor floor_divide.default sin.default cos.default tan.default tanh.default sigmoid.default
    softplus.default erf.default atan.default relu.default gelu.default silu.default clamp.default clamp_min.default
    clamp_max.default minimum.default maximum.default sum.default sum.dim_IntList mean.default mean.dim prod.default
    prod.dim_int norm.Scalar norm.ScalarOpt_dim linalg_vector_norm.default _weight_norm_interface.default
    var.correction amax.default amin.default max.default min.default max.dim min.dim argmax.default argmin.default
    cumsum.default any.default any.dim any.dims all.default all.dim all.dims count_nonzero.default
    count_nonzero.dim_IntList _softmax.default _log_softmax.default mm.default bmm.default mv.default dot.default
    addmm.default addmv.default baddbmm.default linalg_inv_ex.default _linalg_svd.default linalg_qr.default
    eq.Scalar eq.Tensor ne.Scalar ne.Tensor lt.Scalar lt.Tensor le.Scalar le.Tensor gt.Scalar gt.Tensor ge.Scalar
    ge.Tensor logical_and.default logical_or.default logical_not.default logical_xor.default bitwise_and.Tensor
    bitwise_or.Tensor bitwise_not.default bitwise_xor.Tensor isfinite.default isnan.default isinf.default
    embedding.default native_layer_norm.default var_mean.correction std.correction std_mean.correction vdot.default
    upsample_linear1d.default upsample_linear1d.vec upsample_nearest2d.default upsample_nearest2d.vec
    upsample_bilinear2d.default upsample_bilinear2d.vec upsample_bicubic2d.default upsample_bicubic2d.vec
    _upsample_bilinear2d_aa.default _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.default
    _upsample_bicubic2d_aa.vec convolution.default hardswish.default hardsigmoid.default hardtanh.default
    leaky_relu.default elu.default addcmul.default addcdiv.default lerp.Scalar lerp.Tensor logsumexp.default
    cumprod.default scatter.src scatter.value index_put.default sort.default topk.default diag_embed.default
    asin.default acos.default sinh.default cosh.default atan2.default erfinv.default view_as_complex.default
    view_as_real.default complex.default polar.default linalg_matrix_exp.default linalg_solve_triangular.default
    linalg_householder_product.default
    _local_scalar_dense.default equal.default is_nonzero.default allclose.default nonzero.default
    """.split()  # noqa: SIM905
)
PRODUCTS = frozenset({"mm", "bmm", "mv", "dot", "vdot", "addmm", "addmv", "baddbmm"})
SETTINGS = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


class DamagedRecipe(ValueError):
    """Raised for a recipe that pt-convert cannot have written."""


@dataclass(frozen=True)
class Spec:
    """The shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Step:
    """One call of an operator. In its arguments, `{"t": n}` is the value number n: of reads, then of steps' results.

    Attributes:
        wide: integers become float64 where they become floats.
    """

    operator: str
    args: list[Any]
    kwargs: dict[str, Any]
    wide: bool = False


@dataclass(frozen=True)
class Formula:
    """Computes a value from tensors of the checkpoint.

    Attributes:
        reads: keys of the checkpoint, and numbers of literals.
        result: the number of the value, or None for the number that the last step returns.
    """

    reads: tuple[str | int, ...]
    steps: tuple[Step, ...]
    result: int | None

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(read for read in self.reads if isinstance(read, str))


@dataclass(frozen=True)
class Condition:
    """A value that decided how the artifact was made: a number, or a digest of a tensor."""

    formula: Formula
    answer: bool | int | float | str


@dataclass
class Recipe:
    """How an artifact is filled from a checkpoint.

    Attributes:
        keys: every tensor of the checkpoint.
        tied: keys that are one tensor.
        literals: tensors that formulas read and that are not the checkpoint's.
        tensors: the formula of each tensor of the artifact, in the artifact's order; of one that does not depend on the
            checkpoint, a digest.
        conditions: what must be the same for another checkpoint.
        coincidences: which tensors are equal or one number, where a writer merges or drops such ones.
    """

    keys: Mapping[str, Spec]
    tied: Sequence[tuple[str, ...]] = ()
    literals: Sequence[Tensor] = ()
    tensors: Mapping[str, Formula | str] = field(default_factory=dict)
    conditions: Sequence[Condition] = ()
    coincidences: str | None = None

    @property
    def formulas(self) -> dict[str, Formula]:
        return {name: formula for name, formula in self.tensors.items() if isinstance(formula, Formula)}

    def encode(self) -> str:
        """Return the recipe as text."""
        content = {
            "keys": [[key, list(spec.shape), _name(spec.dtype)] for key, spec in self.keys.items()],
            "tied": [list(keys) for keys in self.tied],
            "literals": [_encode_literal(tensor) for tensor in self.literals],
            "tensors": [
                [name, *([held] if isinstance(held, str) else _encode_formula(held))]
                for name, held in self.tensors.items()
            ],
            "coincidences": self.coincidences,
            "conditions": [[c.answer, *_encode_formula(c.formula)] for c in self.conditions],
        }
        return base64.b85encode(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)).decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read a recipe. Raises DamagedRecipe."""
        try:
            content = json.loads(_inflated(base64.b85decode(text)))
            return cls(
                keys={_text(key): Spec(_sizes(shape), _dtype(dtype)) for key, shape, dtype in content["keys"]},
                tied=[tuple(map(_text, keys)) for keys in content["tied"]],
                literals=[_decode_literal(literal) for literal in content["literals"]],
                tensors={
                    _text(name): _text(*rest) if len(rest) == 1 else _decode_formula(*rest)
                    for name, *rest in content["tensors"]
                },
                coincidences=None if content["coincidences"] is None else _text(content["coincidences"]),
                conditions=[
                    Condition(_decode_formula(*rest), _answer(answer)) for answer, *rest in content["conditions"]
                ],
            )
        except DamagedRecipe:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError, zlib.error) as error:
            raise DamagedRecipe(str(error)) from error


@dataclass
class Kitchen:
    """Computes formulas on a checkpoint's tensors, within bounds."""

    recipe: Recipe
    state: dict[str, Tensor]
    artifact_elements: int
    _left: int = field(init=False)
    _held: int = field(init=False)  # elements of all results of the formula that is computed

    def __post_init__(self) -> None:
        elements = sum(spec.elements for spec in self.recipe.keys.values()) + self.artifact_elements
        self._largest = max(8 * elements, LEAST_BUDGET)
        self._left = MOST_WORK * elements + LEAST_BUDGET

    def holds(self, condition: Condition) -> bool:
        value = self.compute(condition.formula)
        answer = digest(value).hex() if isinstance(value, Tensor) else value
        return json.dumps(answer) == json.dumps(condition.answer)

    def compute(self, formula: Formula) -> Any:
        """Return a tensor, or the number that a condition asks for. Raises DamagedRecipe."""
        values, _, last = self.run(formula)
        if formula.result is None:
            return last
        if formula.result >= len(values):
            raise DamagedRecipe("a value that is not there")
        return values[formula.result]

    def run(self, formula: Formula) -> tuple[list[Tensor], list[int], Any]:
        """Return all values, the number of the results of each step, and what the last one returned.

        Raises:
            DamagedRecipe: it is not valid, or computes too much.
        """
        try:
            with torch.no_grad():
                return self._run(formula)
        except (RuntimeError, IndexError, TypeError, ValueError, KeyError, OverflowError, MemoryError) as error:
            raise DamagedRecipe(str(error).partition("\n")[0]) from error

    def _run(self, formula: Formula) -> tuple[list[Tensor], list[int], Any]:
        values = [self.state[r] if isinstance(r, str) else self.recipe.literals[r] for r in formula.reads]
        self._held = 0
        borrowed = {value.untyped_storage().data_ptr() for value in values}
        last: Any = None
        counts = []
        for step in formula.steps:
            operator = operator_of(step)
            args = [with_values(arg, values) for arg in step.args]
            kwargs = {name: with_values(arg, values) for name, arg in step.kwargs.items()}
            if operator._schema.is_mutable and args[0].untyped_storage().data_ptr() in borrowed:
                raise DamagedRecipe("it changes the checkpoint")
            with default_dtype(torch.float64) if step.wide else nullcontext():
                self._check_work(step, operator, args, kwargs)
                if any(argument.name == "device" for argument in operator._schema.arguments):
                    kwargs["device"] = "cpu"
                last = operator(*args, **kwargs)
            results = [value for value in leaves(last) if isinstance(value, Tensor)]
            values += results
            counts.append(len(results))
        return values, counts, last

    def _check_work(self, step: Step, operator: OpOverload, args: list[Any], kwargs: dict[str, Any]) -> None:
        name = step.operator.partition(".")[0]
        given = [leaf for leaf in leaves([args, kwargs]) if isinstance(leaf, Tensor)]
        work = sum(tensor.numel() * max(tensor.ndim, 1) for tensor in given)
        if name not in EXITS:
            shapes = [_map_tensors(part, lambda tensor: tensor.to("meta")) for part in (args, kwargs)]
            if any(argument.name == "device" for argument in operator._schema.arguments):
                shapes[1]["device"] = "meta"
            results = [leaf for leaf in leaves([operator(*shapes[0], **shapes[1])]) if isinstance(leaf, Tensor)]
            largest = max((result.numel() for result in results), default=0)
            if largest > self._largest:
                raise DamagedRecipe(f"a result of {largest} elements")
            self._held += sum(result.numel() for result in results)
            if self._held > 2 * self._largest:
                raise DamagedRecipe("it holds too much at once")
            work += sum(result.numel() for result in results) * max(_inner(name, args) // 256, 1)
        self._left -= work
        if self._left < 0:
            raise DamagedRecipe("it computes too much")


def _inner(name: str, args: Sequence[Any]) -> int:
    """Return about how many operations an element of the result takes."""
    if name in PRODUCTS:
        return int(max(args[-2].shape[-1:], default=1))
    if name == "convolution":
        return int(args[1].numel())
    return 16 * max(args[0].shape, default=1) if "linalg" in name else 1


def operator_of(step: Step) -> OpOverload:
    """Return the operator of a step. Raises DamagedRecipe for one that is not listed."""
    if step.operator not in OPERATORS:
        raise DamagedRecipe(f"the operator {step.operator!r} is not allowed")
    name, _, overload = step.operator.partition(".")
    found: OpOverload = getattr(getattr(aten, name), overload)
    return found


def with_values(part: Any, values: Sequence[Tensor]) -> Any:
    """Return an argument with the values and settings that it names."""
    if isinstance(part, list):
        return [with_values(item, values) for item in part]
    if not isinstance(part, dict):
        return part
    if len(part) == 1:
        ((kind, held),) = part.items()
        if kind == "t" and type(held) is int and 0 <= held < len(values):
            return values[held]
        if kind in SETTINGS:
            return _setting(kind, held)
    raise DamagedRecipe("a value that is not there")


def _setting(kind: str, name: Any) -> Any:
    found = getattr(torch, _text(name), None)
    if not isinstance(found, SETTINGS[kind]):
        raise DamagedRecipe(f"{name} is not a {kind}")
    return found


def leaves(part: Any) -> list[Any]:
    """Return what lists, tuples and dictionaries hold."""
    if isinstance(part, list | tuple):
        return [leaf for item in part for leaf in leaves(item)]
    return [leaf for item in part.values() for leaf in leaves(item)] if isinstance(part, dict) else [part]


def _map_tensors(part: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(part, list):
        return [_map_tensors(item, function) for item in part]
    if isinstance(part, dict):
        return {name: _map_tensors(item, function) for name, item in part.items()}
    return function(part) if isinstance(part, Tensor) else part


# -- text


def _inflated(held: bytes) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(held, LARGEST_TEXT)
    if not inflater.eof:
        raise DamagedRecipe("it is too long")
    return text


def _encode_formula(formula: Formula) -> list[Any]:
    return [list(formula.reads), [[s.operator, s.args, s.kwargs, *[1] * s.wide] for s in formula.steps], formula.result]


def _decode_formula(reads: Any, steps: Any, result: Any) -> Formula:
    if not all(type(read) in (str, int) for read in reads) or type(result) not in (int, type(None)):
        raise DamagedRecipe("a formula reads or returns something else")
    if (result is not None and result < 0) or any(read < 0 for read in reads if type(read) is int):
        raise DamagedRecipe("a negative number")
    if not all(type(args) is list and type(kwargs) is dict for _, args, kwargs, *_ in steps):
        raise DamagedRecipe("arguments of another kind")
    each = (Step(_text(operator), args, kwargs, bool(wide)) for operator, args, kwargs, *wide in steps)
    return Formula(tuple(reads), tuple(each), result)


def _encode_literal(tensor: Tensor) -> list[Any]:
    """Return shape, type and values: one for all, differences of integers, which repeat in an index, or bytes."""
    flat = tensor.detach().contiguous().reshape(-1)
    held: Any
    raw = flat.view(torch.uint8) if flat.numel() else flat
    if flat.numel() and bool((raw.view(-1, flat.element_size()) == raw[: flat.element_size()]).all()):
        held = {"one": base64.b85encode(raw[: flat.element_size()].numpy().tobytes()).decode()}
    elif not flat.is_floating_point() and not flat.is_complex() and flat.dtype != torch.bool:
        numbers = flat.to(torch.int64)
        held = torch.diff(numbers, prepend=numbers.new_zeros(1)).tolist()
    else:
        held = base64.b85encode(raw.numpy().tobytes()).decode()
    return [list(tensor.shape), _name(tensor.dtype), held]


def _decode_literal(literal: Any) -> Tensor:
    shape, dtype, held = literal
    spec = Spec(_sizes(shape), _dtype(dtype))
    if not spec.elements:
        return torch.empty(spec.shape, dtype=spec.dtype)
    if isinstance(held, dict):
        one = torch.frombuffer(bytearray(base64.b85decode(held["one"])), dtype=spec.dtype)
        return one.reshape(()).expand(spec.shape)
    if isinstance(held, list):
        if not all(type(number) is int for number in held):
            raise DamagedRecipe("a literal of other values")
        return torch.tensor(held, dtype=torch.int64).cumsum(0).to(spec.dtype).reshape(spec.shape)
    return torch.frombuffer(bytearray(base64.b85decode(held)), dtype=spec.dtype).reshape(spec.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: Any) -> torch.dtype:
    found: torch.dtype = _setting("dtype", name)
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DamagedRecipe("a name that is not text")
    return value


def _sizes(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**40 for n in shape) or len(shape) > 64:
        raise DamagedRecipe("a shape of other values")
    return tuple(shape)


def _answer(value: Any) -> bool | int | float | str:
    if not isinstance(value, bool | int | float | str):
        raise DamagedRecipe("an answer of another kind")
    return value
