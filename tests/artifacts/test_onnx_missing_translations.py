"""Operators that PyTorch's exporter does not translate to ONNX: one network of all of them, verified as written."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import converter


class Every(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("edges", torch.tensor([-1.0, -0.2, 0.0, 0.4, 1.3]))
        self.mix = nn.Linear(6, 6)

    def forward(self, x):
        y = self.mix(x)
        rows = y.sort(-1).values
        best, places = y.cummax(1)
        least, _ = y.cummin(2)
        third, where = y.kthvalue(3, 2, keepdim=True)
        ties, order = y.round().sort(dim=1, descending=True, stable=True)
        five = y.unflatten(1, (2, 2))[:, None].tanh()
        mask = five[..., :1].transpose(-1, -2) > 0.0
        return {
            "cummax": best, "cummax_places": places, "cummin": least, "kthvalue": third, "kthvalue_places": where,
            "stable_sort": ties, "stable_order": order, "first": y[..., 0].argsort(stable=True),
            "searchsorted": torch.searchsorted(self.edges, y), "rows": torch.searchsorted(rows, x, right=True),
            "lgamma": torch.lgamma(y * 4), "signbit": torch.signbit(y), "hypot": torch.hypot(x, y),
            "fmax": torch.fmax(y, x), "fmin": torch.fmin(y, x), "attention_3d": F.scaled_dot_product_attention(y, x, y),
            "attention_5d": F.scaled_dot_product_attention(five, five, five, mask | ~mask[..., :1]),
            "causal": F.scaled_dot_product_attention(y, y, y, is_causal=True),
            "pool": F.avg_pool2d(y[:, None], 3, 2, 1, divisor_override=5),
        }  # fmt: skip


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, str]:
    torch.manual_seed(0)
    module, path = Every().eval(), tmp_path_factory.mktemp("onnx") / "every.onnx"
    report = converter.convert(module, to=["onnx"], output=path, input_shapes=["1,4,6"])
    return module, path, report.artifacts[0].status


@pytest.mark.slow
def test_they_are_verified(every: tuple[nn.Module, Path, str]):
    assert every[2] == "verified"


@pytest.mark.slow
def test_special_values_are_pytorchs(every: tuple[nn.Module, Path, str]):
    _, path, _ = every
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -3.0, 1.0, 2.0, 1e30, 3e-39, -2.5, 171.5])

    class Elementwise(nn.Module):
        def forward(self, x, y):
            return torch.lgamma(x), torch.signbit(x), torch.fmax(x, y), torch.hypot(x, y), x.cummax(1).values

    x = special.repeat(12, 1)
    y = special[:, None].expand(12, 12).clone()
    written = path.with_name("special.onnx")
    converter.convert(Elementwise(), to=["onnx"], output=written, input_shapes=["1,12", "1,12"], verify=False)
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, dict(zip(names, (x.numpy(), y.numpy()), strict=True)))
    for name, actual, expected in zip(
        ("lgamma", "signbit", "fmax", "hypot", "cummax"), found, Elementwise()(x, y), strict=True
    ):
        if name == "signbit":  # ONNX has no way to tell the sign of a NaN
            known = ~x.isnan().numpy()
            np.testing.assert_array_equal(actual[known], expected.numpy()[known])
            continue
        np.testing.assert_allclose(actual, expected.numpy(), rtol=2e-6, atol=1e-7, err_msg=name)


class Unpooling(nn.Module):
    """As SegNet: positions of maxima go to the decoder."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        y, places = F.max_pool2d(self.conv(x), 2, return_indices=True)
        image = self.out(F.max_unpool2d(y * 2, places, 2, output_size=x.shape[-2:]))
        row, at = F.max_pool1d(x[:, :, 0], 2, return_indices=True)
        volume, within = F.max_pool3d(x.unflatten(2, (2, 4)), 2, return_indices=True)
        return image, F.max_unpool1d(row, at, 2), F.max_unpool3d(volume, within, 2)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tf", "keras"])
def test_unpooling_converts(format: str, tmp_path: Path):
    torch.manual_seed(0)
    report = converter.convert(Unpooling().eval(), to=[format], output=f"{tmp_path}/", input_shapes=["1,2,8,6"])
    assert report.artifacts[0].status == "verified"
