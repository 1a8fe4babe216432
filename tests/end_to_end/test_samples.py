from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sample_models.blocks import Focus
from sample_models.calibration import calibrate
from sample_models.detect_head import build


@pytest.fixture(scope="module")
def holdback(repository: Path) -> dict[str, Tensor]:
    with np.load(repository / "sample_models/digits_holdback.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def digits_focus(repository: Path) -> nn.Module:
    return torch.load(repository / "sample_models/digits_focus.pt", weights_only=False)


def test_focus_takes_pixels_column_by_column():
    """The example of YOLOv5's own discussion of its Focus layer."""
    focus = Focus(1, 4)
    focus.unit = nn.Identity()
    image = torch.arange(16.0).view(1, 1, 4, 4)
    expected = [[[0, 2], [8, 10]], [[4, 6], [12, 14]], [[1, 3], [9, 11]], [[5, 7], [13, 15]]]
    assert focus(image)[0].tolist() == expected


def test_digits_checkpoint_is_trained(digits_focus: nn.Module, holdback: dict[str, Tensor]):
    assert not digits_focus.training
    assert holdback["images"].shape == (360, 1, 16, 16)
    assert holdback["images"].dtype == torch.float32
    with torch.inference_mode():
        predicted = digits_focus(holdback["images"]).argmax(1)
    assert (predicted == holdback["labels"]).float().mean() > 0.97


def test_digits_show_a_stem_with_its_channels_in_the_wrong_order(
    digits_focus: nn.Module, holdback: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
):
    stem = digits_focus.get_submodule("stem.unit.conv")
    monkeypatch.setattr(stem, "weight", nn.Parameter(stem.weight[:, [0, 2, 1, 3]]))
    with torch.inference_mode():
        predicted = digits_focus(holdback["images"]).argmax(1)
    assert (predicted == holdback["labels"]).float().mean() < 0.95


def test_detector_belongs_to_its_state_dict(repository: Path):
    detector = build().eval()
    detector.load_state_dict(load_file(repository / "sample_models/detect_head.safetensors"), strict=True)
    with torch.inference_mode():
        boxes, raw = detector(torch.rand(2, 3, 64, 96))
    assert boxes.shape == (2, 3 * (8 * 12 + 4 * 6 + 2 * 3), 9)
    assert [level.shape for level in raw] == [(2, 3, 8, 12, 9), (2, 3, 4, 6, 9), (2, 3, 2, 3, 9)]
    for output in (boxes, *raw):
        assert (output[0] - output[1]).abs().mean() > 0.05 * output.std(), "the signal died on the way"


def test_detector_puts_a_box_of_value_zero_on_its_cell_with_its_anchor(repository: Path):
    detector = build().eval()
    for head in detector.detect.heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    with torch.inference_mode():
        boxes, raw = detector(torch.rand(1, 3, 64, 96))
    first_level = boxes[0, : raw[0][0, ..., 0].numel()].view(raw[0].shape[1:])
    assert first_level[1, 2, 5].tolist() == [(5 + 0.5) * 8, (2 + 0.5) * 8, 16, 30, 0.5, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "module, example",
    [
        pytest.param(
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), (2, 3, 8, 7), id="statistics left at 0 and 1"
        ),
        pytest.param(nn.LayerNorm(6), (2, 6), id="scale left at 1"),
        pytest.param(nn.PReLU(4), (2, 4, 3), id="slope left at 0.25"),
    ],
)
def test_calibrated_network_has_nothing_constant(module: nn.Module, example: tuple[int, ...]):
    calibrate(module, torch.randn(example))
    assert not module.training
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.unique().numel() == tensor.numel(), name


def test_calibration_leaves_the_random_generator_and_momentum_alone():
    module = nn.BatchNorm1d(3, momentum=0.3)
    before = torch.get_rng_state()
    calibrate(module, torch.randn(2, 3, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(before, torch.get_rng_state())
    assert module.momentum == 0.3


def test_calibrated_deep_network_keeps_its_signal():
    block = [layer for _ in range(60) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
    deep = calibrate(nn.Sequential(*block), torch.randn(1, 8, 6, 6))
    with torch.inference_mode():
        output = deep(torch.randn(4, 8, 6, 6))
    assert output.std(0).mean() > 0.05


def test_torchvision_brings_its_native_operators(torchvision):
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.5, 0.6, 0.7]), 0.5).tolist() == [2, 1]
