"""TorchScript: scripted, traced and frozen modules are the same functions, with their names; nothing else runs."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import hostile_torchscript as hostile
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converter.capture.export import capture
from converter.checkpoint.load import load
from converter.checkpoint.torchscript.op_allowlist import ALLOWED
from converter.errors import CaptureError, CheckpointError, ConversionError
from converter.ir.program import module_path, source_line


class Branches(nn.Module):
    """Control flow by sizes, loops, numbers and lists."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.stages = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)])
        self.widths = [2, 5]
        self.register_buffer("shift", torch.arange(4.0).view(4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        y = F.relu(self.norm(self.conv(x)))
        kept: list[Tensor] = []
        for stage in self.stages:
            y = y + stage(y)
            kept.append(y.mean(dim=[2, 3]))
        if y.size(2) > 4 and len(kept) == 2:
            y = y * 2
        for i in range(2):
            y = y - self.shift * float(self.widths[i]) ** 0.5
        height, width = y.shape[-2:]
        return F.interpolate(y, size=(height // 2, width * 2), mode="bilinear").reshape(x.shape[0], -1), kept


class Sizes(nn.Module):
    """Traced, its sizes become tensors of one number, which are computed with."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.Conv2d(4, 6, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        y = self.down(self.up(x))
        y = y.view(batch, 2, 3, (height * 2 - 2) * (width * 2 - 2)).transpose(1, 2)
        return y.reshape(batch, 6 * (height - 1), -1)


class Recurrent(nn.Module):
    def __init__(self, layer: type[nn.RNNBase]):
        super().__init__()
        self.layer, self.head = layer(5, 6, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor, scale: float = 2.0) -> dict[str, Tensor]:
        return {"a": self.first(x) * scale, "b": self.second(x)}


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "branches, loops and lists": (Branches, (2, 3, 9, 8)),
    "sizes computed with": (Sizes, (2, 3, 5, 7)),
    "GRU, one operator": (lambda: Recurrent(nn.GRU), (2, 7, 5)),
    "LSTM, two states": (lambda: Recurrent(nn.LSTM), (2, 7, 5)),
    "a weight shared, a keyword": (Shared, (3, 4)),
    "transformer, fused when traced": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
    "transformer, norms first": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True),
        (2, 5, 8),
    ),
}
WAYS: dict[str, Callable[[nn.Module, Tensor], torch.jit.ScriptModule]] = {
    "scripted": lambda model, x: torch.jit.script(model),
    "traced": lambda model, x: torch.jit.trace(model, x, strict=False, check_trace=False),
    "frozen": lambda model, x: torch.jit.freeze(torch.jit.script(model)),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build().eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    return model, torch.randn(shape)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_torchscript_is_captured_as_the_same_function_with_a_free_batch(tmp_path: Path, name: str, way: str):
    model, x = made(name)
    with torch.no_grad():
        torch.jit.save(WAYS[way](model, x), tmp_path / "model.bin")
    checkpoint = load(tmp_path / "model.bin")
    assert checkpoint.kind == "module"
    assert checkpoint.module is not None
    program = capture(checkpoint.module, [x])
    assert program.fixed_batch is None
    other = torch.randn(3, *x.shape[1:])
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(model(other))
        own = torch.utils._pytree.tree_leaves(checkpoint.module(other))
    for actual, theirs, wanted in zip(program.run(other), own, expected, strict=True):
        assert (actual - wanted).abs().max() <= 2e-6 * wanted.abs().max()
        assert (theirs - wanted).abs().max() <= 2e-6 * wanted.abs().max()
    if way != "frozen":
        tensors = checkpoint.module.state_dict()
        for key, value in model.state_dict().items():
            assert torch.equal(tensors[key], value), key


def test_shared_weights_stay_shared_and_frozen_constants_keep_their_names(tmp_path: Path):
    model, _ = made("a weight shared, a keyword")
    torch.jit.save(torch.jit.script(model), tmp_path / "model.pt")
    module = load(tmp_path / "model.pt").module
    assert module is not None
    assert module.first.weight is module.second.weight
    torch.jit.save(torch.jit.freeze(torch.jit.script(nn.Linear(4, 3).eval())), tmp_path / "model.pt")
    frozen = load(tmp_path / "model.pt").module
    assert frozen is not None
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        first = torch.frombuffer(bytearray(archive.read("model/constants/0")), dtype=torch.float32)
    assert torch.equal(frozen.CONSTANTS.c0.flatten(), first)


@pytest.mark.slow
def test_operators_know_their_module_and_line(tmp_path: Path):
    model, x = made("branches, loops and lists")
    torch.jit.save(torch.jit.script(model), tmp_path / "model.pt")
    module = load(tmp_path / "model.pt").module
    assert module is not None
    program = capture(module, [x])
    (norm,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    assert module_path(norm) == "norm"
    assert "model.pt code.__torch__" in source_line(norm)
    assert "torch.batch_norm(" in source_line(norm)


def test_half_precision_is_raised(tmp_path: Path):
    torch.jit.save(torch.jit.script(nn.Linear(4, 3).half()), tmp_path / "model.pt")
    checkpoint = load(tmp_path / "model.pt")
    assert [note.text for note in checkpoint.notes] == ["Converted weights from float16 to float32."]
    assert checkpoint.module is not None
    assert checkpoint.module(torch.ones(2, 4)).dtype == torch.float32


def test_control_flow_by_values_is_refused_as_of_any_forward(tmp_path: Path):
    class ByValue(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if bool(x.sum() > 0) else x

    torch.jit.save(torch.jit.script(ByValue()), tmp_path / "model.pt")
    module = load(tmp_path / "model.pt").module
    assert module is not None
    with pytest.raises(ConversionError):
        capture(module, [torch.ones(2, 3)])


def test_every_mapped_operator_is_allowed():
    import mappings

    inner = {
        "_linalg",
        "_to_copy",
        "_cdist_forward",
        "_pdist_forward",
        "_adaptive",
        "_unsafe",
        "copy",
        "lift_fresh_copy",
    }
    named = {
        target._schema.name for target in mappings.load().having("lowering") if target._schema.name.startswith("aten::")
    }
    left = {name for name in named - ALLOWED if not name.removeprefix("aten::").startswith(tuple(inner))}
    assert len(named) > 300
    assert left == set()


@pytest.mark.parametrize("name", hostile.SCRIPTS)
def test_hostile_scripts_are_refused_before_they_run(tmp_path: Path, name: str):
    marker, path = tmp_path / "executed", tmp_path / "model.pt"
    hostile.SCRIPTS[name](path, marker)
    with pytest.raises(CheckpointError) as refusal:
        load(path)
    assert refusal.value.fix
    assert not marker.exists()


def test_code_that_would_run_while_a_file_is_read_is_named_with_its_place_and_what_to_do(tmp_path: Path):
    path = tmp_path / "model.pt"
    hostile.SCRIPTS["saves while it is read"](path, tmp_path / "executed")
    with pytest.raises(CheckpointError) as refusal:
        load(path)
    named = r"Stateful\.__setstate__, which would run while the file is read \(code/__torch__/\w+\.py:\d+\)"
    assert re.search(named, refusal.value.what)
    assert "--trust torchscript" in refusal.value.fix


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        whole = x + 1
        return whole.view(2, 7)


def test_errors_of_a_script_have_the_line_of_the_model(tmp_path: Path):
    """Of a script that was rebuilt, and of one that a module in Python holds, which TorchScript's interpreter runs."""
    script = torch.jit.script(Halves())
    torch.jit.save(script, tmp_path / "model.pt")
    for module in (load(tmp_path / "model.pt").module, nn.Sequential(script)):
        assert module is not None
        with pytest.raises(CaptureError, match="shape '\\[2, 7\\]' is invalid for input of size 12") as refused:
            capture(module, [torch.ones(3, 4)])
        assert re.search(r"(\.py|code).*:\d+: .*view\(", str(refused.value))


def test_a_hostile_script_does_run_with_torch_and_with_trust(tmp_path: Path):
    """Without this, a payload that is broken would pass as refused."""
    marker, path = tmp_path / "executed", tmp_path / "model.pt"
    hostile.SCRIPTS["saves when it is called"](path, marker)
    module = load(path, trust=["torchscript"]).module
    assert module is not None
    assert not marker.exists()
    module(torch.ones(2))
    assert marker.exists()
    marker.unlink()
    hostile.SCRIPTS["saves while it is read"](path, marker)
    torch.jit.load(path)
    assert marker.exists()


@pytest.mark.parametrize("name", hostile.ARCHIVES)
def test_archives_that_lie_are_refused(tmp_path: Path, name: str):
    path = tmp_path / "model.pt"
    hostile.write_linear(path)
    hostile.ARCHIVES[name](path)
    with pytest.raises(CheckpointError) as refusal:
        load(path)
    assert refusal.value.fix
