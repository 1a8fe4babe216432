"""Rows of `mappings/activations.py`."""

import torch
import torch.nn.functional as F
from equivalence import Call
from torch import nn

from cases.common import CUBE, IMAGE, INTS, SEQUENCE, aten, split_channels

ACTIVATIONS = {
    "relu, relu6": (lambda x: (F.relu(x), F.relu6(2 * x)), IMAGE),
    "sigmoid, silu, tanh": (lambda x: (x.sigmoid(), F.silu(x), x.tanh()), IMAGE),
    "hard activations by Keras' slopes": (lambda x: (F.hardsigmoid(3 * x), F.hardswish(3 * x), F.hardtanh(x)), IMAGE),
    "hardtanh with bounds of its own": (lambda x: (F.hardtanh(x, -0.5, 2.0), F.hardtanh(3 * x, 0.0, 6.0)), IMAGE),
    "leaky relu by Keras' slope": (lambda x: (F.leaky_relu(x), F.leaky_relu(x, 0.2)), IMAGE),
    "elu": (lambda x: (F.elu(x), F.elu(x, 0.3)), IMAGE),
    "gelu by its approximation, and the approximation": (lambda x: (F.gelu(x), F.gelu(x, approximate="tanh")), IMAGE),
    "log sigmoid far from zero": (lambda x: (F.logsigmoid(x), F.logsigmoid(30 * x)), IMAGE),
    "activations as layers": (
        nn.Sequential(
            nn.Conv2d(6, 4, 1),
            nn.SiLU(),
            nn.Hardswish(),
            nn.LeakyReLU(),
            nn.GELU(),
            nn.ReLU6(),
            nn.Sigmoid(),
            nn.Tanh(),
        ),
        IMAGE,
    ),
    "one activation module called twice": (Call(lambda self, x: self.act(self.act(x) - 1), act=nn.ReLU()), IMAGE),
    "activations at infinity and zero": (
        lambda x: tuple(f(x.floor() * float("inf")) for f in (F.relu, F.relu6, torch.sigmoid, torch.tanh, F.hardtanh)),
        IMAGE,
    ),
    "softmax over each axis": (lambda x: (x.softmax(1), x.softmax(-1), x.softmax(-2)), IMAGE),
    "softmax over the channels of a convolution": (
        Call(lambda self, x: (self.conv(x).softmax(1), self.conv(x).flatten(1).softmax(1)), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "softmax over several axes at once": (lambda x: x.flatten(2).softmax(-1).view(-1, 6, 9, 8), IMAGE),
    "softmax over one": (lambda x: x[:, :1].softmax(1), IMAGE),
    "softmax far from zero": (lambda x: (1e3 * x).softmax(1), IMAGE),
    "softmax over the batch": (lambda x: x.softmax(0), IMAGE),
    "softmax in another type": (lambda x: x.softmax(1, dtype=torch.float64), IMAGE),
    "softmax of integers": (lambda x: x.softmax(1, dtype=torch.float32), INTS),
    "softmax as an older program has it": (lambda x: aten._softmax.default(x, 1, False), IMAGE),
}

ACTIVATIONS |= {
    "prelu shared over space": (nn.PReLU(6), IMAGE),
    "prelu with one slope for all": (nn.PReLU(), IMAGE),
    "prelu on the wrong axis, all sizes alike": (nn.PReLU(6), CUBE),
    "prelu behind a convolution": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.PReLU(4)), IMAGE),
    "prelu of channels that a view split": (Call(lambda self, x: self.act(split_channels(x)), act=nn.PReLU(6)), IMAGE),
    "prelu of sequences and features": (
        Call(lambda self, x: (self.act(x), self.act(x.mean(2)), self.act(x[0, :, 0].view(1, 6))), act=nn.PReLU(6)),
        SEQUENCE,
    ),
    "prelu of what a permutation made channels": (
        Call(lambda self, x: self.act(x.permute(0, 3, 1, 2)), act=nn.PReLU(8)),
        IMAGE,
    ),
    "prelu where the batch does not lie first": (
        Call(lambda self, x: self.act(x.transpose(0, 1)), act=nn.PReLU()),
        IMAGE,
    ),
    "prelu called twice": (Call(lambda self, x: self.act(self.act(x) - 1), act=nn.PReLU(6)), IMAGE),
    "prelu with a computed slope": (lambda x: F.prelu(x, x.mean((0, 2, 3))), IMAGE),
    "selu, celu": (lambda x: (F.selu(x), F.celu(x), F.celu(x, 0.4)), IMAGE),
    "softplus at its threshold": (lambda x: (F.softplus(x), F.softplus(9 * x), F.softplus(x, 0.7, 1.0)), IMAGE),
    "mish, softsign, tanhshrink": (lambda x: (F.mish(x), F.mish(20 * x), F.softsign(x), F.tanhshrink(x)), IMAGE),
    "hardshrink and softshrink": (
        lambda x: (F.hardshrink(x), F.softshrink(x), F.hardshrink(x, 1), F.softshrink(x, 0.1)),
        IMAGE,
    ),
    "hardshrink and softshrink beside what is decomposed": (
        lambda x: (F.hardshrink(x), F.softshrink(x), x.movedim(1, 2)),
        IMAGE,
    ),
    "threshold at its bound": (lambda x: (F.threshold(x, 0.3, -2), F.threshold(x.round(), 1, 7)), IMAGE),
    "rrelu of a model that is not trained": (nn.RReLU(0.1, 0.5), IMAGE),
    "glu of each half": (lambda x: (F.glu(x, 1), F.glu(x), F.glu(split_channels(x), 1)), IMAGE),
    "glu of a convolution": (Call(lambda self, x: F.glu(self.conv(x), 1), conv=nn.Conv2d(6, 4, 3)), IMAGE),
}
