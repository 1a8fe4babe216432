"""Files with several models, quantized weights, weight norm of another spelling, and forwards that take numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from converter.capture.run_forward import run_forward
from converter.checkpoint.load import load
from converter.errors import CaptureError, CheckpointError, ConversionError, UsageError
from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv1d(2, 3, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.two(self.one(x))


NET = "test_parts_of_checkpoints:Net"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return Net().state_dict()


def prefixed(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for prefix, part in parts.items() for name, value in part.items()}


OPTIMIZER = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]}
SEVERAL: dict[str, tuple[Callable[[], Any], str, str]] = {
    "unknown names": (
        lambda: {"optimizer": OPTIMIZER, "config": {"depth": 3}, "gen": weights(1), "disc": weights(2)}, "disc", "gen"
    ),
    "inside an entry": (lambda: {"nets": {"a": weights(1), "b": weights(2)}, "step": 4}, "nets.b", "nets"),
    "a list": (lambda: [weights(1), weights(2)], "1", "0"),
    "prefixes": (lambda: prefixed(model=weights(1), avg_model=weights(2)), "avg_model", "model"),
    "prefixes in an entry": (
        lambda: {"state_dict": prefixed(model=weights(1), avg_model=weights(2)), "epoch": 1}, "avg_model", "state_dict"
    ),
}  # fmt: skip


@pytest.mark.parametrize("build, key, other", SEVERAL.values(), ids=SEVERAL)
def test_one_of_several_models_is_chosen(here: Path, build: Callable, key: str, other: str):
    torch.save(build(), "net.pt")
    loaded = load("net.pt", factory=NET, state=key)
    assert torch.equal(loaded.module.two.bias, weights(2)["two.bias"])
    assert any(f"`{key}`" in note.text for note in loaded.notes)
    with pytest.raises(CheckpointError, match="does not contain a model or weights called `nothing`") as refused:
        load("net.pt", factory=NET, state="nothing")
    assert f"`{other}" in str(refused.value)


@pytest.mark.parametrize("name", ["unknown names", "a list", "prefixes"])
def test_the_error_for_several_models_names_the_option_that_helps(here: Path, name: str):
    build, *_ = SEVERAL[name]
    torch.save(build(), "net.pt")
    with pytest.raises(CheckpointError) as refused:
        load("net.pt", factory=NET)
    key = refused.value.fix.partition("--state ")[2].rstrip(".")
    assert torch.equal(load("net.pt", factory=NET, state=key).module.two.bias, weights(1)["two.bias"])


def test_the_entry_of_a_whole_module_is_chosen(here: Path):
    torch.save({"student": nn.Linear(2, 3), "teacher": nn.Linear(2, 4)}, "net.pt")
    assert load("net.pt", state="teacher").module.out_features == 4


class Freezing(nn.Module):
    """Its `train` returns nothing, as that of many backbones that keep their norms frozen."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def train(self, mode=True):
        super().train(mode)

    def float(self):
        super().float()

    def forward(self, x):
        return self.conv(x)


def test_a_train_that_returns_nothing_is_fine():
    loaded = load_model(Freezing().half(), LoadOptions.of(input_shapes=["1,3,8,8"]), clock=Clock(None))
    assert not loaded.module.training
    assert loaded.module.conv.weight.dtype == torch.float32


@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_folds_into_a_plain_model(here: Path, norm: Callable, dim: int | None):
    if dim is None and norm is parametrizations.weight_norm:
        dim = 2
    normed = Net()
    norm(normed.one, dim=dim)
    norm(normed.two)
    with torch.no_grad():
        for parameter in normed.parameters():
            parameter.mul_(1.7)
    torch.save(normed.state_dict(), "net.pt")
    loaded = load("net.pt", factory=NET)
    x = torch.randn(2, 2, 6)
    torch.testing.assert_close(loaded.module(x), normed.eval()(x))
    assert [note.text for note in loaded.notes if note.code == "PTC1518"] == [
        "Folded weight norm into 2 keys (`one.weight`, `two.weight`)."
    ]


@pytest.mark.parametrize("options", [{}, {"trust": ["torch.ao"]}])
def test_a_quantized_module_is_refused_as_one(here: Path, options: dict[str, Any]):
    import torch.ao.nn.quantized as quantized

    torch.save(nn.Sequential(nn.ReLU(), quantized.Linear(3, 2)), "net.pt")
    with pytest.raises(CheckpointError, match="quantized") as refused:
        load("net.pt", **options)
    assert refused.value.code == "PTC1066"


class Rated(nn.Module):
    def forward(self, x: Tensor, sr: int) -> Tensor:
        return x[:, ::2] * 2 if sr == 16000 else x * 3


@pytest.mark.slow
@pytest.mark.parametrize("scripted", [False, True])
def test_a_number_that_forward_takes_is_fixed(here: Path, scripted: bool):
    module: Any = Rated()
    options: dict[str, Any] = {"input_shapes": ["x=1,8"]}
    if scripted:
        torch.jit.script(module).save("net.pt")
        module = "net.pt"
    with pytest.raises(ConversionError, match="sr") as refused:
        load_model(module, LoadOptions.of(**options), clock=Clock(None))
    assert "--input-value" in refused.value.fix
    x = torch.randn(3, 8)
    for value, expected in (("16000", x[:, ::2] * 2), ("8000", x * 3)):
        fixed = LoadOptions.of(**options, input_values={"sr": value})
        loaded = load_model(module, fixed, clock=Clock(None))
        assert loaded.program.inputs == ["x"]
        torch.testing.assert_close(loaded.program.run(x)[0], expected)
    with pytest.raises(UsageError, match="does not have a parameter `rate`"):
        load_model(module, LoadOptions.of(**options, input_values=["rate=1"]), clock=Clock(None))


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_an_error_in_torchscript_is_shown_with_its_line(here: Path):
    torch.jit.script(Failing()).save("net.pt")
    with pytest.raises(CaptureError) as refused:
        run_forward(load("net.pt").module, [torch.ones(1, 5)])
    assert "cannot be multiplied" in refused.value.what
    assert "torch.matmul" in refused.value.what or "x @ self.weight" in refused.value.what
