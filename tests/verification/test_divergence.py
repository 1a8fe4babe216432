"""A fault planted at a random place of a deep network is found there: in the graph as planned, in the rewritten
program, and in what was written."""

import random
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from equivalence import with_random_tensors
from torch import Tensor, nn

import converter
from converter.artifacts.runner import Runner
from converter.artifacts.runtime.stamp import read_stamp
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import module_path
from converter.options import ArtifactOptions, LoadOptions
from converter.pipeline.build import RewrittenModel, build, interfaces
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import LoadedModel, load_model
from converter.plan.steps import CallStep, LayerStep, topological_order
from converter.verification.divergence import by_module, first_divergence, trace_artifact, worst_round
from converter.verification.io_matching import Matching
from converter.verification.prove import prove_function, trace
from converter.verification.reference import Reference, take_reference

CLOCK = Clock(None)


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.norm(self.first(x))))


class DeepConvolutions(nn.Module):
    def __init__(self, depth: int = 12):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.blocks = nn.Sequential(*(Residual(6) for _ in range(depth)))
        self.head = nn.Linear(6, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class DeepTokens(nn.Module):
    def __init__(self, depth: int = 4):
        super().__init__()
        layers = [nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens)


NETWORKS = {"convolutions": (DeepConvolutions, "1,3,13,11"), "tokens": (DeepTokens, "1,7,8")}


def scaled(module: nn.Module) -> nn.Module:
    """Random weights that neither let the signal die nor explode over many layers."""
    module = with_random_tensors(module)
    with torch.no_grad():
        for tensor in module.parameters():
            if tensor.ndim > 1:
                tensor /= tensor[0].numel() ** 0.5
    return module


@pytest.fixture(scope="module", params=NETWORKS)
def source(request) -> tuple[LoadedModel, Reference]:
    kind, shape = NETWORKS[request.param]
    opened = load_model(scaled(kind()), LoadOptions.of(input_shapes=[shape]), clock=CLOCK)
    reference = take_reference(opened.program, opened.module, seed=0, inputs=None, running=opened.running)
    return opened, reference


def built_for(source: LoadedModel, format: str) -> RewrittenModel:
    return build(source, format, ArtifactOptions(), CLOCK)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tf", "keras", "onnx"])
def test_right_conversion_diverges_nowhere(source, format: str):
    opened, reference = source
    rows = trace(reference, built_for(opened, format))
    assert first_divergence(rows) is None
    assert {row.module for row in by_module(rows)} >= {"head"}
    assert all(row.actual is not None for row in rows if row.module == "head")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_fault_in_the_plan_is_found_at_its_operator(source, seed: int):
    opened, reference = source
    built = built_for(opened, "tf")
    chosen = random.Random(seed)
    steps = [s for s in topological_order(built.plan.results) if isinstance(s, CallStep) or getattr(s, "weights", ())]
    step = chosen.choice(steps)
    if isinstance(step, LayerStep):
        which = chosen.randrange(len(step.weights))
        wrong = step.weights[which].tensor.detach().contiguous().clone()
        wrong.view(-1)[chosen.randrange(wrong.numel())] += 1e-3
        weights = list(step.weights)
        weights[which] = replace(weights[which], values=LazyTensor.of(wrong), key="fault")
        step.weights = tuple(weights)
    else:
        right = step.function
        step.function = lambda *arrays: right(*arrays) + 1e-6
    assert not prove_function(reference, built).holds
    found = first_divergence(trace(reference, built))
    assert found.module == module_path(step.node)
    assert found.operator == str(step.node.target).rpartition(".")[0]
    assert found.error > 0


@pytest.mark.slow
def test_module_that_became_part_of_another_is_named(source):
    opened, reference = source
    rows = trace(reference, built_for(opened, "tf"))
    folded = {row.module: row.folded for row in rows if row.folded}
    if "blocks.3.first" in {row.module for row in rows}:
        assert folded["blocks.3.first"] == ("blocks.3.norm",)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_fault_in_a_rewritten_weight_is_found_at_its_module(source, seed: int):
    """As of a rewrite that is wrong: ONNX is written from that program."""
    opened, reference = source
    built = built_for(opened, "onnx")
    nodes = [
        n for n in built.program.graph.find_nodes(op="get_attr") if n.users and built.program.tensor(n).numel() > 1
    ]
    node = random.Random(seed).choice(nodes)
    tensor = built.program.tensor(node).detach().contiguous().clone()
    tensor.view(-1)[0] += 0.1
    built.program.replace_tensor(node, tensor, built.program.origins[node.target], list(node.users))
    built.program.cleanup()
    assert not prove_function(reference, built).holds
    assert touches(first_divergence(trace(reference, built)), node.target)


def touches(row, tensor: str) -> bool:
    """Whether the module named is that of a tensor, calls it, or is the one with which it was folded."""
    owner = tensor.rpartition(".")[0]
    return owner in row.folded or f"{owner}.".startswith(f"{row.module}.")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("written")
    found = {}
    for name, (kind, shape) in NETWORKS.items():
        report = converter.convert(
            scaled(kind()), to=["onnx", "keras", "tf"], output=folder / name, input_shapes=[shape], verify=False
        )
        found |= {(name, artifact.format): artifact.path for artifact in report.artifacts}
    return found


@pytest.fixture(scope="module")
def runners():
    opened = {}
    yield lambda format: opened.setdefault(format, Runner(format))
    for runner in opened.values():
        runner.close()


def disturb_onnx(path: Path, to: Path, chosen: random.Random) -> str:
    import onnx

    model = onnx.load(path)
    read = {name for node in model.graph.node for name in node.input}
    tensors = [t for t in model.graph.initializer if "." in t.name and t.name in read]
    tensor = chosen.choice(tensors)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] += 0.02
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, to)
    return tensor.name


def disturb_keras(path: Path, to: Path, chosen: random.Random) -> str:
    import keras

    model = keras.saving.load_model(path)
    paths = read_stamp(path)["layers"]
    # The bias of attention's keys adds the same to all scores of a row, and softmax takes it out again.
    weights = [w for w in model.weights if "." in paths[w.path.partition("/")[0]] and not w.path.endswith("/key/bias")]
    weight = chosen.choice(weights)
    array = np.array(weight.numpy())
    array.reshape(-1)[0] += 0.02
    weight.assign(array)
    keras.saving.save_model(model, to)
    layer, _, name = weight.path.partition("/")
    return f"{paths[layer]}.{name.replace('/', '.')}"


def disturb_saved_model(path: Path, to: Path, chosen: random.Random) -> str:
    import shutil

    import tensorflow as tf

    shutil.copytree(path, to)
    prefix = str(to / "variables/variables")
    reader = tf.train.load_checkpoint(prefix)
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    name = chosen.choice(sorted(n for n in values if n.endswith("VARIABLE_VALUE")))
    values[name] = values[name].copy()
    values[name].reshape(-1)[0] += 0.02
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=list(values), shape_and_slices=[""] * len(values), tensors=list(values.values())
    )
    return name.split("/")[1].replace("..", ".")


DISTURB = {"onnx": disturb_onnx, "keras": disturb_keras, "tf": disturb_saved_model}


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed, network, format",
    [(seed, *pair) for seed, pair in enumerate((network, format) for network in NETWORKS for format in DISTURB)],
)
def test_fault_in_an_artifact_is_found_at_its_module(written, runners, tmp_path, network: str, format: str, seed: int):
    kind, shape = NETWORKS[network]
    ending = {"onnx": "d.onnx", "keras": "d.keras", "tf": "d"}[format]
    tensor = DISTURB[format](written[network, format], tmp_path / ending, random.Random(seed))
    module = scaled(kind())
    opened = load_model(module, LoadOptions.of(input_shapes=[shape]), clock=CLOCK)
    reference = take_reference(opened.program, module, seed=0, inputs=None, running=opened.running)
    runner = runners(format)
    runner.open(tmp_path / ending)
    matching = Matching(runner, *interfaces(opened.program), reference)
    match = matching.match()
    assert not match.proof.holds
    arrays = worst_round(reference, match.results)
    rows = trace_artifact(opened.program, arrays, runner, matching.feed(match.binding, arrays))
    found = first_divergence(rows)
    assert touches(found, tensor), (tensor, found)
    assert found.expected != found.actual


class Sequences(nn.Module):
    """What comes before operators that return several tensors is fused with them in ONNX: initial states, halves."""

    def __init__(self):
        super().__init__()
        self.gru, self.norm, self.head = nn.GRU(6, 8, batch_first=True), nn.LayerNorm(8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.norm(self.gru(x)[0]).chunk(2, -1)
        return self.head(first * second.sigmoid())


@pytest.mark.slow
def test_what_was_fused_with_an_operator_of_several_results_does_not_depart(runners, tmp_path: Path):
    module = with_random_tensors(Sequences())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(module, (torch.rand(1, 5, 6),), tmp_path / "plain.onnx", dynamo=True, verbose=False)
    report = converter.verify(module, tmp_path / "plain.onnx", input_shapes=["1,5,6"], trace=True)
    assert report.status == "verified"
    assert [row.operator for row in report.trace if row.diverges] == []
    assert {row.module for row in report.trace} >= {"gru", "norm", "head"}


@pytest.mark.slow
def test_small_fault_in_any_weight_of_a_trained_network_is_found_at_its_convolution(
    runners, tmp_path: Path, repository
):
    """One value off by 2 % and 0.003, in an ONNX file of another tool, which has its batch norms folded."""
    import onnx

    opened = load_model(
        repository / "sample_models/digits_focus.pt",
        LoadOptions.of(input_shapes=["1,1,16,16"], trust=["sample_models"]),
        clock=CLOCK,
    )
    reference = take_reference(opened.program, opened.module, seed=0, inputs=None, running=opened.running)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated
        torch.onnx.export(
            opened.module, (torch.rand(1, 1, 16, 16),), tmp_path / "plain.onnx", dynamo=False,
            input_names=["images"], dynamic_axes={"images": {0: "batch"}},
        )  # fmt: skip
    runner = runners("onnx")
    for seed in range(8):
        chosen = random.Random(seed)
        model = onnx.load(tmp_path / "plain.onnx")
        tensor = chosen.choice(model.graph.initializer)
        (reader,) = (node.name for node in model.graph.node if tensor.name in node.input)
        array = onnx.numpy_helper.to_array(tensor).copy()
        place = chosen.randrange(array.size)
        array.flat[place] = array.flat[place] * 1.02 + 0.003
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(model, tmp_path / "disturbed.onnx")
        runner.open(tmp_path / "disturbed.onnx")
        matching = Matching(runner, *interfaces(opened.program), reference)
        match = matching.match()
        assert not match.proof.holds, reader
        arrays = worst_round(reference, match.results)
        found = first_divergence(trace_artifact(opened.program, arrays, runner, matching.feed(match.binding, arrays)))
        # The node's name is as /stages/stages.3/bottlenecks/bottlenecks.0/reduce/conv/Conv
        owners = {path.split(".")[-1] for path in (found.module, *found.folded)}
        assert reader.split("/")[-2] in owners, (reader, found)
