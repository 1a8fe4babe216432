"""Say for each Keras layer with weights which of PyTorch's operators it can be, and what its weights then are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import numpy as np

from converter.verification.weighted_operators import Fingerprint, Kind, Operator, Pads, as_read, same_values

MOST_PARTS = 12  # that a packed projection may have
MOST_PERMUTED = 4  # leading axes whose order is tried
MOST_CHANNELS = 4096  # that are compared with each other
PROBES = 8  # numbers that tell channels apart
REORDERED = "channels in another order"


class Unfit(Exception):  # not an error: another operator may fit
    """Says in what a layer differs from an operator whose input it has."""


@dataclass(frozen=True)
class Arrangement:
    """How the rows of one of PyTorch's values lie in Keras.

    Attributes:
        split: what the leading axes are first reshaped to.
        order: of those, before they are reshaped to `rows`.
        columns: Keras's columns, of PyTorch's; None if they are the same.
    """

    split: tuple[int, ...]
    order: tuple[int, ...]
    rows: tuple[int, ...]
    columns: np.ndarray | None = None

    def of(self, value: np.ndarray) -> np.ndarray:
        last = value.shape[-1]
        return value.reshape(*self.split, last).transpose(*self.order, len(self.order)).reshape(*self.rows, last)


@dataclass(eq=False)
class Fit:
    """An operator that a layer can be.

    Attributes:
        name: of the operator, with the part of it that is meant.
        values: of the layer's variables, in their order.
        result: what the layer must return; None if only that it is one of PyTorch's values.
        note: what was made up for.
        part: of the operator, "" for all of it.
        share: of the operator's weights.
        parameters: of PyTorch, of a layer that is no operator.
    """

    operators: tuple[Operator, ...]
    name: str
    values: list[np.ndarray]
    result: np.ndarray | None
    note: str = ""
    part: str = ""
    share: float = 1.0
    parameters: tuple[str, ...] = ()

    @property
    def keys(self) -> list[tuple[int | str, str]]:
        """What no other layer may be too."""
        return [*((o.number, self.part) for o in self.operators), *(("parameter", name) for name in self.parameters)]


def arrange(
    theirs: np.ndarray, ours: np.ndarray, flattened: Sequence[tuple[int, ...]] = (), *, any_channels: bool = False
) -> Arrangement | None:
    """Return how PyTorch's value, channels last, lies in Keras's, or None if that is another one.

    Args:
        flattened: the shapes that PyTorch's columns may have had before a flatten.
        any_channels: try other orders of the columns too.
    """
    if theirs.size != ours.size or theirs.shape[-1] != ours.shape[-1]:
        return None
    rows = ours.shape[:-1]
    for split, order in _orders(theirs.shape[:-1], rows):
        found = Arrangement(split, order, rows)
        if same_values(found.of(theirs), ours):
            return found
    for shape in flattened:
        columns = np.moveaxis(np.arange(theirs.shape[-1]).reshape(shape), 0, -1).ravel()
        if theirs.shape == ours.shape and same_values(theirs[..., columns], ours):
            return Arrangement(rows, tuple(range(len(rows))), rows, columns)
    for split, order in _orders(theirs.shape[:-1], rows) if any_channels else ():
        found = Arrangement(split, order, rows)
        if (reordered := channel_order(found.of(theirs), ours)) is not None:
            return replace(found, columns=reordered)
    return None


def channel_order(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray | None:
    """Return which of PyTorch's channels each of Keras's is, or None if some are none.

    Raises Unfit if equal channels do not tell which is which.
    """
    if theirs.shape != ours.shape or theirs.dtype.kind != "f" or ours.dtype.kind != "f":
        return None
    count = ours.shape[-1]
    if not 1 < count <= MOST_CHANNELS:
        return None
    probes = np.random.default_rng(0).standard_normal((ours[..., 0].size, PROBES))
    a, b = (value.reshape(-1, count).T.astype(np.float64) @ probes for value in (theirs, ours))
    apart, within = (_distances(a, other) for other in (b, a))
    np.fill_diagonal(within, np.inf)
    columns = apart.argmin(0)
    if not same_values(theirs[..., columns], ours):
        return None
    if within.min() <= 10 * apart.min(0).max() or len({*columns.tolist()}) < count:
        raise Unfit("its input has PyTorch's channels in another order, and equal ones do not tell which is which")
    return columns


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return how far each row of an array is from each of another."""
    squares = np.square(one).sum(1)[:, None] + np.square(other).sum(1) - 2 * one @ other.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def _orders(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield how the leading axes may be split and transposed to become Keras's, the likeliest first."""
    most = max(len(theirs), len(ours))
    orders = [tuple(range(most))] if most > MOST_PERMUTED else permutations(range(most))
    for order in orders:
        split = theirs
        if len(theirs) < len(ours):  # axes that PyTorch has merged
            split = tuple(ours[order.index(i)] for i in range(most))
        if len(theirs) != len(ours) or tuple(theirs[d] for d in order) == ours:
            yield split, order


@dataclass(eq=False)
class LayerReader:
    """Reads one Keras layer.

    Attributes:
        kinds: of the operators that it can be.
        channels_first: of its values.
        reasons: why operators with its input do not fit.
    """

    layer: Any
    kinds: tuple[Kind, ...] = ()
    channels_first: bool = False
    reasons: list[str] = field(default_factory=list)

    @property
    def variables(self) -> list[Any]:
        return own_variables(self.layer)

    def last(self, value: np.ndarray) -> np.ndarray:
        """Return a value of the layer channels last."""
        return np.moveaxis(value, 1, -1) if self.channels_first and value.ndim > 2 else value

    def back(self, value: np.ndarray) -> np.ndarray:
        return np.moveaxis(value, -1, 1) if self.channels_first and value.ndim > 2 else value

    def weights_fit(self, operator: Operator) -> bool:
        """Return whether the shapes of the operator's weights are those of the layer."""
        raise NotImplementedError

    def taken(self, x: np.ndarray) -> np.ndarray:
        """Return what is compared of the layer's input."""
        return self.last(x)

    def mark(self, operator: Operator) -> Fingerprint:
        """Return the fingerprint of what is compared of an operator's input."""
        return operator.fingerprint

    def fits(self, x: np.ndarray, operators: Sequence[Operator]) -> Iterator[Fit]:
        """Yield what the layer can be, of operators whose weights and inputs fit; note why another is not."""
        self.reasons.clear()
        x = self.taken(x)
        mark = Fingerprint.of(x)
        for operator in operators:
            if self.weights_fit(operator) and self.mark(operator).like(mark):
                try:
                    yield from self.made(x, operator, operators)
                except Unfit as error:
                    self.reasons.append(str(error))

    def made(self, x: np.ndarray, operator: Operator, operators: Sequence[Operator]) -> Iterator[Fit]:
        """Yield what the layer is as an operator whose input may be `x`.

        Raises Unfit if it is another in something.
        """
        raise NotImplementedError

    def differences(self, x: np.ndarray, operator: Operator) -> list[str]:
        """Return in which settings the layer differs from an operator, for an input channels last."""
        return []

    def biased(self, operator: Operator, count: int) -> tuple[list[np.ndarray], str]:
        """Return the bias for the layer, if it has one, and what is to be noted."""
        bias = operator.tensors.get("bias")
        if not getattr(self.layer, "use_bias", getattr(self.layer, "bias", None) is not None):
            if bias is not None and bias.any():
                raise Unfit(f"it has no bias, `{operator.name}` has one")
            return [], ""
        if bias is None:
            return [np.zeros(count, np.float32)], "bias 0"
        return [bias], ""


class MapReader(LayerReader):
    """Reads a linear map of one or more axes: Dense, EinsumDense, a convolution with a kernel of 1."""

    def __init__(self, layer: Any):
        import keras

        super().__init__(layer, ("linear", "convolution"))
        kernel = self._kernel = tuple(layer.kernel.shape)
        if isinstance(layer, keras.layers.EinsumDense):
            given, _, rest = layer.equation.replace(" ", "").replace("...", "").partition(",")
            held, _, made = rest.partition("->")
            self._contracted = [s for s in given if s in held and s not in made]
            self._made = [s for s in made if s in held]
            self._given, self._held, self._result = given, held, made
            sizes = dict(zip(held, kernel, strict=True))
        else:
            self.channels_first = getattr(layer, "data_format", None) == "channels_first"
            self._contracted, self._made, self._given = ["i"], ["o"], ""
            self._held, sizes = "io", {"i": kernel[-2], "o": kernel[-1]}
        self._in = tuple(sizes[s] for s in self._contracted)
        self._out = tuple(sizes[s] for s in self._made)

    def last(self, value: np.ndarray) -> np.ndarray:
        value = super().last(value)
        if self._given:
            places = [self._given.index(s) - len(self._given) for s in self._contracted]
            value = np.moveaxis(value, places, range(-len(places), 0))
        return value.reshape(*value.shape[: value.ndim - len(self._in)], -1)

    def back(self, value: np.ndarray) -> np.ndarray:
        value = super().back(value) if not self._given else value.reshape(*value.shape[:-1], *self._out)
        if self._given:
            places = [self._result.index(s) - len(self._result) for s in self._made]
            value = np.moveaxis(value, range(-len(places), 0), places)
        return value

    def weights_fit(self, operator: Operator) -> bool:
        matrix, made = operator.matrix, int(np.prod(self._out))
        if matrix is None or matrix.shape[1] != int(np.prod(self._in)):
            return False
        return len(matrix) < made or (len(matrix) % made == 0 and len(matrix) <= MOST_PARTS * made)

    def differences(self, x: np.ndarray, operator: Operator) -> list[str]:
        if operator.kind != "convolution":
            return []
        axes = len(operator.kernel)
        pads = ((0, 0),) * axes
        ours = {"stride": (1,) * axes, "padding": pads, "dilation": (1,) * axes, "groups": 1}
        return _compared(ours, operator.settings, operator.name)

    def made(self, x: np.ndarray, operator: Operator, operators: Sequence[Operator]) -> Iterator[Fit]:
        joined = self._joined(operator, operators)
        arrangement = arrange(operator.x, x, operator.flattened, any_channels=True) if joined else None
        if arrangement is None:
            return
        each = [self.biased(o, o.result.shape[-1]) for o in joined]
        note, bias = each[0][1], [np.concatenate(b) for b in zip(*(bias for bias, _ in each), strict=True)]
        matrix = np.concatenate([o.matrix for o in joined if o.matrix is not None])
        result = np.concatenate([o.result for o in joined], -1)
        if arrangement.columns is not None:
            matrix = matrix[:, arrangement.columns]
            note = "columns in the order after Flatten" if operator.flattened else REORDERED
        symbols, name = [*self._contracted, *self._made], ", ".join(o.name for o in joined)
        for rows, text in self._parts(len(matrix), int(np.prod(self._out))):
            kernel = matrix[rows].T.reshape(*self._in, *self._out)
            kernel = kernel.transpose([symbols.index(s) for s in self._held]).reshape(self._kernel)
            values = [kernel, *(b[rows].reshape(self.layer.bias.shape) for b in bias)]
            held = self.back(arrangement.of(result[..., rows]))
            yield Fit(joined, name + text, values, held, note, text, len(rows) / len(matrix))

    def _joined(self, operator: Operator, operators: Sequence[Operator]) -> tuple[Operator, ...]:
        """Return the operator, or with the next ones of its input those that have as many outputs as the layer."""
        made, joined, rows = int(np.prod(self._out)), [operator], operator.result.shape[-1]
        for other in operators[operators.index(operator) + 1 :]:
            if rows >= made:
                break
            if other.operand is operator.operand and other.matrix is not None:
                joined.append(other)
                rows += other.result.shape[-1]
        return tuple(joined) if rows % made == 0 else ()

    def _parts(self, rows: int, made: int) -> Iterator[tuple[Any, str]]:
        """Yield the rows of a matrix that may be this layer's, and how to name them."""
        if rows == made:
            yield np.arange(rows), ""
            return
        count = rows // made
        for i in range(count):
            yield np.arange(i * made, (i + 1) * made), f"[{i * made}:{(i + 1) * made}]"
        if len(self._out) == 2:  # heads, each with its own queries, keys and values
            every = np.arange(rows).reshape(self._out[0], count, self._out[1])
            for i in range(count):
                yield every[:, i].ravel(), f"[part {i} of each head]"


class ConvolutionReader(LayerReader):
    """Reads Conv1D to Conv3D and DepthwiseConv1D and 2D."""

    def __init__(self, layer: Any, depthwise: bool):
        super().__init__(layer, ("convolution",), layer.data_format == "channels_first")
        self._depthwise = depthwise

    def _pads(self, x: np.ndarray) -> Pads:
        layer = self.layer
        return keras_pads(layer.padding, x.shape[1:-1], layer.kernel_size, layer.strides, layer.dilation_rate)

    def _kernel(self, operator: Operator) -> np.ndarray | None:
        weight = operator.tensors["weight"]
        if not self._depthwise:
            return np.moveaxis(weight, (0, 1), (-1, -2))
        groups = operator.settings["groups"]
        if weight.shape[1] != 1:
            return None
        return np.moveaxis(weight.reshape(groups, -1, *weight.shape[2:]), (0, 1), (-2, -1))

    def weights_fit(self, operator: Operator) -> bool:
        if operator.kind != "convolution":
            return False
        kernel = self._kernel(operator)
        return kernel is not None and kernel.shape == tuple(self.layer.kernel.shape)

    def taken(self, x: np.ndarray) -> np.ndarray:
        x, layer = self.last(x), self.layer
        return as_read(x, self._pads(x), layer.kernel_size, layer.strides, layer.dilation_rate)

    def mark(self, operator: Operator) -> Fingerprint:
        return operator.fingerprint_read

    def made(self, x: np.ndarray, operator: Operator, operators: Sequence[Operator]) -> Iterator[Fit]:
        if self._settings() != _settings(operator):
            return
        kernel, result = self._kernel(operator), operator.result
        assert kernel is not None
        bias, note = self.biased(operator, result.shape[-1])
        if not same_values(operator.read, x):
            columns = channel_order(operator.read, x) if self._depthwise or operator.settings["groups"] == 1 else None
            if columns is None:
                return
            kernel, note = kernel[..., columns, :], ", ".join(filter(None, (note, REORDERED)))
            if self._depthwise:
                made = np.arange(result.shape[-1]).reshape(len(columns), -1)[columns].ravel()
                result, bias = result[..., made], [one[made] for one in bias]
        yield Fit((operator,), operator.name, [kernel, *bias], self.back(result), note)

    def _settings(self) -> dict[str, Any]:
        layer = self.layer
        groups = layer.kernel.shape[-2] if self._depthwise else getattr(layer, "groups", 1)
        return {"stride": tuple(layer.strides), "dilation": tuple(layer.dilation_rate), "groups": groups}

    def differences(self, x: np.ndarray, operator: Operator) -> list[str]:
        told = _compared(self._settings(), _settings(operator), operator.name)
        layer, pads, theirs = self.layer, self._pads(x), operator.settings["padding"]
        if pads != theirs or not same_values(x, operator.x):
            named = f"'{layer.padding}', which pads " if layer.padding != "valid" else ""
            told.append(f"its padding is {named}{list(pads)}, that of `{operator.name}` {list(theirs)}")
        return told


def _settings(operator: Operator) -> dict[str, Any]:
    return {name: value for name, value in operator.settings.items() if name != "padding"}


def _compared(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> list[str]:
    return [f"its {key} is {ours[key]}, that of `{name}` {theirs[key]}" for key in ours if ours[key] != theirs[key]]


def keras_pads(padding: str, sizes: Sequence[int], kernel: Any, strides: Any, dilation: Any) -> Pads:
    """Return what a Keras convolution pads."""
    pads = []
    for n, k, s, d in zip(sizes, kernel, strides, dilation, strict=True):
        if padding == "causal":
            pads.append((d * (k - 1), 0))
        elif padding == "same":
            every = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            pads.append((every // 2, every - every // 2))
        else:
            pads.append((0, 0))
    return tuple(pads)


class TransposedReader(LayerReader):
    """Reads Conv1DTranspose to Conv3DTranspose."""

    def __init__(self, layer: Any):
        super().__init__(layer, ("transposed convolution",), layer.data_format == "channels_first")

    def weights_fit(self, operator: Operator) -> bool:
        if operator.kind != "transposed convolution":
            return False
        return np.moveaxis(operator.tensors["weight"], (0, 1), (-1, -2)).shape == tuple(self.layer.kernel.shape)

    def made(self, x: np.ndarray, operator: Operator, operators: Sequence[Operator]) -> Iterator[Fit]:
        if self.differences(x, operator):
            return
        kernel = np.moveaxis(operator.tensors["weight"], (0, 1), (-1, -2))
        bias, note = self.biased(operator, operator.result.shape[-1])
        if not same_values(operator.x, x):
            columns = channel_order(operator.x, x) if operator.settings["groups"] == 1 else None
            if columns is None:
                return
            kernel, note = kernel[..., columns], ", ".join(filter(None, (note, REORDERED)))
        yield Fit((operator,), operator.name, [kernel, *bias], self.back(operator.result), note)

    def differences(self, x: np.ndarray, operator: Operator) -> list[str]:
        layer = self.layer
        ours = {"stride": tuple(layer.strides), "dilation": tuple(layer.dilation_rate), "groups": 1}
        told = _compared(ours, operator.settings, operator.name)
        made = tuple(layer.compute_output_shape(self.back(x).shape))
        size, theirs = made[2:] if self.channels_first else made[1:-1], operator.result.shape[1:-1]
        if not told and size != theirs:
            told.append(f"its result has the size {size} by its padding, that of `{operator.name}` {theirs}")
        return told


class SeparableReader(ConvolutionReader):
    """Reads SeparableConv1D and 2D, which are two operators."""

    def __init__(self, layer: Any):
        super().__init__(layer, depthwise=True)

    def weights_fit(self, operator: Operator) -> bool:
        kernel = self._kernel(operator) if operator.kind == "convolution" else None
        return kernel is not None and kernel.shape == tuple(self.layer.depthwise_kernel.shape)

    def _settings(self) -> dict[str, Any]:
        layer = self.layer
        groups = layer.depthwise_kernel.shape[-2]
        return {"stride": tuple(layer.strides), "dilation": tuple(layer.dilation_rate), "groups": groups}

    def biased(self, operator: Operator, count: int) -> tuple[list[np.ndarray], str]:
        return [], ""

    def made(self, x: np.ndarray, operator: Operator, operators: Sequence[Operator]) -> Iterator[Fit]:
        shape, mark = tuple(self.layer.pointwise_kernel.shape), Fingerprint.of(operator.result)
        for first in super().made(x, operator, operators):
            assert first.result is not None
            result = self.last(first.result)
            for second in operators:
                matrix = second.matrix
                if matrix is None or matrix.T.shape != shape[-2:] or not second.fingerprint.like(mark):
                    continue
                columns = np.arange(shape[-2])
                if not same_values(second.x, result):
                    if (found := channel_order(second.x, result)) is None:
                        continue
                    columns = found
                if "bias" in operator.tensors and operator.tensors["bias"].any():
                    raise Unfit(f"`{operator.name}` has a bias, which a separable convolution cannot have between")
                bias, note = LayerReader.biased(self, second, matrix.shape[0])
                values = [first.values[0], matrix.T[columns].reshape(shape), *bias]
                yield Fit((operator, second), f"{operator.name}, {second.name}", values, self.back(second.result), note)


class BatchNormReader(LayerReader):
    """Reads BatchNormalization; what it holds in another way is made up for by its mean and variance."""

    def __init__(self, layer: Any):
        super().__init__(layer, ("batch norm",), layer.axis in (1, -3) and layer.axis != -1)

    def weights_fit(self, operator: Operator) -> bool:
        if operator.kind != "batch norm":
            return False
        return operator.tensors["running_var"].shape == tuple(self.layer.moving_variance.shape)

    def made(self, x: np.ndarray, operator: Operator, operators: Sequence[Operator]) -> Iterator[Fit]:
        if (arrangement := arrange(operator.x, x, any_channels=True)) is not None:
            values, note = self._values(operator)
            result = arrangement.of(operator.result)
            if (columns := arrangement.columns) is not None:
                result, values = result[..., columns], [value[columns] for value in values]
                note = ", ".join(filter(None, (note, REORDERED)))
            yield Fit((operator,), operator.name, values, self.back(result), note)

    def _values(self, operator: Operator) -> tuple[list[np.ndarray], str]:
        layer, t, notes = self.layer, operator.tensors, list[str]()
        epsilon = operator.settings["epsilon"]
        mean, variance = t["running_mean"].astype(np.float64), t["running_var"].astype(np.float64)
        gamma = t.get("weight", np.ones_like(t["running_mean"])).astype(np.float64)
        beta = t.get("bias", np.zeros_like(t["running_mean"])).astype(np.float64)
        raised = variance + epsilon
        if not layer.center and beta.any():
            if (gamma == 0).any():
                raise Unfit(f"it has no beta, `{operator.name}` has a bias where its weight is 0")
            mean, notes = mean - beta * np.sqrt(raised) / gamma, [*notes, "its bias is in the mean"]
        if not layer.scale and (gamma != 1).any():
            if (gamma <= 0).any():
                raise Unfit(f"it has no gamma, and `{operator.name}` has weights that are not positive")
            raised, notes = raised / gamma**2, [*notes, "its weight is in the variance"]
        if layer.epsilon != epsilon:
            notes.append(f"epsilon {layer.epsilon:g} for {epsilon:g}, by the variance")
        if notes:
            variance = raised - layer.epsilon
        if (small := variance < 0).any():
            if not layer.scale:
                raise Unfit(
                    f"its epsilon is {layer.epsilon:g}, that of `{operator.name}` {epsilon:g}, and variances are too "
                    "small to make up for that"
                )
            gamma, notes = (
                np.where(small, gamma * np.sqrt(layer.epsilon / raised), gamma),
                [*notes[:-1], f"{notes[-1]} and gamma"],
            )
            variance = np.maximum(variance, 0)
        held = [gamma] if layer.scale else []
        held += [beta] if layer.center else []
        return [v.astype(np.float32) for v in (*held, mean, variance)], ", ".join(notes)


class NormReader(LayerReader):
    """Reads LayerNormalization and GroupNormalization."""

    def __init__(self, layer: Any, kind: Kind):
        axis = layer.axis if isinstance(layer.axis, int) else -1
        super().__init__(layer, (kind,), kind == "group norm" and axis in (1, -3))
        self._kind = kind

    def weights_fit(self, operator: Operator) -> bool:
        if operator.kind != self._kind:
            return False
        shapes = {tensor.size for tensor in operator.tensors.values()}
        return shapes == {int(np.prod(v.shape)) for v in self.variables}

    def made(self, x: np.ndarray, operator: Operator, operators: Sequence[Operator]) -> Iterator[Fit]:
        arrangement, layer = arrange(operator.x, x, any_channels=self._kind == "layer norm"), self.layer
        if arrangement is None or self.differences(x, operator):
            return
        gamma, beta = operator.tensors["weight"], operator.tensors.get("bias")
        if beta is not None and not layer.center and beta.any():
            raise Unfit(f"it has no beta, `{operator.name}` has a bias")
        held = [gamma] if layer.scale else []
        held += [np.zeros_like(gamma) if beta is None else beta] if layer.center else []
        result, note, columns = arrangement.of(operator.result), "", arrangement.columns
        if columns is not None:
            if gamma.shape != columns.shape:
                return
            result, held, note = result[..., columns], [value[columns] for value in held], REORDERED
        values = [np.reshape(v, w.shape) for v, w in zip(held, self.variables, strict=True)]
        yield Fit((operator,), operator.name, values, self.back(result), note)

    def differences(self, x: np.ndarray, operator: Operator) -> list[str]:
        ours: dict[str, Any] = {"epsilon": self.layer.epsilon}
        if self._kind == "group norm":
            ours["groups"] = x.shape[-1] if self.layer.groups == -1 else self.layer.groups
        return _compared(ours, operator.settings, operator.name)


class EmbeddingReader(LayerReader):
    """Reads Embedding."""

    def __init__(self, layer: Any):
        super().__init__(layer, ("embedding",))

    def weights_fit(self, operator: Operator) -> bool:
        if operator.kind != "embedding":
            return False
        return operator.tensors["weight"].shape == tuple(self.layer._embeddings.shape)

    def made(self, x: np.ndarray, operator: Operator, operators: Sequence[Operator]) -> Iterator[Fit]:
        arrangement = arrange(operator.x[..., None], x[..., None].astype(operator.x.dtype))
        if arrangement is not None:
            yield Fit((operator,), operator.name, [operator.tensors["weight"]], arrangement.of(operator.result))


class PReluReader(LayerReader):
    """Reads PReLU."""

    def __init__(self, layer: Any):
        super().__init__(layer, ("prelu",))

    def weights_fit(self, operator: Operator) -> bool:
        if operator.kind != "prelu":
            return False
        count, size = operator.tensors["weight"].size, int(np.prod(self.layer.alpha.shape))
        return count in (1, size) or size == operator.x[0].size

    def made(self, x: np.ndarray, operator: Operator, operators: Sequence[Operator]) -> Iterator[Fit]:
        if (arrangement := arrange(operator.x, x)) is not None:
            alpha = np.broadcast_to(operator.tensors["weight"], self.layer.alpha.shape)
            yield Fit((operator,), operator.name, [alpha], arrangement.of(operator.result))


class RecurrentReader(LayerReader):
    """Reads LSTM, GRU and SimpleRNN, each one direction of one layer of PyTorch's."""

    def __init__(self, layer: Any, kind: Kind):
        super().__init__(layer, (kind,))

    @property
    def variables(self) -> list[Any]:
        return list(self.layer.weights)

    def weights_fit(self, operator: Operator) -> bool:
        if operator.kind not in self.kinds:
            return False
        t = operator.tensors
        return [t["weight"].T.shape, t["recurrent"].T.shape] == [tuple(v.shape) for v in self.variables[:2]]

    def differences(self, x: np.ndarray, operator: Operator) -> list[str]:
        layer, settings = self.layer, operator.settings
        told = []
        if layer.go_backwards != settings["backwards"]:
            told.append(f"its go_backwards is {layer.go_backwards}, `{operator.name}` goes the other way")
        for held in ("activation", "recurrent_activation"):
            ours = getattr(getattr(layer, held, None), "__name__", None)
            if ours is not None and ours != settings[held]:
                told.append(f"its {held} is {ours}, that of `{operator.name}` {settings[held]}")
        if not getattr(layer, "reset_after", True):
            told.append("its reset_after is False; PyTorch resets after the product")
        return told

    def made(self, x: np.ndarray, operator: Operator, operators: Sequence[Operator]) -> Iterator[Fit]:
        if not same_values(operator.x, x) or self.differences(x, operator):
            return
        t = operator.tensors
        kernel, recurrent, biases = t["weight"].T, t["recurrent"].T, t.get("biases")
        if kernel.shape[1] == 3 * recurrent.shape[0]:  # a GRU: reset, update, new
            order = np.arange(kernel.shape[1]).reshape(3, -1)[[1, 0, 2]].ravel()
            kernel, recurrent = kernel[:, order], recurrent[:, order]
            biases = None if biases is None else biases[:, order]
        values = [kernel, recurrent]
        if self.layer.use_bias:
            held = np.zeros((2, kernel.shape[1]), np.float32) if biases is None else biases
            values.append(held if len(self.variables[2].shape) == 2 else held.sum(0))
        elif biases is not None and biases.any():
            raise Unfit(f"it has no bias, `{operator.name}` has one")
        result = operator.result if self.layer.return_sequences else operator.result[:, -1]
        yield Fit((operator,), operator.name, values, result)


def own_variables(layer: Any) -> list[Any]:
    """Return the weights that a layer itself holds, not those of its parts, and not the states of random numbers."""
    held = [*layer._trainable_variables, *layer._non_trainable_variables]
    return [variable for variable in held if "seed_generator" not in variable.path]


def reader_of(layer: Any) -> LayerReader | None:
    """Return what reads a layer, or None for one that only the value of its output tells."""
    import keras

    ks = keras.layers
    if isinstance(layer, ks.SeparableConv1D | ks.SeparableConv2D):
        return SeparableReader(layer)
    if isinstance(layer, ks.DepthwiseConv1D | ks.DepthwiseConv2D):
        return ConvolutionReader(layer, depthwise=True)
    if isinstance(layer, ks.Conv1DTranspose | ks.Conv2DTranspose | ks.Conv3DTranspose):
        return TransposedReader(layer)
    if isinstance(layer, ks.Conv1D | ks.Conv2D | ks.Conv3D):
        plain = {*layer.kernel_size, *layer.strides, layer.groups} == {1}
        return MapReader(layer) if plain else ConvolutionReader(layer, depthwise=False)
    if isinstance(layer, ks.Dense | ks.EinsumDense):
        return MapReader(layer)
    if isinstance(layer, ks.BatchNormalization):
        return BatchNormReader(layer)
    if isinstance(layer, ks.LayerNormalization):
        return NormReader(layer, "layer norm")
    if isinstance(layer, ks.GroupNormalization):
        return NormReader(layer, "group norm")
    if isinstance(layer, ks.Embedding):
        return EmbeddingReader(layer)
    if isinstance(layer, ks.PReLU):
        return PReluReader(layer)
    recurrent: tuple[tuple[type, Kind], ...] = ((ks.LSTM, "lstm"), (ks.GRU, "gru"), (ks.SimpleRNN, "rnn"))
    for kind, name in recurrent:
        if isinstance(layer, kind):
            return RecurrentReader(layer, name)
    return None
