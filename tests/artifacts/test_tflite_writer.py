"""LiteRT files of ours: what they hold, that they open in LiteRT itself, and that a change in them is found."""

import copy
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from equivalence import with_random_tensors
from exact_numbers import FUNCTIONS, NUMBERS, OF_ONE, OF_TWO, SPECIAL, WHOLE, assert_digits_kept, pairs
from torch import nn
from torch.nn import functional as F

import converter
from converter.artifacts.paths import default_formats
from converter.artifacts.runner import require_litert
from converter.artifacts.runtime.formats import recognize
from converter.artifacts.runtime.stamp import ZIP_MEMBER, read_stamp
from converter.artifacts.runtime.tflite_content import model_bytes, stored_tensors
from converter.errors import ConversionError, UsageError
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Origin
from converter.lowering.frozen_constants import FrozenConstant
from converter.plan.steps import Constant
from converter.verification.tflite_weights import expected_constants

pytestmark = pytest.mark.slow


class Classifier(nn.Module):
    """Convolutions of every kind, a norm that folds and one behind a ReLU, a residual that is scaled."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU())
        self.norm = nn.BatchNorm2d(20)
        self.branch = nn.Conv2d(20, 20, 3, padding=1, groups=20)
        self.join = nn.Conv2d(20, 20, 1)
        self.grow = nn.ConvTranspose2d(20, 18, 2, stride=2)
        self.slope = nn.PReLU()
        self.layers = nn.LayerNorm(18)
        self.head = nn.Linear(18, 19)

    def forward(self, image):
        x = self.norm(self.stem(image))
        x = x + 0.2 * self.join(self.branch(x))
        return self.head(self.layers(self.slope(self.grow(x)).mean((2, 3))))


class Recurrent(nn.Module):
    """Weights inside of a WHILE, and a volume's slope, for which LiteRT's own operator has too few axes."""

    def __init__(self):
        super().__init__()
        self.volume = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.PReLU(4))
        self.read = nn.GRU(24, 18, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.read(self.volume(x).flatten(3).flatten(1, 2))[0]


class Tail(nn.Module):
    def forward(self, x):
        return x.flatten(1).cumprod(1)


def made(module: nn.Module) -> nn.Module:
    return with_random_tensors(module).eval()


def run(path: Path, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    return Interpreter(str(path)).get_signature_runner("serving_default")(**arrays)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("tflite") / "classifier.tflite"
    module = made(Classifier())
    return module, path, converter.convert(module, to="tflite", output=path, input_shapes=["1,3,16,16"])


def test_a_file_is_verified_and_takes_one_image_channels_last(classifier):
    module, path, report = classifier
    (artifact,) = report.artifacts
    assert (report.status, artifact.path) == ("verified", path)
    assert [(fact.name, fact.shape) for fact in artifact.inputs] == [("image", (1, 16, 16, 3))]
    assert not {"TRANSPOSE", "GATHER", "CUSTOM"} & set(artifact.operators)
    assert "with and without XNNPACK" in artifact.proofs[1].summary
    image = torch.randn(1, 3, 16, 16)
    (result,) = run(path, image=image.permute(0, 2, 3, 1).numpy()).values()
    with torch.no_grad():
        np.testing.assert_allclose(result, module(image).numpy(), rtol=1e-4, atol=1e-5)


def test_the_same_model_gives_the_same_bytes(classifier, tmp_path):
    module, path, _ = classifier
    converter.convert(module, to="tflite", output=tmp_path / path.name, input_shapes=["1,3,16,16"], verify=False)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_stamp_is_a_member_of_a_zip_archive_at_the_end(classifier):
    _, path, _ = classifier
    assert recognize(path) == "tflite"
    assert read_stamp(path)["format"] == "tflite"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [ZIP_MEMBER]
    assert path.read_bytes().startswith(model_bytes(path.read_bytes()))


def test_verify_tells_the_weights_of_another_model(classifier):
    module, path, _ = classifier
    assert converter.verify(module, path).status == "verified"
    other = copy.deepcopy(module)
    other.join.weight.data[0, 0] *= 1.01
    report = converter.verify(other, path)
    assert report.status == "disagrees"
    assert [proof.holds for proof in report.proofs] == [False, False]


@pytest.mark.parametrize(
    "kind, told",
    [("f", "differ from the source|nothing in the checkpoint explains|off by"), ("i", "the graph differs")],
)
def test_a_changed_number_in_the_file_is_found(classifier, tmp_path, kind, told):
    module, path, _ = classifier
    content = path.read_bytes()
    tensors = [t for t in stored_tensors(model_bytes(content)) if t.array.dtype.kind == kind]
    place = max(tensors, key=lambda tensor: tensor.array.size).start + (2 if kind == "f" else 0)
    changed = tmp_path / path.name
    changed.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    report = converter.verify(module, changed)
    assert report.status == "disagrees"
    assert any(re.search(told, failure) for failure in report.proofs[-1].failures)


class Twice(nn.Module):
    """A layer stands twice, once with its weights times a thousandth; both see nearly the same numbers."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(10, 12), nn.Linear(12, 6, bias=False)

    def forward(self, x):
        x = torch.tanh(self.enter(x) * 1e-3)
        return self.leave(x), F.linear(torch.sin(x), self.leave.weight * 1e-3)


def test_two_arrays_of_one_shape_that_are_swapped_are_found(tmp_path):
    module, path = made(Twice()), tmp_path / "scaled.tflite"
    assert converter.convert(module, to="tflite", output=path, input_shapes=["1,10"]).status == "verified"
    content = path.read_bytes()
    one, other = (t for t in stored_tensors(model_bytes(content)) if t.array.shape == (6, 12))
    swapped = bytearray(content)
    swapped[one.start : one.stop], swapped[other.start : other.stop] = other.array.tobytes(), one.array.tobytes()
    (tmp_path / "swapped.tflite").write_bytes(swapped)
    _, weights = converter.verify(module, tmp_path / "swapped.tflite").proofs
    assert [failure.split(":")[0] for failure in weights.failures] == [
        f"{name} (from leave.weight)" for name in sorted((one.name, other.name))
    ]


def test_a_dynamic_batch_on_request(classifier, tmp_path):
    module, _, _ = classifier
    path = tmp_path / "any.tflite"
    report = converter.convert(module, to="tflite", output=path, input_shapes=["1,3,16,16"], dynamic_batch=True)
    assert report.status == "verified"
    assert report.artifacts[0].inputs[0].shape == ("batch", 16, 16, 3)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (result,) = run(path, image=images.permute(0, 2, 3, 1).numpy()).values()
    with torch.no_grad():
        expected = module(images).numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_recurrent_weights_and_a_slope_of_five_axes_are_found(tmp_path):
    report = converter.convert(made(Recurrent()), to="tflite", output=tmp_path / "r.tflite", input_shapes=["1,1,5,6,4"])
    assert report.status == "verified", report.artifacts[0].proofs
    assert "WHILE" in report.artifacts[0].operators


class Scaled(nn.Module):
    """Scales and offsets of features before linear layers, as a layer norm's and as learned ones."""

    def __init__(self):
        super().__init__()
        self.norm, self.factor, self.offset = nn.LayerNorm(6), nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))
        self.query, self.key, self.leave = nn.Linear(6, 7), nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, x):
        y = self.norm(x)
        return self.leave(self.query(y) * self.key(y)), self.query(x * self.factor + self.offset)


def test_scales_before_linear_layers_are_found(tmp_path):
    report = converter.convert(made(Scaled()), to="tflite", output=tmp_path / "x.tflite", input_shapes=["1,4,6"])
    assert report.status == "verified", report.artifacts[0].proofs


class Read(nn.Module):
    """Recurrent layers of each kind in both directions."""

    def __init__(self):
        super().__init__()
        for kind in (nn.LSTM, nn.GRU, nn.RNN):
            self.add_module(kind.__name__.lower(), kind(6, 5, batch_first=True, bidirectional=True))

    def forward(self, x):
        return self.lstm(x)[0], self.gru(x)[1], self.rnn(x)[0]


def test_recurrent_layers_with_a_dynamic_batch_are_unrolled(tmp_path):
    path = tmp_path / "read.tflite"
    report = converter.convert(made(Read()), to="tflite", output=path, input_shapes=["1,7,6"], dynamic_batch=True)
    assert report.status == "verified"
    assert "WHILE" not in report.artifacts[0].operators
    assert {array.shape[0] for name, array in run(path, x=np.ones((3, 7, 6), np.float32)).items()} <= {2, 3}


def test_a_free_length_with_a_dynamic_batch_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ConversionError, match="take a fixed batch") as raised:
        converter.convert(
            made(Read()), to="tflite", output=tmp_path / "read.tflite", input_shapes=["1,T,6"], dynamic_batch=True
        )
    assert "--dynamic-batch" in raised.value.fix
    assert Path(__file__).name in raised.value.where


def test_a_refusal_names_the_operator_the_module_and_the_line(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Tail()).eval()
    with pytest.raises(ConversionError) as raised:
        converter.convert(model, to="tflite", output=tmp_path / "x.tflite", input_shapes=["1,3,9,9"])
    assert raised.value.what == "LiteRT has no operator for Cumprod."
    assert "module `1`" in raised.value.where
    assert "cumprod(1)" in raised.value.where
    assert not list(tmp_path.iterdir())
    (check,) = converter.inspect(model, check=("tflite",), input_shapes=["1,3,9,9"]).checks
    assert "Cumprod" in check.failure.what


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    assert "tflite" not in default_formats()
    with pytest.raises(UsageError, match="ai-edge-litert") as raised:
        require_litert()
    assert 'pip install "pt-convert[tflite]"' in raised.value.fix


def test_only_a_constant_of_the_graph_explains_a_tensor():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
    held = LazyTensor.of(torch.from_numpy(kernel))
    constant = Constant(held, torch.float32, ("conv.weight",), exact=True, trainable=True, key="conv.weight")
    origins = {"conv.weight": Origin(("conv.weight",))}
    turned, changed = kernel.transpose(3, 0, 1, 2), kernel.copy()
    changed[0, 0, 0, 0] += 1e-3
    shuffled = kernel[..., [1, 0, 2, 3]]
    found = expected_constants(
        [FrozenConstant(kernel, (constant,)), FrozenConstant(np.float32(0.5), ())],
        {
            "turned": turned,
            "halved": turned * np.float32(0.5),
            "shifted": turned + np.float32(0.5),
            "changed": changed,
            "shuffled": shuffled,
        },
        origins,
    )
    assert set(found) == {"turned", "halved", "shifted"}
    np.testing.assert_array_equal(found["turned"].array, turned)
    assert [found[name].exact for name in ("turned", "halved")] == [True, False]


SMALL_RESULTS = {  # of functions that LiteRT has as exp(x) - 1 or log(1 + x), or that are made of these
    **FUNCTIONS,
    "softplus": F.softplus,
    "log_sigmoid": F.logsigmoid,
    **{  # LiteRT has no operators for these
        function.__name__: function
        for function in (
            *(torch.asin, torch.acos, torch.atan, torch.sinh, torch.cosh),
            *(torch.asinh, torch.acosh, torch.erf),
        )
    },
    "tan": lambda x: torch.tan(x * 0.125),  # XNNPACK's sine loses digits at multiples of pi
    "erfc": lambda x: torch.erfc(x * 0.5),  # as XNNPACK's exponential does far from 0
    "atanh": lambda x: torch.atanh(x * 0.5),  # at its poles, LiteRT's sum of infinity and 1 is finite
}
ROUNDED_FIRST = (lambda x: F.softplus(x, 3.0), lambda x: torch.logaddexp(x, 3 * x - 1))


@pytest.fixture(scope="module")
def small_results(tmp_path_factory):
    class Functions(nn.Module):
        def forward(self, x):
            infinite = torch.where(x > 1, torch.inf, x)
            functions = *SMALL_RESULTS.values(), *ROUNDED_FIRST
            return *(function(x) for function in functions), infinite, x.masked_fill(x < 0, -torch.inf)

    path = tmp_path_factory.mktemp("small") / "net.tflite"
    report = converter.convert(Functions(), to=["tflite"], output=path, input_shapes=[f"1,{NUMBERS.size}"])
    assert report.status == "verified"
    return path


@pytest.mark.parametrize("delegated", [True, False], ids=["XNNPACK", "builtin"])
def test_small_numbers_keep_their_digits_and_infinities_stay(small_results, delegated):
    kernels = OpResolverType.AUTO if delegated else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(small_results), experimental_op_resolver_type=kernels)
    runner = interpreter.get_signature_runner()
    names = sorted(runner.get_output_details(), key=lambda name: int(name.rpartition("_")[2]))
    (given,) = runner.get_input_details()

    def run(number: int, x: np.ndarray) -> np.ndarray:
        row = np.resize(x, NUMBERS.size)[None]
        return runner(**{given: row})[names[number]][0, : x.size]

    moderate = NUMBERS[np.abs(NUMBERS) < 8]  # XNNPACK's exp is off by 3e-6 of its value at 80
    finite = SPECIAL[np.isfinite(SPECIAL)]  # LiteRT's ADD and MUL bound infinities
    for number, function in enumerate(SMALL_RESULTS.values()):
        assert_digits_kept(function, lambda _, x, number=number: run(number, x), moderate, finite)
    np.testing.assert_array_equal(run(-2, NUMBERS), np.where(NUMBERS > 1, np.inf, NUMBERS))
    np.testing.assert_array_equal(run(-1, NUMBERS), np.where(NUMBERS < 0, -np.inf, NUMBERS))


class Integers(nn.Module):
    """All functions of two integers, and of one, with divisors that are constants and that are computed."""

    def __init__(self):
        super().__init__()
        self.register_buffer("divisors", torch.from_numpy(pairs()[1]))

    def forward(self, pairs, whole):
        computed = torch.where(pairs[0] > 2**62, 1, self.divisors)
        return {
            **{f"{name} of constants": function(pairs[0], self.divisors) for name, function in OF_TWO.items()},
            **{f"{name} of two": function(pairs[0], computed) for name, function in OF_TWO.items()},
            **{f"{name} of one": function(whole[0]) for name, function in OF_ONE.items()},
            "power": whole[0] ** 5,
            "first of the greatest": whole.view(1, 5, 6).argmax(1),
            "last axis": (whole.view(1, 5, 6) // 2**40).argmin(-1),
            "greatest": whole.topk(4, largest=False).values,
        }


def test_integers_of_64_bits_are_exact(tmp_path):
    module, path = Integers(), tmp_path / "integers.tflite"
    given = [torch.from_numpy(array[None]) for array in (pairs()[0], WHOLE)]
    converter.convert(module, to="tflite", output=path, inputs=given, verify=False)
    results = run(path, pairs=given[0].numpy(), whole=given[1].numpy())
    for name, wanted in module(*given).items():
        np.testing.assert_array_equal(results[name], wanted.numpy(), err_msg=name)


class Located(nn.Module):
    """Peaks of a heat map by rows and columns, as detectors find them, and the token that ends a text."""

    def forward(self, heat, text):
        scores, index = heat.flatten(1).topk(5)
        ends = text.argmax(-1)
        return scores, index // heat.shape[-1], index % heat.shape[-1], text[torch.arange(text.shape[0]), ends]


def test_positions_are_computed_in_integers_of_64_bits(tmp_path):
    inputs = torch.randn(1, 1, 6, 7), torch.randint(0, 99, (1, 9))
    report = converter.convert(Located(), to="tflite", output=tmp_path / "located.tflite", inputs=inputs)
    assert report.status == "verified"
