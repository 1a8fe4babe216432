"""The table of kinds of networks that people come with, a small one of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from sample_models.dense_prediction import SuperResolution, UNet, VolumeSegmenter, VolumeTransformer
from sample_models.detectors import AnchorDetector, DistributionDetector, HeatMapDetector, QueryDetector
from sample_models.speech import Conformer, Recognizer, Separator, Spotter, Vocoder, Waves


@dataclass(frozen=True)
class Kind:
    """A network, built anew at each call, and the shape of its input."""

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


KINDS = (
    Kind("detector with anchors", AnchorDetector, (1, 3, 96, 64)),
    Kind("detector with distributions of distances", DistributionDetector, (1, 3, 96, 64)),
    Kind("detector with a heat map and top-k", HeatMapDetector, (1, 3, 96, 64)),
    Kind("detector with queries chosen by top-k", QueryDetector, (1, 3, 96, 64)),
    Kind("U-Net, transposed convolutions", UNet, (1, 3, 37, 50)),
    Kind("U-Net, bilinear", lambda: UNet(bilinear=True), (1, 3, 37, 50)),
    Kind("U-Net of volumes with gates", VolumeSegmenter, (1, 1, 8, 12, 16)),
    Kind("transformer of volumes", VolumeTransformer, (1, 1, 8, 12, 16)),
    Kind("super-resolution, pixel shuffle", SuperResolution, (1, 3, 14, 11)),
    Kind("super-resolution, nearest", lambda: SuperResolution(3, nearest=True), (1, 3, 14, 11)),
    Kind("speech, convolutions and GRUs", Recognizer, (1, 16, 21)),
    Kind("speech, convolutions and an LSTM", Spotter, (1, 16, 41)),
    Kind("speech, a transformer on samples", Waves, (1, 330)),
    Kind("speech, relative attention and gated convolutions", Conformer, (1, 9, 10)),
    Kind("speech, separation", Separator, (1, 1, 120)),
    Kind("vocoder", Vocoder, (1, 10, 13)),
)
