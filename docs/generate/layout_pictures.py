"""Write docs/layouts: the operators of two small networks as they become a SavedModel, drawn by `inspect --graph`.

python docs/generate/layout_pictures.py
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs/layouts"
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import converter  # noqa: E402  # found by the line above where this is run as a script


class Classifier(nn.Module):
    """A convolution, a channel shuffle, a convolution, flatten and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.linear = nn.Linear(4 * 6 * 6, 10)

    def shuffled(self, image: Tensor) -> Tensor:
        x = torch.relu(self.conv1(image))
        return x.view(len(x), 2, 4, 6, 6).transpose(1, 2).reshape(len(x), 8, 6, 6)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(self.conv2(self.shuffled(image)).flatten(1))


class Features(Classifier):
    """The same, but what the last convolution gives is returned as one row of numbers."""

    def forward(self, image: Tensor) -> Tensor:
        return self.conv2(self.shuffled(image)).flatten(1)


def documents() -> dict[Path, str]:
    """Return the pictures by their files, once the artifact has been verified and found to have no more operators."""
    torch.manual_seed(0)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Classifier().eval()
        made = converter.convert(model, to="tf", output=Path(folder, "model"), input_shapes="1,3,6,6")
        expected = {"Conv2D": 2, "BiasAdd": 3, "Relu": 1, "Reshape": 1, "MatMul": 1}
        if not made.verified or made.artifacts[0].operators != expected:
            raise SystemExit(f"the artifact is {made.status}, with {made.artifacts[0].operators}")
        for name, drawn in (("classifier", model), ("features", Features().eval())):
            picture = Path(folder, f"{name}.svg")
            converter.inspect(drawn, input_shapes="1,3,6,6", graph=picture)
            found[FOLDER / picture.name] = picture.read_text()
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in documents().items():
        file.write_text(text)
