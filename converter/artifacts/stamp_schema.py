"""Read an artifact's stamp: whoever made the artifact wrote it, so every field is checked before any is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from converter.artifacts.runtime.formats import Format
from converter.artifacts.runtime.graph_digest import KEY
from converter.artifacts.runtime.stamp import read_stamp
from converter.errors import UsageError
from converter.ir.recipe import LARGEST_TEXT
from converter.options import Appended, ArtifactOptions, InputType, Preprocessing, Quantize, SubmodelOptions

LONGEST_TEXT, LARGEST_SIZE, HIGHEST_RANK = 10_000, 2**40, 64
DTYPES = frozenset(
    {"float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool", "int8", "int16", "int32", "int64"}
    | {"uint8", "uint16", "uint32", "uint64"}
)
Check = Callable[[Any], bool]


def checked_stamp(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return the stamp of an artifact, and what is wrong with it; it is empty if there is none, or a damaged one."""
    try:
        stamp = read_stamp(path)
    except OSError as error:
        return {}, f"it cannot be read: {error.strerror}"
    if stamp is None:
        return {}, None
    stamp = {name: value for name, value in stamp.items() if value is not None}
    damaged = [name for name, check in FIELDS.items() if not check(stamp.get(name))]
    if stamp.get("options") and not (_are_tensors(stamp.get("inputs")) and _are_tensors(stamp.get("outputs"))):
        damaged.append("inputs or outputs")
    return (stamp, None) if not damaged else ({}, ", ".join(damaged))


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value is of an option's type."""
    kind, members = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:
        return any(_fits(value, member) for member in members)
    if kind is tuple:
        return isinstance(value, list) and all(_fits(item, members[0]) for item in value)
    if kind is Literal:
        return isinstance(value, str) and value in members
    if kind in (str, Path):
        return _is_text(value)
    if kind is int:
        return type(value) is int and abs(value) <= LARGEST_SIZE
    return kind in (NoneType, bool, float) and type(value) is kind


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def _is_preprocessing(value: Any) -> bool:
    try:
        return _is_text(value) and bool(Preprocessing.parse(value))
    except (ValueError, UsageError):
        return False


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SIZE


def _are(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _or_missing(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _of(kind: type, others: Mapping[str, Check] | None = None) -> Check:
    """Return the check of a dataclass's fields; `others` may be there besides them."""
    hints, others = get_type_hints(kind), others or {}

    def check(value: Any) -> bool:
        return isinstance(value, dict) and all(
            others[name](item) if name in others else name in hints and _fits(item, hints[name])
            for name, item in value.items()
        )

    return check


def _is_whole(kind: type, check: Check) -> Check:
    return lambda value: check(value) and value.keys() >= {*get_type_hints(kind), "freeze_control_flow"}


def _is_permutation(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_size, value)) and sorted(value) == list(range(len(value)))


def _are_tensors(value: Any) -> bool:
    return _are(_is_tensor)(value)


def _is_tensor(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() >= {"name", "shape", "dtype", "order"}:
        return False
    shape, order = value["shape"], value["order"]
    return (
        _is_text(value["name"])
        and _are(_or_missing(_is_size))(shape)
        and _is_permutation(order)
        and len(order) == len(shape) <= HIGHEST_RANK
        and isinstance(value["dtype"], str)
        and value["dtype"] in DTYPES
    )


def _are_choices(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"eager_moves", "channels_last_inputs", "channel_orders"}:
        return isinstance(value, dict)  # another version's, which are not used
    orders = value["channel_orders"]
    return (
        _are(_is_text)(value["eager_moves"])
        and _are(_is_text)(value["channels_last_inputs"])
        and isinstance(orders, dict)
        and all(isinstance(pair, list) and len(pair) == 2 and _are_factors(*pair) for pair in orders.values())
    )


def _are_factors(factors: Any, order: Any) -> bool:
    return (
        _are(_is_size)(factors)
        and 0 not in factors
        and _is_permutation(order)
        and len(order) == len(factors) <= HIGHEST_RANK
    )


FIELDS: dict[str, Check] = {
    "schema": lambda value: value == 1,
    "format": _or_missing(lambda value: value in get_args(Format)),
    "source_sha256": _or_missing(_is_text),
    KEY: _or_missing(_is_text),
    "options": _or_missing(_of(ArtifactOptions, {"labels": lambda value: False})),
    "input_shapes": _or_missing(_are(_is_text)),
    "part": _or_missing(
        _is_whole(
            SubmodelOptions,
            _of(
                SubmodelOptions,
                {
                    "freeze_control_flow": lambda value: type(value) is bool,
                    "strict": lambda value: type(value) is bool,
                    "accept": _are(lambda value: value == "aliased-shift"),
                    "drop_keys": _are(_is_text),
                    "state": _is_text,
                    "input_values": _are(_is_text),
                    "preprocessing": _is_preprocessing,
                    "embed_preprocessing": lambda value: value is True,
                    "input_type": lambda value: value in get_args(InputType),
                    "append": lambda value: value in get_args(Appended),
                },
            ),
        )
    ),
    "choices": _or_missing(_are_choices),
    "recipe": _or_missing(lambda value: isinstance(value, str) and len(value) <= LARGEST_TEXT),
    "no_recipe": _or_missing(_is_text),
    "quantize": _or_missing(lambda value: value in get_args(Quantize)),
}
