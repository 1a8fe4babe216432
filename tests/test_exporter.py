"""Operators that PyTorch's exporter gets wrong, refuses or takes apart, as ONNX files through all proofs."""

import onnx
import pytest
from equivalence import with_random_tensors
from torch import nn

from converter.conversion import Session

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
    with Session(lasting=True) as held:
        yield held


@pytest.mark.parametrize("module, shape, operators", CASES.values(), ids=CASES)
def test_is_pytorchs_function(session, tmp_path, module, shape, operators):
    report = session.convert(module.eval(), to=("onnx",), output=tmp_path / "net.onnx", input_shapes=[shape])
    (artefact,) = report.artefacts
    assert artefact.status == "verified", [proof.summary for proof in artefact.proofs]
    if operators is not None:
        assert " ".join(node.op_type for node in onnx.load(artefact.path).graph.node) == operators


RECURRENT = {
    "LSTM": nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True),
    "GRU": nn.GRU(4, 3, bias=False, batch_first=True),
    "RNN of tanh": nn.RNN(4, 3, 2, bidirectional=True, batch_first=True),
    "RNN of relu": nn.RNN(4, 3, nonlinearity="relu", bias=False, batch_first=True),
}


@pytest.mark.parametrize("layer", RECURRENT.values(), ids=RECURRENT)
def test_every_recurrent_layer_of_a_process_keeps_its_length_dynamic(session, tmp_path, layer):
    """PyTorch's exporter unrolls all but the first for the 64 steps of the example."""
    for number in range(2):
        layer.reset_parameters()
        model = nn.Sequential(*([nn.Tanh()] * number), layer).eval()
        report = session.convert(model, to=("onnx",), output=tmp_path / "net.onnx", input_shapes=["1,T,4"], force=True)
        (artefact,) = report.artefacts
        assert artefact.status == "verified", [proof.summary for proof in artefact.proofs]
        graph = onnx.load(artefact.path).graph
        assert sum(node.op_type in ("LSTM", "GRU", "RNN") for node in graph.node) == layer.num_layers
        declared = [[dim.dim_param or dim.dim_value for dim in o.type.tensor_type.shape.dim] for o in graph.output]
        directions = 2 if layer.bidirectional else 1
        state = [directions * layer.num_layers, "batch", 3]
        assert declared == [["batch", "T", 3 * directions], *[state] * (len(declared) - 1)]
