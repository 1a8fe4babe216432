"""Operators that PyTorch's exporter gets wrong, refuses or takes apart, and constants that it folds, merges or renames,
as ONNX files through all proofs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from equivalence import with_random_tensors
from mutations.graph_faults import write_initializers
from torch import Tensor, nn

import converter
from converter.options import ArtifactOptions, LoadOptions
from converter.pipeline.build import RewrittenModel, build
from converter.pipeline.clock import Clock
from converter.pipeline.convert import ConversionSession
from converter.pipeline.load_model import load_model
from converter.verification.prove import prove_weights

IMAGE, SEQUENCE = "1,3,8,9", "1,3,9"
CASES = {
    "windows rounded up that ONNX would take and PyTorch does not": (
        nn.MaxPool2d(2, 3, 1, 2, ceil_mode=True), IMAGE, "MaxPool MaxPool"
    ),
    "the same of an average that does not count its padding": (
        nn.AvgPool2d((3, 2), (2, 3), 1, ceil_mode=True, count_include_pad=False), "1,3,8,8", "AveragePool AveragePool"
    ),
    "a divisor, rounded up": (nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=5), IMAGE, "Pad AveragePool Mul"),
    "a divisor of volumes": (nn.AvgPool3d(2, 2, divisor_override=3), "1,2,4,5,6", "AveragePool Mul"),
    "linear by a factor": (nn.Upsample(scale_factor=1.5, mode="linear"), SEQUENCE, "Resize"),
    "linear by a factor that leaves something over": (nn.Upsample(scale_factor=0.4, mode="linear"), SEQUENCE, "Resize"),
    "linear with its corners aligned": (
        nn.Upsample(scale_factor=2, mode="linear", align_corners=True), SEQUENCE, "Resize"
    ),
    "linear to a size": (nn.Upsample(size=7, mode="linear"), SEQUENCE, "Shape Concat Resize"),
    "linear to one element": (nn.Upsample(size=1, mode="linear"), SEQUENCE, "Shape Concat Resize"),
    "windows of a free size": (nn.AdaptiveAvgPool2d((2, 3)), "1,3,H,W", None),
    "maxima in windows of a free size": (nn.AdaptiveMaxPool2d((4, 1)), "1,3,H,W", None),
    "maxima of a free length, rounded up": (nn.MaxPool1d(3, 2, ceil_mode=True), "1,3,T", None),
    "zeros before maxima of negative values": (
        nn.Sequential(nn.LogSigmoid(), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1)), IMAGE,
        "Neg Softplus Neg Pad MaxPool",
    ),
    "the same of free sizes, with padding of the pool's own": (
        nn.Sequential(nn.LogSigmoid(), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2, 1)), "1,3,H,W", None
    ),
    "of a sequence, windows in the zeros alone": (
        nn.Sequential(nn.ReLU(), nn.ConstantPad1d(4, 0), nn.MaxPool1d(2, 1)), SEQUENCE, None
    ),
    "of volumes": (
        nn.Sequential(nn.LogSigmoid(), nn.ZeroPad3d((1, 0, 2, 1, 0, 1)), nn.MaxPool3d(2, 1)), "1,2,4,5,6", None
    ),
    "behind dropout": (nn.Sequential(nn.ZeroPad2d(1), nn.Dropout(), nn.MaxPool2d(2)), IMAGE, "Pad MaxPool"),
    "pads of a value": (
        nn.Sequential(nn.LogSigmoid(), nn.ConstantPad2d(1, -0.5), nn.MaxPool2d(2)), IMAGE, None
    ),
    "pads of minus infinity": (nn.Sequential(nn.ConstantPad2d(1, -float("inf")), nn.MaxPool2d(3)), IMAGE, None),
    "a slope that would be a position, cut to an integer": (nn.Sequential(nn.Unfold(1), nn.PReLU()), IMAGE, None),
    "a norm behind a grouped transposed convolution": (
        with_random_tensors(
            nn.Sequential(nn.ConvTranspose1d(3, 6, 4, 2, 2, 1, groups=3, bias=False), nn.BatchNorm1d(6, affine=False))
        ),
        SEQUENCE, "ConvTranspose",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def session():
    with ConversionSession(lasting=True) as held:
        yield held


@pytest.mark.slow
@pytest.mark.parametrize("module, shape, operators", CASES.values(), ids=CASES)
def test_is_pytorchs_function(session, tmp_path, module, shape, operators):
    report = session.convert(module.eval(), to=("onnx",), output=tmp_path / "net.onnx", input_shapes=[shape])
    (artifact,) = report.artifacts
    assert artifact.status == "verified", [proof.summary for proof in artifact.proofs]
    if operators is not None:
        assert " ".join(node.op_type for node in onnx.load(artifact.path).graph.node) == operators


RECURRENT = {
    "LSTM": nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True),
    "GRU": nn.GRU(4, 3, bias=False, batch_first=True),
    "RNN of tanh": nn.RNN(4, 3, 2, bidirectional=True, batch_first=True),
    "RNN of relu": nn.RNN(4, 3, nonlinearity="relu", bias=False, batch_first=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("layer", RECURRENT.values(), ids=RECURRENT)
def test_every_recurrent_layer_of_a_process_keeps_its_length_dynamic(session, tmp_path, layer):
    """PyTorch's exporter unrolls all but the first for the 64 steps of the example."""
    for number in range(2):
        layer.reset_parameters()
        model = nn.Sequential(*([nn.Tanh()] * number), layer).eval()
        report = session.convert(model, to=("onnx",), output=tmp_path / "net.onnx", input_shapes=["1,T,4"], force=True)
        (artifact,) = report.artifacts
        assert artifact.status == "verified", [proof.summary for proof in artifact.proofs]
        graph = onnx.load(artifact.path).graph
        assert sum(node.op_type in ("LSTM", "GRU", "RNN") for node in graph.node) == layer.num_layers
        declared = [[dim.dim_param or dim.dim_value for dim in o.type.tensor_type.shape.dim] for o in graph.output]
        directions = 2 if layer.bidirectional else 1
        state = [directions * layer.num_layers, "batch", 3]
        assert declared == [["batch", "T", 3 * directions], *[state] * (len(declared) - 1)]


class Calls(nn.Module):
    """`forward` is a function of the module, whose attributes are the keywords."""

    def __init__(self, function: Callable, **attributes: object):
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def warped(net: Calls, x: Tensor) -> Tensor:
    """A spatial transformer: the grid of ones and positions is a constant of `affine_grid`'s."""
    theta = net.theta(x.flatten(2).mean(2)).view(-1, x.ndim - 2, x.ndim - 1)
    return net.conv(F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False))


def flowing(net: Calls, x: Tensor) -> Tensor:
    """Semantic Flow's grid, as published."""
    h, w = x.shape[2:]
    norm = torch.tensor([[[[w, h]]]]).type_as(x).to(x.device)
    rows = torch.linspace(-1.0, 1.0, h).view(-1, 1).repeat(1, w)
    columns = torch.linspace(-1.0, 1.0, w).repeat(h, 1)
    grid = torch.cat((columns.unsqueeze(2), rows.unsqueeze(2)), 2).repeat(x.shape[0], 1, 1, 1).type_as(x)
    return F.grid_sample(x, grid + net.flow(x).permute(0, 2, 3, 1) / norm, align_corners=False)


def shifted(net: Calls, x: Tensor) -> Tensor:
    """Four parts moved by grids that `torch.cat` makes, joined by `torch.cat`: the names of all are alike."""
    h, w = x.shape[2:]
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    moved = []
    for part, (dy, dx) in zip(x.chunk(4, 1), ((0, 1), (0, -1), (1, 0), (-1, 0)), strict=True):
        grid = torch.cat([(xs + 2 * dx / (w - 1))[..., None], (ys + 2 * dy / (h - 1))[..., None]], -1)
        grid = grid.expand(x.shape[0], -1, -1, -1)
        moved.append(F.grid_sample(part, grid, net.mode, padding_mode="border", align_corners=True))
    return torch.cat(moved, 1)


def anchored(net: Calls, x: Tensor) -> Tensor:
    """A detection head's boxes from anchors and strides that it computes from the sizes of its maps."""
    points, strides = [], []
    for size, stride in ((x.shape[2:], 4.0), ((x.shape[2] // 2, x.shape[3] // 2), 8.0)):
        axes = [torch.arange(n).to(x.dtype) + 0.5 for n in size]
        y, column = torch.meshgrid(*axes, indexing="ij")
        points.append(torch.stack((column, y), -1).view(-1, 2))
        strides.append(torch.full((size[0] * size[1], 1), stride))
    anchors, steps = (torch.cat(each).transpose(0, 1) for each in (points, strides))
    first = net.box(x).flatten(2)
    boxes = torch.cat([first, net.box(F.avg_pool2d(x, 2)).flatten(2)], 2)
    low, high = boxes.chunk(2, 1)
    return torch.cat((anchors.unsqueeze(0) - low, anchors.unsqueeze(0) + high), 1) * steps


def banded(net: Calls, x: Tensor) -> Tensor:
    """A mask of booleans from positions, and a bias that falls with the distance."""
    i = torch.arange(x.shape[1])
    far = (i[None] - i[:, None]).abs()
    scores = net.query(x) @ x.transpose(1, 2)
    return (scores.masked_fill(~((far < 4) & (i[None] <= i[:, None])), -1e4) - far.float() * 0.37).softmax(-1) @ x


def placed(net: Calls, x: Tensor) -> Tensor:
    """Sines of positions, times a weight: of more elements than the optimizer folds at once."""
    positions = torch.linspace(0, 3, 3000)[:, None] * torch.exp(torch.arange(0, 4) * -0.7)
    return x + positions.sin() * net.scale


def units(conv: type[nn.Module], norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(conv(2, 6, 1), norm(), nn.PReLU(), conv(6, 6, 1), norm(), nn.PReLU(), conv(6, 2, 1))


def constant_weights() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    return net


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)


FRESH: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "group norms": (lambda: units(nn.Conv2d, lambda: nn.GroupNorm(2, 6)), "1,2,5,4"),
    "group norms of volumes": (lambda: units(nn.Conv3d, lambda: nn.GroupNorm(1, 6)), "1,2,3,4,5"),
    "instance norms": (lambda: units(nn.Conv2d, lambda: nn.InstanceNorm2d(6, affine=True)), "1,2,5,4"),
    "slopes of channels": (lambda: units(nn.Conv1d, lambda: nn.PReLU(6)), "1,2,9"),
    "constant weights": (constant_weights, "1,6"),
    "an encoder of a free length": (encoder, "1,T,8"),
    "a temperature of one": (
        lambda: Calls(lambda net, x: net.l(x) * net.t, l=nn.Linear(5, 4), t=nn.Parameter(torch.tensor(1.0))),
        "1,5",
    ),
    "norms of a batch": (lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6)), "1,6"),
}
COMPUTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a spatial transformer": (lambda: Calls(warped, theta=nn.Linear(2, 6), conv=nn.Conv2d(2, 3, 3)), "1,2,6,9"),
    "a large one": (lambda: Calls(warped, theta=nn.Linear(2, 6), conv=nn.Conv2d(2, 3, 3)), "1,2,40,44"),
    "one of volumes": (lambda: Calls(warped, theta=nn.Linear(2, 12), conv=nn.Conv3d(2, 3, 1)), "1,2,20,24,28"),
    "a flow": (lambda: Calls(flowing, flow=nn.Conv2d(2, 2, 3, 1, 1)), "1,2,6,9"),
    "a large flow": (lambda: Calls(flowing, flow=nn.Conv2d(2, 2, 3, 1, 1)), "1,2,64,96"),
    "shifts": (lambda: Calls(shifted, mode="bilinear"), "1,8,5,5"),
    "nearest shifts": (lambda: Calls(shifted, mode="nearest"), "1,8,5,5"),
    "anchors": (lambda: Calls(anchored, box=nn.Conv2d(3, 4, 1)), "1,3,8,12"),
    "a banded mask": (lambda: Calls(banded, query=nn.Linear(6, 6)), "1,11,6"),
    "large positions": (lambda: Calls(placed, scale=nn.Parameter(torch.randn(4))), "1,3000,4"),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.slow
@pytest.mark.parametrize("make, shape", (FRESH | COMPUTED).values(), ids=FRESH | COMPUTED)
def test_what_the_exporter_folds_and_merges_is_no_fault(session, tmp_path, make, shape):
    options = {"keep_batchnorm": True}
    report = session.convert(made(make), to=("onnx",), output=tmp_path / "net.onnx", input_shapes=[shape], **options)
    (artifact,) = report.artifacts
    assert artifact.status == "verified", [proof.summary for proof in artifact.proofs]


def written(make: Callable[[], nn.Module], shape: str, path: Path) -> tuple[RewrittenModel, dict[str, np.ndarray]]:
    source = load_model(made(make), LoadOptions.of(input_shapes=[shape]), clock=Clock(None))
    built = build(source, "onnx", ArtifactOptions(keep_batchnorm=True), Clock(None))
    built.write(path)
    return built, {t.name: onnx.numpy_helper.to_array(t).copy() for t in onnx.load(path).graph.initializer}


def spoilt(array: np.ndarray, by: float | None) -> np.ndarray:
    """The largest value off by a part of it, or by one bit."""
    result = array.copy()
    place = np.abs(result).argmax()
    largest = result.flat[place]
    result.flat[place] = np.nextafter(largest, np.float32(9e9)) if by is None else largest * (1 + by)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name, by", [*((name, None) for name in FRESH), *((name, 1e-5) for name in COMPUTED)])
def test_a_changed_constant_is_caught_by_its_values_alone(tmp_path, name, by):
    built, tensors = written(*(FRESH | COMPUTED)[name], tmp_path / "net.onnx")
    assert prove_weights(built, tensors).holds
    large = {name: array for name, array in tensors.items() if array.dtype == np.float32 and array.size > 1}
    for tensor, array in large.items():
        proof = prove_weights(built, tensors | {tensor: spoilt(array, by)})
        assert any(tensor in failure for failure in proof.failures), tensor


@pytest.mark.slow
def test_a_merged_tensor_that_is_gone_is_missed(tmp_path):
    built, tensors = written(*FRESH["group norms"], tmp_path / "net.onnx")
    ones = [name for name, array in tensors.items() if array.shape == (6, 1, 1) and (array == 1).all()]
    assert len(ones) == 1  # of both norms
    proof = prove_weights(built, {name: array for name, array in tensors.items() if name not in ones})
    assert {f.partition(":")[0] for f in proof.failures} >= {"1.weight", "4.weight"}


@pytest.mark.slow
def test_a_fold_that_the_optimizer_gets_wrong_is_caught(tmp_path, monkeypatch):
    from onnxscript.optimizer import _constant_folding

    evaluate = _constant_folding._reference_evaluator.evaluate

    def wrong(*arguments, **attributes):
        result = evaluate(*arguments, **attributes)
        return (
            result * np.float32(1 + 1e-5) if isinstance(result, np.ndarray) and result.dtype == np.float32 else result
        )

    monkeypatch.setattr(_constant_folding._reference_evaluator, "evaluate", wrong)
    built, tensors = written(*COMPUTED["a spatial transformer"], tmp_path / "net.onnx")
    assert not prove_weights(built, tensors).holds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["group norms", "a large one", "anchors"])
def test_verify_finds_what_was_folded_and_what_was_changed_since(session, tmp_path, name):
    make, shape = (FRESH | COMPUTED)[name]
    path = tmp_path / "net.onnx"
    session.convert(made(make), to=("onnx",), output=path, input_shapes=[shape])
    assert converter.verify(made(make), path, input_shapes=[shape]).status == "verified"
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    largest = max((n for n, array in held.items() if array.dtype == np.float32), key=lambda n: held[n].size)
    write_initializers(path, {largest: spoilt(held[largest], 1e-4)})
    proofs = converter.verify(made(make), path, input_shapes=[shape]).proofs
    assert [proof.holds for proof in proofs if proof.name == "weights"] == [False]


@pytest.mark.slow
def test_constants_of_another_version_are_found_by_their_values(tmp_path):
    built, tensors = written(*COMPUTED["anchors"], tmp_path / "net.onnx")
    renamed = {name if name.startswith("box") else f"other_{name}": array for name, array in tensors.items()}
    assert set(renamed) != set(tensors)
    assert prove_weights(built, renamed).holds


@pytest.mark.slow
def test_names_of_outputs_and_of_the_models_own_tensors_may_be_alike(session, tmp_path):
    def named(net, x):
        return {"add": x * net.mul, "mul": x.relu() + net.add, "output": (x + 1) * net.output, "cat": net.cat}

    tensors = {name: nn.Parameter(torch.randn(5)) for name in ("add", "mul", "output", "cat")}
    path = tmp_path / "net.onnx"
    report = session.convert(made(lambda: Calls(named, **tensors)), to=("onnx",), output=path, input_shapes=["1,5"])
    (artifact,) = report.artifacts
    assert [proof.holds for proof in artifact.proofs if proof.name == "weights"] == [True]
    assert [output.name for output in onnx.load(path).graph.output] == ["add", "mul", "output", "cat"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "function, zeros",
    [
        (lambda net, x: x / (x.abs().sum(-1, keepdim=True) + 1e-9), 0.0),
        (lambda net, x: (x + 1) * 1.000009, np.float32(1.000009)),
    ],
    ids=["0.000000001 added", "times 1.000009"],
)
def test_what_is_nearly_nothing_is_left_where_it_is(session, tmp_path, function, zeros):
    path = tmp_path / "net.onnx"
    report = session.convert(Calls(function), to=("onnx",), output=path, input_shapes=["1,5"])
    assert report.artifacts[0].status == "verified"
    run = onnxruntime.InferenceSession(path).run(None, {"x": np.zeros((2, 5), np.float32)})[0]
    assert (run == zeros).all()


class Norm(nn.Sequential):
    """A batch norm that normalizes by the batch, with running statistics that it does not read."""

    def forward(self, x):
        norm = self[1]
        x = F.batch_norm(self[0](x), norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)
        return x.relu()


def resized(**how):
    return Calls(lambda net, x: F.interpolate(net.conv(x), **how), conv=nn.Conv2d(3, 4, 3, padding=1))


BY_THE_BATCH = {
    "without running statistics": nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
    "with running statistics": Norm(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)),
}
RESIZED = {
    f"{mode} by {factor}": resized(mode=mode, scale_factor=factor, antialias="exact" not in mode)
    for mode in ("nearest-exact", "bilinear", "bicubic")
    for factor in (2.0, 1.7, 0.6)
} | {"nearest-exact to a size": resized(mode="nearest-exact", size=(13, 7))}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tf", "keras", "onnx"])
@pytest.mark.parametrize("module", BY_THE_BATCH.values(), ids=BY_THE_BATCH)
def test_norms_by_the_batch_are_verified(session, tmp_path, module, format):
    report = session.convert(module.eval(), to=(format,), output=tmp_path / f"net.{format}", input_shapes=["1,3,9,8"])
    assert report.artifacts[0].status == "verified", [proof.failures for proof in report.artifacts[0].proofs]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["1,3,H,W", "1,3,9,8"])
@pytest.mark.parametrize("module", RESIZED.values(), ids=RESIZED)
def test_images_of_any_size_are_resized(session, tmp_path, module, shape):
    report = session.convert(module.eval(), to=("onnx",), output=tmp_path / "net.onnx", input_shapes=[shape])
    assert report.artifacts[0].status == "verified", [proof.failures for proof in report.artifacts[0].proofs]
