"""Pads that depend on the sizes of the input, as restoration and segmentation networks have them, in every format."""

import math
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from equivalence import with_random_tensors
from torch import nn

import converter


class Padded(nn.Module):
    """Pads to multiples in each way that networks spell it, crops again, and normalizes windows."""

    def __init__(self):
        super().__init__()
        self.down, self.up, self.coarse = nn.Conv2d(3, 4, 4, 4), nn.ConvTranspose2d(4, 3, 4, 4), nn.Conv2d(3, 3, 16, 16)

    def forward(self, x):
        height, width = x.shape[-2:]
        right, below = (4 - divmod(width, 4)[1]) % 4, max(0, -height % 4)
        left, above = right // 2, below // 2
        y = self.up(self.down(F.pad(x, (left, right - left, above, below - above), "reflect")))
        x = x - y[..., above : above + height, left : left + width]
        rows, columns = int(math.ceil(height / 16) * 16), -(-width // 16) * 16
        coarse = self.coarse(F.pad(x, (0, columns - width, 0, rows - height), "replicate"))
        return self.windows(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + coarse.mean((2, 3), keepdim=True)

    def windows(self, x):
        batch, height, width, channels = x.shape
        x = F.pad(x, (0, 0, 0, (4 - width % 4) % 4, 0, (4 - height % 4) % 4))
        rows, columns = x.shape[1:3]
        x = x.view(batch, rows // 4, 4, columns // 4, 4, channels)
        x = x - x.mean((2, 4), keepdim=True)
        return x.reshape(batch, rows, columns, channels)[:, :height, :width]


@pytest.mark.slow
def test_pads_that_depend_on_sizes_are_in_every_format(tmp_path):
    module = with_random_tensors(Padded()).eval()
    report = converter.convert(module, to=["tf", "keras", "onnx", "tflite"], output=tmp_path, input_shapes=["1,3,H,W"])
    assert report.status == "verified"
    assert not [note.text for note in report.notes if "multiple" in note.text or "at most" in note.text]
    for artifact in report.artifacts:
        name = {"tf": "saved_model"}.get(artifact.format, artifact.format)
        reader = import_module(f"converter.artifacts.runtime.{name}").Reader()
        reader.open(artifact.path)
        (fact,) = artifact.inputs
        for size in ((16, 16), (17, 30), (31, 19), (20, 33)):
            image = torch.randn(1, 3, *size)
            with torch.no_grad():
                expected = module(image).numpy()
            given = image.permute(0, 2, 3, 1) if fact.layout == "channels_last" else image
            (result,) = reader.run({fact.name: np.ascontiguousarray(given.numpy())}).values()
            if artifact.outputs[0].layout == "channels_last":
                result = result.transpose(0, 3, 1, 2)
            near = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(result, expected, rtol=0, atol=near, err_msg=f"{artifact.format} {size}")
