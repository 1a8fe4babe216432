"""A classifier of handwritten digits with the stem, the blocks and the pooling of YOLOv5."""

from torch import Tensor, nn

from sample_models.blocks import CSP, SPPF, ConvUnit, Focus, SeparableConvUnit


class DigitsFocus(nn.Module):
    """Images (batch, 1, 16, 16) with values from 0 to 1 to one logit for each of the ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Focus(1, 16, kernel_size=3)
        self.stages = nn.Sequential(
            ConvUnit(16, 32, kernel_size=3, stride=2),
            CSP(32, 32),
            SeparableConvUnit(32, 48, stride=2),
            CSP(48, 48, depth=2),
            SPPF(48, 64),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.stages(self.stem(images)))
        return self.classifier(self.dropout(features.flatten(1)))
