"""PyTorch's weights in hand-written Keras models: each row is a way to write a model, or a way to write another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from keras import layers as ks
from torch import Tensor, nn
from torch.nn import functional as F

import cli
import converter
from converter.artifacts.local_model import LocalModel
from converter.errors import ConversionError
from converter.options import IntoOptions
from converter.pipeline.build import interfaces
from converter.pipeline.clock import Clock
from converter.pipeline.into import functional, match
from converter.pipeline.load_model import load_model
from converter.verification.value_matching import Matched


def randomized(module: nn.Module) -> nn.Module:
    """Return the module for inference, with random values in all of its parameters and statistics."""
    torch.manual_seed(0)
    for part in module.modules():
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if name == "running_var":
                tensor.uniform_(0.5, 2)
            elif tensor.ndim < 2 and tensor.is_floating_point():
                nn.init.normal_(tensor.data)
    return module.eval()


def matched(module: nn.Module, model: Any, *shapes: str) -> Matched:
    """Match the layers, and compare the models on other inputs."""
    options = IntoOptions.of(input_shapes=shapes)
    source = load_model(randomized(module), options, clock=Clock(None))
    opened = LocalModel(functional(model, source))
    found = match(source, opened, interfaces(source.program)[0], options)
    rng = np.random.default_rng(1)
    inputs = []
    for node in source.program.placeholders:
        shape = [3 if i == 0 else int(n) for i, n in enumerate(node.meta["val"].shape)]
        drawn = rng.integers(0, 5, shape) if not node.meta["val"].is_floating_point() else rng.standard_normal(shape)
        inputs.append(torch.from_numpy(drawn).to(node.meta["val"].dtype))
    by_name = dict(zip(source.program.inputs, inputs, strict=True))
    given = {spec.name: last(by_name.get(spec.name, inputs[0]).numpy(), spec.shape) for spec in opened.inputs}
    results = opened.run(given)
    with torch.no_grad():
        expected = [value.numpy() for value in source.program.run(*inputs)]
    for value, spec in zip(expected, opened.outputs, strict=True):
        np.testing.assert_allclose(results[spec.name], last(value, spec.shape), rtol=1e-3, atol=1e-4)
    return found


def last(value: np.ndarray, shape: tuple[int | None, ...] | None) -> np.ndarray:
    assert shape is not None
    fits = all(n in (None, m) for n, m in zip(shape[1:], value.shape[1:], strict=True))
    return value if fits else np.moveaxis(value, 1, -1)


class Branches(nn.Module):
    """A block with a shortcut, padding within forward, and a flatten of channels and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.groups = nn.GroupNorm(4, 12)
        self.shortcut = nn.Conv2d(8, 12, 1, 2)
        self.hidden = nn.Linear(12 * 4 * 4, 12)
        self.layer_norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(F.pad(x, (0, 1, 0, 1)))).relu()
        x = self.groups(self.pointwise(self.depthwise(x)).relu()) + self.shortcut(x)
        return self.head(self.layer_norm(self.hidden(x.flatten(1))))


def branches(shortcut_first: bool = False, softmax: bool = False, epsilon: float = 1e-5) -> keras.Model:
    image = keras.Input((16, 16, 3))
    x = ks.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = ks.ReLU()(ks.BatchNormalization()(x))

    def shortcut() -> Any:
        return ks.Conv2D(12, 1, strides=2)(x)

    early = shortcut() if shortcut_first else None
    y = ks.DepthwiseConv2D(3, strides=2)(ks.ZeroPadding2D(1)(x))
    y = ks.GroupNormalization(4, epsilon=epsilon)(ks.Conv2D(12, 1, activation="relu")(y))
    y = ks.Flatten()(ks.Add()([y, early if early is not None else shortcut()]))
    y = ks.LayerNormalization(epsilon=1e-5)(ks.Dense(12)(y))
    return keras.Model(image, ks.Dense(5, activation="softmax" if softmax else None)(y))


def stack(*layers: Any, shape: tuple[int, ...] = (6, 6, 3), dtype: str = "float32") -> keras.Model:
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def convolutions(*between: nn.Module, **settings: Any) -> nn.Module:
    second = nn.Conv2d(8, 8, 3, **{"padding": 1, **settings})
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *between, second)


def in_keras(*between: Any, **settings: Any) -> keras.Model:
    second = ks.Conv2D(8, 3, name="second", **{"padding": "same", **settings})
    return stack(ks.Conv2D(8, 3, padding="same", name="first"), *between, second)


class Joined(nn.Module):
    """Two maps of one input, which are one in Keras."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 2, bias=False), nn.Linear(4, 4), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.one(x), self.two(x)], -1).relu())


class Tokens(nn.Module):
    """A transformer's block: patches, a class token, positions, packed attention, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3, 3)
        self.cls_token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj, self.scale = nn.Linear(8, 24), nn.Linear(8, 8), nn.Parameter(torch.randn(8))
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions
        y = self.norm1(x)
        q, k, v = self.qkv(y).reshape(len(x), 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 5, 8)
        x = x + self.scale * self.proj(y)
        y = self.norm2(x).transpose(0, 1)
        return x + self.attention(y, y, y, need_weights=False)[0].transpose(0, 1)


class LayerScale(ks.Layer):
    def build(self, shape: Any) -> None:
        self.gamma = self.add_weight(shape=(shape[-1],))

    def call(self, x: Any) -> Any:
        return x * self.gamma


class ClassToken(ks.Layer):
    def build(self, shape: Any) -> None:
        self.token = self.add_weight(shape=(1, 1, shape[-1]))
        self.places = ks.Embedding(shape[1] + 1, shape[-1])
        self.places.build((1, shape[1] + 1))

    def call(self, x: Any) -> Any:
        token = keras.ops.tile(self.token, (keras.ops.shape(x)[0], 1, 1))
        x = keras.ops.concatenate([token, x], 1)
        return x + self.places(keras.ops.arange(x.shape[1])[None])


def tokens() -> keras.Model:
    image = keras.Input((6, 6, 3))
    x = ClassToken()(ks.Reshape((4, 8))(ks.Conv2D(8, 3, strides=3)(image)))
    y = ks.LayerNormalization(epsilon=1e-5)(x)
    x = x + LayerScale()(ks.MultiHeadAttention(2, 4, name="first")(y, y))
    y = ks.LayerNormalization(epsilon=1e-5)(x)
    return keras.Model(image, x + ks.MultiHeadAttention(2, 4, name="second")(y, y))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 6)
        self.lstm = nn.LSTM(6, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(8, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, words: Tensor, more: Tensor) -> Tensor:
        x = self.gru(self.lstm(self.table(words))[0].transpose(0, 1))[0]
        return self.head(x[-1]) + self.head(more)


def recurrent() -> keras.Model:
    words, more = keras.Input((7,), dtype="int64", name="words"), keras.Input((3,), name="more")
    x = ks.Embedding(5, 6)(words)
    for _ in range(2):
        x = ks.Bidirectional(ks.LSTM(4, return_sequences=True))(x)
    head = ks.Dense(3)
    return keras.Model([more, words], head(more) + head(ks.GRU(3)(x)))


class Written(keras.Model):
    """A subclass of keras.Model, with a separable convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.separable = ks.SeparableConv2D(4, 3, depth_multiplier=2, activation="relu")
        self.head = ks.Dense(2)

    def call(self, x: Any) -> Any:
        return self.head(keras.ops.mean(self.separable(x), (1, 2)))


class Skips(nn.Module):
    """Joined channels before each kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(12, 6, 1), nn.Conv2d(3, 4, 1)
        self.norm, self.depthwise = nn.BatchNorm2d(10), nn.Conv2d(10, 20, 3, padding=1, groups=10)
        self.conv, self.up = nn.Conv2d(20, 6, 3), nn.ConvTranspose2d(6, 4, 2, 2)
        self.layer_norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        blocks = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = torch.cat([self.one(torch.cat(blocks, 1)), self.two(x[..., ::2, ::2])], 1)
        x = self.up(self.conv(self.depthwise(F.silu(self.norm(x)))).roll(1, 1))
        return self.head(self.layer_norm(x.roll(1, 1).permute(0, 2, 3, 1)).roll(1, -1).relu())


def skips() -> keras.Model:
    image = keras.Input((8, 8, 3))
    blocks = [image[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    x = ks.Concatenate()([ks.Conv2D(4, 1)(blocks[0]), ks.Conv2D(6, 1)(ks.Concatenate()(blocks))])
    x = ks.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(keras.ops.silu(ks.BatchNormalization()(x)))
    x = ks.Conv2DTranspose(4, 2, strides=2)(ks.Conv2D(6, 3)(x))
    x = ks.LayerNormalization(epsilon=1e-5)(keras.ops.flip(x, -1))
    return keras.Model(image, ks.Dense(2)(ks.ReLU()(keras.ops.roll(x, 2, -1))))


IMAGE = ("1,3,6,6",)
Row = tuple[Callable[[], nn.Module], Callable[[], Any], tuple[str, ...]]
PAIRS: dict[str, Row] = {
    "branches": (Branches, branches, ("1,3,16,16",)),
    "shortcut first": (Branches, lambda: branches(shortcut_first=True), ("1,3,16,16",)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 5, 2, 2), nn.PReLU(5), nn.ConvTranspose2d(5, 4, 3, padding=1)),
        lambda: stack(ks.Conv2DTranspose(5, 2, strides=2), ks.PReLU(shared_axes=(1, 2)),
                      ks.Conv2DTranspose(4, 3, padding="same")),
        IMAGE,
    ),
    "norms": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1),
                              nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4)),
        lambda: stack(ks.Conv2D(4, 1), ks.BatchNormalization(scale=False, center=False), ks.Conv2D(4, 1),
                      ks.GroupNormalization(-1, epsilon=1e-5), ks.BatchNormalization(epsilon=1.5)),
        IMAGE,
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3, dilation=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 3)),
        lambda: stack(ks.Conv1D(4, 3, dilation_rate=2, activation="relu"), ks.Flatten(), ks.Dense(3), shape=(12, 3)),
        ("1,3,12",),
    ),
    "joined, each step": (
        lambda: Joined(),
        lambda: stack(ks.TimeDistributed(ks.Dense(6)), ks.Activation("relu"), ks.Dense(2), shape=(5, 4)),
        ("1,5,4",),
    ),
    "channels in another order": (Skips, skips, ("1,3,8,8",)),
    "tokens": (Tokens, tokens, IMAGE),
    "recurrent": (Recurrent, recurrent, ("words=1,7:int64", "more=1,3")),
    "a subclass": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.Conv2d(6, 4, 1), nn.ReLU(),
                              nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        lambda: Written(),
        IMAGE,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_weights_go_into_layers_by_the_values_that_flow(name: str) -> None:
    module, model, shapes = PAIRS[name]
    found = matched(module(), model(), *shapes)
    assert found.pairs
    assert not found.unused


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "stride": (lambda: convolutions(stride=1), lambda: in_keras(strides=2),
               "`second` is none of PyTorch's operators: its stride is (2, 2), that of `1` (1, 1)"),
    "padding": (lambda: convolutions(stride=2), lambda: in_keras(strides=2),
                "its padding is 'same', which pads [(0, 1), (0, 1)], that of `1` [(1, 1), (1, 1)]"),
    "dilation": (lambda: convolutions(padding=2, dilation=2), in_keras, "its dilation is (1, 1), that of `1` (2, 2)"),
    "missing activation": (lambda: convolutions(nn.ReLU()), in_keras, "takes relu of its input"),
    "another activation": (lambda: convolutions(nn.GELU()), lambda: in_keras(ks.Activation("silu")),
                           "the activation before it is silu, that before `2` is gelu"),
    "scale": (convolutions, lambda: stack(ks.Rescaling(1 / 255), ks.Conv2D(8, 3, padding="same", name="first")),
              "its input is that of `0` times 0.00392"),
    "order": (lambda: convolutions(nn.ReLU(), nn.BatchNorm2d(8)), lambda: in_keras(ks.BatchNormalization(), ks.ReLU()),
              "`batch_normalization"),
    "pool": (lambda: convolutions(nn.MaxPool2d(2)), lambda: in_keras(ks.AveragePooling2D(2, name="pool")),
             "the result of `pool` (AveragePooling2D) before it is another"),
    "width": (convolutions, lambda: stack(ks.Conv2D(7, 3, padding="same")), "no weights fit its shape (3, 3, 3, 7)"),
    "bias": (convolutions, lambda: stack(ks.Conv2D(8, 3, padding="same", use_bias=False)),
             "it has no bias, `0` has one"),
    "half": (lambda: nn.Conv2d(3, 8, 1), lambda: stack(ks.Conv2D(4, 1)), "Only 50% of the weights"),
    "another kind of layer": (
        lambda: nn.LSTM(3, 4, batch_first=True),
        lambda: stack(ks.RNN(ks.LSTMCell(4), return_sequences=True), shape=(6, 3)),
        "gives no value of PyTorch's with any of its parameters",
    ),
    "called again": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)),
        lambda: (lambda layer: stack(layer, ks.ReLU(), layer))(ks.Conv2D(3, 1)),
        "PyTorch calls `0` no more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_the_first_layer_that_differs_is_named_and_in_what(name: str) -> None:
    module, model, told = REFUSED[name]
    with pytest.raises(ConversionError) as caught:
        matched(module(), model(), *(("1,6,3",) if name == "another kind of layer" else IMAGE))
    assert told in caught.value.what


@pytest.mark.slow
def test_another_epsilon_is_refused_where_nothing_makes_up_for_it() -> None:
    with pytest.raises(ConversionError, match=r"its epsilon is 0\.001, that of `groups` 1e-05"):
        matched(Branches(), branches(epsilon=1e-3), "1,3,16,16")


class Dead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.one(x) - 1000).relu()
        return self.two(x) + self.three(x)


class Joining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([(self.one(x) - 1000).relu(), self.two(x)], 1))


def test_equal_channels_do_not_tell_their_order() -> None:
    given = keras.Input((6, 6, 3))
    one, two = keras.ops.relu(ks.Conv2D(2, 1)(given) - 1000), ks.Conv2D(2, 1)(given)
    with pytest.raises(ConversionError, match="equal ones do not tell which is which"):
        matched(Joining(), keras.Model(given, ks.Conv2D(5, 3)(ks.Concatenate()([two, one]))), *IMAGE)


def test_constant_values_do_not_tell_layers_apart() -> None:
    given = keras.Input((4,))
    x = keras.ops.relu(ks.Dense(4)(given) - 1000)
    with pytest.raises(ConversionError, match="is 0 everywhere"):
        matched(Dead(), keras.Model(given, ks.Dense(4)(x) + ks.Dense(4)(x)), "1,4")


BUILDER = """
import keras
def build(classes, activation=None):
    return keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(),
                             keras.layers.Dense(classes, activation=activation, name="head")])
"""


@pytest.mark.slow
def test_the_command_writes_what_agrees_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)))
    torch.save(module, "net.pt")
    Path("built.py").write_text(BUILDER)
    call = ["into", "net.pt", "built.py:build", "--input-shape", "1,3,6,6", "--json"]
    softmax = json.dumps({"classes": 5, "activation": "softmax"})

    refused = CliRunner().invoke(cli.main, [*call, "--build-args", '{"wide": 5}'])
    assert (refused.exit_code, json.loads(refused.stdout)["code"]) == (2, "PTC1021")
    differs = CliRunner().invoke(cli.main, [*call, "--build-args", softmax, "-o", "net.weights.h5"])
    assert differs.exit_code == 3, differs.output
    assert not Path("net.weights.h5").exists()
    accepted = CliRunner().invoke(
        cli.main, [*call, "--build-args", softmax, "-o", "net.weights.h5", "--accept", "softmax"]
    )
    assert accepted.exit_code == 0, accepted.output
    report = json.loads(accepted.stdout)
    assert [pair["module"] for pair in report["pairs"]] == ["0", "2"]
    assert report["pairs"][1]["layer"] == "head"

    result = converter.into("net.pt", "built.py:build", build_args={"classes": 5}, input_shapes=["1,3,6,6"])
    assert (result.status, result.artifact) == ("verified", "net.keras")
    opened = keras.saving.load_model("net.keras")
    opened.load_weights("net.weights.h5")
