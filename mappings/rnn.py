"""LSTM, GRU and plain recurrent layers, one Keras layer for each layer and direction.

Keras holds sequences as (batch, time, features), whatever PyTorch's `batch_first` is.

A projected LSTM passes on W h instead of h (https://arxiv.org/abs/1402.1128). Its gates see U (W h), so an LSTM whose
recurrent kernel is U W has the same h, and W is a Dense layer after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from converter.ir.aten import bound_arguments
from converter.ir.lazy_tensor import LazyTensor
from converter.plan.builder import PlanBuilder
from converter.plan.layout import Layout
from converter.plan.lazy_keras import layers, ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, ItemStep, Unsupported, Value
from mappings.linear import features_last

aten = torch.ops.aten
ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent layer.

    Attributes:
        gates: Keras' order of PyTorch's gates.
        states: how many it passes on.
        two_biases: Keras has both, as rows of one tensor; otherwise their sum.
    """

    kind: type
    gates: tuple[int, ...]
    states: int
    two_biases: bool
    config: tuple[tuple[str, object], ...] = ()

    def weights(self, held: Sequence[Constant], features: np.ndarray) -> list[Constant]:
        """Return Keras' kernel, recurrent kernel and bias; `features` is the physical order of the input."""
        units = held[1].shape[1]
        order = np.concatenate([np.arange(g * units, (g + 1) * units) for g in self.gates])
        kernels = [held[0].index_select(1, features), held[1]]
        result = [kernel.index_select(0, order).permute(1, 0) for kernel in kernels]
        if len(held) > 2:
            biases = [bias.index_select(0, order) for bias in held[2:]]
            result.append(both(*biases) if self.two_biases else sum_of(*biases))
        return result


LSTM = Cell(layers.LSTM, (0, 1, 2, 3), 2, two_biases=False)
GRU = Cell(layers.GRU, (1, 0, 2), 1, two_biases=True, config=(("reset_after", True),))  # reset, update, new
TANH = Cell(layers.SimpleRNN, (0,), 1, two_biases=False, config=(("activation", "tanh"),))
RELU = Cell(layers.SimpleRNN, (0,), 1, two_biases=False, config=(("activation", "relu"),))


def sum_of(a: Constant, b: Constant) -> Constant:
    values = LazyTensor.combine(lambda one, other: one.double() + other, a.values, b.values)
    return combined(a, b, values, "sum", exact=False)


def both(a: Constant, b: Constant) -> Constant:
    values = LazyTensor.combine(lambda *pair: torch.stack(pair), a.values, b.values)
    return combined(a, b, values, "both", exact=a.exact and b.exact)


def combined(a: Constant, b: Constant, values: LazyTensor, how: str, exact: bool) -> Constant:
    sources = tuple(dict.fromkeys((*a.sources, *b.sources)))
    learns = a.learns or b.learns
    return Constant(values, a.dtype, sources, exact, a.trainable or b.trainable, (how, a.key, b.key), not learns)


@maps(aten.lstm.input)
def lstm(plan, x, hx, params, *settings):
    return recurrent(plan, LSTM, x, hx, params, *settings)


@maps(aten.gru.input)
def gru(plan, x, hx, params, *settings):
    return recurrent(plan, GRU, x, [hx], params, *settings)


@maps(aten.rnn_tanh.input)
def rnn_tanh(plan, x, hx, params, *settings):
    return recurrent(plan, TANH, x, [hx], params, *settings)


@maps(aten.rnn_relu.input)
def rnn_relu(plan, x, hx, params, *settings):
    return recurrent(plan, RELU, x, [hx], params, *settings)


@maps(torch.ops.converter.packed_recurrent.default)
def packed_recurrent(plan, kind, input, lengths, hx, params, *settings):
    cells = {"lstm": LSTM, "gru": GRU, "rnn_tanh": TANH, "rnn_relu": RELU}
    return recurrent(plan, cells[kind], input, hx, params, *settings[:-1], lengths=lengths)


@maps(aten.lstm_cell.default)
def lstm_cell(plan, x, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    return one_step(plan, LSTM, x, hx, [w_ih, w_hh, b_ih, b_hh])


@maps(aten.gru_cell.default)
def gru_cell(plan, x, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    return one_step(plan, GRU, x, [hx], [w_ih, w_hh, b_ih, b_hh])[0]


@maps(aten.rnn_tanh_cell.default)
def rnn_tanh_cell(plan, x, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    return one_step(plan, TANH, x, [hx], [w_ih, w_hh, b_ih, b_hh])[0]


@maps(aten.rnn_relu_cell.default)
def rnn_relu_cell(plan, x, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    return one_step(plan, RELU, x, [hx], [w_ih, w_hh, b_ih, b_hh])[0]


def one_step(
    plan: PlanBuilder, cell: Cell, x, given: Sequence[Value | Constant], params: Sequence[Constant]
) -> list[Value]:
    """Return the states after one step from (batch, features), using a layer over a sequence of one."""
    held = [w for w in params if w is not None]
    if not all(isinstance(w, Constant) for w in held):
        raise Unsupported("weights that depend on the input")
    like = next(v for v in (x, *given) if isinstance(v, Value))
    x = plan.as_value(x, like)
    batch, features = x.layout.dims
    layout = Layout((batch, (), features), x.layout.axes, x.layout.size)
    run = tuple(a for a in x.layout.atoms if a in features)
    sequence = plan.relayout(Value(layout, x.dtype, x.step), (batch, (), run), "(batch, time, features)")
    states = [plan.as_value(state, like) for state in given]
    states = [plan.relayout(state, state.layout.dims, "a recurrent layer's state") for state in states]
    order = x.layout.index(features, run)
    return one_direction(plan, cell, sequence, held, order, states, 0, plan.name, 0, 1, True, unroll=True)[1:]


def recurrent(
    plan: PlanBuilder,
    cell: Cell,
    x: Value,
    given: Sequence[Value | Constant],
    params: Sequence[Constant],
    *settings: Any,
    lengths: Value | Constant | None = None,
) -> list[Value]:
    """Return the sequence and the last states, each (layers and directions, batch, units).

    Args:
        lengths: steps of each sequence that count.
    """
    has_biases, num_layers, dropout, train, bidirectional, batch_first = settings
    if dropout and train:
        raise Unsupported("active dropout")
    if not all(isinstance(w, Constant) for w in params):
        raise Unsupported("weights that depend on the input")
    directions = 2 if bidirectional else 1
    count = len(params) // (num_layers * directions)
    projected = count > (4 if has_biases else 2)
    batch, time = (0, 1) if batch_first else (1, 0)
    lasting = any(user.args[1] != 0 for user in plan.node.users)
    zero = are_zeros(plan, given)
    mask: Value | None = None
    if lengths is not None and projected:
        raise Unsupported("packed sequences in an LSTM with projections (proj_size)")
    lasts: list[list[Value]] = []  # the states of each layer and direction
    for layer in range(num_layers):
        run = tuple(a for a in x.layout.atoms if a in x.layout.dims[2])
        x = plan.relayout(x, (x.layout.dims[batch], x.layout.dims[time], run), "(batch, time, features)")
        features = x.layout.index(x.layout.dims[2], run)
        if lengths is not None and mask is None:
            mask = steps_that_count(plan, x, plan.as_value(lengths, x), batch, time)
        sequences = []
        for direction in range(directions):
            at = layer * directions + direction
            held = params[count * at : count * (at + 1)]
            name = plan.name if num_layers == directions == 1 else f"{plan.name}.l{layer}{'_reverse' * direction}"
            states = [] if zero else [initial_state(plan, state, at) for state in given]
            projection = None
            if projected:
                *held, projection = held
                held[1] = product_of(held[1], projection)
                states = [before_projection(plan, projection, states[0], name), *states[1:]] if states else []
            made = one_direction(
                plan, cell, x, held, features, states, direction, name, batch, time, lasting, mask=mask
            )
            if projection is not None:
                made[0] = features_last(plan, made[0], projection, None, f"{name}.projection")
                made[1:2] = [last_step(plan, made[0], batch, time, direction)] if lasting else []
            sequences.append(made[0])
            lasts.append(made[1:])
        x = sequences[0] if directions == 1 else side_by_side(plan, sequences)
        if dropout and layer + 1 < num_layers:
            x = plan.layer(layers.Dropout, {"rate": dropout}, x, layout=x.layout, name=f"{plan.name}.dropout")
    return [x, *(stacked(plan, [last[i] for last in lasts]) for i in range(cell.states) if lasting)]


def are_zeros(plan: PlanBuilder, given: Sequence[Value | Constant]) -> bool:
    nodes = bound_arguments(plan.node).values["hx"]
    nodes = nodes if isinstance(nodes, (list, tuple)) else [nodes]
    return all(
        node.target in ZEROS
        or (isinstance(state, Constant) and not state.trainable and not state.query(lambda held: bool(held.any())))
        for node, state in zip(nodes, given, strict=True)
    )


def initial_state(plan: PlanBuilder, state: Value | Constant, at: int) -> Value:
    """Return state `at` of (layers and directions, batch, units), as (batch, units)."""
    step = plan.input_steps[0]
    value = plan.as_value(state, Value(Layout.of(step.shape), step.dtype, step))
    if value.shape[0] != 1:
        value, axis = plan.isolate_axis(value, 0, "the states of one layer")
        cut = (*(slice(None),) * axis, slice(at, at + 1))
        value = plan.call(lambda a: a[cut], value, layout=value.layout.resize_dim(0, 1)[0])
    layout = Layout(value.layout.dims[1:], value.layout.axes, value.layout.size)
    return plan.relayout(Value(layout, value.dtype, value.step), layout.dims, "a recurrent layer's state")


def one_direction(
    plan: PlanBuilder,
    cell: Cell,
    x: Value,
    held: Sequence[Constant],
    features: np.ndarray,
    states: Sequence[Value],
    backwards: int,
    name: str,
    batch: int,
    time: int,
    lasting: bool,
    unroll: bool = False,
    mask: Value | None = None,
) -> list[Value]:
    """Return the sequence in its own order, and the states after it if any is needed."""
    units = held[1].shape[1]
    config = {
        "units": units,
        "use_bias": len(held) > 2,
        "return_sequences": True,
        "return_state": lasting,
        "go_backwards": bool(backwards),
        **({"unroll": True} if unroll else {}),
        **({"zero_output_for_mask": True} if mask is not None else {}),
        # cuDNN's layers reverse a masked sequence within its length, the others with its padding
        **({"use_cudnn": False} if mask is not None and cell not in (TANH, RELU) else {}),
        **dict(cell.config),
    }
    dims, size = x.layout.dims, x.layout.size
    fresh = max(size, default=-1) + 1
    run = (fresh,) if units != 1 else ()
    size = {a: n for a, n in size.items() if a not in dims[2]} | dict.fromkeys(run, units)
    sequence = Layout((dims[0], dims[1], run), (dims[batch], dims[time], run), size)
    state = Layout((dims[batch], run), (dims[batch], run), {a: n for a, n in size.items() if a not in dims[time]})
    whole = plan.layer(
        cell.kind, config, x, weights=cell.weights(held, features), name=name, states=states, layout=sequence,
        extra_inputs={} if mask is None else {"mask": mask},
    )  # fmt: skip
    made = [whole]
    if lasting:
        layouts = (sequence, *(state,) * cell.states)
        made = [Value(out, whole.dtype, ItemStep((whole.step,), plan.node, i)) for i, out in enumerate(layouts)]
    if backwards:  # Keras leaves the sequence in reading order
        made[0] = plan.call(lambda a: ops.flip(a, axis=1), made[0], layout=sequence)
    return made


def steps_that_count(plan: PlanBuilder, x: Value, lengths: Value, batch: int, time: int) -> Value:
    """Return which steps of each sequence count, (batch, time); `x` is held as (batch, time, features)."""
    lengths = plan.relayout(lengths, lengths.layout.dims, "lengths of sequences")
    steps = x.shape[time]
    axes = (x.layout.dims[batch], x.layout.dims[time])
    layout = Layout(axes, axes, {a: n for a, n in x.layout.size.items() if a not in x.layout.dims[2]})

    def mask(places: Any, counts: Any) -> Any:
        return ops.less_equal(places, ops.expand_dims(ops.cast(counts, "int32"), 1))

    if isinstance(steps, int):
        numbers = LazyTensor.of(torch.arange(1, steps + 1, dtype=torch.int32)[None])
        held = Constant(numbers, torch.int32, (), False, False, ("steps", steps))
        return plan.call(mask, plan.as_value(held, x), lengths, layout=layout, dtype=torch.bool)

    def counted(sequences: Any, counts: Any) -> Any:
        return mask(ops.cumsum(ops.ones_like(sequences[:, :, 0], dtype="int32"), axis=1), counts)

    return plan.call(counted, x, lengths, layout=layout, dtype=torch.bool)


def product_of(recurrent: Constant, projection: Constant) -> Constant:
    values = LazyTensor.combine(lambda one, other: one.double() @ other.double(), recurrent.values, projection.values)
    return combined(recurrent, projection, values, "product", exact=False)


def before_projection(plan: PlanBuilder, projection: Constant, state: Value, name: str) -> Value:
    """Return a state h that `projection` maps to `state` (batch, units); only that product is ever read."""
    held = projection.tensor.double()
    if torch.linalg.matrix_rank(held) < held.shape[0]:
        raise Unsupported("an initial state of a projection whose rows are linearly dependent")
    inverse = LazyTensor.of(torch.linalg.pinv(held))
    weight = Constant(inverse, projection.dtype, projection.sources, False, False, ("inverse", projection.key))
    return features_last(plan, state, weight, None, f"{name}.before_projection")


def last_step(plan: PlanBuilder, sequence: Value, batch: int, time: int, backwards: int) -> Value:
    """Return the last computed step, (batch, units), of a sequence with dimensions `batch` and `time`."""
    examples, steps, run = (sequence.layout.dims[d] for d in (batch, time, 2))
    sequence = plan.relayout(sequence, (examples, steps, run), "the last step")
    kept = {a: sequence.layout.size[a] for a in (*examples, *run)}
    step = 0 if backwards else -1
    return plan.call(lambda a: a[:, step], sequence, layout=Layout((examples, run), (examples, run), kept))


def side_by_side(plan: PlanBuilder, sequences: Sequence[Value]) -> Value:
    """Concatenate the features of both directions."""
    values, axis, layout = plan.join(sequences, 2)
    return plan.call(lambda *arrays: ops.concatenate(arrays, axis), *values, layout=layout)


def stacked(plan: PlanBuilder, states: Sequence[Value]) -> Value:
    """Stack (batch, units) of every layer and direction into (layers and directions, batch, units)."""
    first = states[0].layout
    count = len(states)
    fresh = max(first.size, default=-1) + 1
    run = (fresh,) if count != 1 else ()
    layout = Layout((run, *first.dims), (run, *first.axes), {**first.size, **dict.fromkeys(run, count)})
    return plan.call(lambda *arrays: ops.stack(arrays, 0), *states, layout=layout)
