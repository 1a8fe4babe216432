"""Detectors as their own packages write them: anchors, distributions of distances, heat maps, queries by score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unit(into: int, out: int, kernel: int = 3, stride: int = 1, activation: type[nn.Module] = nn.SiLU) -> nn.Module:
    conv = nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), activation())


class Backbone(nn.Module):
    """Features at strides 4, 8 and 16."""

    def __init__(self, widths: Sequence[int] = (12, 16, 20)):
        super().__init__()
        self.stem = unit(3, 8, stride=2)
        before = (8, *widths)
        self.stages = nn.ModuleList(unit(a, b, stride=2) for a, b in zip(before, widths, strict=False))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class Pyramid(nn.Module):
    """Top down: the coarser map upsampled to the finer one's size and added to its lateral projection."""

    def __init__(self, widths: Sequence[int], width: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(w, width, 1) for w in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in widths)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


class AnchorDetector(nn.Module):
    """One head for all levels; boxes are offsets of anchors, widths and heights through exp, clipped to the image.

    Images (batch, 3, 96, 64) to scores (batch, anchors, classes) and boxes (batch, anchors, 4: x1, y1, x2, y2).
    """

    anchors: Tensor

    def __init__(self, classes: int = 3, height: int = 96, width: int = 64, ratios: Sequence[float] = (0.5, 2.0)):
        super().__init__()
        widths = (12, 16, 20)
        self.backbone, self.pyramid = Backbone(widths), Pyramid(widths, 16)
        self.classify = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, len(ratios) * classes, 3, padding=1)
        )
        self.locate = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, len(ratios) * 4, 3, padding=1)
        )
        self.classes, self.size = classes, (height, width)
        self.register_buffer("anchors", torch.cat([self.at(s, ratios) for s in (4, 8, 16)]), persistent=False)

    def at(self, stride: int, ratios: Sequence[float]) -> Tensor:
        height, width = (size // stride for size in self.size)
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centers = torch.stack((x, y), -1).view(-1, 1, 2) * stride
        sizes = torch.tensor([[4 * stride * r**-0.5, 4 * stride * r**0.5] for r in ratios])
        return torch.cat((centers.expand(-1, len(ratios), -1), sizes.expand(len(centers), -1, -1)), -1).flatten(0, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores: list[Tensor] = []
        offsets: list[Tensor] = []
        for x in self.pyramid(self.backbone(images)):
            for head, values, held in ((self.classify, self.classes, scores), (self.locate, 4, offsets)):
                y = head(x)
                batch, _, height, width = y.shape
                y = y.view(batch, -1, values, height, width).permute(0, 3, 4, 1, 2)
                held.append(y.reshape(batch, -1, values))
        delta = torch.cat(offsets, 1)
        center = self.anchors[:, :2] + delta[..., :2] * self.anchors[:, 2:]
        size = self.anchors[:, 2:] * delta[..., 2:].clamp(max=4.0).exp()
        low, high = center - size / 2, center + size / 2
        x1, y1, x2, y2 = torch.cat((low, high), -1).unbind(-1)
        height, width = self.size
        boxes = torch.stack((x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), -1)
        return torch.cat(scores, 1).softmax(-1), boxes


class Expectation(nn.Module):
    """The expected distance of a distribution over whole ones, as a 1x1 convolution that is not trained.

    (batch, 4 * bins, anchors) to (batch, 4, anchors).
    """

    def __init__(self, bins: int):
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1)
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        batch, _, anchors = x.shape
        return self.conv(x.view(batch, 4, self.bins, anchors).transpose(2, 1).softmax(1)).view(batch, 4, anchors)


class DistributionDetector(nn.Module):
    """Without anchors: distances to the four sides as distributions, from the center of each cell.

    Images to (batch, 4 + classes, cells): center x, center y, width, height in pixels, class probabilities.
    """

    def __init__(self, classes: int = 3, bins: int = 6):
        super().__init__()
        widths = (12, 16, 20)
        self.backbone, self.bins, self.classes = Backbone(widths), bins, classes
        self.distance = nn.ModuleList(nn.Sequential(unit(w, 16), nn.Conv2d(16, 4 * bins, 1)) for w in widths)
        self.score = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, w, 3, padding=1, groups=w), unit(w, 16, 1), nn.Conv2d(16, classes, 1))
            for w in widths
        )
        self.expect = Expectation(bins)

    def forward(self, images: Tensor) -> Tensor:
        maps = [
            torch.cat((distance(x), score(x)), 1)
            for x, distance, score in zip(self.backbone(images), self.distance, self.score, strict=True)
        ]
        points, strides = [], []
        for x, stride in zip(maps, (4, 8, 16), strict=True):
            height, width = x.shape[-2:]
            rows, columns = (torch.arange(n, dtype=x.dtype, device=x.device) + 0.5 for n in (height, width))
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            points.append(torch.stack((x, y), -1).view(-1, 2))
            strides.append(torch.full((height * width, 1), stride, dtype=x.dtype, device=x.device))
        joined = torch.cat([x.view(x.shape[0], 4 * self.bins + self.classes, -1) for x in maps], 2)
        distances, scores = joined.split((4 * self.bins, self.classes), 1)
        anchors, scale = torch.cat(points).transpose(0, 1)[None], torch.cat(strides).transpose(0, 1)
        before, behind = self.expect(distances).chunk(2, 1)
        low, high = anchors - before, anchors + behind
        boxes = torch.cat(((low + high) / 2, high - low), 1) * scale
        return torch.cat((boxes, scores.sigmoid()), 1)


class HeatMapDetector(nn.Module):
    """Objects are peaks of a heat map: a max pool finds them, the highest `count` are taken.

    Images to boxes (batch, count, 4), scores (batch, count) and classes (batch, count), the best first.
    """

    def __init__(self, classes: int = 3, count: int = 10):
        super().__init__()
        widths = (12, 16, 20)
        self.backbone, self.pyramid, self.count, self.classes = Backbone(widths), Pyramid(widths, 16), count, classes
        self.heat, self.size, self.offset = (nn.Conv2d(16, n, 1) for n in (classes, 2, 2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.pyramid(self.backbone(images))[0].relu()
        heat = self.heat(x).sigmoid()
        peaks = heat * (F.max_pool2d(heat, 3, 1, 1) == heat).float()
        batch, _, height, width = heat.shape
        scores, places = peaks.view(batch, -1).topk(self.count)
        classes, places = places // (height * width), places % (height * width)
        read = places[:, :, None].expand(-1, -1, 2)
        size, offset = (m.flatten(2).transpose(1, 2).gather(1, read) for m in (self.size(x), self.offset(x)))
        center = torch.stack((places % width, places // width), -1).float() + offset
        return torch.cat((center - size / 2, center + size / 2), -1), scores, classes


class QueryDetector(nn.Module):
    """A transformer decoder whose queries are the cells of the highest scores; boxes are refined layer by layer.

    Images to class logits (batch, queries, classes) and boxes (batch, queries, 4) in parts of the image.
    """

    def __init__(self, classes: int = 3, width: int = 16, queries: int = 9, layers: int = 2):
        super().__init__()
        self.backbone, self.project, self.queries = Backbone((12, 16, 20)), nn.Conv2d(20, width, 1), queries
        self.encode = nn.TransformerEncoderLayer(width, 2, 24, 0.0, batch_first=True, norm_first=True)
        self.score, self.box = nn.Linear(width, classes), nn.Linear(width, 4)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, 2, 24, 0.0, activation="gelu", batch_first=True) for _ in range(layers)
        )
        self.place = nn.Linear(4, width)
        self.refine = nn.ModuleList(nn.Linear(width, 4) for _ in range(layers))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.encode(self.project(self.backbone(images)[-1]).flatten(2).transpose(1, 2))
        scores = self.score(memory)
        chosen = scores.amax(-1).topk(self.queries, 1).indices[..., None]
        queries = memory.gather(1, chosen.expand(-1, -1, memory.shape[-1]))
        boxes = self.box(queries).sigmoid()
        for layer, refine in zip(self.layers, self.refine, strict=True):
            queries = layer(queries + self.place(boxes), memory)
            logits = torch.log(boxes.clamp(1e-3, 1) / (1 - boxes).clamp(1e-3, 1))
            boxes = (refine(queries) + logits).sigmoid()
        return self.score(queries), boxes
