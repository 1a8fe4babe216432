"""DETR, Swin of its own repository and encoders with masks keep a dynamic batch: right at 1 and at 4 examples."""

import pytest
import torch
from equivalence import assert_same, in_float64, planned, run_in_float64, with_random_tensors
from torch import nn

from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model
from converter.rewrites.pipelines import REWRITES
from converter.verification.checked_rewrite import rewrite


class Detr(nn.Module):
    """The mask, the positions and the queries as DETR's own repository makes them for each batch."""

    def __init__(self):
        super().__init__()
        self.backbone, self.queries = nn.Conv2d(3, 8, 3, 2, 1), nn.Embedding(5, 8)
        self.transformer, self.boxes = nn.Transformer(8, 2, 1, 1, 16), nn.Linear(8, 4)

    def forward(self, images):
        features = self.backbone(images)
        batch, _, height, width = features.shape
        mask = torch.zeros((batch, height, width), dtype=torch.bool)
        seen = ~mask
        rows, columns = seen.cumsum(1, dtype=torch.float32), seen.cumsum(2, dtype=torch.float32)
        rows, columns = rows / (rows[:, -1:, :] + 1e-6), columns / (columns[:, :, -1:] + 1e-6)
        positions = torch.stack([rows.sin(), rows.cos(), columns.sin(), columns.cos()] * 2, 3).permute(0, 3, 1, 2)
        tokens = (features + positions).flatten(2).permute(2, 0, 1)
        queries = self.queries.weight.unsqueeze(1).repeat(1, batch, 1)
        found = self.transformer(tokens, queries, src_key_padding_mask=mask.flatten(1))
        return self.boxes(found.transpose(0, 1)).sigmoid()


def partition(x, size):
    batch, height, width, channels = x.shape
    x = x.view(batch, height // size, size, width // size, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, channels)


def reverse(windows, size, height, width):
    batch = int(windows.shape[0] / (height * width / size / size))
    x = windows.view(batch, height // size, width // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(batch, height, width, -1)


class Swin(nn.Module):
    """A shifted block of Swin's own repository: B of `window_reverse` is computed with floats."""

    def __init__(self):
        super().__init__()
        self.qkv, self.norm = nn.Linear(8, 24), nn.LayerNorm(8)
        self.register_buffer("mask", torch.where(torch.rand(4, 16, 16) < 0.3, -100.0, 0.0))

    def forward(self, x):
        batch, length, channels = x.shape
        shifted = torch.roll(self.norm(x).view(batch, 8, 8, channels), (-2, -2), (1, 2))
        windows = partition(shifted, 4).view(-1, 16, channels)
        count, n, _ = windows.shape
        q, k, v = self.qkv(windows).reshape(count, n, 3, 2, channels // 2).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1)
        scores = scores.view(count // 4, 4, 2, n, n) + self.mask.unsqueeze(1).unsqueeze(0)
        mixed = (scores.view(-1, 2, n, n).softmax(-1) @ v).transpose(1, 2).reshape(count, n, channels)
        together = reverse(mixed.view(-1, 4, 4, channels), 4, 8, 8)
        return x + torch.roll(together, (2, 2), (1, 2)).view(batch, length, channels)


class Encoder(nn.Module):
    """Two layers with the mask of the padding and a causal one that is made for the batch and the heads."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

    def forward(self, x, padding):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        mask = causal[None].expand(x.size(0) * 2, -1, -1)
        return self.encoder(x, mask=mask, src_key_padding_mask=padding)


MODELS = {
    "DETR": (Detr, ("1,3,16,16",)),
    "Swin": (Swin, ("1,64,8",)),
    "an encoder with masks": (Encoder, ("x=1,6,8", "padding=1,6:bool")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_batch_is_dynamic_and_right_at_1_and_4(name):
    kind, shapes = MODELS[name]
    module = with_random_tensors(kind())
    if isinstance(module, Swin):
        module.mask.copy_(torch.where(module.mask < -0.5, -100.0, 0.0))
    source = load_model(module, LoadOptions.of(input_shapes=shapes), clock=Clock(None))
    program = source.program
    assert program.fixed_batch is None, program.notes
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for batch in (1, 4):
        inputs = [torch.randn((batch, *x.shape[1:]), generator=generator) for x in source.examples]
        drawn.append([
            x if given.dtype == torch.float32 else torch.arange(6) >= 3 + torch.arange(batch)[:, None]
            for x, given in zip(inputs, source.examples, strict=True)
        ])  # fmt: skip
    double = [program.with_dtype(torch.float64).run(*in_float64(inputs)) for inputs in drawn]
    for inputs, wanted in zip(drawn, double, strict=True):
        with torch.no_grad():
            own = source.module(*inputs)
        seen = ~inputs[1] if len(inputs) > 1 else slice(None)
        assert_same([own[seen]], [wanted[0].float()[seen]], "captured", bound=1e-5)
    rewritten = {format: rewrite(program, REWRITES[format], drawn[0])[0] for format in ("tf", "onnx")}
    for results, wanted in zip(run_in_float64(planned(rewritten["tf"]), *drawn), double, strict=True):
        assert_same(results, wanted, "tf")
    for inputs, wanted in zip(drawn, double, strict=True):
        assert_same(rewritten["onnx"].with_dtype(torch.float64).run(*in_float64(inputs)), wanted, "onnx")


class MaskOfBatch(nn.Module):
    def forward(self, x):
        mask = torch.ones(x.shape[0], x.shape[1], dtype=torch.bool)
        for i in range(x.shape[0]):
            mask[i, i:] = False
        return x.masked_fill(mask[..., None], 0)


@pytest.mark.slow
def test_a_loop_over_the_batch_is_named_with_its_line():
    source = load_model(MaskOfBatch(), LoadOptions.of(input_shapes=["2,4,3"]), clock=Clock(None))
    assert source.program.fixed_batch == 2
    (note,) = [note.text for note in source.program.notes if note.code == "PTC2501"]
    assert "for i in range(x.shape[0]):" in note
