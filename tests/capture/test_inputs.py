"""What models are compared on: ranges read off the graph, folders of images, and the caller's module left as it was."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from converter.capture.input_domains import SAMPLES, dynamic_size_choices, input_specs, many_samples
from converter.capture.random_inputs import InputSpec, rounds
from converter.errors import CaptureError, UsageError
from converter.options import LoadOptions, Preprocessing
from converter.pipeline.clock import Clock
from converter.pipeline.inspect import inspect
from converter.pipeline.load_model import load_model
from converter.verification.reference import take_reference
from converter.verification.user_inputs import load_given


def opened(module, *shapes, fixed_batch=None):
    return load_model(module, LoadOptions.of(input_shapes=shapes), clock=Clock(None), fixed_batch=fixed_batch)


def reference_of(source, **given):
    return take_reference(source.program, source.module, seed=0, running=source.running, **{"inputs": None} | given)


class Table(nn.Module):
    """`use(tables, x)` of two embeddings, of 30 and of 12 rows."""

    def __init__(self, use):
        super().__init__()
        self.large, self.small, self.use = nn.Embedding(30, 4), nn.Embedding(12, 4), use

    def forward(self, x):
        return self.use(self, x)


FAR, FURTHEST = (-4096, 4096), (1 - 2**31, 2**31 - 1)
RANGES = {
    "an embedding": (lambda m, x: m.large(x), "1,5:int64", 30, None),
    "the smaller of two": (lambda m, x: m.large(x) + m.small(x), "1,5:int64", 12, None),
    "behind slices and views": (lambda m, x: m.large(x[:, 1:].reshape(-1, 2, 2).long()), "1,5:int32", 30, None),
    "a table that is indexed": (lambda m, x: m.small.weight[x], "1,5:int64", 12, None),
    "classes of a one-hot": (lambda m, x: F.one_hot(x, 7).float(), "1,5:int64", 7, None),
    "arithmetic before the index": (lambda m, x: m.large(x * 3 + 1), "1,5:int64", 10, None),
    "an offset": (lambda m, x: m.large(x + 2), "1,5:int64", 28, (-2, 27)),
    "counted from the end": (lambda m, x: m.small(11 - x), "1,5:int64", 12, None),
    "cut off at the table's ends": (lambda m, x: m.small(x.clamp(0, 11)), "1,5:int64", 12, FURTHEST),
    "padding of -1": (lambda m, x: m.small(torch.where(x < 0, 0, x)), "1,5:int64", 12, (FURTHEST[0], 11)),
    "a hash": (lambda m, x: m.small((x * 31 + 7) % 12), "1,5:int64", 12, FURTHEST),
    "an hour, and a number beside it": (
        lambda m, x: m.large(x // 36 % 24) + x[..., None].float() / 1e3,
        "1,5:int64",
        4096,
        FAR,
    ),
    "a mask": (lambda m, x: m.small((x.float() * 0).long()) + ((1 - x) * -1e9)[..., None], "1,5:int64", 2, None),
    "numbers above a limit": (lambda m, x: (x.float() - 20000).relu(), "1,5:int64", 256, (-320000, 320000)),
    "sound": (lambda m, x: x.float() / 32768, "1,5:int16", 256, (-32768, 32767)),
    "counted": (lambda m, x: m.small(x.cumsum(1)), "1,5:int64", 2, (0, 2)),
    "bits": (lambda m, x: (x << (x % 4)).float(), "1,5:int64", 4, FAR),
    "places of a sum": (lambda m, x: torch.zeros(9, 4).index_add(0, x[0], m.large.weight[:5]), "1,5:int64", 9, None),
    "classes of a loss": (
        lambda m, x: F.cross_entropy(m.large.weight[:1].expand(len(x), 4), x[:, 0], reduction="none"),
        "1,1:int64",
        4,
        None,
    ),
    "pixels": (lambda m, x: x.float() / 255, "1,3,4,5:uint8", 256, None),
    "numbers": (lambda m, x: x.float() * 2, "1,5:int64", 256, FAR),
    "small numbers": (lambda m, x: x.float() * 2, "1,5:int8", 128, (-128, 127)),
}


@pytest.mark.parametrize("use, shape, high, far", RANGES.values(), ids=RANGES)
def test_integers_fill_the_range_that_the_graph_shows(use, shape, high, far):
    source = opened(Table(use), shape)
    (spec,) = input_specs(source.program)
    assert (spec.low, spec.high, spec.far) == (0, high, far)
    drawn = np.concatenate([each.arrays[spec.name].ravel() for each in reference_of(source).rounds])
    assert drawn.max() >= high // 2
    assert far is None or (drawn < far[0] // 2 + 1).any()


@pytest.mark.slow
def test_integers_reach_beyond_what_they_are_divided_by():
    class Age(nn.Embedding):
        def forward(self, now, then):
            days = ((now - then) // 86400).clamp(min=1)
            return super().forward(days.float().log2().long().clamp(0, 9))

    source = opened(Age(10, 3), "1:int64", "1:int64")
    (results,) = zip(*(outputs.values() for outputs in reference_of(source).float64), strict=True)
    assert len(np.unique(np.concatenate(results)[:, 0])) > 2


@pytest.mark.slow
def test_indices_of_several_inputs_are_drawn_within_their_table():
    class Cells(nn.Embedding):
        def forward(self, row, column, steps, last):
            return super().forward(row * 8 + column).sum(1) + steps.gather(1, last[:, None] - 1)

    source = opened(Cells(64, 3), "1,5:int64", "1,5:int64", "1,T", "1:int64")
    row, column, _, last = input_specs(source.program)
    assert (row.high, column.high) == (8, 8)
    assert (last.low, last.high) == (1, 6)
    reference_of(source)


def test_a_small_model_is_compared_on_many_samples_and_a_large_one_on_few():
    assert many_samples(opened(nn.Linear(4, 3), "1,4").program) == SAMPLES
    assert many_samples(opened(nn.Conv2d(1, 64, 3, padding=1), "1,1,512,512").program) == 0


@pytest.mark.slow
def test_samples_are_counted_at_the_sizes_that_are_drawn():
    """Not at the least ones: 512 samples of 128 x 128 pixels and more would not fit into memory."""
    assert many_samples(opened(nn.Conv2d(1, 64, 3, padding=1), "1,1,32*H,32*W").program) == 0
    assert many_samples(opened(nn.Conv2d(1, 64, 3, padding=1), "1,1,H,W").program) > 4
    rounds = reference_of(opened(nn.Linear(4, 3), "1,4")).rounds
    assert rounds[-2].description == f"spread, batch {SAMPLES}"


@pytest.mark.parametrize("shape", [(), (5,), (0, 5)])
def test_inputs_of_few_dimensions_are_drawn_in_every_kind(shape):
    for drawn in rounds([InputSpec("x", shape, "float32")], 0, many=3):
        assert isinstance(drawn.arrays["x"], np.ndarray)
        assert drawn.arrays["x"].shape == shape
        assert np.isfinite(drawn.arrays["x"]).all()


def test_dynamic_sizes_of_an_exported_program_are_varied(tmp_path):
    shapes = {"x": {0: torch.export.Dim("n"), 2: 4 * torch.export.Dim("h", min=2, max=9)}}
    exported = torch.export.export(nn.Conv2d(2, 3, 3), (torch.rand(2, 2, 16, 9),), dynamic_shapes=list(shapes.values()))
    torch.export.save(exported, tmp_path / "net.pt2")
    source = opened(tmp_path / "net.pt2")
    heights = [next(iter(sizes.values())) for sizes in dynamic_size_choices(source.program)]
    assert len(set(heights)) == 2
    assert all(height % 4 == 0 for height in heights)
    assert {next(iter(each.arrays.values())).shape[2] for each in reference_of(source).rounds} == set(heights)


def test_the_same_seed_gives_the_same_reference_and_says_on_what():
    module = nn.Linear(4, 3)
    first, again = (reference_of(opened(module, "1,4")) for _ in range(2))
    for one, other in zip(first.rounds, again.rounds, strict=True):
        np.testing.assert_array_equal(one.arrays["input"], other.arrays["input"])
    assert first.compared_on.seed == 0
    assert first.compared_on.rounds[:2] == ("normal, batch 1", "normal, batch 3")
    for one, other in zip(first.perturbed_runs(1), again.perturbed_runs(1), strict=True):
        np.testing.assert_array_equal(one["output"], other["output"])


@pytest.mark.parametrize("shape", ["1,4", "1,4:int64"], ids=["inputs moved", "weights moved"])
def test_pytorch_rounds_otherwise_when_it_is_run_again(shape):
    module = nn.Linear(4, 3) if shape == "1,4" else Table(lambda m, x: m.large(x) @ m.small.weight.T)
    reference = reference_of(opened(module, shape))
    results = [next(iter(each.values())) for each in (*reference.perturbed_runs(1), reference.float32[1])]
    assert len({result.tobytes() for result in results}) > 1
    for result in results:
        np.testing.assert_allclose(result, results[-1], rtol=0, atol=1e-5)


# A folder of images

IMAGES = InputSpec("image", ("batch", 3, 4, 6))


@pytest.fixture
def folder(tmp_path):
    """Two images of 8x6 pixels: the first red, the second with its right half green."""
    red = np.zeros((6, 8, 3), np.uint8)
    red[..., 0] = 200
    half = np.zeros((6, 8, 3), np.uint8)
    half[:, 4:, 1] = 100
    Image.fromarray(red).save(tmp_path / "a.png")
    Image.fromarray(half).save(tmp_path / "b.bmp")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def images(folder, spec=IMAGES, **stated):
    return load_given(folder, [spec], Preprocessing(**stated))[0]["image"]


def test_images_are_stretched_and_scaled(folder):
    array = images(folder)
    assert (array.shape, array.dtype) == ((2, 3, 4, 6), np.float32)
    np.testing.assert_allclose(array[0], np.full((4, 6), 200 / 255)[None] * [[[1]], [[0]], [[0]]], rtol=1e-6)
    assert array[1, 1, :, -1].min() > 0.3 > 0.01 > array[1, 1, :, 0].max()


def test_mean_deviation_scale_and_order_are_as_stated(folder):
    array = images(folder, scale=1.0, mean=(10, 20, 30), std=(1, 2, 4), order="bgr")
    np.testing.assert_allclose(array[0, :, 0, 0], [-10, -10, (200 - 30) / 4])


def test_images_are_cropped_or_padded(folder):
    square = InputSpec("image", ("batch", 3, 6, 6))
    assert images(folder, square, fit="crop")[0, 0].min() > 0.7
    padded = images(folder, square, fit="pad", scale=1.0)[0, 0]
    assert padded[0].tolist() == padded[-1].tolist() == [114] * 6


def test_integer_inputs_get_the_pixels_and_grey_inputs_one_channel(folder):
    assert images(folder, InputSpec("image", ("batch", 3, 4, 6), "uint8"))[0, 0, 0, 0] == 200
    assert images(folder, InputSpec("image", ("batch", 1, 4, 6))).shape == (2, 1, 4, 6)


BAD_IMAGES = {
    "no image": (lambda f: [p.unlink() for p in f.glob("*.[pb]*")], IMAGES, {}, "does not contain an image"),
    "a damaged one": (lambda f: (f / "c.jpg").write_bytes(b"\xff\xd8"), IMAGES, {}, "cannot be read"),
    "no image model": (None, InputSpec("x", ("n", 5)), {}, r"a single input \(batch, channels"),
    "five channels": (None, InputSpec("x", ("n", 5, 4, 6)), {}, "do not fit the input 'x'"),
    "two means": (None, IMAGES, {"mean": (1.0, 2.0)}, "mean must be one number, or 3"),
    "no deviation": (None, IMAGES, {"std": (0.0,)}, "std must not be 0"),
    "another fit": (None, IMAGES, {"fit": "zoom"}, "Unknown image preprocessing"),
}


@pytest.mark.parametrize("spoil, spec, stated, message", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_unfit_images_are_refused(folder, spoil, spec, stated, message):
    if spoil:
        spoil(folder)
    with pytest.raises(UsageError, match=message):
        images(folder, spec, **stated)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("first", [False, True])
def test_arrays_of_pixels_are_preprocessed_as_their_files_are(folder, fit, first):
    read = [np.asarray(Image.open(folder / name).convert("RGB")) for name in ("a.png", "b.bmp")]
    pixels = np.stack(read).transpose(0, 3, 1, 2) if first else np.stack(read)
    stated = {"fit": fit, "mean": (0.4, 0.5, 0.6), "std": (0.2,), "order": "bgr"}
    np.savez(folder / "pixels.npz", image=pixels, labels=[1, 0])
    arrays, labels = load_given(folder / "pixels.npz", [IMAGES], Preprocessing(**stated))
    np.testing.assert_array_equal(arrays["image"], images(folder, **stated))
    assert labels.tolist() == [1, 0]


def test_pixels_of_one_channel_need_no_axis_for_it():
    spec = InputSpec("image", ("batch", 1, 4, 6))
    pixels = np.arange(48, dtype=np.uint8).reshape(2, 4, 6)
    for given in (pixels, pixels[..., None], pixels[:, None]):
        arrays, _ = load_given({"image": given}, [spec], Preprocessing(scale=1.0, mean=(1.0,)))
        assert arrays["image"][:, 0].tolist() == (pixels - 1.0).tolist()


@pytest.mark.parametrize(
    "given, specs",
    [
        pytest.param({"image": np.ones((2, 3, 4, 6))}, [IMAGES], id="floats"),
        pytest.param({"image": np.ones((2, 4, 4, 6), np.uint8)}, [IMAGES], id="four channels for three"),
        pytest.param({"x": np.ones((2, 5), np.uint8)}, [InputSpec("x", ("batch", 5))], id="no image model"),
    ],
)
def test_what_are_no_pixels_is_not_preprocessed(given, specs):
    with pytest.raises(UsageError, match="no pixels for the input") as caught:
        load_given(given, specs, Preprocessing())
    assert "leave out --preprocessing" in caught.value.fix


def test_the_report_repeats_the_preprocessing(folder):
    source = opened(nn.Conv2d(3, 2, 3), "1,3,4,6")
    reference = reference_of(source, inputs=folder, preprocessing=Preprocessing(mean=(0.5,), std=(0.25,)))
    assert reference.compared_on.given == str(folder)
    assert reference.compared_on.preprocessing == "stretch, rgb, (pixel x 0.00392157 - [0.5]) / [0.25]"
    assert reference.compared_on.rounds[-1] == "given, samples 0 to 1"


# The caller's module


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 2), 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        return self.linear(x)


def test_the_callers_module_stays_as_it_is():
    module = Counting().train()
    source = opened(module, "1,4")
    reference_of(source)
    assert (float(module.seen), module.calls, module.training) == (0.0, 0, True)
    assert source.module.linear.weight is module.linear.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_module_in_another_precision_is_brought_to_float32_and_left_as_it_was(dtype):
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(dtype)
    source = opened(module, f"1,4:{str(dtype).removeprefix('torch.')}")
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert {x.dtype for x in source.examples} == {torch.float32}
    name = str(dtype).removeprefix("torch.")
    assert any(note.text == f"Converted weights from {name} to float32." for note in source.notes)
    assert any(note.text == f"Inputs are float32, as the weights are, not {name}." for note in source.notes)
    reference_of(source)


def test_an_exported_program_in_another_precision_is_refused(tmp_path):
    torch.export.save(torch.export.export(nn.Linear(4, 2).half(), (torch.rand(2, 4).half(),)), tmp_path / "net.pt2")
    with pytest.raises(CaptureError, match="inputs or weights in float16"):
        opened(tmp_path / "net.pt2")


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        return self.linear(x).squeeze()


def test_squeeze_that_takes_away_the_batch_is_named_with_its_fix():
    with pytest.raises(CaptureError) as refused:
        reference_of(opened(Squeezed(), "1,4"))
    assert "squeeze(-1)" in refused.value.fix
    assert "--fixed-batch" in refused.value.fix
    assert reference_of(opened(Squeezed(), "1,4", fixed_batch=1)).float32[0]["output"].shape == ()


class Unlike(nn.Module):
    """What is captured of it is not what it computes; by how much, `by` says."""

    def __init__(self, by):
        super().__init__()
        self.linear, self.by, self.calls = nn.Linear(4, 3), by, 0

    def forward(self, x):
        return self.by(self, self.linear(x))


def counted(self, y):
    self.calls += 1
    return y * self.calls


def other_while_exported(self, y):
    return y * 2 if torch.compiler.is_exporting() else y


def slightly_other_while_exported(self, y):
    return y * (1 + 1e-4) if torch.compiler.is_exporting() else y


def other_integers_while_exported(self, y):
    return y.argmax(1) + int(torch.compiler.is_exporting())


def other_for_large_values(self, y):
    return y * 2 if not torch.compiler.is_compiling() and y.abs().max() > 20 else y


def other_for_values_that_are_read(self, y):
    try:
        return y * 2 if float(y.detach().abs().max()) > 20 else y
    except Exception:  # while it is traced
        return y


@pytest.mark.parametrize(
    "by",
    [
        counted, other_while_exported, slightly_other_while_exported, other_integers_while_exported,
        other_for_large_values, other_for_values_that_are_read,
    ],
)  # fmt: skip
def test_what_was_captured_must_be_what_the_module_computes(by):
    """Judged by the rounding of the captured program: that of the module itself would excuse any difference."""
    source = opened(Unlike(by).eval(), "1,4")
    with pytest.raises(CaptureError, match="computes something else than the model") as raised:
        reference_of(source)
    assert ("self.calls" if by is counted else "is_exporting") in raised.value.fix
    with pytest.raises(CaptureError, match="computes something else than the model"):
        inspect(Unlike(by).eval(), input_shapes=["1,4"], check=["onnx"])


def other_above_a_million(self, y):
    return y + 1e5 if not torch.compiler.is_compiling() and y.abs().max() > 1e6 else y


def test_the_module_itself_runs_on_the_inputs_of_the_user():
    source = opened(Unlike(other_above_a_million).eval(), "1,4")
    rare = {"x": np.full((3, 4), 1e7, np.float32) * [[1], [2], [-3]]}
    with pytest.raises(CaptureError, match="computes something else than the model"):
        reference_of(source, inputs=rare)
    taken = reference_of(source, inputs={"x": rare["x"] / 1e6})
    assert len(taken.eager) == len(taken.rounds) == taken.first_given + 1


def refuses_large_values(self, y):
    if not torch.compiler.is_compiling() and y.abs().max() > 20:
        raise ValueError("out of range")
    return y


def test_random_inputs_that_the_model_refuses_are_left_out_and_named():
    source = opened(Unlike(refuses_large_values).eval(), "1,4")
    taken = reference_of(source)
    assert "spread" not in {each.description.partition(",")[0] for each in taken.rounds}
    assert "out of range" in taken.compared_on.rounds[-1]
    with pytest.raises(CaptureError, match="out of range"):
        reference_of(source, inputs={"x": np.full((2, 4), 1e3, np.float32) * [[1], [-2]]})


TELLING = {
    "compared with a number": (lambda m, x: (x == 17).float() * 2, "1,5:int64", {16, 17, 18}, True),
    "a table": (lambda m, x: m.large(x), "1,5:int64", set(), False),
    "a float": (lambda m, x: x.float() * 2, "1,5:int64", set(), False),
    "integers throughout": (lambda m, x: x // 3 + 1, "1,5:int64", {(1 << 24) + 1, -(1 << 53) - 1}, True),
    "of 32 bits": (lambda m, x: torch.fmod(x, 7), "1,5:int32", {(1 << 24) + 1, (1 << 31) - 1}, True),
}


@pytest.mark.parametrize("use, shape, among, edges", TELLING.values(), ids=TELLING)
def test_integers_are_drawn_where_the_graph_may_behave_differently(use, shape, among, edges):
    (spec,) = input_specs(opened(Table(use), shape).program)
    assert among <= set(spec.telling)
    assert (max(map(abs, spec.telling), default=0) > 1 << 20) is edges
    small = [one.arrays[spec.name] for one in rounds([spec], 0) if one.description.startswith("small")]
    assert not spec.telling or np.isin(small, spec.telling).any()


class Padded(nn.Module):
    def __init__(self, more):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encode, self.more = nn.TransformerEncoder(layer, 1), more

    def forward(self, x, mask):
        y = self.encode(x, src_key_padding_mask=mask)
        return y if torch.compiler.is_exporting() else y + self.more


@pytest.mark.slow
@pytest.mark.parametrize("more", [0.0, 0.01])
def test_padded_positions_of_a_transformer_are_undefined_and_noted(more):
    source = opened(Padded(more).eval(), "x=1,5,8", "mask=1,5:bool")
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    given = {"x": x, "mask": np.arange(5) >= np.array([[3], [5], [2]])}
    if more:  # another difference is none of padding
        with pytest.raises(CaptureError, match="computes something else"):
            reference_of(source, inputs=given)
    else:
        assert [note.code for note in reference_of(source, inputs=given).notes] == ["PTC5504"]
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_forward_that_returns_no_tensor_is_refused():
    source = opened(Unlike(lambda self, y: None).eval(), "1,4")
    with pytest.raises(CaptureError, match="Forward does not return a tensor"):
        reference_of(source)


@dataclasses.dataclass
class Detections:
    boxes: torch.Tensor
    scores: torch.Tensor | None = None
    more: object = None


class ReturnsDataclass(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(x)
        return [Detections(y, more={"a": Detections(y * 2, y + 1)}), y - 1]


def test_dataclasses_are_outputs_by_their_fields():
    source = opened(ReturnsDataclass().eval(), "1,4")
    assert source.program.outputs == ["output_0_boxes", "output_0_more_a_boxes", "output_0_more_a_scores", "output_1"]
    reference_of(source)


class Nested(nn.Module):
    """Takes a list, a dictionary of dictionaries, and a tensor by keyword."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, xs, batch, *, shift, none=None):
        first, second = xs
        return (
            self.linear(first - 2 * second) * batch["meta"]["scale"] + batch["image"].mean((1, 2, 3))[:, None] + shift
        )


def test_lists_and_dictionaries_are_given_by_the_names_of_what_is_in_them():
    shapes = ["shift=1,3", "xs.0=1,4", "batch.meta.scale=1,3", "xs.1=1,4", "batch.image=1,2,5,6"]
    model = Nested().eval()
    source = opened(model, *shapes)
    assert source.program.inputs == ["xs_0", "xs_1", "batch_meta_scale", "batch_image", "shift"]
    reference_of(source)
    a, b, scale, image, shift = (torch.randn(2, *size) for size in ((4,), (4,), (3,), (2, 5, 6), (3,)))
    own = model([a, b], {"meta": {"scale": scale}, "image": image}, shift=shift)
    torch.testing.assert_close(source.program.run(a, b, scale, image, shift)[0], own.detach())


@pytest.mark.parametrize("shapes", [["xs.0=1,4"], ["xs.0=1,4", "batches.image=1,2", "batch.a=1,2", "shift=1,3"]])
def test_what_is_in_no_parameter_of_forward_is_refused(shapes):
    with pytest.raises(UsageError, match="Forward takes xs, batch, shift"):
        opened(Nested().eval(), *shapes)


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [torch.compile, nn.DataParallel])
def test_wrappers_are_taken_off(wrapped):
    source = opened(wrapped(nn.Linear(4, 3).eval()), "1,4")
    assert source.tensor_names == {"weight", "bias"}
    assert source.notes[0].code == "PTC1507"


class Offsets(nn.Module):
    """Years, months and codes as people number them."""

    def __init__(self):
        super().__init__()
        self.years, self.months, self.codes = nn.Embedding(80, 4), nn.Embedding(12, 4), nn.Embedding(9, 4)

    def forward(self, year, month, code):
        return self.years(year - 1950) + self.months(month - 1) + self.codes(code // 100 - 1)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["1,5:int64", "1,T:int64"])
def test_integers_that_a_model_subtracts_from_are_found_before_it_is_captured(shape):
    source = opened(Offsets(), shape, shape, shape)
    year, month, code = input_specs(source.program)
    assert [(each.low, each.high) for each in (year, month)] == [(1950, 2030), (1, 13)]
    assert 100 <= code.low < code.high <= 1000
    reference_of(source)


class Columns(nn.Module):
    """A table of features, as people keep them in one array of integers."""

    def __init__(self):
        super().__init__()
        self.years, self.months, self.users = nn.Embedding(80, 4), nn.Embedding(12, 4), nn.Embedding(1000, 4)

    def forward(self, x):
        price, flag = x[:, 3:4].float().log1p(), x[:, -1]
        found = self.years(x[:, 0] - 1950) + self.months(x[:, 1] - 1) + self.users(x[:, 2])
        return found * flag[:, None] + price


@pytest.mark.slow
def test_columns_of_integers_are_drawn_each_for_its_own_table():
    source = opened(Columns(), "1,5:int64")
    (spec,) = input_specs(source.program)
    assert [(each.low, each.high) for each in spec.columns[:3]] == [(1950, 2030), (1, 13), (0, 1000)]
    drawn = np.concatenate([each.arrays["x"] for each in reference_of(source).rounds])
    assert np.unique(drawn[:, 0]).size > 70
    assert np.unique(drawn[:, 2]).size > 300


def test_the_number_of_padding_is_drawn_where_it_alone_is_taken():
    def use(tables, x):
        held = x != -100
        return tables.small(x.masked_fill(~held, 0)) * held[..., None]

    source = opened(Table(use), "1,6:int64")
    (spec,) = input_specs(source.program)
    assert -100 in spec.telling
    assert -99 not in spec.telling
    assert any((each.arrays["x"] == -100).any() for each in reference_of(source).rounds)


def test_an_input_may_have_no_dimensions():
    class Step(nn.Linear):
        def forward(self, x, step):
            return super().forward(x) * torch.sin(step * 0.1) + step

    source = opened(Step(4, 3), "x=1,4", "step=:int64")
    assert [spec.shape for spec in input_specs(source.program)] == [("batch", 4), ()]
    assert {outputs[name].shape[1] for outputs in reference_of(source).float64 for name in outputs} == {3}
