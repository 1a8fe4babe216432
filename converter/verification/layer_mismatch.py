"""Say in what a Keras layer differs from the operators of PyTorch that it could be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from converter.errors import ConversionError
from converter.verification.keras_layers import Fit, LayerReader, arrange
from converter.verification.weighted_operators import Fingerprint, Operator, Values, same_values

SHOWN = 3
LEAST_ROWS = 16  # any two are alike but for a scale and an offset
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu with tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "elu": functional.elu,
    "selu": functional.selu,
    "mish": functional.mish,
    "leaky_relu(0.01)": functional.leaky_relu,
    "leaky_relu(0.2)": lambda x: functional.leaky_relu(x, 0.2),
    "leaky_relu(0.3)": lambda x: functional.leaky_relu(x, 0.3),
}


def explain_mismatch(
    name: str,
    reader: LayerReader,
    x: np.ndarray,
    operators: Sequence[Operator],
    values: Values,
    agreed: int,
    reasons: Sequence[str],
    before: Fit | None,
    unknown: Sequence[str],
) -> ConversionError:
    """Return the error that says in what a layer differs first.

    Args:
        operators: those that no other layer is.
        agreed: how many layers before agree.
        reasons: why an operator with the same input does not fit.
        before: what the layer was when it was called before.
        unknown: layers since, without weights, whose results are no values of PyTorch's.
    """
    text, fix = _difference(reader, x, operators, values, reasons, before, unknown)
    told = {0: "No layer before it has weights", 1: "The layer before agrees"}.get(
        agreed, f"The {agreed} layers before agree"
    )
    return ConversionError(
        f"The layer `{name}` is none of PyTorch's operators: {text}. {told}.", code="PTC5044", where=name, fix=fix
    )


_CHANGE = "Change the Keras model so that it computes the same, or the PyTorch model."


def _difference(
    reader: LayerReader,
    x: np.ndarray,
    operators: Sequence[Operator],
    values: Values,
    reasons: Sequence[str],
    before: Fit | None,
    unknown: Sequence[str],
) -> tuple[str, str]:
    if before is not None and not operators:
        return (
            f"it is called again, and PyTorch calls `{before.name}` no more",
            "Give the second call a layer of its own.",
        )
    if reasons:
        return reasons[0], _CHANGE
    held = reader.last(x)
    fitting = [o for o in operators if o.kind in reader.kinds and _same_size(reader, o)]
    if not fitting:
        return _no_weights(reader, operators), _CHANGE
    for operator in fitting:
        if _trimmed_alike(held, operator.x) and (told := reader.differences(held, operator)):
            return "; ".join(told), _CHANGE
    for operator in fitting:
        if arrange(operator.x, held) is not None:
            shape, theirs = tuple(reader.variables[0].shape), operator.tensors["weight"].shape
            return f"it has the input of `{operator.name}`, but weights of shape {shape}, not {theirs}", _CHANGE
    for operator in fitting:
        if (found := _scaled(held, operator)) is not None:
            return found
    for operator in fitting:
        if (text := _activated(held, operator, values)) is not None:
            return text, _CHANGE
    known = values.named(held) or values.named(x)
    nearest = fitting[0]
    if known is not None:
        return (
            f"its input is the value of {known}, which `{nearest.name}` does not take; an operator between is missing, "
            "or their order is another"
        ), _CHANGE
    listed = ", ".join(f"`{o.name}`" for o in fitting[:SHOWN]) + (" ..." if len(fitting) > SHOWN else "")
    at = f"the result of {unknown[0]}" if unknown else "an activation, a pool, a padding or a sum"
    text = f"its input is not that of {listed}, whose weights would fit, nor any value of PyTorch's"
    return f"{text}; {at} before it is another", _CHANGE


def _same_size(reader: LayerReader, operator: Operator) -> bool:
    return reader.weights_fit(operator) or (
        "weight" in operator.tensors
        and operator.tensors["weight"].size in {int(np.prod(v.shape)) for v in reader.variables}
    )


def _no_weights(reader: LayerReader, operators: Sequence[Operator]) -> str:
    shape = tuple(map(int, reader.variables[0].shape))
    rest = [o for o in operators if o.kind in reader.kinds]
    listed = ", ".join(f"`{o.name}` {tuple(o.tensors['weight'].shape)}" for o in rest[:SHOWN] if "weight" in o.tensors)
    more = " ..." if len(rest) > SHOWN else ""
    return (
        f"no weights fit its shape {shape}; left are {listed}{more}"
        if listed
        else f"none is left for its shape {shape}"
    )


def _trimmed(value: np.ndarray) -> np.ndarray:
    """Return a value, channels last, without the zeros around it."""
    for axis in range(1, value.ndim - 1):
        used = np.flatnonzero(value.any(axis=tuple(a for a in range(value.ndim) if a != axis)))
        if not len(used):
            return value
        value = value.take(range(used[0], used[-1] + 1), axis)
    return value


def _trimmed_alike(one: np.ndarray, other: np.ndarray) -> bool:
    if one.ndim != other.ndim or one.shape[-1] != other.shape[-1]:
        return False
    if not Fingerprint.of(one).like(Fingerprint.of(other)):
        return False
    return same_values(_trimmed(one), _trimmed(other))


def _scaled(x: np.ndarray, operator: Operator) -> tuple[str, str] | None:
    """Return by which scale and offset the input differs, if that is all."""
    theirs = operator.x
    if theirs.shape != x.shape:
        one, other = _trimmed(x), _trimmed(theirs)
        if one.shape != other.shape:
            return None
        x, theirs = one, other
    flat, wanted = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (x, theirs))
    scale = float((flat * wanted).sum() / max(float(np.square(wanted).sum()), 1e-300))
    if scale and same_values(flat / scale, wanted):
        fix = (
            "Feed both the same. If PyTorch takes scaled images and the Keras model scales them itself, give "
            f"--embed-preprocessing --preprocessing 'scale={scale:.8g}'."
        )
        return f"its input is that of `{operator.name}` times {scale:.3g}", fix
    if len(flat) < LEAST_ROWS:
        return None
    means, others = flat.mean(0), wanted.mean(0)
    spread = np.square(wanted - others).sum(0)
    scales = ((flat - means) * (wanted - others)).sum(0) / np.maximum(spread, 1e-300)
    if (scales == 0).any():
        return None
    offsets = means - scales * others
    if not same_values((flat - offsets) / scales, wanted):
        return None
    fix = (
        "Feed both the same. If PyTorch takes normalized images and the Keras model normalizes them itself, give "
        "--embed-preprocessing --preprocessing with that mean and std."
    )
    shown = ", ".join(f"{s:.4g}" for s in scales[:SHOWN])
    return f"its input is that of `{operator.name}` with another scale and offset for each channel ({shown})", fix


def _activated(x: np.ndarray, operator: Operator, values: Values) -> str | None:
    """Return by which activation the input differs, if that is all."""
    if operator.x.shape != x.shape:
        return None
    for name in ACTIVATIONS:
        if _is(name, operator.x, x):
            return f"its input is {name} of that of `{operator.name}`, before which PyTorch has no such activation"
        if _is(name, x, operator.x):
            return f"`{operator.name}` takes {name} of its input: the activation before it is missing"
    for theirs, value in values.before(operator):
        for held in (value, np.moveaxis(value, 1, -1) if value.ndim > 2 else value):
            for name in ACTIVATIONS:
                if held.shape == x.shape and _is(name, held, x):
                    return f"the activation before it is {name}, that before `{operator.name}` is {theirs}"
    return None


def _is(name: str, before: np.ndarray, after: np.ndarray) -> bool:
    return same_values(ACTIVATIONS[name](torch.from_numpy(np.ascontiguousarray(before))).numpy(), after)
