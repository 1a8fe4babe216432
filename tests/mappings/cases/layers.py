"""Rows of whole layers."""

from equivalence import Call
from torch import nn

from cases.common import CUBE, IMAGE, SEQUENCE, VOLUME

LAYERS = {
    "layer norm with Keras' epsilon": (nn.LayerNorm(8), IMAGE),
    "layer norm of several axes": (nn.LayerNorm((9, 8), eps=0.2), IMAGE),
    "layer norm of several axes of a convolution": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.LayerNorm((4, 7, 6))), IMAGE),
    "layer norm of several axes of a convolution, all sizes alike": (
        nn.Sequential(nn.Conv2d(6, 6, 1), nn.LayerNorm((6, 6, 6))),
        CUBE,
    ),
    "layer norm without scale and shift": (nn.LayerNorm(8, elementwise_affine=False), IMAGE),
    "layer norm without shift": (nn.LayerNorm(8, bias=False), IMAGE),
    "layer norm of the channels of a convolution": (
        Call(
            lambda self, x: self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
            conv=nn.Conv2d(6, 4, 3),
            norm=nn.LayerNorm(4),
        ),
        IMAGE,
    ),
    "layer norm of channels that a view split": (
        Call(lambda self, x: self.norm(x.view(-1, 2, 3, 9, 8).permute(0, 3, 4, 2, 1).flatten(3)), norm=nn.LayerNorm(6)),
        IMAGE,
    ),
    "layer norm where one axis has one element": (nn.LayerNorm((1, 8)), (2, 6, 1, 8)),
    "batch norm with Keras' epsilon": (nn.BatchNorm2d(6, eps=1e-5), IMAGE),
    "batch norm with another epsilon and momentum": (nn.BatchNorm2d(6, eps=0.3, momentum=0.02), IMAGE),
    "batch norm on the wrong axis, all sizes alike": (nn.BatchNorm2d(6), CUBE),
    "batch norm without scale and shift": (nn.BatchNorm2d(6, affine=False), IMAGE),
    "batch norm with a cumulative average": (nn.BatchNorm2d(6, momentum=None), IMAGE),
    "batch norm behind a convolution": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)), IMAGE),
    "batch norm 1-D of features": (nn.BatchNorm1d(6), (2, 6)),
    "batch norm 1-D of sequences": (nn.BatchNorm1d(6), SEQUENCE),
    "batch norm 3-D": (nn.BatchNorm3d(4, affine=False), VOLUME),
    "batch norm of channels that a view split": (
        Call(lambda self, x: self.norm(x.view(-1, 2, 3, 9, 8).transpose(1, 2).flatten(1, 2)), norm=nn.BatchNorm2d(6)),
        IMAGE,
    ),
    "batch norm called twice": (Call(lambda self, x: self.norm(self.norm(x).relu()), norm=nn.BatchNorm2d(6)), IMAGE),
    "dropout that drops": (nn.Sequential(nn.Dropout(0.5), nn.Conv2d(6, 4, 1), nn.Dropout2d(0.3)), IMAGE),
    "linear of features": (nn.Linear(6, 4), (2, 6)),
    "linear kernel not transposed": (nn.Linear(6, 6), (2, 6)),
    "linear without bias": (nn.Linear(6, 4, bias=False), (2, 6)),
    "linear of tokens": (nn.Linear(11, 4), SEQUENCE),
    "linear of 4-D, all sizes alike": (nn.Linear(6, 6), CUBE),
    "linear behind flatten: C, H, W against H, W, C": (
        nn.Sequential(nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5 * 7 * 6, 4)),
        IMAGE,
    ),
    "linear behind flatten, all sizes alike": (
        nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Flatten(), nn.Linear(216, 4)),
        CUBE,
    ),
    "linear over what lies before the channels": (
        Call(
            lambda self, x: self.linear(self.conv(x).transpose(1, 2)), conv=nn.Conv2d(6, 5, 3), linear=nn.Linear(6, 4)
        ),
        IMAGE,
    ),
    "linear of pixels": (
        Call(lambda self, x: self.linear(x.flatten(2).transpose(1, 2)), linear=nn.Linear(6, 4)),
        IMAGE,
    ),
    "linear to one unit": (nn.Linear(11, 1), SEQUENCE),
    "linear from one feature": (nn.Linear(1, 4), (2, 6, 1)),
    "linear called twice on different ranks": (
        Call(lambda self, x: (self.linear(x), self.linear(x[:, 0])), linear=nn.Linear(11, 4)),
        SEQUENCE,
    ),
}

LAYERS |= {
    "batch norm without running statistics": (
        nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, eps=0.3, track_running_stats=False)),
        IMAGE,
    ),
    "batch norm without running statistics, of features, sequences and volumes": (
        Call(
            lambda self, x: (
                self.norm(x.flatten(3).transpose(1, 2).flatten(0, 1).mean(2)),
                self.norm(x.flatten(2)),
                self.bare(x),
            ),
            norm=nn.BatchNorm1d(4, track_running_stats=False),
            bare=nn.BatchNorm3d(4, affine=False, track_running_stats=False),
        ),
        VOLUME,
    ),
    "batch norm without running statistics beside what is decomposed": (
        Call(lambda self, x: self.norm(x).movedim(1, 2), norm=nn.BatchNorm2d(6, track_running_stats=False)),
        IMAGE,
    ),
    "linear of one vector": (
        Call(lambda self, x: x + self.linear(x[0, :, 0]).sum(), linear=nn.Linear(6, 4)),
        SEQUENCE,
    ),
    "linear of one row": (
        Call(lambda self, x: x + self.linear(x.mean((0, 2)).view(1, 6)).sum(), linear=nn.Linear(6, 4)),
        SEQUENCE,
    ),
    "bilinear with its operands exchanged": (nn.Bilinear(6, 6, 4), (2, 6), (2, 6)),
    "bilinear of tokens, without bias": (nn.Bilinear(5, 3, 4, bias=False), (2, 7, 5), (2, 7, 3)),
    "bilinear of vectors": (
        Call(lambda self, x, y: x + self.bilinear(x[0], y.mean(0)).sum(), bilinear=nn.Bilinear(6, 5, 4)),
        (2, 6),
        (2, 5),
    ),
    "prelu with slopes for several ranks": (
        Call(lambda self, x: (self.act(x), self.act(x.mean(2)), self.act(x[..., None] - 1)), act=nn.PReLU(6)),
        SEQUENCE,
    ),
    "prelu with one slope for several ranks": (
        Call(lambda self, x: (self.act(x), self.act(x.mean(2)), self.act(x[..., None] - 1)), act=nn.PReLU()),
        SEQUENCE,
    ),
    "prelu and softmax of a number": (
        Call(lambda self, x: x + self.act(x.sum()) + x.sum().softmax(0) + x.sum().log_softmax(0), act=nn.PReLU()),
        (2, 6),
    ),
}
