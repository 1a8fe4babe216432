"""Put PyTorch's weights into a Keras model, matched by the values that flow through both.

The Keras model runs once. At each layer with weights, candidates are PyTorch's operators whose weights fit and whose
input is the layer's. The weights go in, the layer computes, and its result must be the operator's; PyTorch's own value
then goes on, so that rounding does not build up. Where several operators fit, names decide, then the order, and where
the model does not go on from there, the next one is tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any, NoReturn

import numpy as np

from converter.errors import ConversionError
from converter.report.results import LayerPair
from converter.verification.keras_layers import EmbeddingReader, Fit, LayerReader, own_variables, reader_of
from converter.verification.layer_mismatch import explain_mismatch
from converter.verification.weighted_operators import Fingerprint, Operator, Values, same_values

MOST_PASSES = 100  # of the Keras model, to try other choices
MOST_BARE = 50  # choices of bare parameters for a layer


class _Stop(BaseException):
    """Ends a pass; no `except Exception` of the model's code catches it."""


@dataclass
class Matched:
    """The pairs of a pass, in the order of the Keras model.

    Attributes:
        unused: operators that no layer is.
        outputs_agree: the Keras model's outputs are PyTorch's, or a softmax or sigmoid of them.
    """

    pairs: list[LayerPair] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    outputs_agree: bool = False


def match_layers(model: Any, given: Any, values: Values) -> Matched:
    """Put the weights of PyTorch's operators into the layers of a built Keras model.

    Args:
        given: what the model is called with.
        values: what flowed through PyTorch on the same inputs.

    Raises:
        ConversionError: a layer is none of the operators; says the first one, and in what it differs.
    """
    every = weighted_layers(model)
    layers = [layer for layer in every if own_variables_of(layer)]
    plain = [layer for layer in every if not layer._layers and not layer.weights and not pads(layer)]
    readers = {id(layer): reader_of(layer) for layer in layers}
    names = layer_names(model, layers)
    choices: list[int] = []
    deepest: _Pass | None = None
    differing: list[int] | None = None
    passes = 0
    while passes < MOST_PASSES:
        one = _Pass(values, readers, names, choices, deepest.failed_at if deepest is not None else "")
        one.run(model, layers, plain, given)
        passes += 1
        if one.failure is None and (one.matched.outputs_agree or not any(one.open)):
            return one.matched
        if one.failure is None:
            differing = differing or one.chosen
        elif deepest is None or len(one.matched.pairs) > len(deepest.matched.pairs):
            deepest = one
        if not any(one.open):
            break
        place = max(i for i, more in enumerate(one.open) if more)
        choices = [*one.chosen[:place], one.chosen[place] + 1]
    if differing is not None:
        # Its outputs differ from PyTorch's; the proof says how. The pass is repeated, as others have set other weights.
        one = _Pass(values, readers, names, differing, "")
        one.run(model, layers, plain, given)
        return one.matched
    assert deepest is not None
    assert deepest.failure is not None
    if passes > 1:
        deepest.failure.what += f" {passes - 1} other choices for layers that could be several operators go no further."
    raise deepest.failure


def weighted_layers(model: Any) -> list[Any]:
    """Return the layers of a model that are to be matched: an RNN as a whole, not its cell."""
    import keras

    found: list[Any] = []

    def walk(layer: Any) -> None:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        found.append(layer)
        if not isinstance(layer, keras.layers.RNN):
            for part in layer._layers:
                walk(part)

    seen: set[int] = set()
    walk(model)
    return found


def pads(layer: Any) -> bool:
    """Return whether a layer only pads, crops or scales, which PyTorch's operators may do themselves."""
    return type(layer).__name__.startswith(("ZeroPadding", "Cropping", "Rescaling", "InputLayer"))


def own_variables_of(layer: Any) -> list[Any]:
    """Return the weights that belong to a layer, or to an RNN with its cell."""
    import keras

    return list(layer.weights) if isinstance(layer, keras.layers.RNN) else own_variables(layer)


def layer_names(model: Any, layers: Iterable[Any]) -> dict[int, str]:
    """Return the name of each layer below the model: that of its variables' path, which is unique."""
    names = {}
    for layer in layers:
        path = own_variables_of(layer)[0].path.rpartition("/")[0]
        names[id(layer)] = path.removeprefix(f"{model.name}/") or layer.name
    return names


@dataclass
class _Pass:
    """One run of the Keras model.

    Attributes:
        choices: which of several candidates to take, at each place where there are several.
        chosen, open: what was taken, and whether others are left.
    """

    values: Values
    readers: Mapping[int, LayerReader | None]
    names: Mapping[int, str]
    choices: Sequence[int]
    retried_for: str
    matched: Matched = field(default_factory=Matched)
    chosen: list[int] = field(default_factory=list)
    open: list[bool] = field(default_factory=list)
    failure: ConversionError | None = None
    failed_at: str = ""
    _taken: dict[Any, str] = field(default_factory=dict)
    _fits: dict[int, Fit] = field(default_factory=dict)
    _unknown: list[str] = field(default_factory=list)

    def run(self, model: Any, layers: Sequence[Any], plain: Sequence[Any], given: Any) -> None:
        """Run the model, with each layer's call replaced by one that sets its weights first."""
        import keras

        loops = [layer for layer in weighted_layers(model) if isinstance(layer, keras.layers.TimeDistributed)]
        weighted, others = replaced_calls(layers, self._visit), replaced_calls(plain, self._visit_plain)
        with weighted, others, replaced_calls(loops, at_once):
            try:
                results = model(given, training=False)
            except _Stop:
                return
        missing = [self.names[id(layer)] for layer in layers if id(layer) not in self._fits]
        if missing:
            self.failed_at = missing[0]
            self.failure = ConversionError(
                f"The Keras model does not run its layer `{missing[0]}`, so that nothing tells its weights.",
                code="PTC5041",
                where=missing[0],
                fix="Remove the layer, or build the model so that it calls all of its layers.",
            )
            return
        held: dict[str, float] = {}
        for fit in self._fits.values():
            for operator in fit.operators:
                held[operator.name] = held.get(operator.name, 0.0) + fit.share
        if partly := [name for name, share in held.items() if share < 1 - 1e-9]:
            self.failed_at = partly[0]
            what = f"Only {held[partly[0]]:.0%} of the weights of `{partly[0]}` are in the Keras model."
            fix = "Give the Keras layer as many outputs as PyTorch's has."
            self.failure = ConversionError(what, code="PTC5046", where=partly[0], fix=fix)
            return
        taken = {number for number, _ in self._taken}
        self.matched.unused = [o.name for o in self.values.operators if o.number not in taken]
        with np.errstate(over="ignore"):
            theirs = [heads for one in self.values.outputs for heads in (one, softmax(one), 1 / (1 + np.exp(-one)))]
        marks = [(one.size, Fingerprint.of(one)) for one in theirs]
        results = [np.asarray(keras.ops.convert_to_numpy(one)) for one in keras.tree.flatten(results)]
        self.matched.outputs_agree = all(
            any(size == one.size and mark.like(Fingerprint.of(one)) for size, mark in marks) for one in results
        )

    def _visit(self, layer: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        import keras

        name, reader = self.names[id(layer)], self.readers[id(layer)]
        if reader is None:
            return self._visit_other(layer, call, args, kwargs)
        before = self._fits.get(id(layer))
        x = self._array(name, args[0] if args else next(iter(kwargs.values()), None))
        operators = self._left(before)
        fits = [fit for fit in reader.fits(x, operators) if not self._taken.keys() & {*fit.keys}]
        reasons, agreeing = list(reader.reasons), []
        for fit in fits:
            if before is None:
                assign(own_variables_of(layer), fit.values)
            got = first_of(computed(layer, call, args, kwargs)[0])
            assert fit.result is not None
            if same_values(self._array(name, got), fit.result):
                agreeing.append(fit)
            else:
                reasons.append(f"with the weights of `{fit.name}`, whose input it has, its result is another")
        if not agreeing and isinstance(reader, EmbeddingReader) and before is None:
            return self._visit_other(layer, call, args, kwargs)  # positions, say, which PyTorch adds as a parameter
        if not agreeing:
            agreed = len(self.matched.pairs)
            error = explain_mismatch(
                name, reader, x, operators, self.values, agreed, reasons, before, self._unknown[:1]
            )
            self._fail(name, error)
        fit = self._choose(name, layer, x, agreeing) if before is None else agreeing[0]
        if before is None:
            assign(own_variables_of(layer), fit.values)
            self._fits[id(layer)] = fit
        self._taken |= dict.fromkeys(fit.keys, name)
        got, finish = computed(layer, call, args, kwargs)
        if first_of(got) is not got:  # with states
            return got
        exact = keras.ops.convert_to_tensor(np.ascontiguousarray(fit.result))
        return finish(keras.ops.cast(exact, got.dtype))

    def _array(self, name: str, tensor: Any) -> np.ndarray:
        import keras

        try:
            return np.asarray(keras.ops.convert_to_numpy(tensor))
        except Exception as error:
            what = f"The layer `{name}` runs within a loop or a compiled function, where its values cannot be seen."
            fix = "Build the model without such a loop around the layer."
            self._fail(name, ConversionError(what, code="PTC5042", where=name, fix=fix), error)

    def _visit_plain(self, layer: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a layer without weights, and note it if what it gives is no value of PyTorch's."""
        import keras

        result = call(*args, **kwargs)
        tensor = first_of(result)
        if getattr(tensor, "numpy", None) is None or not keras.backend.is_float_dtype(tensor.dtype):
            return result  # a number of a loop's, or none at all
        if self.values.named(np.asarray(keras.ops.convert_to_numpy(tensor))) is None:
            self._unknown.append(f"`{layer.name}` ({type(layer).__name__})")
        return result

    def _visit_other(self, layer: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a layer that is no operator: one with bare parameters, told by the value of its output."""
        import keras

        name, variables = self.names[id(layer)], own_variables_of(layer)
        if id(layer) in self._fits:
            return call(*args, **kwargs)
        if isinstance(layer, keras.layers.Normalization):
            self._fits[id(layer)] = Fit((), "", [], None)
            self.matched.kept.append(name)
            return call(*args, **kwargs)
        fits = list(islice(self._bare(variables), MOST_BARE))
        if not layer._layers:  # its output tells at once; parts within it have no weights yet
            agreeing = []
            for fit in fits:
                assign(variables, fit.values)
                got = first_of(call(*args, **kwargs))
                if self.values.named(self._array(name, got)) is not None:
                    agreeing.append(fit)
            fits = agreeing
        if not fits:
            shapes = ", ".join(str(tuple(map(int, v.shape))) for v in variables)
            self._fail(name, ConversionError(
                f"The layer `{name}` ({type(layer).__name__}) gives no value of PyTorch's with any of its "
                f"parameters of the shapes {shapes}.",
                code="PTC5045", where=name, fix="Let the layer compute what one of PyTorch's operators does.",
            ))  # fmt: skip
        fit = self._choose(name, layer, np.zeros(0), fits)
        assign(variables, fit.values)
        self._fits[id(layer)] = fit
        self._taken |= dict.fromkeys(fit.keys, name)
        return call(*args, **kwargs)

    def _bare(self, variables: Sequence[Any]) -> Iterator[Fit]:
        """Yield the choices of unused parameters whose shapes are those of a layer's variables, but for ones."""
        wanted = [squeezed(variable.shape) for variable in variables]
        left = {n: v for n, v in self.values.bare.items() if ("parameter", n) not in self._taken}
        for names in product(*([n for n, v in left.items() if squeezed(v.shape) == shape] for shape in wanted)):
            if len({*names}) == len(names):
                values = [left[n].reshape(tuple(v.shape)) for n, v in zip(names, variables, strict=True)]
                yield Fit((), ", ".join(names), values, None, parameters=tuple(names))

    def _left(self, before: Fit | None) -> list[Operator]:
        """Return the operators that a layer may be: unused ones, of a layer called again those with its weights."""
        whole = {number for number, part in self._taken if not part}
        left = [o for o in self.values.operators if o.number not in whole]
        if before is None:
            return left
        names = {o.name for o in before.operators}
        return [o for o in left if o.name in names]

    def _choose(self, name: str, layer: Any, x: np.ndarray, fits: Sequence[Fit]) -> Fit:
        """Return one of several candidates, by name, then by order, and note how."""
        number, how = 0, ""
        others: tuple[str, ...] = ()
        ranked = list(fits)
        if len(fits) > 1:
            if x.size and np.ptp(x) == 0:
                listed = ", ".join(f"`{fit.name}`" for fit in fits)
                self._fail(
                    name,
                    ConversionError(
                        f"The input of the layer `{name}` is {x.flat[0]:g} everywhere, so that values do not tell "
                        f"which of {listed} it is.",
                        code="PTC5043",
                        where=name,
                        fix="Give inputs that reach it, with --inputs, or another --seed.",
                    ),
                )
            scores = [likeness(name, fit.name.removesuffix(fit.part)) for fit in fits]
            ranked = [fits[i] for i in sorted(range(len(fits)), key=lambda i: (-scores[i], i))]
            how = "by name" if sorted(scores)[-1] > sorted(scores)[-2] else "by order"
            place = len(self.chosen)
            number = self.choices[place] if place < len(self.choices) else 0
            self.chosen.append(number)
            self.open.append(number + 1 < len(ranked))
            if number:
                at = f" at `{self.retried_for}`" if self.retried_for else ""
                how = f"the {number} before did not agree further on{at}"
            others = tuple(fit.name for fit in ranked if fit is not ranked[number])
        fit = ranked[number]
        shapes = tuple(tuple(map(int, v.shape)) for v in own_variables_of(layer))
        self._unknown.clear()
        self.matched.pairs.append(LayerPair(name, type(layer).__name__, fit.name, shapes, fit.note, others, how))
        return fit

    def _fail(self, name: str, failure: ConversionError, cause: BaseException | None = None) -> NoReturn:
        failure.__cause__ = cause
        self.failure, self.failed_at = failure, name
        raise _Stop


@contextmanager
def replaced_calls(layers: Iterable[Any], visit: Callable[..., Any]) -> Iterator[None]:
    """Have these layers call `visit(layer, call, args, kwargs)` in the place of their own `call`."""
    replaced = []

    def through(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: visit(layer, call, args, kwargs)

    try:
        for layer in layers:
            # Not by setattr, which Keras watches.
            layer.__dict__["call"] = through(layer, layer.call)
            replaced.append(layer)
        yield
    finally:
        for layer in replaced:
            del layer.__dict__["call"]


def at_once(layer: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run what TimeDistributed does in a loop, whose values cannot be seen, for all steps at once."""
    import keras

    x = args[0] if args else kwargs["inputs"]
    result = layer.layer(keras.ops.reshape(x, (-1, *x.shape[2:])))
    return keras.ops.reshape(result, (*x.shape[:2], *result.shape[1:]))


def computed(layer: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return what a layer computes before its activation, and the activation."""
    import keras

    activation = layer.__dict__.get("activation")
    if activation is None or not callable(activation):
        return call(*args, **kwargs), lambda value: value
    layer.__dict__["activation"] = keras.activations.linear
    try:
        return call(*args, **kwargs), activation
    finally:
        layer.__dict__["activation"] = activation


def softmax(value: np.ndarray) -> np.ndarray:
    """Return a softmax along the classes, which are dimension 1."""
    if value.ndim < 2:
        return value
    powers = np.exp(value - value.max(1, keepdims=True))
    made: np.ndarray = powers / powers.sum(1, keepdims=True)
    return made


def first_of(result: Any) -> Any:
    """Return the first tensor of what a layer returns."""
    return result[0] if isinstance(result, list | tuple) else result


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without its ones."""
    return tuple(int(n) for n in shape if n != 1)


def assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Set the variables of a layer. Raises ValueError if there are more or fewer, or of another shape."""
    for variable, value in zip(variables, values, strict=True):
        if tuple(variable.shape) != value.shape:
            raise ValueError(f"{variable.path} is {tuple(variable.shape)}, not {value.shape}")
        variable.assign(np.ascontiguousarray(value))


def likeness(one: str, other: str) -> float:
    """Return how alike two names are: the share of their words that one has of the other, or begins."""
    words, others = (re.findall(r"[a-z]+|\d+", name.lower()) for name in (one, other))
    found = sum(
        any(a == b or (a.isalpha() and b.isalpha() and (a.startswith(b) or b.startswith(a))) for b in others)
        for a in words
    )
    return found / max(len(words), len(others), 1)
