"""`--input-shape 1,3,H,W`: one program for all sizes that the network takes, those in between computed in the graph."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from equivalence import Call, assert_same, in_float64, planned, run_in_float64, with_random_tensors
from torch import nn

import cli
from converter.capture.input_domains import dynamic_size_choices, input_specs
from converter.capture.input_shapes import parse_input_shape
from converter.capture.random_inputs import draw
from converter.errors import CaptureError, UnsupportedOperatorsError, UsageError
from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model


def opened(module, *shapes, fixed_batch=None):
    return load_model(module, LoadOptions.of(input_shapes=shapes), clock=Clock(None), fixed_batch=fixed_batch)


def conv(before, after, stride=1, kernel=3):
    return nn.Conv2d(before, after, kernel, stride, kernel // 2)


class Strides(nn.Module):
    """A classifier: five strides of 2, a block with a residual, gates, a global pool."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 4, 2, 7), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.left, self.right = conv(4, 6, 2), conv(4, 6, 2, 1)
        self.squeeze, self.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, 2, 1, groups=6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.hardswish(self.left(x) + self.right(x))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(F.adaptive_avg_pool2d(self.depthwise(x), 1).flatten(1))


class Pyramid(nn.Module):
    """A U-Net of two levels: the coarse one is upsampled by 2, which must give the fine one's size again."""

    def __init__(self, up):
        super().__init__()
        self.a, self.b, self.c, self.up = conv(3, 4, 2), conv(4, 5, 2), conv(9, 3), up

    def forward(self, x):
        fine = self.a(x)
        return self.c(torch.cat([fine, self.up(self.b(fine).relu())], 1))


class Patches(nn.Module):
    """Tokens of patches with positions resampled to as many, attention between them, and back to a map."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8)
        self.positions = nn.Parameter(torch.zeros(1, 8, 5, 5))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.embed(x)
        n, c, h, w = x.shape
        x = x + F.interpolate(self.positions, (h, w), mode="bilinear")
        x = self.norm(x.flatten(2).transpose(1, 2))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x.transpose(1, 2).reshape(n, c, h, w)


class Buffered(nn.Module):
    """As BERT: the positions are cut from a buffer of 24."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(20, 6), nn.Embedding(24, 6)
        self.register_buffer("positions", torch.arange(24)[None])

    def forward(self, ids):
        return self.words(ids) * self.places(self.positions[:, : ids.shape[1]])


class Text(nn.Module):
    """Tokens with positions from a table of 40, a causal mask, heads by hand, the mean of what is not masked."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(30, 8), nn.Embedding(40, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, ids, mask):
        n, t = ids.shape
        x = self.words(ids) + self.places(torch.arange(t))
        q, k, v = self.qkv(x).view(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, 8))
        m = mask[:, :, None].float()
        return (x * m).sum(1) / (m.sum(1) + 1)


class Last(nn.Module):
    """The state after the last valid step."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 5, batch_first=True)

    def forward(self, x, lengths):
        y = self.rnn(x)[0]
        return y.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, y.shape[2])).squeeze(1)


class Pixels(nn.Module):
    """A recurrent layer over the pixels of an image, row by row."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        n, _, h, w = x.shape
        y = self.head(self.rnn(x.flatten(2).transpose(1, 2))[0])
        return y.transpose(1, 2).reshape(n, 2, h, w)


def windows(self, x):
    n, c, h, w = x.shape
    x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    x = self.l(x).view(n, h // 4, w // 4, 4, 4, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def focus(self, x):
    return self.c(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1))


def padded(self, x):
    h, w = x.shape[2:]
    y = self.c(F.pad(x, (0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4)))
    return y[..., :h, :w]


def grid(self, x):
    y = self.c(x)
    rows, columns = torch.arange(y.shape[2]), torch.arange(y.shape[3])
    return y + rows[:, None] * 0.5 - columns


class LastByIndex(nn.Module):
    def forward(self, x, lengths):
        return x[torch.arange(x.size(0), device=x.device), lengths - 1]


class Corners(nn.Module):
    """Reads pixels at rows and columns of each sample, which may count from the end."""

    def forward(self, x, i):
        i = i % 3
        return x[torch.arange(len(x))[:, None], :, i, -1 - i]


IMAGE = ("1,3,H,W",)
NETWORKS = {
    "strides, gates, a global pool": (Strides(), IMAGE, ["Size H must be at least 17", "at least 17"]),
    "multiples that the user says": (Strides(), ("1,3,32*H,32*W",), []),
    "square only where asked": (Strides(), ("1,3,H,H",), ["Size H must be at least 17"]),
    "one free size": (Strides(), ("1,3,H,40",), ["Size H must be at least 17"]),
    "upsampled by 2": (Pyramid(nn.Upsample(scale_factor=2)), IMAGE, ["multiple of 4", "multiple of 4"]),
    "upsampled by 2, bilinear": (Pyramid(nn.Upsample(scale_factor=2, mode="bilinear")), IMAGE, ["multiple of 4"]),
    "transposed convolution": (Pyramid(nn.ConvTranspose2d(5, 5, 2, 2)), IMAGE, ["multiple of 4", "multiple of 4"]),
    "multiples of half of what is needed": (Pyramid(nn.Upsample(scale_factor=2)), ("1,3,2*H,2*W",), ["multiple of 2"]),
    "patches, positions, attention": (Patches(), IMAGE, []),
    "positions cut from a buffer": (Buffered(), ("1,T:int64",), ["Size T must be at most 24"]),
    "tokens": (Text(), ("ids=1,T:int64", "mask=1,T:bool"), []),
    "windows": (Call(windows, l=nn.Linear(3, 3)), IMAGE, ["multiple of 4", "multiple of 4"]),
    "focus": (Call(focus, c=nn.Conv2d(12, 4, 3)), IMAGE, ["multiple of 2", "multiple of 2"]),
    "padded to a multiple, of which there is none": (Call(padded, c=conv(3, 2)), ("1,3,4*H,4*W",), []),
    "positions computed from the size": (Call(grid, c=conv(3, 2)), IMAGE, []),
    "pixel shuffle": (nn.Sequential(conv(3, 12), nn.PixelShuffle(2)), IMAGE, []),
    "a dimension of one element resampled beside free ones": (
        Call(lambda x: F.interpolate(x.mean(1, keepdim=True).permute(0, 2, 3, 1), scale_factor=3, mode="bilinear")),
        IMAGE, []),
    "pixel unshuffle": (nn.Sequential(nn.PixelUnshuffle(2), conv(12, 5)), IMAGE, ["multiple of 2", "multiple of 2"]),
    "maxima of a sequence": (
        nn.Sequential(nn.Conv1d(2, 4, 5, 2), nn.MaxPool1d(3, 2, 1), nn.ReLU(), nn.MaxPool1d(2, ceil_mode=True)),
        ("1,2,T",), []),
    "strides that leave one element of the least length": (
        nn.Sequential(nn.Conv1d(2, 4, 80, 16), nn.MaxPool1d(4), nn.Conv1d(4, 3, 3), nn.MaxPool1d(4)), ("1,2,T",), []),
    "maxima rounded up": (nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), conv(3, 2)), IMAGE, []),
    "windows that begin behind an image of an odd size": (
        nn.Sequential(nn.MaxPool2d(2, 2, 1, ceil_mode=True), nn.AvgPool2d(1, 3, ceil_mode=True)), IMAGE, []),
    "averages rounded up, as of the shortcuts in ResNet-D": (
        nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), conv(3, 4, 1, 1)), IMAGE, []),
    "averages rounded up that count their padding": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGE, []),
    "averages of a sequence that do not": (nn.AvgPool1d(4, 3, 2, count_include_pad=False), ("1,3,T",), []),
    "transposed convolutions of one channel each": (nn.ConvTranspose2d(3, 3, 4, 2, 1, groups=3), IMAGE, []),
    "a dilated transposed convolution": (nn.ConvTranspose2d(3, 4, 3, 2, 1, 1, dilation=2), IMAGE, []),
    "the upper half, of which torch.export cannot prove that it is less than all": (
        Call(lambda x: x[:, :, : x.shape[2] // 2]), IMAGE, ["Size H must be at least 4"]),
    "a sequence of sounds": (nn.Sequential(nn.Conv1d(2, 4, 9, 4), nn.GELU(), nn.Conv1d(4, 3, 3, 2)), ("1,2,T",), []),
    "a recurrent layer": (Call(lambda self, x: self.g(x)[0], g=nn.GRU(4, 5, batch_first=True)), ("1,T,4",), []),
    "two sequences": (Call(lambda x, y: torch.cat([x, y], 1).cumsum(1)), ("1,S,4", "1,T,4"), []),
    "one twice as long": (Call(lambda x, y: torch.cat([x, x], 1) + y), ("1,T", "1,2*T"), []),
    "volumes": (nn.Sequential(nn.Conv3d(2, 3, 3), nn.ReLU()), ("1,2,D,H,W",), []),
    "a bound that is a fraction": (
        Call(lambda x: x + 1 if 2 * x.shape[2] >= 5 else x), ("1,3,T",), ["Size T must be at least 3"]),
    "a size as a number": (
        Call(lambda x: F.pad(x, (0, int(math.ceil(x.shape[3] / 16) * 16) - x.shape[3]))), IMAGE, []),
    "all pairs": (Call(lambda x: x[:, :, None] * x[:, None]), ("1,T,4",), []),
    "halves": (Call(lambda x: torch.cat(x.chunk(2, 2)[::-1], 2)), IMAGE, []),
    "halves of a sequence that are gates": (
        Call(lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid()), ("1,2*T,4",), []),
    "halves by split": (Call(lambda x: torch.cat(x.split(x.shape[3] // 2, 3), 1)), ("1,3,H,2*W",), []),
    "the larger half": (Call(lambda x: x[:, :, : x.shape[2] - x.shape[2] // 2]), IMAGE, []),
    "both halves": (
        Call(lambda x: x[:, :, : x.shape[2] // 2].mean(2) + x[:, :, x.shape[2] // 2 :].mean(2)), IMAGE, []),
    "pools of volumes": (
        nn.Sequential(nn.MaxPool3d(3, 2, 1, ceil_mode=True), nn.AvgPool3d((1, 2, 3), 2, (0, 1, 1))),
        ("1,2,D,H,W",), []),
    "averages of volumes that do not count their padding": (
        nn.AvgPool3d(3, 2, 1, count_include_pad=False), ("1,2,D,H,W",), []),
    "a dilated pool": (nn.MaxPool2d(3, 2, 1, dilation=2), IMAGE, []),
    "samples of a grid": (
        Call(lambda x, g: F.grid_sample(x, g.tanh() * 1.2, align_corners=False)), ("1,3,H,W", "1,5,6,2"), []),
    "a flow of the image's size": (
        Call(lambda x, f: F.grid_sample(x, f.permute(0, 2, 3, 1), "bicubic", "reflection", True)),
        ("1,3,H,W", "1,2,H,W"), []),
    "sorted": (Call(lambda x: x.sort(1).values), ("1,T,4",), []),
    "in descending order, the best three and the rest by their places": (
        Call(lambda x: torch.cat([x.topk(3, 1).values, x.gather(1, x.argsort(1, descending=True))], 1)),
        ("1,T,4",), []),
    "overlapping windows": (nn.Unfold((3, 2), 1, (1, 0), (2, 1)), IMAGE, []),
    "overlapping windows summed": (
        Call(lambda x: F.fold(F.unfold(x, 3, 1, 1, 2) * 2, x.shape[2:], 3, 1, 1, 2)), IMAGE, []),
    "windows along a sequence": (Call(lambda x: x.unfold(1, 4, 3).mean(3) + x[:, :1]), ("1,T,4",), []),
    "windows that tile": (
        Call(lambda x: F.fold(F.unfold(x, 4, stride=4), x.shape[2:], 4, stride=4) + x), ("1,3,4*H,4*W",), []),
    "an adaptive pool that keeps one size": (nn.AdaptiveAvgPool2d((None, 1)), IMAGE, []),
    "a line of coordinates": (
        Call(lambda x: x * torch.linspace(-1, 1, x.shape[3]) + torch.linspace(2, 0, x.shape[2])[:, None]), IMAGE, []),
    "the last valid step of a padded sequence": (Last(), ("x=1,T,4", "lengths=1:int64"), []),
    "the last valid step, by an index": (LastByIndex(), ("x=1,T,4", "lengths=1:int64"), []),
    "pixels by an index": (Corners(), ("x=1,3,H,W", "i=1,6:int64"), []),
    "steps that are known": (Call(lambda x: x[:, torch.tensor([0, 2, -1])]), ("1,T,4",), []),
    "maxima that keep the height": (nn.AdaptiveMaxPool2d((None, 1)), IMAGE, []),
    "maxima of each column": (Call(lambda x: F.adaptive_max_pool2d(x, (3, x.shape[3]))), IMAGE, []),
    "maxima of volumes that keep the height": (nn.AdaptiveMaxPool3d((2, None, 3)), ("1,2,D,H,W",), []),
    "thirds, the last one smaller": (
        Call(lambda x: torch.cat(x.chunk(3, 2)[::-1], 2)), IMAGE, ["Size H must be at least"]),
    "thirds that differ by one": (Call(lambda x: torch.cat(x.tensor_split(3, 1)[::-1], 1)), ("1,T,4",), []),
    "parts of four steps: the first, the last, the one before it": (
        Call(lambda x: x.split(4, 1)[0].mean(1) + x.split(4, 1)[-1].sum(1) * x.split(4, 1)[-2].mean(1)),
        ("1,T,3",), ["Size T must be at least 5"]),
    "parts counted": (Call(lambda x: sum(part.sum(1) for part in x.split(16, 1))), ("1,T,3",), ["at most 64"]),
    "parts joined to others": (
        Call(lambda x: sum(part.sum(1) for part in (x[:, :2],) + x.split(16, 1) + (x[:, 2:4],))),  # noqa: RUF005
        ("1,T,3",), ["at most 64"]),
    "tiles in the batch": (Call(lambda x: torch.cat(x.split(4, 2), 0) * 2), ("1,3,4*H,8",), []),
    "tiles": (Call(lambda x: torch.stack(torch.split(x, 4, dim=3), 1).amax(4)), ("1,3,H,4*W",), []),
    "a batch of both, cut again": (
        Call(lambda x, y: torch.sub(*torch.cat([x, y]).softmax(2).split(x.shape[0], 0))), ("1,T,4", "1,T,4"), []),
    "a rounded share": (Call(lambda x: x[:, : round(x.shape[1] * 0.3)] + 1), ("1,T,3",), []),
    "a recurrent layer over all pixels": (Pixels(), IMAGE, []),
    "softmax over positions, upsampled": (
        Call(lambda self, x: F.interpolate(self.c(x).flatten(2).softmax(2).view(-1, 2, *x.shape[2:]), scale_factor=2),
             c=conv(3, 2)), IMAGE, []),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", NETWORKS)
def test_is_pytorchs_function_at_every_size(case):
    module, shapes, noted = NETWORKS[case]
    source = opened(with_random_tensors(module), *shapes)
    program = source.program
    for words in noted:
        assert any(words in note.text for note in program.notes), program.notes
    assert len(program.notes) >= len(noted)
    specs = input_specs(program)
    drawn = [
        [torch.from_numpy(array) for array in draw(specs, 1 + number, number, sizes).values()]
        for number, sizes in enumerate(dynamic_size_choices(program))
    ]
    assert len({tuple(x.shape[1:]) for inputs in drawn for x in inputs[:1]}) == 2
    raised = program.with_dtype(torch.float64)
    double = [raised.run(*in_float64(inputs)) for inputs in drawn]
    for inputs, wanted in zip(drawn, double, strict=True):
        with torch.no_grad():
            assert_same([source.module(*inputs)], [wanted[0].float()], "the captured program", bound=1e-4)
    for results, wanted in zip(run_in_float64(planned(program), *drawn), double, strict=True):
        assert_same(results, wanted, case)


def looped(x):
    return torch.stack([x[:, i] * 2 for i in range(x.shape[1])], 1)


REFUSED = {
    "a Linear behind a flattened map": (
        nn.Sequential(conv(3, 2), nn.Flatten(), nn.Linear(2 * 64 * 96, 3)), IMAGE, CaptureError,
        ["does not accept every size: at H=", "shapes cannot be multiplied", "`2` (Linear)", "Give numbers"],
    ),
    "a Linear that takes none of those tried": (
        nn.Sequential(conv(3, 2), nn.Flatten(), nn.Linear(7, 3)), IMAGE, CaptureError,
        ["No sizes were found at which the model runs", "`2` (Linear)", "H=64, W=96"],
    ),
    "a map and its transpose": (
        Call(lambda x: x + x.transpose(2, 3)), IMAGE, CaptureError, ["W must be H", "write H in place of W"],
    ),
    "one longer than the other": (
        Call(lambda x, y: F.pad(x, (0, 2)) + y), ("1,S", "1,S"), CaptureError, ["No sizes were found"],
    ),
    "a loop over a dimension": (Call(looped), ("1,T,3",), CaptureError, ["T cannot be dynamic", "Give 64 in place"]),
    "a multiple behind its name": (conv(3, 2), ("1,3,H*2,W",), UsageError, ["`1,3,H*2,W` is not a valid", "1,3,H,W"]),
    "a multiple of nothing": (conv(3, 2), ("1,3,0*H,W",), UsageError, ["has a size of 0"]),
    "a batch in another place": (conv(3, 2), ("N,3,N,W",), UsageError, ["same batch, which is the first size: `N`"]),
    "batches of two names": (Call(torch.add), ("N,3", "M,3"), UsageError, ["which is the first size: `M`, `N`"]),
    "a dynamic number of channels": (
        Call(lambda x: F.max_pool2d(x.transpose(1, 2), 2)), IMAGE, UnsupportedOperatorsError,
        ["a dynamic number of channels", "max_pool2d"],
    ),
    "a loop over parts of a size": (
        Call(lambda x: torch.cat([part - part.mean() for part in x.split(16, 1)], 1)), ("1,16*T,3",), CaptureError,
        ["Size T cannot be dynamic", "Give 4 in place of T", "x.unflatten(dim, (-1, n))"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("module, shapes, error, said", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_named_with_its_fix(module, shapes, error, said):
    with pytest.raises(error) as refused:
        planned(opened(module.eval(), *shapes).program)
    for words in said:
        assert words in str(refused.value)


def to_multiple(x, n, mode="constant", **how):
    """Pad both sides to the next multiple."""
    height, width = x.shape[-2:]
    rows, columns = -height % n, (n - width % n) % n
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), mode, **how)


def restored(self, x, mode):
    """A restoration network: pad, a level down and up again, crop."""
    height, width = x.shape[-2:]
    x = F.pad(x, (0, math.ceil(width / 4) * 4 - width, 0, (height + 3) // 4 * 4 - height), mode)
    return (x + self.up(self.down(x)))[..., :height, :width]


def only_where_needed(self, x):
    _, _, height, width = x.shape
    right, below = (4 - width % 4) % 4, (4 - height % 4) % 4
    if right > 0 or below:
        x = F.pad(x, [0, right, 0, below])
    return self.c(x)[:, :, :height, :width]


def to_the_size_of_the_skip(self, x):
    """The U-Net that pads what is upsampled to the map that it joins."""
    y = self.up(F.max_pool2d(x, 2))
    rows, columns = x.shape[2] - y.shape[2], x.shape[3] - y.shape[3]
    return torch.cat([x, F.pad(y, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])], 1)


def attended_windows(self, x):
    """Attention within windows of 4 by 4, as in Swin."""
    height, width = x.shape[2:]
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, (4 - width % 4) % 4, 0, (4 - height % 4) % 4))
    batch, rows, columns, channels = x.shape
    x = x.view(batch, rows // 4, 4, columns // 4, 4, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)
    query, key, value = self.l(x).chunk(3, -1)
    x = (query @ key.transpose(1, 2)).softmax(-1) @ value
    x = x.view(batch, rows // 4, columns // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows, columns, channels)[:, :height, :width].permute(0, 3, 1, 2)


def shuffled(x):
    """Multiples of 8 by `divmod` and by a negative quotient, and strides that depend on them."""
    _, rest = divmod(x.shape[2], 8)
    below, right = (8 - rest) % 8, -(-x.shape[3] // 8) * 8 - x.shape[3]
    return F.pixel_shuffle(F.pixel_unshuffle(F.pad(x, (0, right, 0, below)), 4), 2)


def windows_if_needed(x):
    """The windows of Segment Anything, which pads only where it must, and joins them by their number."""
    batch, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1)
    below = (5 - height % 5) % 5
    if below > 0:
        x = F.pad(x, (0, 0, 0, 0, 0, below))
    rows = height + below
    x = x.view(batch, rows // 5, 5, width, channels).reshape(-1, 5, width, channels)
    x = (x - x.mean((1, 2), keepdim=True)).view(x.shape[0] // (rows // 5), rows, width, channels)
    return x[:, :height] if rows > height else x


def restored_if_needed(x):
    """Restormer's: to the multiple beyond, unless the size is a multiple."""
    height, width = x.shape[2], x.shape[3]
    below = (height + 4) // 4 * 4 - height if height % 4 else 0
    right = (width + 4) // 4 * 4 - width if width % 4 else 0
    return F.avg_pool2d(F.pad(x, (0, right, 0, below), "reflect"), 4)


def of_numpy(x):
    height, width = x.shape[-2:]
    rows, columns = int(np.ceil(height / 4) * 4), np.maximum(10, width)
    return F.pad(x, (0, columns - width, 0, rows - height), "replicate")


def at_least(x):
    """A square of whole windows, of at least one."""
    height, width = x.shape[-2:]
    side = max(height, width, 10) + 7
    return F.pad(x, (0, (side & ~7) - width, 0, (side >> 3) * 8 - height))


def written_into_zeros(x):
    batch, channels, height, width = x.shape
    whole = x.new_zeros(batch, channels, (height + 3) // 4 * 4, math.ceil(width / 4) * 4)
    whole[:, :, :height, :width] = x
    return whole


UP, DOWN = nn.ConvTranspose2d(3, 3, 2, 2), nn.Conv2d(3, 3, 2, 2)
PADDED = {
    "shuffled": Call(shuffled),
    "windows that a branch pads": Call(windows_if_needed),
    "the multiple beyond, or none": Call(restored_if_needed),
    "NumPy's ceiling and maximum": Call(of_numpy),
    "a square of at least one window": Call(at_least),
    "written into zeros": Call(written_into_zeros),
    "cropped to the size of the skip": Call(
        lambda self, x: torch.cat([x, self.up(self.c(x))[:, :, : x.shape[2], : x.shape[3]]], 1), up=UP, c=conv(3, 3, 2)
    ),
    "cropped to a multiple": Call(
        lambda x: F.avg_pool2d(x[:, :, : x.shape[2] // 3 * 3, : math.floor(x.shape[3] / 3) * 3], 3)
    ),
    "one side": Call(lambda self, x: self.c(F.pad(x, (0, (4 - x.shape[3] % 4) % 4))), c=conv(3, 2)),
    "a value": Call(lambda x: to_multiple(x, 4, value=-1.5)),
    "reflected": Call(lambda x: to_multiple(x, 4, "reflect")),
    "repeated": Call(lambda x: to_multiple(x, 5, "replicate")),
    "restored": Call(lambda self, x: restored(self, x, "reflect"), up=UP, down=DOWN),
    "a branch": Call(only_where_needed, c=conv(3, 2)),
    "attention in windows": Call(attended_windows, l=nn.Linear(3, 9)),
    "a skip": Call(to_the_size_of_the_skip, up=UP),
    "the remainder in floating point": Call(lambda x: F.pad(x, (0, int((8 - math.fmod(x.shape[3], 8)) % 8)))),
    "rounded to the even of two halves": Call(lambda x: F.pad(x, (0, round(x.shape[3] / 4 + 0.5) * 4 - x.shape[3]))),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PADDED)
def test_pads_that_depend_on_sizes_are_in_the_graph(case):
    source = opened(with_random_tensors(PADDED[case]), *IMAGE)
    program = source.program
    assert not [note for note in program.notes if "multiple" in note.text]
    drawn = [(torch.randn(2, 3, *size),) for size in ((8, 12), (9, 11), (10, 13), (11, 6))]
    wanted = [program.with_dtype(torch.float64).run(*in_float64(inputs)) for inputs in drawn]
    for inputs, results in zip(drawn, wanted, strict=True):
        with torch.no_grad():
            assert_same([source.module(*inputs)], [results[0].float()], "the captured program", bound=1e-4)
    for results, right in zip(run_in_float64(planned(program), *drawn), wanted, strict=True):
        assert_same(results, right, case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shapes, noted, ends",
    [
        (("1,3,H=20..90,W=20..90",), [(20, 90), (20, 90)], [(20, 90), (90, 20)]),
        (("1,3,4*H=5..9,40",), [(5, 9)], [(20, 40), (36, 40)]),
        (("1,3,H=10..50,48",), [(17, 50)], [(17, 48), (50, 48)]),  # the network takes no less than 17
    ],
)
def test_a_range_is_compared_at_its_ends(shapes, noted, ends):
    program = opened(Strides().eval(), *shapes).program
    told = [note.text for note in program.notes if note.code == "PTC2502"]
    for (least, most), text in zip(noted, told, strict=True):
        assert f"at least {least}" in text
        assert f"at most {most}" in text
    specs = input_specs(program)
    drawn = [draw(specs, 1, 0, sizes)["x"].shape[2:] for sizes in dynamic_size_choices(program)]
    assert drawn == ends


def test_a_range_may_lie_beyond_the_sizes_that_are_tried():
    sounds = nn.Sequential(nn.Conv1d(1, 2, 80, 16), nn.ReLU(), nn.MaxPool1d(4))
    program = opened(sounds.eval(), "1,1,T=16000..48000").program
    assert [sizes["T"] for sizes in dynamic_size_choices(program)] == [16000, 48000]


@pytest.mark.parametrize("text", ["1,3,H=9..8,W", "1,3,H=0..8,W", "1,3,H=8..,W", "1,3,8..9,W"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=r"not a range|not a valid input shape"):
        parse_input_shape(text)


def test_a_name_for_the_batch_is_the_batch():
    source = opened(nn.Linear(3, 2), "N,T,3")
    assert source.program.fixed_batch is None
    assert list(dynamic_size_choices(source.program)[0]) == ["T"]
    assert opened(nn.Linear(3, 2), "N,3", fixed_batch=4).program.fixed_batch == 4


NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Upsample(scale_factor=2)

    def forward(self, image):
        fine = self.a(image)
        return fine + self.up(self.b(fine))
"""


@pytest.mark.slow
def test_the_command_writes_one_artifact_for_every_size_which_verifies_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    model = Call(lambda self, x: x, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3))
    torch.save(model.state_dict(), "net.pt")
    made = CliRunner().invoke(
        cli.main, ["net.pt", "--model", "net.py:Net", "--input-shape", "1,3,H,W", "--to", "keras", "--to", "onnx"]
    )
    assert made.exit_code == 0, made.stderr
    for words in ("[batch, H, W, 3]", "[batch, H/2, W/2, 4]", "[batch, 4, H/2, W/2]", "Size H must be a multiple of 4"):
        assert words in made.stderr
    again = CliRunner().invoke(cli.main, ["verify", "net.pt", "net.keras", "--model", "net.py:Net", "--json"])
    assert again.exit_code == 0, again.stderr
    (rounds,) = re.findall(r'"rounds": \[(.*?)\]', again.stdout, re.DOTALL)
    assert len(set(re.findall(r"H (\d+)", rounds))) == 3
