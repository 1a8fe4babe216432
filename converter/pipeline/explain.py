"""Explain what a model's packings, shifts and grouped convolutions are elsewhere, from its own graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import fx

from converter.errors import UsageError
from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program, module_path, tensor_name
from converter.ir.windows import same_padding
from converter.plan.builder import PlanBuilder
from converter.plan.steps import LayerStep, topological_order
from converter.report.results import Answer
from converter.rewrites.analysis.channel_index import channel_order, index_text
from converter.rewrites.analysis.convolutions import Convolution, read_convolution
from converter.rewrites.drop_identities import drop_identities
from converter.rewrites.find_channel_permutations import find_channel_permutations
from converter.rewrites.find_space_to_depth import find_space_to_depth_in_views
from converter.rewrites.fold_channel_order import CONVOLUTIONS, PADS, REORDER
from converter.rewrites.fold_constants import fold_constants
from converter.rewrites.pipelines import REWRITES
from converter.rewrites.run import apply_rewrites
from converter.rewrites.shift_to_depthwise import one_hot_kernel

aten, ours = torch.ops.aten, torch.ops.converter

Topic = Literal["focus", "shift", "depthwise", "separable"]
TOPICS: tuple[Topic, ...] = get_args(Topic)


def explain(program: Program, plan: PlanBuilder | None, topics: Sequence[str]) -> tuple[Answer, ...]:
    """Return what there is to say about each topic.

    Args:
        program: as it was captured.
        plan: of a Keras file; None if it cannot be planned.

    Raises:
        UsageError: there is no such topic.
    """
    if unknown := [topic for topic in topics if topic not in TOPICS]:
        raise UsageError(
            f"Unknown topic: {', '.join(unknown)}.", code="PTC6042", fix=f"Choose from {', '.join(TOPICS)}."
        )
    found: list[Answer] = []
    for topic in topics:
        answers = [Answer(topic, module, tuple(lines)) for module, lines in _EXPLAINED[topic](program, plan)]
        found += answers or [Answer(topic, "", ("The model has none.",))]
    return tuple(found)


# -- space to depth and its inverse


def _focus(program: Program, _: PlanBuilder | None) -> Iterator[tuple[str, list[str]]]:
    recognized = (drop_identities, fold_constants, find_space_to_depth_in_views, find_channel_permutations)
    packed, _changes = apply_rewrites(program, recognized)
    for node in packed.graph.nodes:
        if node.target is ours.space_to_depth.default:
            yield module_path(node), list(_packing(node))
        elif node.target is ours.depth_to_space.default:
            block = bound_arguments(node).integer("block")
            order = channel_order(_pixel_shuffle_order(node))
            yield (
                module_path(node),
                [
                    f"A pixel shuffle by {block} is the inverse of a Focus: tf.nn.depth_to_space(x, {block}) of its "
                    f"channels in the order {order}.",
                ],
            )


def _pixel_shuffle_order(node: fx.Node) -> list[int]:
    x = first_input(node)
    if x.target is REORDER:
        return bound_arguments(x).integers("order")
    return list(range(x.meta["val"].shape[1]))


def _packing(node: fx.Node) -> Iterator[str]:
    block, image = bound_arguments(node).integer("block"), first_input(node).meta["val"]
    channels, squares = image.shape[1], block**2
    order, end = list(range(channels * squares)), node
    if len(node.users) == 1 and (user := next(iter(node.users))).target is REORDER:
        order, end = bound_arguments(user).integers("order"), user
    takes = np.argsort(order).tolist()
    yield (
        f"Blocks of {block} x {block} pixels become {channels * squares} channels: tf.nn.space_to_depth(x, {block}) of "
        f"its channels {channel_order(order)}."
    )
    yield (
        "Nothing is lost: the result has as many elements as the image. A downsample (a stride or a pool) keeps one "
        f"value of {squares}."
    )
    yield f"Its inverse is a pixel shuffle: torch.nn.PixelShuffle({block}), tf.nn.depth_to_space(x, {block})."
    for reader in _readers(end):
        if reader.target not in CONVOLUTIONS:
            continue
        found = read_convolution(reader)
        if found is None or found.groups != 1 or len(found.stride) != 2:
            continue
        if takes != sorted(takes):
            name = tensor_name(found.weight)
            yield f"To apply the order to the weights, once: weight = weight[:, {index_text(takes)}]  # `{name}`"
        yield from _merged(found, block, channels, takes)


def _readers(node: fx.Node) -> list[fx.Node]:
    """Return what reads a value, beyond pads."""
    return [reader for user in node.users for reader in (_readers(user) if user.target in PADS else [user])]


def _merged(found: Convolution, block: int, channels: int, takes: list[int]) -> Iterator[str]:
    """Yield the one convolution that a Focus and the convolution behind it are."""
    outputs, _, rows, columns = found.weight.meta["val"].shape
    if set(found.dilation) != {1} or isinstance(found.padding, str):
        return
    stride, padding = (_per_axis([n * block for n in values]) for values in (found.stride, found.padding))
    small, large = _per_axis([rows, columns]), _per_axis([rows * block, columns * block])
    shape = f"{outputs}, {channels}, {rows * block}, {columns * block}"
    yield (
        f"With its {small} convolution it is one {large} convolution of the image, stride {stride}, padding {padding}: "
        f"weights [{shape}]."
    )
    reordered = "" if takes == sorted(takes) else f"[:, {index_text(takes)}]"
    yield (
        f"weight{reordered}.reshape({outputs}, {block}, {block}, {channels}, {rows}, {columns})"
        f".permute(0, 3, 4, 1, 5, 2).reshape({shape})  # gives them"
    )


# -- shifts


def _shift(program: Program, plan: PlanBuilder | None) -> Iterator[tuple[str, list[str]]]:
    if plan is None:
        return
    in_onnx, _changes = apply_rewrites(program, REWRITES["onnx"])
    sliced = [module_path(node) for node in in_onnx.graph.nodes if node.target is ours.shift.default]
    depthwise = {step.node for step in topological_order(plan.results) if isinstance(step, LayerStep)}
    for node in plan.program.graph.find_nodes(op="call_function", target=ours.shift.default):
        a = bound_arguments(node)
        sizes, dims, by = a.integers("sizes"), a.integers("dims"), a.integers("distances")
        moves = ", ".join(f"{size} by {tuple(by[i * len(dims) : (i + 1) * len(dims)])}" for i, size in enumerate(sizes))
        lines = [f"Elements of dimension {a.integer('dim')} move along {dims}: {moves}; border: {a.text('border')}."]
        times = _times(node)
        if node in depthwise:
            lines.append(f"Keras: one depthwise convolution, {'the faster' if times else 'as its kernel is small'}.")
        elif len(times) == 2:
            lines.append("Keras: slices joined to their border, as an input may be infinite there: 0 x inf is NaN.")
        else:
            lines.append("Keras: slices joined to their border: a convolution cannot give it, or is slower.")
        if times:
            listed = ", ".join(f"{name} {ms:.3f} ms" for name, ms in times.items())
            lines.append(f"Measured now, one example, the fastest of {CALLS} calls: {listed}.")
        lines.append(f"ONNX: {'slices' if module_path(node) in sliced else 'one depthwise convolution'}.")
        yield module_path(node), lines


CALLS = 50


def _times(node: fx.Node) -> dict[str, float]:
    """Return the milliseconds of each way to shift a map of this size in TensorFlow."""
    a = bound_arguments(node)
    sizes, dims, by = a.integers("sizes"), a.integers("dims"), a.integers("distances")
    shape = a.node("x").meta["val"].shape
    if len(shape) != 4 or a.integer("dim") != 1 or not all(isinstance(n, int) for n in shape[1:]):
        return {}
    import tensorflow as tf

    from mappings.shift import along, moved

    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def slices(x: Any) -> Any:
        parts = []
        for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            moves = [(d - 1, n) for d, n in zip(dims, by[i * len(dims) :], strict=False) if n]
            parts.append(moved(along(x, 3, start, start + size), moves, a.text("border")))
        return tf.concat(parts, 3)

    ways = {"slices": slices}
    kernel = one_hot_kernel(4, 1, sizes, dims, by) if a.text("border") == "zeros" else None
    if kernel is not None:
        filters = tf.constant(kernel.float().permute(1, 2, 0)[..., None].numpy())
        ways["depthwise convolution"] = lambda x: tf.nn.depthwise_conv2d(x, filters, (1, 1, 1, 1), "SAME")
    x = tf.random.stateless_normal((1, *shape[2:], shape[1]), (0, 0))
    return {name: _fastest(tf.function(way, autograph=False), x) for name, way in ways.items()}


def _fastest(function: Any, x: Any) -> float:
    taken = []
    for _ in range(CALLS + 3):
        start = time.perf_counter()
        function(x)
        taken.append(time.perf_counter() - start)
    return 1e3 * min(taken[3:])


# -- convolutions


def convolution_facts(program: Program) -> dict[str, str]:
    """Return kernel, strides, groups and multiplier of the convolutions of each module, by its path."""
    facts: dict[str, list[str]] = {}
    for node in program.graph.nodes:
        if node.target in _CONVOLUTIONS:
            facts.setdefault(module_path(node), []).append(_geometry(node))
    return {path: "; ".join(dict.fromkeys(texts)) for path, texts in facts.items()}


_CONVOLUTIONS = {
    *CONVOLUTIONS, aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
}  # fmt: skip


def _geometry(node: fx.Node) -> str:
    a = bound_arguments(node)
    shape = a.node("weight").meta["val"].shape
    transposed = "output_padding" in a.values
    texts = [f"kernel {_per_axis(list(shape[2:]))}"]
    for name in ("stride", "dilation"):
        values = list(a.value(name))
        if set(values) != {1}:
            texts.append(f"{name} {_per_axis(values * (len(shape) - 2) if len(values) == 1 else values)}")
    groups = a.value("groups")
    if isinstance(groups, int) and groups > 1:
        inputs = shape[0] // groups if transposed else shape[1]
        outputs = shape[1] if transposed else shape[0] // groups
        texts.append(f"groups {groups}")
        texts.append(f"multiplier {outputs}" if inputs == 1 else f"{inputs} -> {outputs} channels each")
    return ", ".join(texts)


def _per_axis(values: Sequence[object]) -> str:
    return "x".join(map(str, values)) if len(set(values)) > 1 or len(values) == 1 else f"{values[0]}x{values[0]}"


def _depthwise(program: Program, _: PlanBuilder | None) -> Iterator[tuple[str, list[str]]]:
    for node in program.graph.nodes:
        if node.target not in CONVOLUTIONS:
            continue
        found = read_convolution(node)
        if found is None or found.groups == 1:
            continue
        outputs, inputs, *kernel = found.weight.meta["val"].shape
        groups, each = found.groups, outputs // found.groups
        lines = [f"{_geometry(node)}: {groups * inputs} channels become {outputs}."]
        if inputs == 1 and len(kernel) == 2:
            lines += [
                f"Each of the {groups} input channels has {each} output channel{'s' * (each > 1)} of its own "
                f"(channel_multiplier {each}): channel c * {each} + j of the result is filter j of input channel c, in "
                "PyTorch and in TensorFlow.",
                f"filter = weight.reshape({groups}, {each}, {kernel[0]}, {kernel[1]}).permute(2, 3, 0, 1)  # "
                f"tf.nn.depthwise_conv2d's: [{kernel[0]}, {kernel[1]}, {groups}, {each}]",
                f"Back: weight = filter.permute(2, 3, 0, 1).reshape({outputs}, 1, {kernel[0]}, {kernel[1]}) of "
                f"torch.nn.Conv2d({groups}, {outputs}, {_per_axis(kernel)}, groups={groups}).",
            ]
        elif inputs > 1:
            lines.append(
                f"{inputs} inputs in each group are more than depthwise_conv2d takes: it is one grouped convolution, "
                f"keras.layers.Conv2D({outputs}, ..., groups={groups}), and not a depthwise one whose parts are added."
            )
        if outputs < groups * inputs:
            lines.append("It has fewer outputs than inputs, which a depthwise convolution cannot have.")
        yield module_path(node), lines


def _separable(program: Program, plan: PlanBuilder | None) -> Iterator[tuple[str, list[str]]]:
    layers = {} if plan is None else {module_path(step.node): step for step in _layer_steps(plan)}
    for node in program.graph.nodes:
        if node.target not in CONVOLUTIONS or bound_arguments(node).node("input").target not in CONVOLUTIONS:
            continue
        depthwise = bound_arguments(node).node("input")
        first, second = read_convolution(depthwise), read_convolution(node)
        if first is None or second is None or first.groups == 1 or second.groups != 1:
            continue
        outputs, inputs, *kernel = first.weight.meta["val"].shape
        if inputs != 1 or set(second.weight.meta["val"].shape[2:]) != {1}:
            continue
        filters, each = second.weight.meta["val"].shape[0], outputs // first.groups
        plain = f"SeparableConv{len(kernel)}D({filters}, {kernel[0] if len(set(kernel)) == 1 else tuple(kernel)})"
        lines = [
            f"A depthwise convolution ({_geometry(depthwise)}) and a 1x1 convolution of its {outputs} channels: "
            f"keras.layers.{plain} with depth_multiplier={each}."
        ]
        if step := layers.get(module_path(node)):
            held = {name: step.config[name] for name in _SETTINGS if name in step.config}
            differs = [f"{name}={value!r}" for name, value in held.items() if value != _SETTINGS[name]]
            lines.append(
                f"It becomes one {step.kind.__name__} layer"
                + (f"; against {plain} it has {', '.join(differs)}." if differs else f", {plain}.")
            )
        yield module_path(node), [*lines, *_padding(first, kernel)]


_SETTINGS = {"strides": (1, 1), "padding": "valid", "dilation_rate": (1, 1), "depth_multiplier": 1, "use_bias": True}


def _layer_steps(plan: PlanBuilder) -> list[LayerStep]:
    return [
        step
        for step in topological_order(plan.results)
        if isinstance(step, LayerStep) and "depth_multiplier" in step.config
    ]


def _padding(found: Convolution, kernel: Sequence[int]) -> Iterator[str]:
    """Yield what padding="same" is for this kernel, and how the model's own differs."""
    pads = [same_padding(0, k, 1, d) or (0, 0) for k, d in zip(kernel, found.dilation, strict=True)]
    said = " and ".join(f"{before} before and {behind} behind" for before, behind in pads if behind) or "nothing"
    yield f'padding="same" pads {said}, in Keras and in PyTorch\'s own nn.Conv{len(kernel)}d(padding="same").'
    if found.x.target in PADS:
        widths = list(bound_arguments(found.x).value("pad"))
        own = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)][::-1]
        own = [(0, 0)] * (len(pads) - len(own)) + own
        if all(isinstance(n, int) for pair in own for n in pair) and own != pads:
            listed = ", ".join(f"({before}, {behind})" for before, behind in own)
            yield f"The model pads {listed} itself, which is another function: the pad stays beside the layer."
    elif isinstance(found.padding, list) and [(n, n) for n in found.padding] != pads:
        growth = [2 * n - sum(pair) for n, pair in zip(found.padding, pads, strict=True)]
        change = ", ".join(f"{n:+d}" for n in growth)
        yield f"The model pads {found.padding} on both sides: at stride 1 its result's sizes differ by {change}."


_EXPLAINED: dict[str, Callable[[Program, PlanBuilder | None], Iterator[tuple[str, list[str]]]]] = {
    "focus": _focus,
    "shift": _shift,
    "depthwise": _depthwise,
    "separable": _separable,
}
