"""Explain what a model's packings, shifts and grouped convolutions are elsewhere, from its own graph."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import fx

from converter.errors import UsageError
from converter.ir.aten import Arguments, bound_arguments, first_input
from converter.ir.program import Program, module_path, tensor_name
from converter.ir.windows import same_padding
from converter.plan.builder import PlanBuilder
from converter.plan.steps import LayerStep, topological_order
from converter.report.results import Answer
from converter.rewrites.analysis.channel_index import channel_order, index_text
from converter.rewrites.analysis.convolutions import Convolution, read_convolution
from converter.rewrites.analysis.selection_ops import Allowed, is_selecting
from converter.rewrites.base import Change
from converter.rewrites.constant_offsets import learned_offsets
from converter.rewrites.drop_identities import drop_identities
from converter.rewrites.find_channel_permutations import find_channel_permutations
from converter.rewrites.find_shifts import find_trained_shifts
from converter.rewrites.find_space_to_depth import find_space_to_depth_in_views
from converter.rewrites.fold_channel_order import CONVOLUTIONS, PADS, REORDER
from converter.rewrites.fold_constants import fold_constants
from converter.rewrites.pipelines import REWRITES
from converter.rewrites.run import apply_rewrites
from converter.rewrites.shift_to_depthwise import LARGEST_KERNEL, LARGEST_MAP, one_hot_kernel
from mappings.shift import ELEMENTS_A_GROUP

aten, ours = torch.ops.aten, torch.ops.converter

Topic = Literal["focus", "shift", "depthwise", "separable"]
TOPICS: tuple[Topic, ...] = get_args(Topic)
SHIFTED = "spatial shift"  # names of changes
PACKINGS = ("SpaceToDepth", "DepthToSpace", "pixel_unshuffle", "pixel_shuffle")


@dataclass(frozen=True)
class Forms:
    """The forms of a model from which its topics are read.

    Attributes:
        program: as it was captured.
        plan: of a Keras or TensorFlow artifact; None if there is none.
        onnx: the program rewritten for ONNX; None if there is none.
    """

    program: Program
    plan: PlanBuilder | None = None
    onnx: Program | None = None


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
    onnx = apply_rewrites(program, REWRITES["onnx"])[0] if "shift" in topics else None
    forms = Forms(program, plan, onnx)
    found: list[Answer] = []
    for topic in topics:
        found += answers(topic, forms) or [Answer(topic, "", ("The model has none.",))]
    return tuple(found)


def answers(topic: str, forms: Forms) -> list[Answer]:
    return [Answer(topic, module, tuple(lines)) for module, lines in _EXPLAINED[topic](forms)]


def explain_changes(forms: Forms, changes: Iterable[Change], told: set[str]) -> list[Answer]:
    """Return what a report says of a model in one format, where its `changes` give cause for it.

    Args:
        told: topics that were answered for another format, and are the same in all; this adds its own.
    """
    names = {change.name for change in changes}
    names |= {movement.kind for movement in forms.plan.movements} if forms.plan is not None else set()
    topics = ["depthwise", "separable"]
    if any(packing in name for name in names for packing in PACKINGS):
        topics.insert(0, "focus")
    if SHIFTED in names:
        topics.insert(0, "shift")
    found = [answer for topic in topics if topic not in told for answer in answers(topic, forms)]
    told.update({"focus", "depthwise"} & {answer.topic for answer in found})
    return found


def merged(found: Iterable[Answer]) -> tuple[Answer, ...]:
    """Return one answer for each topic and module, with the lines of all formats."""
    lines: dict[tuple[str, str], dict[str, None]] = {}
    for answer in found:
        lines.setdefault((answer.topic, answer.module), {}).update(dict.fromkeys(answer.lines))
    return tuple(Answer(topic, module, tuple(held)) for (topic, module), held in lines.items())


# -- space to depth and its inverse


def _focus(forms: Forms) -> Iterator[tuple[str, list[str]]]:
    recognized = (drop_identities, fold_constants, find_space_to_depth_in_views, find_channel_permutations)
    packed, _changes = apply_rewrites(forms.program, recognized)
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


def _shift(forms: Forms) -> Iterator[tuple[str, list[str]]]:
    plan = forms.plan
    recognized = (drop_identities, fold_constants, learned_offsets, find_trained_shifts)
    found = apply_rewrites(forms.program, recognized)[0]
    program = found if plan is None else plan.program
    sliced, depthwise = set[str](), set[fx.Node]()
    if forms.onnx is not None:
        sliced = {module_path(n) for n in forms.onnx.graph.nodes if n.target is ours.shift.default}
    if plan is not None:
        depthwise = {step.node for step in topological_order(plan.results) if isinstance(step, LayerStep)}
    for node in program.graph.find_nodes(op="call_function", target=ours.shift.default):
        a = bound_arguments(node)
        sizes, dims, by = a.integers("sizes"), a.integers("dims"), a.integers("distances")
        moves = ", ".join(f"{size} by {tuple(by[i * len(dims) : (i + 1) * len(dims)])}" for i, size in enumerate(sizes))
        lines = [f"Elements of dimension {a.integer('dim')} move along {dims}: {moves}; border: {a.text('border')}."]
        if plan is not None:
            times = _times(node)
            lines.append(f"Keras and TensorFlow: {_in_keras(node, node in depthwise)}")
            if times:
                listed = ", ".join(f"{name} {ms:.3f} ms" for name, ms in times.items())
                lines.append(f"Measured now, one example, the fastest of {CALLS} calls: {listed}.")
        if forms.onnx is not None:
            lines.append(f"ONNX: {_in_onnx(node, module_path(node) in sliced)}")
        yield module_path(node), lines
    for node in found.graph.nodes:
        if node.target in CONVOLUTIONS and moves_only(found, node):
            yield (
                module_path(node),
                [
                    "A convolution whose fixed kernel holds a single 1 for each channel: it only moves elements. It "
                    "stays a convolution, the faster of a graph input: 96 channels of 56x56, border repeated, in "
                    "TensorFlow: 0.95 ms against 1.11 as slices."
                ],
            )


def moves_only(program: Program, node: fx.Node) -> bool:
    """Return whether a convolution of stride 1 is a shift that stayed a convolution."""
    a = bound_arguments(node)
    kernel = a.node("weight").meta["val"].shape[2:]
    return max(kernel) > 1 and set(a.value("stride")) == {1} and is_selecting(program, node, Allowed(trainable=True))


def _in_keras(node: fx.Node, as_convolution: bool) -> str:
    """Return what a shift became in Keras and TensorFlow, and why."""
    border, kernel = bound_arguments(node).text("border"), _kernel(node)
    if as_convolution:
        return f"one depthwise convolution, the faster for a kernel of this size ({_per_axis(kernel.shape[1:])})."
    if border == "circular":
        return "a roll of each group."
    if border != "zeros":
        return f"slices joined to their border: a convolution would need a pad of its own for the border ({border})."
    groups, elements = len(bound_arguments(node).integers("sizes")), int(np.prod(kernel.shape[1:]))
    if groups < 2:
        return "a slice and a pad: all channels move alike."
    if not len(kernel):
        return "slices and pads: there is no depthwise convolution along three axes."
    if elements > max(LARGEST_KERNEL, ELEMENTS_A_GROUP * groups):
        return f"slices and pads, the faster as a convolution's kernel would have {elements} elements."
    return "slices and pads, as an element may be infinite: in a convolution, 0 x inf would be NaN."


def _in_onnx(node: fx.Node, as_slices: bool) -> str:
    """Return what a shift became in ONNX, and why."""
    a = bound_arguments(node)
    border, groups = a.text("border"), len(a.integers("sizes"))
    limit, sizes = LARGEST_MAP.get(border, 0), a.node("x").meta["val"].shape[2:]
    if not as_slices:
        return f"one depthwise convolution, the faster on maps of at most {limit:,} pixels with this border ({border})."
    if not limit:
        return f"slices: a convolution does not give this border ({border})."
    kernel = _kernel(node)
    if groups < 2 or not len(kernel) or int(np.prod(kernel.shape[1:])) > LARGEST_KERNEL or a.integer("dim") != 1:
        return (
            "slices: a depthwise convolution is as slow, or there is none, for one group, for groups of another "
            f"dimension than the channels, along three axes, and for a kernel of more than {LARGEST_KERNEL} elements."
        )
    if not all(isinstance(n, int) for n in sizes) or int(np.prod(sizes)) > limit:
        return (
            f"slices, the faster on maps of more than {limit:,} pixels with this border ({border}); measured at 56x56, "
            "72 channels in four groups: 0.10 ms against 0.17 as a convolution."
        )
    return "slices, as an element may be infinite: in a convolution, 0 x inf would be NaN."


def _kernel(node: fx.Node) -> torch.Tensor:
    """Return the kernel that a depthwise convolution would need for a shift, however large."""
    a = bound_arguments(node)
    sizes, dims, by = a.integers("sizes"), a.integers("dims"), a.integers("distances")
    kernel = one_hot_kernel(a.node("x").meta["val"].dim(), a.integer("dim"), sizes, dims, by, most=sys.maxsize)
    return torch.empty(0, 1) if kernel is None else kernel


CALLS = 50
LARGEST_MEASURED = 2**24  # elements
_measured: dict[tuple[Any, ...], dict[str, float]] = {}  # by a shift's arguments and its map


def _times(node: fx.Node) -> dict[str, float]:
    """Return the milliseconds of each way to shift a map of this size in TensorFlow."""
    a = bound_arguments(node)
    shape = tuple(a.node("x").meta["val"].shape)
    if len(shape) != 4 or a.integer("dim") != 1 or not all(isinstance(n, int) for n in shape[1:]):
        return {}
    if find_spec("tensorflow") is None or int(np.prod(shape[1:])) > LARGEST_MEASURED:
        return {}
    key = (shape[1:], repr(node.args[1:]))
    if key not in _measured:
        ways = _ways(a, shape)
        import tensorflow as tf

        x = tf.random.stateless_normal((1, *shape[2:], shape[1]), (0, 0))
        _measured[key] = {name: _fastest(tf.function(way, autograph=False), x) for name, way in ways.items()}
    return _measured[key]


def _ways(a: Arguments, shape: Sequence[int]) -> dict[str, Callable[[Any], Any]]:
    import tensorflow as tf

    from mappings.shift import along, moved

    sizes, dims, by, border = a.integers("sizes"), a.integers("dims"), a.integers("distances"), a.text("border")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def slices(x: Any) -> Any:
        parts = []
        for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            moves = [(d - 1, n) for d, n in zip(dims, by[i * len(dims) :], strict=False) if n]
            parts.append(moved(along(x, 3, start, start + size), moves, border))
        return tf.concat(parts, 3)

    ways: dict[str, Callable[[Any], Any]] = {"slices": slices}
    kernel = one_hot_kernel(4, 1, sizes, dims, by, max(LARGEST_KERNEL, ELEMENTS_A_GROUP * len(sizes)))
    if kernel is None or border not in ("zeros", "replicate"):
        return ways
    filters = tf.constant(kernel.float().permute(1, 2, 0)[..., None].numpy())
    reach = [n // 2 for n in kernel.shape[1:]]
    if border == "zeros":
        ways["depthwise convolution"] = lambda x: tf.nn.depthwise_conv2d(x, filters, (1, 1, 1, 1), "SAME")
    elif max(reach) == 1:
        widths = [(0, 0), *((n, n) for n in reach), (0, 0)]
        ways["pad and depthwise convolution"] = lambda x: tf.nn.depthwise_conv2d(
            tf.pad(x, widths, "SYMMETRIC"), filters, (1, 1, 1, 1), "VALID"
        )
    return ways


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


def _depthwise(forms: Forms) -> Iterator[tuple[str, list[str]]]:
    for node in forms.program.graph.nodes:
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


def _separable(forms: Forms) -> Iterator[tuple[str, list[str]]]:
    layers = {} if forms.plan is None else {module_path(step.node): step for step in _layer_steps(forms.plan)}
    for node in forms.program.graph.nodes:
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
            differs = [f"{name}={value!r}" for name, value in held.items() if not _is_default(name, value)]
            lines.append(
                f"It becomes one {step.kind.__name__} layer"
                + (f"; against {plain} it has {', '.join(differs)}." if differs else f", {plain}.")
            )
        yield module_path(node), [*lines, *_padding(first, kernel)]


_SETTINGS = {"strides": 1, "padding": "valid", "dilation_rate": 1, "depth_multiplier": 1, "use_bias": True}


def _is_default(name: str, value: object) -> bool:
    default = _SETTINGS[name]
    return set(value) == {default} if isinstance(value, tuple) else value == default


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


_EXPLAINED: dict[str, Callable[[Forms], Iterator[tuple[str, list[str]]]]] = {
    "focus": _focus,
    "shift": _shift,
    "depthwise": _depthwise,
    "separable": _separable,
}
