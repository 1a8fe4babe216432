"""Keras files of ours load and compute the same under every backend of Keras.

Systems run under PyTorch by default; kinds of networks, random ones and the other backends with -m systems, for which
JAX must be installed: the extra `test` leaves it out.
"""

import json
import zipfile

import pytest
from networks import KIND_NETWORKS, RANDOM_NETWORKS, SYSTEM_NETWORKS, Network, of_module, outcomes, selected, written
from torch import Tensor, nn

BACKENDS = ("tensorflow", "jax", "torch")


class NormsBetween(nn.Module):
    """Norms over what lies between other axes, all sizes alike: nothing but the axis tells which is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.maps = nn.LayerNorm(6), nn.LayerNorm([6, 6])
        self.plain = nn.LayerNorm(6, elementwise_affine=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.channels(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        z = self.maps(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y, z, self.plain(x.transpose(1, 2)).transpose(1, 2), self.channels(x)


class SameNames(nn.Module):
    """Paths that are one when their dots are underscores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "conv_1": nn.Conv2d(4, 4, 1)})
        self.stem_conv, self.stem_conv_1 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem["conv_1"](self.stem["conv"](x))
        return self.stem_conv_1(self.stem_conv(x))


MODULES = [
    of_module("MaxPool3d", lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.MaxPool3d((3, 2, 2), 2, 1)), (1, 2, 8, 9, 10)),
    of_module("AvgPool3d", lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.AvgPool3d((2, 3, 2))), (1, 2, 8, 9, 10)),
    of_module("LocalResponseNorm", lambda: nn.Sequential(nn.Conv2d(2, 6, 2), nn.LocalResponseNorm(3)), (1, 2, 8, 9)),
    of_module("max pool, dilated", lambda: nn.Sequential(nn.Conv2d(2, 6, 2), nn.MaxPool2d(3, 1, 1, 2)), (1, 2, 8, 9)),
    of_module("norms before the last axis", NormsBetween, (1, 6, 6, 6)),
    of_module("names that are one without dots", SameNames, (1, 3, 5, 4)),
    of_module("recurrent in both directions", lambda: Recurrent(), (1, 7, 4)),
    of_module(
        "dilated convolutions",
        lambda: nn.Sequential(
            nn.Conv2d(6, 8, 3, dilation=2), nn.Conv2d(8, 8, 3, dilation=2, groups=8), nn.Conv2d(8, 4, 1)
        ),
        (1, 6, 11, 13),
    ),
]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)
        self.write = nn.GRU(10, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.read(x)[0])[0]


QUICK = [*MODULES, *SYSTEM_NETWORKS]
ROWS = [
    pytest.param(row, backend, id=f"{row.title}, {backend}", marks=[] if quick else pytest.mark.systems)
    for backend in BACKENDS
    for row in [*QUICK, *KIND_NETWORKS, *RANDOM_NETWORKS]
    for quick in [backend == "torch" and row in QUICK]
]


@pytest.fixture(scope="module")
def made(request, torchvision, tmp_path_factory):
    """By backend, one process for each."""
    found = {}

    def under(backend: str):
        if backend not in found:
            rows = selected(request, test_keras_file_computes_the_same_under_every_backend)
            folder = tmp_path_factory.mktemp(backend)
            found[backend] = outcomes(rows, "keras", "in_keras.py", folder, {"KERAS_BACKEND": backend})
        return found[backend]

    return under


@pytest.mark.slow
@pytest.mark.parametrize("row, backend", ROWS)
def test_keras_file_computes_the_same_under_every_backend(row: Network, backend: str, made):
    outcome = made(backend)[row.title]
    assert outcome.failed is None, outcome.error
    outcome.case.assert_agrees(outcome.results)


@pytest.mark.parametrize("row", MODULES, ids=lambda row: row.title)
def test_operations_hold_what_a_file_gives_back_as_it_was(row: Network, tmp_path):
    """Keras on JAX pools by numbers and tuples, and a tuple comes back as a list."""
    with zipfile.ZipFile(written(row, "keras", tmp_path / "case").path) as archive:
        config = json.loads(archive.read("config.json"))
    pools = [layer["config"] for layer in config["config"]["layers"] if "Pool" in layer["class_name"]]
    pools = [pool for pool in pools if "trainable" not in pool]  # an operation, no layer
    assert [pool for pool in pools if not isinstance(pool["pool_size"], int) or isinstance(pool["strides"], list)] == []
