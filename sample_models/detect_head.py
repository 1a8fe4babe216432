"""A detector in YOLOv5's manner: Focus, a pyramid up and down again, and a head with anchors on three levels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sample_models.blocks import CSP, SPPF, ConvUnit, Focus

STRIDES = (8, 16, 32)
ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)


class Detect(nn.Module):
    """Turns three feature maps into boxes.

    Anchors (levels, anchors, 2: width, height, in pixels) are in the state dict; the grids, one
    (1, 1, height, width, 2: x, y) a level, follow from the image size and are not.
    """

    anchors: Tensor

    def __init__(self, classes: int, in_channels: Sequence[int], image_size: tuple[int, int]):
        super().__init__()
        self.values = classes + 5
        self.heads = nn.ModuleList(nn.Conv2d(channels, len(ANCHORS[0]) * self.values, 1) for channels in in_channels)
        self.register_buffer("anchors", torch.tensor(ANCHORS, dtype=torch.float32))
        for level, stride in enumerate(STRIDES):
            rows, columns = (torch.arange(size // stride, dtype=torch.float32) for size in image_size)
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            self.register_buffer(f"grid{level}", torch.stack((x, y), -1)[None, None] - 0.5, persistent=False)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        raw, boxes = [], []
        for level, (head, stride) in enumerate(zip(self.heads, STRIDES, strict=True)):
            x = head(features[level])
            batch, _, height, width = x.shape
            x = x.view(batch, len(ANCHORS[0]), self.values, height, width).permute(0, 1, 3, 4, 2).contiguous()
            raw.append(x)
            center, size, confidence = x.sigmoid().split((2, 2, self.values - 4), -1)
            center = (center * 2 + getattr(self, f"grid{level}")) * stride
            size = (size * 2) ** 2 * self.anchors[level].view(1, -1, 1, 1, 2)
            boxes.append(torch.cat((center, size, confidence), -1).view(batch, -1, self.values))
        return torch.cat(boxes, 1), raw


class Detector(nn.Module):
    """Images (batch, 3, height, width) to boxes, and the head's raw values.

    Boxes are (batch, boxes, 5 + classes): center x, center y, width, height in pixels, objectness, class
    probabilities. Raw values are (batch, anchors, height / stride, width / stride, 5 + classes) for each of the
    strides 8, 16, 32, of which height and width are multiples.
    """

    def __init__(self, classes: int, image_size: tuple[int, int]):
        super().__init__()
        self.stem = Focus(3, 8, kernel_size=3)
        self.stage4 = nn.Sequential(ConvUnit(8, 16, 3, stride=2), CSP(16, 16))
        self.stage8 = nn.Sequential(ConvUnit(16, 24, 3, stride=2), CSP(24, 24, depth=2))
        self.stage16 = nn.Sequential(ConvUnit(24, 32, 3, stride=2), CSP(32, 32, depth=2))
        self.stage32 = nn.Sequential(ConvUnit(32, 48, 3, stride=2), SPPF(48, 48))
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.narrow32 = ConvUnit(48, 32)
        self.up16 = CSP(32 + 32, 32, shortcut=False)
        self.narrow16 = ConvUnit(32, 24)
        self.up8 = CSP(24 + 24, 24, shortcut=False)
        self.shrink8 = ConvUnit(24, 24, 3, stride=2)
        self.down16 = CSP(24 + 24, 32, shortcut=False)
        self.shrink16 = ConvUnit(32, 32, 3, stride=2)
        self.down32 = CSP(32 + 32, 48, shortcut=False)
        self.detect = Detect(classes, (24, 32, 48), image_size)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        at8 = self.stage8(self.stage4(self.stem(images)))
        at16 = self.stage16(at8)
        narrow32 = self.narrow32(self.stage32(at16))
        narrow16 = self.narrow16(self.up16(torch.cat((self.upsample(narrow32), at16), 1)))
        small = self.up8(torch.cat((self.upsample(narrow16), at8), 1))
        middle = self.down16(torch.cat((self.shrink8(small), narrow16), 1))
        large = self.down32(torch.cat((self.shrink16(middle), narrow32), 1))
        return self.detect([small, middle, large])


def build(classes: int = 4, height: int = 64, width: int = 96) -> Detector:
    """The architecture that `detect_head.safetensors` belongs to, untrained, for images of `height` x `width` pixels.

    Raises:
        ValueError: height or width is not a multiple of 32.
    """
    if height % STRIDES[-1] or width % STRIDES[-1]:
        raise ValueError(f"an image of {height}x{width} pixels: height and width must be multiples of {STRIDES[-1]}")
    return Detector(classes, (height, width))
