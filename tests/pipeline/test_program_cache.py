"""Models of one architecture converted with the captured program and the plans of the first."""

import copy

import keras
import numpy as np
import pytest
import torch
from torch import nn

from converter.capture.export import capture
from converter.ir.lazy_tensor import LazyTensor, ValueQueries, recording_queries
from converter.pipeline.convert import ConversionSession
from converter.pipeline.program_cache import ProgramCache, architecture
from converter.rewrites.analysis import selection_ops


class Block(nn.Module):
    def __init__(self, slope=0.1, kind=nn.ReLU):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.act = kind()
        self.slope = slope
        self.register_buffer("scale", torch.ones(6, 1, 1))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        y = self.act(self.norm(self.conv(x)))
        y = nn.functional.leaky_relu(self.depthwise(y) * self.scale, self.slope)
        return self.head(y.mean((2, 3)))


def model(seed, calibrate, **settings):
    torch.manual_seed(seed)
    net = Block(**settings)
    net.scale.copy_(torch.rand(6, 1, 1) + 0.5)
    return calibrate(net, torch.randn(4, 3, 8, 8))


@pytest.fixture
def session():
    with ConversionSession(lasting=True) as lasting:
        yield lasting


@pytest.mark.slow
@pytest.mark.parametrize("format, ending", [("tf", "_saved_model"), ("keras", ".keras"), ("onnx", ".onnx")])
def test_later_models_of_an_architecture_are_not_captured_again_and_hold_their_own_weights(
    tmp_path, calibrate, session, format, ending
):
    shapes = ["1,3,8,8"]
    for seed in range(3):
        net = model(seed, calibrate)
        own, alone = tmp_path / f"{seed}{ending}", tmp_path / f"alone{seed}{ending}"
        report = session.convert(net, to=[format], output={format: own}, input_shapes=shapes)
        assert report.status == "verified"
        assert session._cache.hits == seed
        if seed == 2:
            with ConversionSession() as fresh:
                fresh.convert(net, to=[format], output={format: alone}, input_shapes=shapes)
            assert contents(own) == contents(alone)


def test_the_architectures_that_were_asked_for_last_are_kept_up_to_a_number_of_parameters(monkeypatch):
    monkeypatch.setattr("converter.pipeline.program_cache.MOST_PARAMETERS", 100)
    cache = ProgramCache()
    linears = {key: nn.Linear(width, 6).eval() for key, width in zip("abcd", (5, 6, 7, 20), strict=True)}

    def captures(key):
        hits = cache.hits
        width = linears[key].in_features
        cache.capture(key, linears[key], lambda: capture(linears[key], [torch.randn(1, width)], False))
        return cache.hits == hits

    for key in "abc":  # of 36, 42, 48 parameters
        assert captures(key)
        assert not captures("a")
    assert not captures("c")
    assert captures("b")  # "a" and "c" were asked for after it
    assert captures("d")
    assert not captures("d")
    assert captures("c")


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.before = nn.Linear(5, 6)
        self.slopes = nn.PReLU(6)
        self.lstm = nn.LSTM(6, 7, bidirectional=True, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(14) for _ in range(2))
        self.position = nn.Parameter(torch.randn(1, 1, 14))

    def forward(self, x):
        y = self.slopes(self.before(x).transpose(1, 2)).transpose(1, 2)
        y = self.lstm(y)[0] + self.position * 2
        return self.norms[1](self.norms[0](y).tanh())


@pytest.mark.slow
@pytest.mark.parametrize("format, ending", [("tf", "_saved_model"), ("keras", ".keras"), ("onnx", ".onnx")])
def test_recurrent_layers_slopes_and_computed_constants_are_exchanged(tmp_path, session, format, ending):
    for seed in range(3):
        torch.manual_seed(seed)
        net = Sequence().eval()
        with torch.no_grad():
            for parameter in net.parameters() if seed else ():  # those of the first are as PyTorch makes them: equal
                parameter.add_(0.1 * torch.randn_like(parameter))
        path = tmp_path / f"{seed}{ending}"
        report = session.convert(net, to=[format], output={format: path}, input_shapes=["2,4,5"])
        assert report.status == "verified"
        assert session._cache.hits == seed


def contents(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.slow
def test_what_a_rewrite_made_of_values_is_not_taken_over(tmp_path, calibrate, session):
    """A depthwise kernel that is one-hot becomes a shift; the next model's is not."""
    shifting, other = model(0, calibrate), model(1, calibrate)
    with torch.no_grad():
        shifting.depthwise.weight.zero_()
        shifting.depthwise.weight[:, :, 0, 1] = 1
    for number, net in enumerate((shifting, other, shifting)):
        path = tmp_path / f"{number}.keras"
        report = session.convert(net, to=["keras"], output=path, input_shapes=["1,3,8,8"])
        assert report.status == "verified"
        x = torch.randn(2, 3, 8, 8)
        given = keras.saving.load_model(path)(x.permute(0, 2, 3, 1).numpy())
        np.testing.assert_allclose(np.asarray(given), net(x).detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"slope": 0.2}, {"kind": nn.SiLU}, {"attribute": ("conv", "stride", (2, 2))},
        {"attribute": ("norm", "eps", 1e-3)}, {"frozen": True},
    ],
    ids=["a number of the module", "an activation", "a stride", "an epsilon", "what is trained"],
)  # fmt: skip
def test_another_architecture_is_told(calibrate, change):
    settings = {key: value for key, value in change.items() if key in ("slope", "kind")}
    one, other = model(0, calibrate), model(1, calibrate, **settings)
    assert architecture(one) == architecture(model(2, calibrate))
    if "attribute" in change:
        part, name, value = change["attribute"]
        setattr(getattr(other, part), name, value)
    if "frozen" in change:
        other.head.weight.requires_grad_(False)
    assert None is not architecture(one) != architecture(other) is not None


def test_which_tensors_are_one_belongs_to_the_architecture(calibrate):
    one, other = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    assert architecture(one) == architecture(other)
    other[1].weight = other[0].weight
    assert architecture(one) != architecture(other)


def test_state_that_may_hold_anything_is_not_compared(calibrate):
    net = model(0, calibrate)
    net.callback = lambda x: x
    assert architecture(net) is None
    net.callback = copy
    assert architecture(net) is None


def test_questions_are_asked_of_the_new_values():
    weight = torch.zeros(3, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    bias = torch.arange(3.0)
    answers = ValueQueries()
    with recording_queries(answers):
        assert LazyTensor.of(weight).query(selection_ops.has_one_hot_rows)
        LazyTensor.of(bias).map(lambda b: b + 1).compute()
    assert answers.hold()
    weight[:, :, 1, 1], weight[:, :, 0, 0] = 0, 1
    assert answers.hold()  # one-hot still, and no more was asked
    weight[0] = 0.5
    assert not answers.hold()
    weight[0] = 0
    weight[0, 0, 2, 2] = 1
    assert answers.hold()
    bias[1] = 7  # it was read whole
    assert not answers.hold()
