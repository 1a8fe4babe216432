"""Small networks, real in structure, in which faults are planted. Where a fault hides behind equal sizes, they are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sample_models.blocks import SPPF, ConvUnit, Focus
from sample_models.calibration import calibrate


@dataclass(frozen=True)
class Architecture:
    """`build` makes the network, `shapes` are its `--input-shape`s."""

    build: Callable[[], nn.Module]
    shapes: tuple[str, ...]

    def model(self) -> nn.Module:
        """The same at every call: random weights, no two alike, measured statistics."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build()
        return calibrate(model, *(_example(shape) for shape in self.shapes))


def _example(shape: str) -> Tensor:
    sizes, _, dtype = shape.partition(":")
    drawn = torch.randn([int(n) for n in sizes.split(",")], generator=torch.Generator().manual_seed(0))
    return drawn if not dtype else drawn.abs().mul(4).to(getattr(torch, dtype))


def unit(channels_in: int, channels_out: int, *activation: nn.Module, **options) -> nn.Sequential:
    options = {"kernel_size": 3, "padding": 1, "bias": False} | options
    conv = nn.Conv2d(channels_in, channels_out, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), *activation)


class PlainCNN(nn.Module):
    """VGG and ResNet's stem: padded pools, `flatten` before Linear."""

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 6, nn.ReLU(), kernel_size=7, stride=2, padding=3)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.LeakyReLU(0.01))
        self.average = nn.AvgPool2d(3, 2, 1)
        self.shrink = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.hidden, self.head = nn.Linear(6 * 2 * 2, 8), nn.Linear(8, 5)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(self.stem(x) - 0.5))
        x = self.shrink(self.average(x))
        return self.head(self.dropout(F.relu(self.hidden(x.flatten(1)))))


class FocusDetector(nn.Module):
    """YOLOv5's stem, SPPF and upsampling path, two outputs of one shape."""

    def __init__(self):
        super().__init__()
        self.focus, self.down = Focus(3, 8, 3), ConvUnit(8, 8, 3, 2)
        self.pool, self.lateral = SPPF(8, 8), ConvUnit(16, 8)
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.focus(x)
        coarse = self.pool(self.down(fine))
        joined = self.lateral(torch.cat((F.interpolate(coarse, scale_factor=2.0), fine), 1))
        return (self.boxes(joined).sigmoid() * 2 - 0.5) ** 2, self.scores(joined).sigmoid()


class MobileNet(nn.Module):
    """Depthwise convolutions, one with a multiplier, squeeze and excitation, clipped activations."""

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 8, nn.Hardswish(), stride=2)
        self.depthwise = unit(8, 16, nn.ReLU6(), groups=8)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = unit(16, 8, kernel_size=1, padding=0)
        self.expand = unit(8, 8, nn.ReLU6(), groups=8, stride=2, kernel_size=5, padding=2)
        self.mix = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x))
        scale = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = self.project(x * scale)
        x = x + self.mix(self.expand(F.interpolate(x, scale_factor=2)))
        return self.head(x.mean((2, 3)))


class ResNeXt(nn.Module):
    """Grouped and dilated convolutions, residuals, PReLU."""

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 8, nn.PReLU(8), stride=2)
        self.grouped = unit(8, 8, nn.PReLU(8), groups=2)
        self.dilated = unit(8, 8, nn.PReLU(), dilation=2, padding=2)
        self.down, self.shortcut = unit(8, 12, stride=2), unit(8, 12, stride=2, kernel_size=1, padding=0)
        self.head = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.dilated(self.grouped(x))
        x = F.relu(self.down(x) - self.shortcut(x))
        return F.softmax(self.head(F.adaptive_max_pool2d(x, 1).flatten(1)), 1)


class ShuffleNet(nn.Module):
    """Channels split, joined and shuffled."""

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 12, nn.ReLU())
        self.branch = nn.Sequential(unit(6, 6, groups=6), unit(6, 6, nn.ReLU(), kernel_size=1, padding=0))
        self.mix = unit(12, 12, nn.ReLU(), groups=3)
        self.last = nn.Conv2d(12, 6, 3, stride=2, padding=1)

    def shuffle(self, x: Tensor, groups: int) -> Tensor:
        batch, channels, height, width = x.shape
        return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = self.stem(x).chunk(2, 1)
        x = self.shuffle(torch.cat((kept, self.branch(changed)), 1), 2)
        return self.last(self.shuffle(self.mix(x), 3))


class UNet(nn.Module):
    """Transposed convolution and every kind of resize, group norms, reflected borders."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.GroupNorm(2, 6), nn.ELU())
        self.down = nn.Sequential(nn.Conv2d(6, 8, 4, 2, 1), nn.GroupNorm(4, 8), nn.SiLU())
        self.up = nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1)
        self.join, self.leave = nn.Conv2d(12, 6, 3, padding=1), nn.Conv2d(18, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.enter(x)
        coarse = self.down(fine)
        y = F.elu(self.join(torch.cat((self.up(coarse), fine), 1)))
        size = y.shape[-2:]
        levels = [
            F.interpolate(F.avg_pool2d(y, 2), size, mode="bilinear"),
            F.interpolate(F.max_pool2d(y, 2), size, mode="bilinear", align_corners=True),
            F.interpolate(F.interpolate(y, scale_factor=0.7, mode="bicubic"), size),
        ]
        return torch.tanh(self.leave(torch.cat(levels, 1)))


class SuperResolution(nn.Module):
    """PixelUnshuffle, residual blocks with a scale, PixelShuffle, a bicubic shortcut."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(12, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1))
        self.leave = nn.Conv2d(8, 3 * 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(F.pixel_unshuffle(x, 2))
        y = F.pixel_shuffle(self.leave(y + 0.2 * self.body(y)), 4)
        return y + F.interpolate(x, scale_factor=2, mode="bicubic")


class WaveNet(nn.Module):
    """Causal dilated convolutions over time, gated, instance norm."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv1d(4, 8, 5, padding="same")
        self.gates = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=d) for d in (1, 2, 4))
        self.mix = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.norm = nn.InstanceNorm1d(8, affine=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softplus(self.enter(x))
        for gate, mix in zip(self.gates, self.mix, strict=True):
            x = x + mix(F.glu(gate(F.pad(x, (gate.dilation[0], 0))), 1))
        x = self.norm(x)
        return F.log_softmax(self.head(torch.cat((x.std(2), x.amax(2)), 1)), 1)


class MLP(nn.Module):
    """Batch norm over features, statistics of the input, and integer arithmetic."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(10, 12), nn.BatchNorm1d(12)
        self.second, self.third = nn.Linear(12, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-2).sqrt()
        x = F.selu(self.norm(self.first(x)))
        y = self.third(F.hardtanh(self.second(x), -2.0, 2.0))
        steps = torch.div(y * 3, 2, rounding_mode="floor") + torch.remainder(y * 5, 3)
        return F.normalize(y, dim=1), steps.cumsum(1)
