"""Rows of `mappings/conv.py`."""

import torch.nn.functional as F
from equivalence import Call
from torch import nn

from cases.common import CUBE, EVEN, IMAGE, SEQUENCE, VOLUME, ours, parameter

CONVOLUTIONS = {
    "conv2d kernel with its axes swapped": (nn.Conv2d(6, 4, 3), IMAGE),
    "conv2d kernel flipped or transposed, all sizes alike": (nn.Conv2d(6, 6, 3), CUBE),
    "conv2d rectangular kernel, stride and padding": (nn.Conv2d(6, 4, (3, 5), (2, 1), (1, 2)), IMAGE),
    "conv2d 1x1 kernel, strided": (nn.Conv2d(6, 4, 1, stride=2), IMAGE),
    "conv2d without bias": (nn.Conv2d(6, 4, 3, bias=False), IMAGE),
    "conv2d stride 2 padding 1, even: SAME pads the far side": (nn.Conv2d(6, 4, 3, 2, 1), EVEN),
    "conv2d stride 2 padding 1, odd: SAME pads both sides": (nn.Conv2d(6, 4, 3, 2, 1), (2, 6, 9, 7)),
    "conv2d stride 2 padding 1, odd height and even width": (nn.Conv2d(6, 4, 3, 2, 1), IMAGE),
    "conv2d stride 3 on sizes with every remainder": (nn.Conv2d(6, 4, 5, (3, 2), 2), (2, 6, 10, 11)),
    "conv2d padded like SAME": (nn.Conv2d(6, 4, (3, 5), padding=(1, 2)), IMAGE),
    "conv2d padded more than its kernel reaches": (nn.Conv2d(6, 4, 3, padding=(4, 5)), IMAGE),
    "conv2d padded on one axis only": (nn.Conv2d(6, 4, 3, padding=(0, 1)), IMAGE),
    "conv2d even kernel, symmetric padding": (nn.Conv2d(6, 4, (2, 4), padding=(1, 2)), IMAGE),
    "conv2d padding='same'": (nn.Conv2d(6, 4, (3, 5), padding="same"), IMAGE),
    "conv2d padding='same', even kernel: the odd pixel behind": (nn.Conv2d(6, 4, (2, 4), padding="same"), IMAGE),
    "conv2d padding='same', dilated": (nn.Conv2d(6, 4, 3, padding="same", dilation=(2, 3)), IMAGE),
    "conv2d padding='same', even kernel dilated": (nn.Conv2d(6, 4, 4, padding="same", dilation=(3, 2)), IMAGE),
    "conv2d padding='valid'": (nn.Conv2d(6, 4, 3, padding="valid", stride=2), IMAGE),
    "conv2d pads of (7, 8) that SAME has as (8, 7)": (
        nn.Sequential(nn.ZeroPad2d((8, 7, 0, 0)), nn.Conv2d(6, 4, (1, 16))),
        IMAGE,
    ),
    "conv2d unequal dilation": (nn.Conv2d(6, 4, 3, dilation=(1, 2), padding=(0, 2)), IMAGE),
    "conv2d stride and dilation together": (nn.Conv2d(6, 4, 3, stride=2, dilation=2), IMAGE),
    "conv2d stride and dilation on other axes": (nn.Conv2d(6, 4, 3, stride=(1, 2), dilation=(2, 1)), IMAGE),
    "conv2d stride and dilation, padded": (nn.Conv2d(6, 4, 3, (3, 2), (2, 3), (2, 3)), EVEN),
    "conv2d groups mixed up": (nn.Conv2d(6, 4, 3, groups=2), IMAGE),
    "conv2d groups with more outputs than inputs": (
        nn.Conv2d(6, 12, (3, 2), groups=3, stride=(2, 1), padding=1),
        IMAGE,
    ),
    "conv2d groups, stride and dilation": (nn.Conv2d(6, 4, 3, stride=2, dilation=2, groups=2), IMAGE),
    "conv2d groups, padding='same'": (nn.Conv2d(6, 4, (4, 3), groups=2, padding="same"), IMAGE),
    "depthwise kernel laid out as a full one": (nn.Conv2d(6, 6, 3, groups=6), IMAGE),
    "depthwise with all sizes alike": (nn.Conv2d(6, 6, 3, groups=6, padding=1), CUBE),
    "depthwise multiplier against the channels' order": (nn.Conv2d(6, 12, (3, 2), groups=6), IMAGE),
    "depthwise multiplier, strided and padded": (nn.Conv2d(6, 18, 3, 2, 1, groups=6), EVEN),
    "depthwise without bias": (nn.Conv2d(6, 6, 3, groups=6, bias=False), IMAGE),
    "depthwise with unequal strides": (nn.Conv2d(6, 6, 3, stride=(2, 1), groups=6, padding=1), IMAGE),
    "depthwise with unequal strides and a multiplier": (nn.Conv2d(6, 12, 3, stride=(1, 2), groups=6), IMAGE),
    "depthwise dilated": (nn.Conv2d(6, 6, 3, dilation=(1, 2), groups=6, padding=(1, 2)), IMAGE),
    "depthwise stride and dilation together": (nn.Conv2d(6, 6, 3, 2, 2, 2, groups=6), IMAGE),
    "depthwise unequal strides and dilation, multiplier": (nn.Conv2d(6, 12, 3, (2, 3), 2, (2, 1), groups=6), IMAGE),
    "depthwise even kernel, padding='same'": (nn.Conv2d(6, 6, (4, 2), groups=6, padding="same"), IMAGE),
    "conv2d of one channel taken for a depthwise": (nn.Conv2d(1, 4, 3), (2, 1, 9, 8)),
    "conv2d to one channel": (nn.Conv2d(6, 1, 3, padding=1), IMAGE),
    "conv2d of one row": (nn.Conv2d(6, 4, (1, 3), padding=(0, 1)), (2, 6, 1, 8)),
    "conv2d of one column and channel, padded": (nn.Conv2d(1, 4, 3, padding=1, stride=2), (2, 1, 8, 1)),
    "conv2d that leaves one pixel": (nn.Conv2d(6, 4, (9, 8)), IMAGE),
    "conv2d with weights computed from weights": (
        Call(
            lambda self, x: F.conv2d(x, self.w - self.w.mean((1, 2, 3), keepdim=True), self.b * 2),
            w=parameter(4, 6, 3, 3),
            b=parameter(4),
        ),
        IMAGE,
    ),
    "one convolution called twice on different sizes": (
        Call(lambda self, x: (self.conv(x), self.conv(x[:, :, 1:])), conv=nn.Conv2d(6, 4, 3, padding=1)),
        IMAGE,
    ),
    "one convolution called twice, one behind the other": (
        Call(lambda self, x: self.conv(self.conv(x).relu()), conv=nn.Conv2d(6, 6, 3)),
        IMAGE,
    ),
    "conv1d": (nn.Conv1d(6, 4, 3), SEQUENCE),
    "conv1d strided and padded": (nn.Conv1d(6, 4, 4, stride=2, padding=1), SEQUENCE),
    "conv1d stride and dilation together": (nn.Conv1d(6, 4, 3, stride=2, padding=2, dilation=2), SEQUENCE),
    "conv1d grouped": (nn.Conv1d(6, 4, 3, groups=2, padding=1), SEQUENCE),
    "conv1d depthwise, strided, multiplier": (nn.Conv1d(6, 12, 4, stride=2, groups=6, padding=1), SEQUENCE),
    "conv1d depthwise, stride and dilation": (nn.Conv1d(6, 6, 3, 2, 2, 2, groups=6), SEQUENCE),
    "conv1d padding='same', even kernel": (nn.Conv1d(6, 4, 4, padding="same", dilation=3), SEQUENCE),
    "conv3d": (nn.Conv3d(4, 3, (3, 2, 1)), VOLUME),
    "conv3d strided and padded": (nn.Conv3d(4, 3, 3, stride=(2, 1, 2), padding=(1, 0, 1)), VOLUME),
    "conv3d stride and dilation together": (nn.Conv3d(4, 3, 2, stride=(1, 2, 2), dilation=(2, 3, 1)), VOLUME),
    "conv3d padding='same'": (nn.Conv3d(4, 3, (3, 2, 4), padding="same"), VOLUME),
    "conv3d whose last windows end before the image": (nn.Conv3d(6, 4, 1, stride=3), (2, 6, 6, 9, 12)),
    "conv3d like SAME on one axis, windows that end before another": (
        nn.Conv3d(6, 4, (3, 1, 1), stride=(1, 1, 3), padding=(1, 0, 0)),
        (2, 6, 4, 5, 6),
    ),
    "conv2d of what a permutation made channels first": (
        Call(lambda self, x: self.conv(x.permute(0, 3, 1, 2)), conv=nn.Conv2d(6, 4, 3)),
        (2, 9, 8, 6),
    ),
    "separable multiplier against the channels' order": (
        Call(
            lambda self, x: ours.separable_conv2d(x, self.d, self.p, self.b, [2, 2], [1, 1], [1, 1]),
            d=parameter(12, 1, 3, 3),
            p=parameter(4, 12, 1, 1),
            b=parameter(4),
        ),
        EVEN,
    ),
    "separable dilated, without bias": (
        Call(
            lambda self, x: ours.separable_conv2d(x, self.d, self.p, None, [1, 1], [0, 2], [1, 2]),
            d=parameter(6, 1, 3, 2),
            p=parameter(4, 6, 1, 1),
        ),
        IMAGE,
    ),
    "separable padded like SAME": (
        Call(
            lambda self, x: ours.separable_conv2d(x, self.d, self.p, None, [1, 1], [1, 2], [1, 1]),
            d=parameter(6, 1, 3, 5),
            p=parameter(4, 6, 1, 1),
        ),
        IMAGE,
    ),
    "separable along one axis, strided, multiplier": (
        Call(
            lambda self, x: ours.separable_conv1d(x, self.d, self.p, self.b, [2], [1], [1]),
            d=parameter(12, 1, 3),
            p=parameter(4, 12, 1),
            b=parameter(4),
        ),
        SEQUENCE,
    ),
    "space_to_depth, blocks against channels": (lambda x: ours.space_to_depth(x, 2), (2, 3, 8, 6)),
    "space_to_depth of block 3 into a convolution": (
        Call(lambda self, x: self.conv(ours.space_to_depth(x, 3)), conv=nn.Conv2d(27, 4, 1)),
        (2, 3, 9, 6),
    ),
    "space_to_depth that leaves one row, of one channel": (lambda x: ours.space_to_depth(x, 2), (2, 1, 2, 6)),
    "space_to_depth twice": (lambda x: ours.space_to_depth(ours.space_to_depth(x, 2), 2), (2, 3, 8, 12)),
    "channels reordered by the inverse order": (lambda x: ours.reorder_channels(x, [3, 1, 4, 0, 5, 2]), IMAGE),
    "depth_to_space, blocks against channels": (lambda x: ours.depth_to_space(x, 2), (2, 12, 4, 3)),
    "depth_to_space of block 3 between convolutions": (
        Call(lambda self, x: self.b(ours.depth_to_space(self.a(x), 3)), a=nn.Conv2d(3, 18, 1), b=nn.Conv2d(2, 4, 3)),
        (2, 3, 4, 3),
    ),
    "depth_to_space of one channel": (lambda x: ours.depth_to_space(x, 2), (2, 4, 4, 3)),
    "depth_to_space of space_to_depth": (lambda x: ours.depth_to_space(ours.space_to_depth(x, 2), 2), (2, 3, 8, 6)),
    "channels reordered behind space_to_depth": (
        lambda x: ours.reorder_channels(ours.space_to_depth(x, 2), [2, 0, 3, 1, 6, 4, 7, 5]),
        (2, 2, 8, 6),
    ),
}

CONVOLUTIONS |= {
    "transposed kernel flipped or its channels swapped": (nn.ConvTranspose2d(6, 4, (3, 2), stride=2), IMAGE),
    "transposed, all sizes alike": (nn.ConvTranspose2d(6, 6, 3, stride=2, padding=1), CUBE),
    "transposed k3 s2 p1 op1: SAME is wrong": (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), IMAGE),
    "transposed k4 s2 p1: SAME is right": (nn.ConvTranspose2d(6, 4, 4, 2, 1), IMAGE),
    "transposed k2 s2, as in a U-Net, one channel": (nn.ConvTranspose2d(6, 1, 2, 2), IMAGE),
    "transposed, output padding beyond the padding is bias": (
        nn.ConvTranspose2d(6, 4, 3, (3, 2), (0, 1), (2, 1)),
        IMAGE,
    ),
    "transposed, kernel smaller than its stride": (nn.ConvTranspose2d(6, 4, (1, 2), (3, 4), 0, (1, 3)), IMAGE),
    "transposed, unequal strides and padding, no bias": (
        nn.ConvTranspose2d(6, 4, (5, 4), (1, 3), (4, 2), (0, 2), bias=False),
        IMAGE,
    ),
    "transposed with stride 1": (nn.ConvTranspose2d(6, 4, (3, 2), padding=(2, 0)), IMAGE),
    "transposed with stride 1, padded beyond its kernel": (nn.ConvTranspose2d(6, 4, 2, padding=3), IMAGE),
    "transposed, dilated": (nn.ConvTranspose2d(6, 4, 3, padding=1, dilation=(2, 3)), IMAGE),
    "transposed, stride and dilation together": (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, dilation=2), IMAGE),
    "transposed, output padding beyond the stride": (
        nn.ConvTranspose2d(6, 4, 3, 2, (1, 3), (2, 1), dilation=3),
        IMAGE,
    ),
    "transposed, groups mixed up": (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2), IMAGE),
    "transposed, groups of more outputs, dilated": (nn.ConvTranspose2d(6, 9, 3, 2, 1, groups=3, dilation=2), IMAGE),
    "transposed, depthwise": (nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=6, bias=False), IMAGE),
    "transposed, depthwise with a multiplier": (nn.ConvTranspose2d(6, 12, 3, (2, 3), 1, 1, groups=6), IMAGE),
    "transposed, behind a permutation and before a view": (
        Call(
            lambda self, x: self.up(x.permute(0, 3, 1, 2)).view(-1, 2, 2, 19, 17).transpose(1, 2).flatten(1, 2),
            up=nn.ConvTranspose2d(6, 4, 3, 2),
        ),
        (2, 9, 8, 6),
    ),
    "transposed, channels that a view split": (
        Call(
            lambda self, x: self.up(x.view(-1, 2, 3, 9, 8).transpose(1, 2).flatten(1, 2)),
            up=nn.ConvTranspose2d(6, 4, 3, 2),
        ),
        IMAGE,
    ),
    "transposed twice by one module": (
        Call(lambda self, x: self.up(self.up(x)), up=nn.ConvTranspose2d(6, 6, 3, 2, 1, 1)),
        (2, 6, 3, 4),
    ),
    "transposed without a batch": (
        Call(lambda self, x: self.up(x[0]) * x.mean((1, 2, 3), True), up=nn.ConvTranspose2d(6, 4, 3, 2)),
        IMAGE,
    ),
    "transposed 1-D": (nn.ConvTranspose1d(6, 4, 3, 2, 1, 1), SEQUENCE),
    "transposed 1-D, stride and dilation": (nn.ConvTranspose1d(6, 4, 3, 3, 2, 1, dilation=2), SEQUENCE),
    "transposed 1-D, groups": (nn.ConvTranspose1d(6, 4, 5, 2, 2, groups=2), SEQUENCE),
    "transposed 3-D": (nn.ConvTranspose3d(4, 3, (3, 2, 4), (2, 1, 3), (1, 0, 2), (1, 0, 2)), VOLUME),
    "transposed 3-D, stride and dilation": (nn.ConvTranspose3d(4, 3, 2, 2, dilation=(1, 2, 3)), VOLUME),
    "transposed 3-D, groups": (nn.ConvTranspose3d(4, 6, 3, 2, 1, 1, groups=2), VOLUME),
    "conv3d, groups mixed up": (nn.Conv3d(4, 6, (3, 2, 1), (2, 1, 3), (1, 0, 1), groups=2), VOLUME),
    "conv3d, depthwise": (nn.Conv3d(4, 4, 3, padding=1, groups=4), VOLUME),
    "conv3d, depthwise with a multiplier, stride and dilation": (
        nn.Conv3d(4, 8, (2, 3, 2), 2, (1, 2, 0), (3, 2, 1), groups=4, bias=False),
        VOLUME,
    ),
    "conv3d, groups, all sizes alike": (nn.Conv3d(4, 4, 2, groups=2), (2, 4, 4, 4, 4)),
    "conv2d with a kernel larger than its input": (nn.Conv2d(6, 4, (11, 9), padding=(3, 2)), IMAGE),
    "conv2d without a batch": (
        Call(lambda self, x: self.conv(x[0]) + x.sum((1, 2, 3), True), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "conv1d without a batch, grouped and named": (
        Call(
            lambda self, x: self.conv(x[0]) + x.sum((1, 2), True),
            conv=nn.Conv1d(6, 4, 4, padding="same", groups=2),
        ),
        SEQUENCE,
    ),
}
