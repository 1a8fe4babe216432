"""Training on from a Keras file: a step gives PyTorch's new weights, what is frozen stays, accuracy rises as there."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from equivalence import Call, with_random_tensors
from torch import Tensor, nn
from torch.nn import functional as F

import converter
from converter.artifacts.runtime.stamp import read_stamp

RATE = 0.125  # exact in binary: Keras' optimizers hold it in float32
STEP = 1e-12  # of a tensor's scale


def keras_file(model: nn.Module, shape: tuple[int, ...], folder: Path, dtype: str = "float32"):
    path = folder / "model.keras"
    shapes = [",".join(map(str, shape)) + f":{dtype}"]
    report = converter.convert(model, to=["keras"], output=path, input_shapes=shapes, verify=False)
    return path, report.artifacts[0]


def opened(path: Path, precision: str = "float32"):
    """The file's model; in float64 it is made from the file's own configuration, raised."""
    import keras

    model = keras.saving.load_model(path)
    if precision == "float32":
        return model
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json").decode().replace('"float32"', f'"{precision}"'))
    raised = keras.saving.deserialize_keras_object(config)
    raised.set_weights([weight.astype(precision) for weight in model.get_weights()])
    return raised


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.scaled = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8, momentum=0.3, eps=1e-3)
        self.body, self.plain = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12, affine=False)
        self.slope, self.scale = nn.PReLU(12), nn.Parameter(torch.ones(12, 1, 1))
        self.classify = nn.Linear(12, 5)

    def forward(self, x):
        x = F.silu(self.scaled(self.depthwise(F.relu(self.norm(self.stem(x))))))
        return self.classify((self.slope(self.plain(self.body(x))) * self.scale).mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Embedding(11, 12), nn.Parameter(torch.zeros(1, 7, 12))
        layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(12), enable_nested_tensor=False)
        self.classify = nn.Linear(12, 5)

    def forward(self, tokens):
        return self.classify(self.encode(self.embed(tokens) + self.position)[:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM):
        super().__init__()
        self.read, self.classify = kind(5, 6, 2, batch_first=True, bidirectional=True), nn.Linear(12, 5)

    def forward(self, x):
        return self.classify(self.read(x)[0][:, -1])


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))


def expected_weights(layer, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a Keras layer's variables must hold, by their names, written out for each kind."""
    path = path_of(layer.name, state)
    own = {name.removeprefix(f"{path}."): t for name, t in state.items() if name.startswith(f"{path}.")}
    match type(layer).__name__:
        case "Conv2D":
            return {"kernel": own["weight"].transpose(2, 3, 1, 0), "bias": own.get("bias")}
        case "Conv1D":
            return {"kernel": own["weight"].transpose(2, 1, 0), "bias": own.get("bias")}
        case "DepthwiseConv2D":
            return {"kernel": own["weight"].transpose(2, 3, 0, 1), "bias": own.get("bias")}
        case "BatchNormalization":
            held = {"gamma": own.get("weight"), "beta": own.get("bias"), "moving_mean": own["running_mean"]}
            return held | {"moving_variance": own["running_var"]}
        case "LayerNormalization":
            return {"gamma": own["weight"], "beta": own["bias"]}
        case "Embedding":
            return {"embeddings": own["weight"]}
        case "PReLU":
            return {"alpha": own["weight"].reshape(1, 1, -1)}
        case "EinsumDense" if path in state:  # a bare parameter
            return {"kernel": channels_last(state[path])[None]}
        case "Dense" | "EinsumDense":
            weight = own["weight"] if "weight" in own else own["in_proj_weight"]
            return {"kernel": weight.T, "bias": own["bias"] if "bias" in own else own["in_proj_bias"]}
        case "MultiHeadAttention":
            return attention_weights(own, layer.num_heads)
        case "LSTM" | "GRU":
            return recurrent_weights(type(layer).__name__, *layer.name.rsplit("_l", 1), state)
        case "InputLayer" | "ZeroPadding2D" | "Dropout":
            return {}
    return {} if not layer.weights else {"unknown": np.zeros(0)}


def path_of(layer: str, state: dict[str, np.ndarray]) -> str:
    """The module or parameter whose path a layer bears, with an underscore for each dot."""
    paths = {name for tensor in state for name in (tensor, tensor.rpartition(".")[0])}
    return next((path for path in paths if path.replace(".", "_") == layer), layer)


def attention_weights(own: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """Keras holds the heads apart."""
    held = {}
    for i, name in enumerate(("query", "key", "value")):
        weight, bias = (np.split(own[f"in_proj_{part}"], 3)[i] for part in ("weight", "bias"))
        held |= {f"{name}/kernel": weight.T.reshape(len(weight), heads, -1), f"{name}/bias": bias.reshape(heads, -1)}
    last = own["out_proj.weight"]
    kernel = last.T.reshape(heads, -1, len(last))
    return held | {"attention_output/kernel": kernel, "attention_output/bias": own["out_proj.bias"]}


def channels_last(parameter: np.ndarray) -> np.ndarray:
    """(channels, 1, 1) as it lies beside images."""
    return parameter.transpose(1, 2, 0)[0, 0] if parameter.shape[1:] == (1, 1) else parameter


def recurrent_weights(kind: str, name: str, at: str, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gates i, f, g, o in both; r, z, n in PyTorch and z, r, n in Keras."""
    gates = [0, 1, 2, 3] if kind == "LSTM" else [1, 0, 2]
    held = [np.split(state[f"{name}.{part}_l{at}"], len(gates)) for part in PARTS]
    into, over, *biases = (np.concatenate([part[gate] for gate in gates]) for part in held)
    return {"kernel": into.T, "recurrent_kernel": over.T, "bias": sum(biases) if kind == "LSTM" else np.stack(biases)}


PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def arrays_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def torch_step(model: nn.Module, x: Tensor, direction: np.ndarray) -> dict[str, np.ndarray]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    (model(x) * torch.from_numpy(direction)).sum().backward()
    optimizer.step()
    return arrays_of(model)


def keras_step(model, x: np.ndarray, direction: np.ndarray) -> None:
    import keras
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True) * direction)
    gradients = tape.gradient(loss, model.trainable_variables)
    keras.optimizers.SGD(RATE).apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def one_step(model: nn.Module, x: Tensor, folder: Path, precision: str = "float64", classes: int = 5):
    """The Keras model behind a step, and PyTorch's tensors before and behind the same step."""
    path, artifact = keras_file(model.eval(), tuple(x.shape), folder, str(x.dtype).removeprefix("torch."))
    stepped = opened(path, precision)
    raised = model.to(getattr(torch, precision))
    before = arrays_of(raised)
    given = x.to(getattr(torch, precision)) if x.is_floating_point() else x
    direction = floats(len(x), classes).to(getattr(torch, precision)).numpy()
    (layout,) = artifact.inputs
    array = given.numpy()
    keras_step(stepped, np.moveaxis(array, 1, -1) if layout.layout == "channels_last" else array, direction)
    return stepped, before, torch_step(raised, given, direction), artifact


def assert_weights(model, state: dict[str, np.ndarray], bound: float = STEP) -> None:
    seen = 0
    for layer in model.layers:
        wanted = {name: array for name, array in expected_weights(layer, state).items() if array is not None}
        weights = [w for w in layer.weights if "seed" not in w.path]
        nested = type(layer).__name__ == "MultiHeadAttention"
        named = {w.path.removeprefix(f"{layer.name}/") if nested else w.name: w for w in weights}
        assert named.keys() == wanted.keys(), layer.name
        for name, weight in named.items():
            error = np.abs(weight.numpy() - wanted[name]).max()
            assert error <= bound * np.abs(wanted[name]).max(), f"{weight.path}: {error}"
            seen += 1
    assert seen >= 4


def corrected(state: dict[str, np.ndarray], before: dict[str, np.ndarray], model: nn.Module, counts: dict[str, int]):
    """`state` with running variances as Keras updates them, by the biased variance of a batch of n values."""
    held = dict(state)
    for name, n in counts.items():
        momentum = model.get_submodule(name).momentum
        old, new = before[f"{name}.running_var"], state[f"{name}.running_var"]
        batch = (new - (1 - momentum) * old) / momentum
        held[f"{name}.running_var"] = (1 - momentum) * old + momentum * batch * (n - 1) / n
    return held


@pytest.mark.slow
def test_a_step_of_sgd_on_a_convolutional_network(tmp_path):
    model = with_random_tensors(Convolutional())
    keras_model, before, behind, _ = one_step(model, floats(4, 3, 15, 13), tmp_path)
    n = {"norm": 4 * 8 * 7, "scaled": 4 * 6 * 5, "plain": 4 * 6 * 5}
    assert_weights(keras_model, corrected(behind, before, model, n))
    changed = [name for name in before if not np.array_equal(before[name], behind[name])]
    assert set(changed) == set(before)  # no tensor without a part in it, or its equality would say nothing


@pytest.mark.slow
def test_a_step_of_sgd_on_a_transformer(tmp_path):
    """Of heads of 4: Keras takes their scale through float32, which only powers of two go through."""
    keras_model, _, behind, _ = one_step(with_random_tensors(Transformer()), tokens(4, 7), tmp_path)
    assert_weights(keras_model, behind)
    attentions = sum(name.endswith("in_proj_weight") for name in behind)
    assert len(keras_model.trainable_variables) == len(behind) + 4 * attentions


@pytest.mark.slow
def test_a_step_of_sgd_on_a_gru(tmp_path):
    keras_model, _, behind, _ = one_step(with_random_tensors(Recurrent(nn.GRU)), floats(4, 6, 5), tmp_path)
    assert_weights(keras_model, behind)


@pytest.mark.slow
def test_a_step_of_sgd_on_an_lstm_moves_its_only_bias_half_as_far(tmp_path):
    model = with_random_tensors(Recurrent())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:  # their sum is then exact in the file's float32
                parameter.copy_((parameter * 64).round() / 64)
    keras_model, before, behind, _ = one_step(model, floats(4, 6, 5), tmp_path)
    held = dict(behind)
    for name in behind:
        if "bias_hh" in name:  # with one of the two where it was, their sum has moved as far as Keras' bias
            held[name] = before[name]
    assert_weights(keras_model, held)


@pytest.mark.slow
def test_a_step_of_sgd_through_grouped_convolutions_is_right_in_float32(tmp_path):
    grouped = nn.Sequential(
        nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    keras_model, before, behind, artifact = one_step(
        with_random_tensors(grouped), floats(4, 6, 7, 9), tmp_path, "float32"
    )
    assert_weights(keras_model, behind, bound=1e-5)
    assert np.abs(behind["0.weight"] - before["0.weight"]).max() > 1e-2 * np.abs(behind["0.weight"]).max()
    assert [note for note in artifact.training if note.code == "PTC3506" and "`0`" in note.text]


@pytest.mark.slow
def test_what_asks_for_no_gradient_is_not_trainable(tmp_path):
    model = with_random_tensors(Transformer())
    for parameter in (model.position, *model.encode.layers[0].parameters(), *model.classify.parameters()):
        parameter.requires_grad_(False)
    frozen = {"position", "classify.weight", "classify.bias"} | {
        f"encode.layers.0.{name}" for name, _ in model.encode.layers[0].named_parameters()
    }
    keras_model, before, behind, artifact = one_step(model, tokens(4, 7), tmp_path)
    assert_weights(keras_model, behind)
    assert {name for name in before if np.array_equal(before[name], behind[name])} == frozen
    assert len(keras_model.non_trainable_variables) == len(frozen)
    assert artifact.training == ()


@pytest.mark.slow
def test_frozen_batch_norms_keep_their_statistics(tmp_path):
    """As PyTorch's do in eval mode, which is how they are frozen there."""
    model = with_random_tensors(Convolutional())
    for parameter in model.norm.parameters():
        parameter.requires_grad_(False)
    path, artifact = keras_file(model, (4, 3, 15, 13), tmp_path)
    trained = opened(path)
    before = trained.get_layer("norm").get_weights()
    keras_step(trained, np.moveaxis(floats(4, 3, 15, 13).numpy(), 1, -1), floats(4, 5).numpy())
    for array, kept in zip(trained.get_layer("norm").get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, kept)
    assert [note for note in artifact.training if note.code == "PTC3504" and note.text.endswith(" `norm`.")]


class Functions(nn.Module):
    """Weights that are used without calling their modules."""

    def __init__(self):
        super().__init__()
        self.enter, self.parts = nn.Linear(6, 8), nn.ModuleDict({"head": nn.Linear(8, 5)})
        self.body = nn.Sequential(nn.Conv1d(8, 8, 3), nn.ReLU())

    def forward(self, x):
        x = F.linear(x, self.enter.weight, self.enter.bias).transpose(1, 2)
        x = F.conv1d(x, self.body[0].weight, self.body[0].bias).transpose(1, 2)
        return F.linear(torch.tanh(x), self.parts["head"].weight, self.parts["head"].bias)[:, 0]


@pytest.mark.slow
def test_layers_bear_the_path_of_the_module_whose_weights_they_hold(tmp_path):
    keras_model, _, behind, artifact = one_step(with_random_tensors(Functions()), floats(4, 7, 6), tmp_path)
    assert_weights(keras_model, behind)
    weighty = [layer.name for layer in keras_model.layers if layer.weights]
    assert weighty == ["enter", "body_0", "parts_head"]
    assert read_stamp(artifact.path)["layers"] == {"enter": "enter", "body_0": "body.0", "parts_head": "parts.head"}


class Tied(nn.Module):
    """A language model whose classifier is its table of words."""

    def __init__(self, classify):
        super().__init__()
        self.words, self.mix = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.scores, self.norm = nn.Linear(6, 9), nn.LayerNorm(6)
        self.scores.weight = self.words.weight
        self.classify = classify

    def forward(self, x):
        return self.classify(self, self.norm(F.gelu(self.mix(self.words(x)))))


TIED = {
    "a Linear with a bias": lambda self, x: self.scores(x)[:, 0],
    "the weight alone": lambda self, x: F.linear(x, self.words.weight)[:, 0],
    "a product": lambda self, x: (x @ self.words.weight.T)[:, 0],
    "of two dimensions": lambda self, x: self.scores(x[:, 0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIED)
def test_an_embedding_tied_to_a_classifier_is_one_variable(name, tmp_path):
    model = with_random_tensors(Tied(TIED[name]))
    keras_model, before, behind, _ = one_step(model, tokens(4, 7) % 9, tmp_path, classes=9)
    (table,) = [layer for layer in keras_model.layers if layer.name in ("words", "scores")]
    np.testing.assert_allclose(table.get_weights()[0], behind["words.weight"], rtol=0, atol=1e-12)
    assert np.abs(behind["words.weight"] - before["words.weight"]).max() > 1e-3
    assert keras_model.count_params() == sum(p.numel() for p in model.parameters() if p.grad is not None)


class Shared(nn.Module):
    """One classifier for several lengths, and another module that has its weights."""

    def __init__(self):
        super().__init__()
        self.classify, self.again = nn.Linear(6, 5), nn.Linear(6, 5)
        self.again.weight, self.again.bias = self.classify.weight, self.classify.bias

    def forward(self, x):
        return self.classify(x).sum(1) + self.classify(torch.tanh(x[:, 2:])).sum(1) + self.again(x * x).sum(1)


@pytest.mark.slow
def test_a_linear_that_is_called_on_several_lengths_or_shared_is_one_layer(tmp_path):
    keras_model, _, behind, _ = one_step(with_random_tensors(Shared()), floats(4, 7, 6), tmp_path)
    (layer,) = [layer for layer in keras_model.layers if layer.weights]
    for weight, name in zip(layer.get_weights(), ("classify.weight", "classify.bias"), strict=True):
        np.testing.assert_allclose(weight, behind[name].T, rtol=0, atol=1e-11)


REMARKS: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "batch norms": (Convolutional(), (2, 3, 15, 13), ["running variance", "`norm`, `scaled`, `plain`"]),
    "a norm that averages all batches": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)), (2, 3, 7, 5), ["momentum=None"],
    ),
    "an LSTM's two biases": (Recurrent(), (2, 6, 5), ["twice as far", "`read.l0`"]),
    "an LSTM without biases": (nn.LSTM(5, 6, bias=False), (4, 2, 5), []),
    "a GRU has both biases": (Recurrent(nn.GRU), (2, 6, 5), []),
    "a row for padding": (
        Call(lambda m, x: m.table(x), table=nn.Embedding(11, 4, padding_idx=2)), (2, 7), ["padding_idx", "`table`"],
    ),
    "a part of a layer": (
        nn.Sequential(nn.Linear(3, 4)), (2, 3), ["keeps some of them frozen", "`0`"],
    ),
    "a computed weight": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))), (2, 3), ["computes from", "`0`"],
    ),
    "nothing": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.GroupNorm(2, 4), nn.Dropout(0.3)), (2, 3, 7, 5), []),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REMARKS)
def test_the_report_says_how_training_differs(name, tmp_path):
    model, shape, told = REMARKS[name]
    if name == "a part of a layer":
        model[0].bias.requires_grad_(False)
    dtype = "int64" if name == "a row for padding" else "float32"
    _, artifact = keras_file(with_random_tensors(model), shape, tmp_path, dtype)
    assert len(artifact.training) == (1 if told else 0), artifact.training
    assert all(part in artifact.training[0].text for part in told)


@pytest.mark.slow
def test_dropout_between_the_layers_of_an_lstm_is_there_in_training(tmp_path):
    path, _ = keras_file(with_random_tensors(nn.LSTM(5, 6, 2, batch_first=True, dropout=0.5)), (4, 3, 5), tmp_path)
    model = opened(path)
    assert [layer.rate for layer in model.layers if type(layer).__name__ == "Dropout"] == [0.5]


# -- fine-tuning

EPOCHS, BATCH = 8, 64


class Digits(nn.Module):
    """Its first convolution takes pixels packed in squares, so that its weights lie in another order."""

    def __init__(self):
        super().__init__()
        self.pack, self.stem, self.norm = nn.PixelUnshuffle(2), nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body, self.drop, self.classify = nn.Conv2d(16, 24, 2), nn.Dropout(0.0), nn.Linear(24 * 9, 10)

    def forward(self, x):
        return self.classify(self.drop(F.relu(self.body(F.relu(self.norm(self.stem(self.pack(x)))))).flatten(1)))


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))  # they lie in order of their writers
    return (found.images[order, None] / 16).astype(np.float32), found.target[order].astype(np.int64)


def batches(count: int, epochs: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [part for _ in range(epochs) for part in np.array_split(rng.permutation(count), count // BATCH)]


def train_in_torch(model: nn.Module, images: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05)
    for part in batches(len(images), epochs):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.from_numpy(images[part])), torch.from_numpy(labels[part])).backward()
        optimizer.step()
    model.eval()


@pytest.mark.slow
def test_fine_tuning_raises_the_accuracy_as_in_pytorch(tmp_path):
    import keras

    images, labels = digits()
    held_back = slice(1400, None)
    torch.manual_seed(0)
    model = Digits()
    train_in_torch(model, images[:300], labels[:300], 2)
    path, _ = keras_file(model, (1, 1, 8, 8), tmp_path)
    keras_model = keras.saving.load_model(path)

    def accuracies() -> tuple[float, float, float]:
        with torch.inference_mode():
            ours = model(torch.from_numpy(images[held_back])).numpy().argmax(1)
        theirs = keras_model.predict(channels_last_images[held_back], verbose=0).argmax(1)
        return (ours == labels[held_back]).mean(), (theirs == labels[held_back]).mean(), (ours == theirs).mean()

    channels_last_images = np.moveaxis(images, 1, -1)
    before = accuracies()
    assert before[0] == before[1] < 0.8, before

    train_in_torch(model, images[:1400], labels[:1400], EPOCHS)
    keras_model.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for part in batches(1400, EPOCHS):
        keras_model.train_on_batch(channels_last_images[part], labels[part])
    behind = accuracies()
    assert min(behind) > 0.9, behind
    assert abs(behind[0] - behind[1]) < 0.01, behind
