"""Shifts: every spelling is recognized, and what is built of them moves elements exactly, in every format.

A shift is drawn at random with its spelling. EXAMPLES=50 in the environment makes that many times more of them.
"""

import itertools
import os

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from equivalence import Call, captured, examples, planned, to_artifact, to_torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shift_spellings import (
    FOUR,
    SPELLINGS,
    Spec,
    by_bilinear_grid,
    by_deformable,
    by_depthwise,
    by_grid,
    by_roll,
    by_slices,
    documents_result,
    documents_tensor,
)
from systems_in_formats import in_torch
from torch import Tensor, nn
from writers import write_onnx

from converter.artifacts.torch_source import ModuleSource
from converter.errors import CaptureError
from converter.ir.program import Program
from converter.lowering.executor import PlanExecutor
from converter.pipeline.build import interfaces
from converter.rewrites.drop_identities import drop_identities
from converter.rewrites.find_shifts import BORDERS, find_sampled_shifts, read_shift
from converter.rewrites.fold_constants import fold_constants
from converter.rewrites.pipelines import EXACT_SHIFTS, REWRITES
from converter.verification.checked_rewrite import rewrite

ours = torch.ops.converter
RECOGNISING = (drop_identities, fold_constants, find_sampled_shifts)


class BehindConvolution(nn.Module):
    """A shift of what a convolution made, so that no infinity can come; the convolution is the identity, exactly."""

    def __init__(self, forward, channels: int, rank: int = 2):
        super().__init__()
        self.function = forward
        self.conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def recognized(module: nn.Module, shape: tuple[int, ...], exact_infinities: bool = False) -> Program:
    program = captured(module, shape)
    program.exact_infinities = exact_infinities
    with torch.no_grad():
        for node in program.graph.find_nodes(op="get_attr"):
            if node.target == "conv.weight":
                weight = program.tensor(node)
                weight.copy_(torch.eye(weight.shape[0]).reshape(weight.shape))
    return rewrite(program, RECOGNISING, examples([shape]))[0]


def shifts(program: Program) -> list:
    return program.graph.find_nodes(op="call_function", target=ours.shift.default)


def lowered(program: Program, x: Tensor, stock: bool = False) -> np.ndarray:
    plan = planned(program)
    made = PlanExecutor(plan, stock=stock)
    results = made.keras_model()(to_artifact([x], plan.inputs)[0]) if stock else made(*to_artifact([x], plan.inputs))[0]
    return to_torch([results], plan.outputs)[0]


def in_onnx(program: Program, x: Tensor, path) -> np.ndarray:
    module = program.with_dtype(torch.float32).graph_module
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    write_onnx(module, [torch.cat([x, x])], ["x"], ["y"], shapes, path, {})
    return onnxruntime.InferenceSession(str(path)).run(["y"], {"x": x.numpy()})[0]


DOCUMENTS = Spec((1, 8, 5, 5), (2, 2, 2, 2), FOUR, "replicate")


@pytest.mark.slow
@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.__name__)
def test_documents_tensor_gives_the_documents_result_bit_for_bit(spelling, tmp_path):
    spec = DOCUMENTS if spelling is not by_slices else Spec(DOCUMENTS.shape, DOCUMENTS.sizes, FOUR, "keep")
    x, expected = documents_tensor(), documents_result().numpy()
    multiplies = spelling in (by_grid, by_bilinear_grid, by_depthwise) or "deform" in spelling.__name__
    for exact in (True, False):
        program = recognized(Call(spelling(spec)), (2, 8, 5, 5), exact)
        # an infinity in the input is NaN behind a multiplication by zero; a small convolution of it stays one
        assert len(shifts(program)) == (0 if (multiplies and exact) or spelling is by_depthwise else 1)
    np.testing.assert_array_equal(lowered(program, x), expected)
    program = recognized(BehindConvolution(spelling(spec), 8), (2, 8, 5, 5))
    assert [n.target for n in program.graph.nodes if n.op == "call_function"][-1] is ours.shift.default
    for result in (
        program.with_dtype(torch.float32).run(x)[0].numpy(),
        lowered(program, x),
        lowered(program, x, stock=True),
        in_onnx(program, x, tmp_path / "shift.onnx"),
    ):
        np.testing.assert_array_equal(result, expected)


@st.composite
def spelled(draw, count: int):
    """Shifts of one image, each with its spelling."""
    channels, height, width = draw(st.integers(2, 8)), draw(st.integers(2, 6)), draw(st.integers(2, 6))
    most = min(3, height - 1, width - 1)
    drawn = []
    for _ in range(count):
        spelling = draw(st.sampled_from(list(SPELLINGS)))
        cuts = sorted(draw(st.sets(st.integers(1, channels - 1), max_size=3)))
        sizes = tuple(end - first for first, end in zip([0, *cuts], [*cuts, channels], strict=True))
        reach = draw(st.integers(1, most))
        by = tuple((draw(st.integers(-reach, reach)), draw(st.integers(-reach, reach))) for _ in sizes)
        drawn.append(
            (spelling, Spec((2, channels, height, width), sizes, by, draw(st.sampled_from(SPELLINGS[spelling]))))
        )
    return drawn


def is_shift_of_some(spec: Spec) -> bool:
    """Not nothing at all, and not a roll of everything."""
    apart = set(spec.distances)
    return any(map(any, apart)) and not (spec.border == "circular" and len(apart) == 1)


@pytest.mark.slow
@settings(
    max_examples=3 * int(os.environ.get("EXAMPLES", "1")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
@given(spelled(6), st.booleans(), st.booleans())
def test_any_shift_is_recognized_and_exact(drawn, behind, stock):
    forwards = [spelling(spec) for spelling, spec in drawn]
    shape = drawn[0][1].shape

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(each(x) for each in forwards)

    program = recognized(BehindConvolution(forward, shape[1]) if behind else Call(forward), shape)
    x = torch.randn(3, *shape[1:])
    plan = planned(program)
    made = PlanExecutor(plan, stock=stock)
    results = zip(
        drawn,
        program.graph.output_node().args[0],
        to_torch(made(*to_artifact([x], plan.inputs)), plan.outputs),
        forward(x),
        program.with_dtype(torch.float32).run(x),
        strict=True,
    )
    for (spelling, spec), node, ran, expected, in_pytorch in results:
        found = node.target is ours.shift.default
        if is_shift_of_some(spec) and (behind or spelling in (by_slices, by_roll)):
            assert found, (spelling.__name__, spec)
        if spelling is by_bilinear_grid:
            np.testing.assert_allclose(ran, expected.numpy(), atol=1e-5)
            if found:
                np.testing.assert_array_equal(ran, in_pytorch.numpy())
        else:
            np.testing.assert_array_equal(ran, expected.numpy(), err_msg=f"{spelling.__name__} {spec}")


@st.composite
def arguments(draw, shape: tuple[int, ...]):
    """Of the operator: groups of any dimension, moved along any others."""
    rank = len(shape)
    dim = draw(st.integers(1, rank - 1))
    dims = draw(st.lists(st.sampled_from([d for d in range(1, rank) if d != dim]), min_size=1, unique=True))
    cuts = sorted(draw(st.sets(st.integers(1, shape[dim] - 1), max_size=3))) if shape[dim] > 1 else []
    sizes = [end - first for first, end in zip([0, *cuts], [*cuts, shape[dim]], strict=True)]
    reach = draw(st.integers(1, 5))
    by = [draw(st.integers(-min(reach, shape[d] - 1), min(reach, shape[d] - 1))) for _ in sizes for d in dims]
    return dim, sizes, dims, by, draw(st.sampled_from(BORDERS))


@st.composite
def operators(draw, count: int):
    rank = draw(st.integers(3, 5))
    shape = (2, *(draw(st.integers(1, 5)) for _ in range(rank - 1)))
    return shape, [draw(arguments(shape)) for _ in range(count)]


@pytest.mark.slow
@settings(max_examples=40 * int(os.environ.get("EXAMPLES", "1")), deadline=None)
@given(operators(5))
def test_any_shift_is_read_off_positions(drawn):
    shape, all_arguments = drawn
    positions = torch.arange(int(np.prod(shape[1:]))).reshape(1, *shape[1:]) + 1
    for given_arguments in all_arguments:
        moved = ours.shift(positions, *given_arguments)
        found = read_shift((moved[0] - 1).numpy())
        if found is None:
            assert torch.equal(moved, positions)
        else:
            by = list(itertools.chain(*found.distances))
            again = ours.shift(positions, found.dim, list(found.sizes), list(found.dims), by, found.border)
            assert torch.equal(again, moved), (given_arguments, found)


@settings(
    max_examples=2 * int(os.environ.get("EXAMPLES", "1")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
@given(operators(12), st.sampled_from(("tf", "keras", "onnx")), st.booleans())
def test_any_shift_is_lowered_exactly(tmp_path_factory, drawn, format, behind):
    shape, all_arguments = drawn

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(ours.shift(x, *each) for each in all_arguments)

    program = recognized(BehindConvolution(forward, shape[1], len(shape) - 2) if behind else Call(forward), shape)
    x = torch.randn(2, *shape[1:])
    if format == "onnx":
        names = [f"y{i}" for i in range(len(all_arguments))]
        path = tmp_path_factory.mktemp("shifts") / "shifts.onnx"
        free = ({0: torch.export.Dim("batch", min=1)},)
        write_onnx(program.with_dtype(torch.float32).graph_module, [x], ["x"], names, free, path, {})
        results = onnxruntime.InferenceSession(str(path)).run(names, {"x": x.numpy()})
    else:
        plan = planned(program)
        results = to_torch(PlanExecutor(plan, stock=format == "keras")(*to_artifact([x], plan.inputs)), plan.outputs)
    for result, expected, each in zip(results, forward(x), all_arguments, strict=True):
        np.testing.assert_array_equal(result, expected.numpy(), err_msg=f"{each}")


NINE = tuple((r, c) for r in (-1, 0, 1) for c in (-1, 0, 1))
EVERY_BORDER = {
    "a depthwise convolution": (Spec((2, 9, 5, 6), (1,) * 9, NINE, "zeros"), by_roll),
    "too far for a depthwise convolution": (
        Spec((2, 6, 5, 6), (2, 1, 3), ((3, -2), (0, 1), (-4, 0)), "zeros"),
        by_roll,
    ),
    "a border repeated": (Spec((2, 6, 5, 6), (2, 1, 3), ((3, -2), (0, 1), (-4, 0)), "replicate"), by_roll),
    "a border kept": (Spec((2, 6, 5, 6), (2, 1, 3), ((3, -2), (0, 1), (-4, 0)), "keep"), by_slices),
    "wrapped": (Spec((2, 6, 5, 6), (2, 1, 3), ((3, -2), (0, 1), (-4, 0)), "circular"), by_roll),
}


@pytest.mark.slow
@pytest.mark.parametrize("spec, spelling", EVERY_BORDER.values(), ids=EVERY_BORDER)
def test_every_border_is_exact_in_every_format(spec, spelling, tmp_path):
    program = recognized(BehindConvolution(spelling(spec), spec.shape[1]), spec.shape)
    assert len(shifts(program)) == 1
    x = torch.randn(spec.shape)
    expected = spelling(spec)(x).numpy()
    np.testing.assert_array_equal(lowered(program, x, stock=True), expected)
    np.testing.assert_array_equal(in_onnx(program, x, tmp_path / "shift.onnx"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("spelling", [by_slices, by_roll])
def test_infinities_are_shifted_and_make_no_nan(spelling, tmp_path):
    """Of an input that may hold one, a depthwise convolution with zeros in its kernel would make NaN."""
    spec = Spec((2, 8, 4, 5), (2, 2, 2, 2), FOUR, "zeros")
    program = recognized(Call(spelling(spec)), spec.shape)
    x = torch.randn(spec.shape)
    x[:, :, 1, 2] = torch.inf
    expected = spelling(spec)(x).numpy()
    np.testing.assert_array_equal(lowered(program, x), expected)
    np.testing.assert_array_equal(in_onnx(program, x, tmp_path / "shift.onnx"), expected)


def test_infinities_made_on_the_way_count():
    spec = Spec((2, 8, 4, 5), (2, 2, 2, 2), FOUR, "zeros")
    shift = by_depthwise(spec)
    masked = Call(lambda self, x: shift(self.conv(x).masked_fill(x > 0, -torch.inf)), conv=nn.Conv2d(8, 8, 1))
    assert not shifts(recognized(masked, spec.shape))


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
def test_shifts_of_an_input_say_that_it_must_be_finite(exact):
    program = captured(Call(by_grid(DOCUMENTS)), DOCUMENTS.shape)
    program.exact_infinities = exact
    _, changes = rewrite(program, RECOGNISING, examples([DOCUMENTS.shape]))
    told = [change.description for change in changes if change.name == "spatial shift"]
    assert [text.endswith("; for finite inputs") for text in told] == ([] if exact else [True])


@pytest.mark.slow
def test_a_large_kernel_of_an_input_becomes_slices():
    for reach, count in ((1, 0), (3, 1)):
        spec = Spec((2, 8, 9, 9), (4, 4), ((reach, 0), (0, -reach)), "replicate")
        assert len(shifts(recognized(Call(by_depthwise(spec)), spec.shape))) == count


class StoredGrid(nn.Module):
    """A grid as a buffer, whose values, as float32, lie beside the pixels that are meant."""

    def __init__(self):
        super().__init__()
        rows, columns = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
        self.register_buffer("grid", torch.stack([2 * (columns - 1) / 6 - 1, 2 * rows / 4 - 1], -1)[None])
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        grid = self.grid.expand(x.shape[0], -1, -1, -1)
        return torch.cat([x[:, :4], F.grid_sample(x[:, 4:], grid, padding_mode="border", align_corners=True)], 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, asked, count",
    [
        pytest.param(BehindConvolution(by_bilinear_grid(DOCUMENTS), 8), False, 0, id="not asked"),
        pytest.param(BehindConvolution(by_bilinear_grid(DOCUMENTS), 8), True, 1, id="asked"),
        pytest.param(StoredGrid(), True, 0, id="asked, of a grid that is off its pixels"),
        pytest.param(BehindConvolution(by_grid(DOCUMENTS), 8), False, 1, id="not asked, nearest"),
    ],
)
@pytest.mark.parametrize("format", ["tf", "keras", "onnx"])
def test_interpolation_on_whole_pixels_is_a_shift_only_if_asked_for(module, asked, count, format):
    shape = (2, 8, 5, 7) if isinstance(module, StoredGrid) else DOCUMENTS.shape
    grid = module.grid.clone() if isinstance(module, StoredGrid) else None
    program = captured(module, shape)
    if grid is not None:
        module.grid.copy_(grid)
    chosen = [EXACT_SHIFTS.get(each, each) if asked else each for each in REWRITES[format]]
    _, changes = rewrite(program, chosen, examples([shape]))
    assert sum(change.name == "spatial shift" for change in changes) == count


def by_deformable_selection(x: Tensor) -> Tensor:
    """Channels in another order, each second pixel, two of them from beyond the image."""
    from torchvision.ops import deform_conv2d

    by = torch.tensor([[9.0, 0], [-9.0, 0], [0, 1], [0, -1], [1, 1], [0, 0], [2, 0], [0, 2]])
    kernel = torch.eye(8).flip(0).reshape(8, 8, 1, 1)
    return deform_conv2d(x, by.reshape(1, 16, 1, 1).expand(x.shape[0], -1, 3, 3), kernel, stride=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "forward, asked, kept, lost",
    [
        pytest.param(by_deformable(DOCUMENTS), False, 'mode="replicate"', "deform_conv2d", id="deformable"),
        pytest.param(by_deformable_selection, False, "F.pad", "deform_conv2d", id="deformable, selecting"),
        pytest.param(by_bilinear_grid(DOCUMENTS), False, "grid_sampler", "pad", id="bilinear"),
        pytest.param(by_bilinear_grid(DOCUMENTS), True, 'mode="replicate"', "grid_sampler", id="bilinear, asked"),
        pytest.param(by_roll(DOCUMENTS), True, "roll", "split", id="roll"),
    ],
)
def test_pytorch_modules_write_shifts_as_pads_where_pytorch_lacks_the_operator(forward, asked, kept, lost):
    program = captured(Call(forward), DOCUMENTS.shape)
    chosen = [EXACT_SHIFTS.get(each, each) if asked else each for each in REWRITES["torch"]]
    rewritten, _ = rewrite(program, chosen, examples([DOCUMENTS.shape]))
    source = ModuleSource(rewritten, *interfaces(rewritten)).text
    assert kept in source
    assert lost not in source
    result = in_torch(rewritten)[0]([documents_tensor()])[0]
    expected = forward(documents_tensor()) if forward is by_deformable_selection else documents_result()
    np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=0 if lost != "pad" else 1e-5)


# -- assignments that share memory


def without_clone(x: Tensor) -> Tensor:
    shifted = x * 1.0
    shifted[:, 0:2, :, 1:] = shifted[:, 0:2, :, :-1]
    return shifted


def on_a_view(x: Tensor) -> Tensor:
    base = x * 1.0
    view = base.permute(0, 2, 3, 1)[:, 1:]
    view[:, :, 1:, :3] = view[:, :, :-1, :3].clone()
    return base


def chained(x: Tensor) -> Tensor:
    shifted = x.clone()
    shifted[:, 0:4, 1:] = shifted[:, 0:4, :-1].clone()
    shifted[:, 2:6, :, 1:] = shifted[:, 2:6, :, :-1].clone()
    return shifted


def read_through_an_older_view(x: Tensor) -> Tensor:
    base = x.clone()
    top = base[:, :, :2]
    base[:, :2, :, 1:] = base[:, :2, :, :-1].clone()
    return torch.cat([top, base], 2)


@pytest.mark.slow
@pytest.mark.parametrize("forward", [on_a_view, chained, read_through_an_older_view], ids=lambda f: f.__name__)
def test_assignment_in_place_follows_pytorchs_aliasing(forward):
    program = recognized(Call(forward), (2, 8, 5, 4))
    x = torch.randn(3, 8, 5, 4)
    np.testing.assert_array_equal(lowered(program, x), forward(x).numpy())


def added_to_itself(x: Tensor) -> Tensor:
    shifted = x * 1.0
    shifted[:, :, 1:] += shifted[:, :, :-1]
    return shifted


def transposed_onto_itself(x: Tensor) -> Tensor:
    square = x[:, :, :, :5] * 1.0
    square[:] = square.transpose(2, 3)
    return square


@pytest.mark.parametrize(
    "forward, by",
    [
        (without_clone, "reads elements that it also writes"),
        (added_to_itself, "reads elements that it also writes"),
        (transposed_onto_itself, "refer to a single memory location"),  # PyTorch's own words: it sees this one
    ],
    ids=["without a clone", "added to itself", "transposed onto itself"],
)
def test_assignment_onto_itself_is_refused(forward, by):
    """PyTorch copies onto what it still has to read; the result depends on its kernels and on the processor."""
    with pytest.raises(CaptureError, match=by):
        captured(Call(forward), (2, 8, 5, 64))


def swapped(x: Tensor) -> Tensor:
    base = x * 1.0
    base[:, :4] = base[:, 4:]
    base[:, 4:] *= base[:, 4:] + 1
    base[:, :, :2] += base[:, :, 2:]
    return base


@pytest.mark.slow
def test_assignment_of_another_part_is_taken():
    program = captured(Call(swapped), (2, 8, 4, 6))
    x = torch.randn(3, 8, 4, 6)
    np.testing.assert_allclose(lowered(program, x), swapped(x).numpy(), atol=1e-5)
