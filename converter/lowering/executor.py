"""Carry out a plan: as a Keras functional model, as a traced TensorFlow function, or at once in float64.

A step is carried out in one way for all arrays: Keras' own operators and layers take symbolic Keras tensors,
TensorFlow's graph tensors and eager tensors alike.
"""

from __future__ import annotations

import converter.compat.tensorflow_memory  # noqa: F401  # before TensorFlow

# isort: split
import gc
import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
import torch
from keras import layers

from converter.capture.dynamic_shapes import Range
from converter.capture.input_domains import size_ranges
from converter.compat.replaced import replaced
from converter.errors import ConversionError, wrap_unexpected
from converter.ir.program import module_path, place_of
from converter.ir.sizes import Size
from converter.lowering.tf_function import Saved, trace
from converter.lowering.user_lowerings import blame
from converter.memory import swept
from converter.plan.builder import PlanBuilder
from converter.plan.dynamic_reshape import reshaped
from converter.plan.interface import TensorInterface
from converter.plan.lazy_keras import LazyMember
from converter.plan.precision import dtype_name, float32_is
from converter.plan.registry import Registry
from converter.plan.steps import (
    CallStep,
    Constant,
    ConstantStep,
    InputStep,
    ItemStep,
    LayerStep,
    MoveStep,
    Step,
    topological_order,
)

LARGE = 100_000  # elements of variables that are worth a sweep
INLINE = 16  # a constant with at most this many elements may be written into a Keras file's JSON


class NativeConv2D(layers.Conv2D):
    """TensorFlow's own convolution.

    On a CPU, Keras compiles grouped ones with XLA, which is 15 times slower, and puts dilated ones between
    SpaceToBatchND and BatchToSpaceND.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return tf.nn.conv2d(inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate)


class NativeConv1D(layers.Conv1D):
    """TensorFlow's own convolution along one axis."""

    def call(self, inputs: Any) -> Any:
        y = tf.nn.conv1d(inputs, self.kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate)
        return tf.nn.bias_add(y, self.bias) if self.use_bias else y


class NativeDepthwiseConv2D(layers.DepthwiseConv2D):
    """A depthwise convolution as a grouped one with one group per channel."""

    def call(self, inputs: Any) -> Any:
        y = tf.nn.conv2d(
            inputs, by_group(self.kernel), self.strides, self.padding.upper(), dilations=self.dilation_rate
        )
        return tf.nn.bias_add(y, self.bias) if self.use_bias else y


class NativeDepthwiseConv1D(layers.DepthwiseConv1D):
    """A depthwise convolution along one axis as a grouped one with one group per channel."""

    def call(self, inputs: Any) -> Any:
        y = tf.nn.conv1d(
            inputs, by_group(self.kernel), self.strides, self.padding.upper(), dilations=self.dilation_rate
        )
        return tf.nn.bias_add(y, self.bias) if self.use_bias else y


class NativeSeparableConv2D(layers.SeparableConv2D):
    """A depthwise convolution as a grouped one with one group per channel, then a 1x1 convolution."""

    def call(self, inputs: Any) -> Any:
        kernel, padding = by_group(self.depthwise_kernel), self.padding.upper()
        y = tf.nn.conv2d(inputs, kernel, self.strides, padding, dilations=self.dilation_rate)
        y = tf.nn.conv2d(y, self.pointwise_kernel, 1, "VALID")
        return tf.nn.bias_add(y, self.bias) if self.use_bias else y


class NativeSeparableConv1D(layers.SeparableConv1D):
    """The same along one axis."""

    def call(self, inputs: Any) -> Any:
        kernel, padding = by_group(self.depthwise_kernel), self.padding.upper()
        y = tf.nn.conv1d(inputs, kernel, self.strides, padding, dilations=self.dilation_rate)
        y = tf.nn.conv1d(y, self.pointwise_kernel, 1, "VALID")
        return tf.nn.bias_add(y, self.bias) if self.use_bias else y


def by_group(kernel: Any) -> Any:
    """Convert a depthwise kernel (..., channels, multiplier) to that of a grouped convolution."""
    *size, channels, multiplier = kernel.shape
    return tf.reshape(kernel, (*size, 1, channels * multiplier))


class CenteredLayerNormalization(layers.LayerNormalization):
    """Subtracts the mean before it multiplies.

    That is exact for constant rows, and takes one pass less over the array than Keras' own, which computes
    x * scale + (offset - mean * scale).
    """

    def call(self, inputs: Any) -> Any:
        axes = [axis % len(inputs.shape) for axis in self.axis]
        centered = inputs - tf.reduce_mean(inputs, axes, keepdims=True)
        variance = tf.reduce_mean(tf.square(centered), axes, keepdims=True)
        y = centered * tf.math.rsqrt(variance + self.epsilon)
        y = y * self._along(self.gamma, axes, y) if self.scale else y
        return y + self._along(self.beta, axes, y) if self.center else y

    def _along(self, weight: Any, axes: Sequence[int], array: Any) -> Any:
        """Return `weight` in a shape that broadcasts along `axes` of `array`."""
        own = range(axes[0], len(array.shape))
        return weight if list(own) == axes else tf.reshape(weight, [array.shape[i] if i in axes else 1 for i in own])


class LitePReLU(layers.PReLU):
    """PReLU of any rank: LiteRT's operator takes four axes at most."""

    def call(self, inputs: Any) -> Any:
        return super().call(inputs) if len(inputs.shape) <= 4 else tf.where(inputs >= 0, inputs, self.alpha * inputs)


class ExactMultiHeadAttention(layers.MultiHeadAttention):
    """Attention for float64: Keras passes the scale of the scores through float32, whatever the layer's precision."""

    def __init__(self, **config: Any):
        super().__init__(**config)
        self._inverse_sqrt_key_dim: Any = np.float64(config["key_dim"] ** -0.5)


NATIVE = {
    layers.Conv1D: NativeConv1D,
    layers.Conv2D: NativeConv2D,
    layers.DepthwiseConv1D: NativeDepthwiseConv1D,
    layers.DepthwiseConv2D: NativeDepthwiseConv2D,
    layers.SeparableConv1D: NativeSeparableConv1D,
    layers.SeparableConv2D: NativeSeparableConv2D,
}

LITE = {layers.PReLU: LitePReLU}
RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
MOST_UNROLLED = 128  # steps


@dataclass
class PlanExecutor:
    """The layers and variables that a plan needs, in one precision; call it with the inputs' arrays.

    Attributes:
        precision: "float32" or "float64".
        lite: for LiteRT: layers that it has operators for, and operators in the scopes of `places`.
        batch: the only batch size that `traced` takes, if the program takes any.
        stock: stock Keras only, as a Keras file needs it: grouped and dilated convolutions of Keras itself, bare
            parameters in layers. Otherwise these convolutions are native and bare parameters are plain variables.
        tensors: every variable made so far, by name, and the constant it holds.
        paths: PyTorch's path of each layer of a Keras file, by the layer's name.
        saved: the fixed parts of a SavedModel of it.
        prepared: all layers and variables are made.
    """

    plan: PlanBuilder
    precision: str = "float32"
    stock: bool = False
    lite: bool = False
    batch: int | None = None
    tensors: dict[str, tuple[Any, Constant]] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    saved: Saved | None = None
    prepared: bool = field(default=False, init=False)
    _layers: dict[Hashable, layers.Layer] = field(default_factory=dict)
    _constants: dict[Hashable, Any] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _inlined: list[tuple[Constant, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names |= {step.name for step in self.plan.input_steps}
        self._order = topological_order(self.plan.results)
        self._uses = Counter(id(step) for step in self.plan.results)
        self._uses.update(id(i) for step in self._order for i in step.inputs)

    def prepare(self) -> Self:
        """Make all layers and variables now, because a traced function cannot."""
        with float32_is(self.precision):
            for step in self._order:
                with blamed(step, self.plan.registry):
                    if isinstance(step, LayerStep):
                        self._layer(step)
                    elif isinstance(step, ConstantStep) and not self._inline(step.constant):
                        self._variable(step)
                    elif isinstance(step, ConstantStep):
                        self._inlined.append((step.constant, step.constant.array().tobytes()))
        self.prepared = True
        return self

    def reload_weights(self) -> bool:
        """Assign the constants' current values to all variables; return False if an inlined one differs."""
        if any(values != constant.array().tobytes() for constant, values in self._inlined):
            return False
        for variable, constant in self.tensors.values():
            variable.assign(in_torchs_memory(constant, variable.dtype))
        return True

    @property
    def inlined(self) -> list[Constant]:
        """Return the constants that are in the graph itself."""
        return [constant for constant, _ in self._inlined]

    @cached_property
    def traced(self) -> Any:
        """Trace `run_named` as one TensorFlow function."""
        self.prepare()
        return trace(self._run_within_limits, self.signature())

    def places(self) -> dict[str, str]:
        """Return the module and the line of code of each step, by its scope."""
        return {scope_of(step): place_of(step.node) for step in self._order}

    def module_of_scope(self) -> dict[str, str]:
        """Return the path of the module of each step, by its scope."""
        return {scope_of(step): module_path(step.node) for step in self._order}

    @cached_property
    def model(self) -> keras.Model:
        """Return `keras_model`, built once."""
        return self.keras_model()

    def __call__(self, *inputs: Any) -> list:
        """Return the results' arrays, in the plan's order and layout."""
        return self._run([inputs])[0]

    def run_once(self, rounds: Sequence[Sequence[Any]]) -> list[list]:
        """Return the results for each of several rounds of inputs. Variables live only while they are read.

        All rounds take a step together, so no step's weights are made twice.
        """
        return self._run(rounds, forget=True)

    def _run(self, rounds: Sequence[Sequence[Any]], forget: bool = False) -> list[list]:
        names = [id(step) for step in self.plan.input_steps]
        arrays: list[dict[int, Any]] = [dict(zip(names, inputs, strict=True)) for inputs in rounds]
        left = self._uses.copy()
        again = Counter(step.key for step in self._order if isinstance(step, LayerStep)) if forget else Counter()
        with float32_is(self.precision), swept() if forget else nullcontext(gc.collect) as sweep:
            for step in self._order:
                for held in arrays:
                    if not isinstance(step, InputStep):
                        held[id(step)] = self._execute_step(step, [held[id(i)] for i in step.inputs])
                for used in step.inputs:
                    left[id(used)] -= 1
                    if not left[id(used)]:
                        for held in arrays:
                            del held[id(used)]
                if forget and self._forget(step, again):
                    sweep()
        return [[held[id(step)] for step in self.plan.results] for held in arrays]

    def iter_steps(self, inputs: Sequence[Any], wanted: Sequence[Step]) -> Iterator[Any]:
        """Yield the arrays of some steps, one after another.

        Arrays and variables live only while a later step needs them.
        """
        held = {id(step): array for step, array in zip(self.plan.input_steps, inputs, strict=True)}
        order = topological_order(wanted)
        left = Counter(id(i) for step in order for i in step.inputs) + Counter(map(id, wanted))
        again = Counter(step.key for step in order if isinstance(step, LayerStep))
        done = set(held)

        def drop(step: Step) -> None:
            left[id(step)] -= 1
            if not left[id(step)]:
                del held[id(step)]

        for target in wanted:
            for step in topological_order([target], done):
                with float32_is(self.precision):
                    held[id(step)] = self._execute_step(step, [held[id(i)] for i in step.inputs])
                done.add(id(step))
                self._forget(step, again)
                for used in step.inputs:
                    drop(used)
            yield held[id(target)]
            drop(target)

    def _forget(self, step: Step, again: Counter) -> bool:
        """Drop the step's variables if no later step reads them; return whether any were large."""
        self.tensors.clear()
        if isinstance(step, ConstantStep):
            self._constants.pop(step.constant.key, None)
            return step.constant.values.numel() > LARGE
        if isinstance(step, LayerStep):
            again[step.key] -= 1
            if not again[step.key]:
                del self._layers[step.key]
                return sum(weight.values.numel() for weight in step.weights) > LARGE
        return False

    def keras_model(self) -> keras.Model:
        """Build a functional model; inputs and outputs have the program's names."""
        self.prepare()
        keep_from_operations(self._names)
        inputs = [
            keras.Input(batch_shape=tuple(known(n) for n in step.shape), dtype=dtype_name(step.dtype), name=step.name)
            for step in self.plan.input_steps
        ]
        results = [
            result if isinstance(result, keras.KerasTensor) else _as_output(result, inputs[0])
            for result in self(*inputs)
        ]
        names = [output.name for output in self.plan.outputs]
        outputs = results[0] if len(results) == 1 else dict(zip(names, results, strict=True))
        given = (
            inputs[0]
            if len(inputs) == 1
            else {step.name: x for step, x in zip(self.plan.input_steps, inputs, strict=True)}
        )
        return keras.Model(given, outputs, name="functional")  # Keras would number the models of a process

    def signature(self) -> list[tf.TensorSpec]:
        with float32_is(self.precision):
            return [
                tf.TensorSpec(self._sizes(step.shape), dtype_name(step.dtype), step.name)
                for step in self.plan.input_steps
            ]

    def _sizes(self, shape: Sequence[Size]) -> list[int | None]:
        sizes = [known(n) for n in shape]
        return [self.batch, *sizes[1:]] if sizes and sizes[0] is None and self.batch else sizes

    def run_named(self, *inputs: Any) -> dict[str, Any]:
        """Call the plan and return the results by the outputs' names."""
        results = self(*inputs)
        return {
            output.name: tf.identity(array, scope_name(output.name))
            for output, array in zip(self.plan.outputs, results, strict=True)
        }

    def _run_within_limits(self, *inputs: Any) -> dict[str, Any]:
        """Call `run_named`, and refuse inputs whose dynamic sizes are outside their limits."""
        limits = size_ranges(self.plan.program)
        refusing = [
            self._refusing(array, interface, limits[interface.name]) if interface.name in limits else array
            for interface, array in zip(self.plan.inputs, inputs, strict=True)
        ]
        return self.run_named(*refusing)

    def _refusing(self, array: Any, interface: TensorInterface, limits: Mapping[int, Range]) -> Any:
        """Return the input behind an assertion; in LiteRT, which has none, behind a reshape that then fails."""
        sizes = [tf.shape(array)[axis] if size is None else size for axis, size in enumerate(array.shape)]
        for dim, held in limits.items():
            axis = interface.order.index(dim)
            size = sizes[axis]
            inside = [size % held.factor == 0] if held.factor > 1 else []
            inside += [size >= held.least] if held.least else []
            inside += [size <= held.most] if held.most is not None else []
            allowed = tf.reduce_all(inside)
            if self.lite:
                sizes[axis] = tf.where(allowed, size, size + 1)
            else:
                tf.debugging.Assert(allowed, [f"Dimension {axis} of input `{interface.name}` must be {held}"])
        return tf.reshape(array, sizes) if self.lite else array

    # -- one step

    def _execute_step(self, step: Step, arrays: list) -> Any:
        scope = tf.name_scope(scope_of(step) + "/") if self.lite else nullcontext()
        with blamed(step, self.plan.registry), scope:
            return self._array(step, arrays)

    def _array(self, step: Step, arrays: list) -> Any:
        match step:
            case CallStep():
                return step.function(*arrays)
            case LayerStep():
                states, extra = arrays[1 : (end := len(arrays) - len(step.extra_inputs))], arrays[end:]
                others: dict[str, Any] = dict(zip(step.extra_inputs, extra, strict=True))
                others |= {"initial_state": states} if states else {}
                layer = self._layer(step)
                if self.stock and between_others(step):
                    return keras.ops.squeeze(layer(keras.ops.expand_dims(arrays[0], -1)), -1)
                return layer(arrays[0], **others, **step.arguments)
            case MoveStep():
                return moved(arrays[0], step)
            case ItemStep():
                return arrays[0][step.position]
            case ConstantStep():
                return self._constant(step, arrays[0])
        raise TypeError(f"no way to carry out {type(step).__name__}")

    def _layer(self, step: LayerStep) -> layers.Layer:
        if step.key in self._layers:
            return self._layers[step.key]
        kind = step.kind.resolve() if isinstance(step.kind, LazyMember) else step.kind
        config, weights, shape = step.config, step.weights, known_shape(step.input_shape)
        if self.stock and between_others(step):
            config = config | {"axis": [*axes_of(config), len(shape)]}
            weights, shape = tuple(constant.reshape(*constant.shape, 1) for constant in weights), (*shape, 1)
        if not self.stock and (step.config.get("groups", 1) > 1 or np.max(step.config.get("dilation_rate", 1)) > 1):
            kind = NATIVE.get(kind, kind)
        if not self.stock and not self.lite and kind is layers.LayerNormalization:
            kind = CenteredLayerNormalization  # whose scale LiteRT's converter would write into the layers behind it
        if self.lite:
            kind = LITE.get(kind, kind)
            if self.batch is None and issubclass(kind, RECURRENT) and (shape[1] or math.inf) <= MOST_UNROLLED:
                config = config | {"unroll": True}  # LiteRT's loop over steps takes a fixed batch
        if kind is layers.MultiHeadAttention and self.precision == "float64":
            kind = ExactMultiHeadAttention
        layer = kind(**config, name=self._layer_name(step.name), dtype=self.precision)
        if not layer.built:
            with uninitialized(layer):
                others = {f"{name}_shape": known_shape(n) for name, n in step.extra_inputs.items() if name != "mask"}
                layer.build(shape, **others)
        if len(layer.weights) != len(weights):
            raise AssertionError(f"{layer.name}: {len(layer.weights)} weights wanted, {len(weights)} given")
        for variable, constant in zip(layer.weights, weights, strict=True):
            self._fill(variable, constant)
        layer.trainable = step.trainable
        self._layers[step.key] = layer
        return layer

    def _fill(self, variable: keras.Variable, constant: Constant) -> None:
        variable.assign(in_torchs_memory(constant, variable.dtype))
        name = variable.path if self.stock else self._unique(constant.sources[0] if constant.sources else variable.path)
        self.tensors[name] = (variable.value, constant)

    def _inline(self, constant: Constant) -> bool:
        return not constant.trainable and constant.values.numel() <= INLINE

    def _variable(self, step: ConstantStep) -> Any:
        constant = step.constant
        if constant.key in self._constants:
            return self._constants[constant.key]
        if self.stock:
            made = self._bare_layer(step)
        else:
            name = self._unique(constant.sources[0] if constant.sources else f"{step.name}.constant")
            dtype = dtype_name(constant.dtype)
            made = tf.Variable(in_torchs_memory(constant, dtype), trainable=False, dtype=dtype)
            self.tensors[name] = (made, constant)
        self._constants[constant.key] = made
        return made

    def _bare_layer(self, step: ConstantStep) -> layers.Layer:
        """Make a layer of stock Keras that returns its kernel: EinsumDense on a one."""
        constant = step.constant
        letters = "abcdefgh"[: len(constant.shape)]
        name = constant.sources[0] if constant.sources else f"{step.name}.constant"
        layer = layers.EinsumDense(
            f"yz,z{letters}->y{letters}",
            output_shape=constant.shape,
            name=self._layer_name(name),
            dtype=self.precision,
        )
        layer.build((None, 1))
        batched = constant.rearranged(lambda tensor: tensor[None], "batched")
        self._fill(layer.kernel, batched)
        layer.trainable = constant.learns
        return layer

    def _constant(self, step: ConstantStep, like: Any) -> Any:
        constant = step.constant
        dtype = dtype_name(constant.dtype)
        if not constant.values.numel() and self.stock:  # a Keras file's JSON would lose all sizes after a 0
            nothing = (
                like[(slice(0, 0), *(0,) * (len(like.shape) - 1))] if like.shape else keras.ops.reshape(like, (1,))[:0]
            )
            return keras.ops.cast(keras.ops.reshape(nothing, constant.shape), dtype)
        if self._inline(constant):
            return keras.ops.convert_to_tensor(constant.array().astype(dtype), dtype)
        made = self._variable(step)
        if not self.stock:
            return made.value() if isinstance(made, tf.Variable) else made
        if not like.shape or 0 in like.shape:
            first = keras.ops.sum(like)
        else:
            first = like[(0,) * (len(like.shape) - 1) + (slice(0, 1),)]
        ones = keras.ops.reshape(keras.ops.ones_like(first, dtype=self.precision), (1, 1))
        return keras.ops.cast(keras.ops.squeeze(made(ones), 0), dtype)

    def _layer_name(self, path: str) -> str:
        if not self.stock:
            return self._unique(path)
        name = self._unique(scope_name(path).replace(".", "_"))  # Keras on PyTorch does not accept dots
        self.paths[name] = path
        return name

    def _unique(self, name: str) -> str:
        name = scope_name(name)
        chosen, n = name, 0
        while chosen in self._names:
            n += 1
            chosen = f"{name}_{n}"
        self._names.add(chosen)
        return chosen


ALIGNMENT = 64  # bytes, of the tensors that TensorFlow's kernels take
SHARED = {"float32": torch.float32, "float64": torch.float64}


def in_torchs_memory(constant: Constant, dtype: Any) -> Any:
    """Return a constant's values for a variable, without a copy by TensorFlow, which never gives memory back."""
    to = SHARED.get(getattr(dtype, "name", dtype))
    if to is None or not constant.values.numel():
        return constant.array()
    values = constant.tensor.detach().to(to).contiguous()
    values = values.clone() if values.data_ptr() % ALIGNMENT else values
    return tf.experimental.dlpack.from_dlpack(values.__dlpack__())


def between_others(step: LayerStep) -> bool:
    """Return whether a layer norm is along neighboring axes before the last one.

    Keras on PyTorch then normalizes the last axes instead. An appended axis of one element, normalized too, avoids it.
    """
    if step.kind.__name__ != "LayerNormalization":
        return False
    axes = axes_of(step.config)
    return axes[-1] not in (-1, len(step.input_shape) - 1) and axes == list(range(axes[0], axes[0] + len(axes)))


def axes_of(config: Mapping[str, Any]) -> list[int]:
    axis = config["axis"]
    return [axis] if isinstance(axis, int) else list(axis)


def uninitialized(layer: layers.Layer) -> AbstractContextManager[None]:
    """Start the layer's variables at zero, whatever its configuration, because they will be filled."""
    configured = [name for name in vars(layer) if name.endswith("_initializer")]
    return replaced(layer, **{name: keras.initializers.Zeros() for name in configured})


@contextmanager
def blamed(step: Step, registry: Registry) -> Iterator[None]:
    """Add the module and operator to any unexpected error."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:
        if (owner := registry[step.node.target].owners.get("lowering")) is not None:
            raise blame(step.node.target, error, owner) from error
        raise wrap_unexpected(error, f"module `{module_path(step.node)}`, {step.node.target}") from error


def scope_of(step: Step) -> str:
    return f"{scope_name(module_path(step.node))}/{scope_name(step.node.name)}"


def _as_output(constant: Any, like: Any) -> Any:
    """Make `constant` a tensor of a functional model, whose outputs must all depend on an input."""
    one = keras.ops.ones_like(like[(slice(0, 1),) * len(like.shape)], dtype="bool")
    return keras.ops.where(keras.ops.reshape(one, (1,) * len(constant.shape)), constant, constant)


def keep_from_operations(names: Iterable[str]) -> None:
    """Keep Keras from giving its own operations a layer's name, such as a model's own `self.add`."""
    from keras.src.backend.common import global_state

    counted = global_state.get_global_attribute("object_name_uids", default=defaultdict(int), set_to_default=True)
    for name in names:
        stem, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()  # type: ignore[union-attr]
        counted[stem] = max(counted[stem], int(number or 0) + 1)


def scope_name(name: str) -> str:
    """Return `name` as a valid TensorFlow scope: keys of ModuleDicts and of outputs may be any text."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name.replace("/", ".")).lstrip("_-") or "unnamed"


def moved(array: Any, step: MoveStep) -> Any:
    """Reshape, transpose, reshape, or call the operator that does just that."""
    move = step.move
    if move.order is None:
        return reshaped(array, move.given, move.merge)
    if move.named is not None:
        name, block = move.named
        if name == "SpaceToDepth":
            packed = keras.ops.space_to_depth(reshaped(array, move.given, move.given), block)
            return reshaped(packed, move.packed, move.merge)
        return keras.ops.depth_to_space(reshaped(array, move.given, move.packed), block)
    array = reshaped(array, move.given, move.split)
    return reshaped(keras.ops.transpose(array, move.order), [move.split[i] for i in move.order], move.merge)


def known(size: Size) -> int | None:
    return size if isinstance(size, int) else None


def known_shape(shape: Sequence[Size]) -> tuple[int | None, ...]:
    return tuple(known(n) for n in shape)
