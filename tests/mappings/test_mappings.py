"""Every mapping against PyTorch: in float64 to rounding, in float32 as closely as PyTorch itself rounds.

A row is named by what it would catch. No two axes of a shape have the same size, except where a row says so.
"""

import functools
import operator
import sys

import attention_rows
import indexing_rows
import mapping_rows
import module_rows
import pytest
import sampling_rows
import tensorflow as tf
import torch
import torch.nn.functional as F
from equivalence import (
    Call,
    Input,
    assert_float32_rounds_alike,
    assert_plan_is_exact,
    assert_same,
    captured,
    examples,
    in_float64,
    planned,
    run_in_float64,
    to_artifact,
    to_torch,
)
from keras.saving import load_model
from torch import nn

import mappings
from converter.artifacts.runtime.graph_ops import count_operators
from converter.errors import UnsupportedOperatorsError
from converter.ir.program import Program
from converter.lowering.executor import PlanExecutor
from converter.lowering.planner import make_plan
from converter.plan.registry import ABSENT, DECOMPOSITIONS, MAPPINGS, TABLES, restore, snapshot
from converter.rewrites.pipelines import REWRITES
from converter.verification.checked_rewrite import rewrite

aten, ours = torch.ops.aten, torch.ops.converter

SEQUENCE = (2, 6, 11)
IMAGE = (2, 6, 9, 8)
EVEN = (2, 6, 10, 8)
VOLUME = (2, 4, 5, 7, 6)
CUBE = (2, 6, 6, 6)
INTS = Input((2, 6, 9), torch.int64)


def parameter(*shape):
    return nn.Parameter(torch.zeros(shape))


def positive(function):
    return lambda x: function(x.abs() + 0.1)


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
    "space_to_depth, blocks against channels": (lambda x: ours.space_to_depth(x, 2), (2, 3, 8, 6)),
    "space_to_depth of block 3 into a convolution": (
        Call(lambda self, x: self.conv(ours.space_to_depth(x, 3)), conv=nn.Conv2d(27, 4, 1)),
        (2, 3, 9, 6),
    ),
    "space_to_depth that leaves one row, of one channel": (lambda x: ours.space_to_depth(x, 2), (2, 1, 2, 6)),
    "space_to_depth twice": (lambda x: ours.space_to_depth(ours.space_to_depth(x, 2), 2), (2, 3, 8, 12)),
    "channels reordered by the inverse order": (lambda x: ours.reorder_channels(x, [3, 1, 4, 0, 5, 2]), IMAGE),
    "channels reordered behind space_to_depth": (
        lambda x: ours.reorder_channels(ours.space_to_depth(x, 2), [2, 0, 3, 1, 6, 4, 7, 5]),
        (2, 2, 8, 6),
    ),
}

POOLS = {
    "max pool padded with zeros": (lambda x: F.max_pool2d(x - 20, 3, 2, 1), IMAGE),
    "max pool taken for SAME on even sizes": (nn.MaxPool2d(3, 2, 1), EVEN),
    "max pool that is SAME": (nn.MaxPool2d(5, 1, 2), IMAGE),
    "max pool rectangular": (nn.MaxPool2d((3, 2), (1, 2), (1, 0)), IMAGE),
    "max pool whose stride is its kernel": (nn.MaxPool2d((2, 3)), IMAGE),
    "max pool ceil_mode": (nn.MaxPool2d(2, 2, ceil_mode=True), IMAGE),
    "max pool ceil_mode, padded, below zero": (lambda x: F.max_pool2d(x - 20, 3, 2, 1, ceil_mode=True), EVEN),
    "max pool ceil_mode, last window in the padding": (nn.MaxPool2d(2, 2, 1, ceil_mode=True), (2, 6, 9, 7)),
    "max pool ceil_mode, stride beyond the kernel": (nn.MaxPool2d(2, 3, ceil_mode=True), (2, 6, 10, 9)),
    "max pool 1-D, 2-D all sizes alike": (lambda x: (F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, (2, 3))), CUBE),
    "max pool 1-D": (
        lambda x: (F.max_pool1d(x, 3, 2, 1), F.max_pool1d(x - 20, 2, 2, 1, ceil_mode=True), F.max_pool1d(x, 4)),
        SEQUENCE,
    ),
    "average pool, no padding": (nn.AvgPool2d(3, 2), IMAGE),
    "average pool rectangular": (nn.AvgPool2d((3, 2), (1, 2)), IMAGE),
    "average pool counts its padding": (nn.AvgPool2d(3, 2, 1), EVEN),
    "average pool does not count its padding": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), EVEN),
    "average pool SAME does not count its padding": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), IMAGE),
    "average pool SAME counts its padding": (nn.AvgPool2d(3, 1, 1), IMAGE),
    "average pool ceil_mode: the overhang does not count": (nn.AvgPool2d(3, 2, ceil_mode=True), EVEN),
    "average pool ceil_mode, padding counts and overhang not": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), EVEN),
    "average pool ceil_mode, neither counts": (nn.AvgPool2d(3, 2, 1, True, False), EVEN),
    "average pool ceil_mode, last window in the padding": (nn.AvgPool2d(2, 2, 1, True), (2, 6, 9, 7)),
    "average pool ceil_mode without overhang": (nn.AvgPool2d(3, 3, ceil_mode=True), (2, 4, 9, 6)),
    "average pool divisor": (nn.AvgPool2d((3, 2), 2, divisor_override=5), IMAGE),
    "average pool divisor, padded, ceil_mode": (nn.AvgPool2d(3, 2, 1, True, True, 2), EVEN),
    "average pool divisor, padding not counted": (nn.AvgPool2d(3, 1, 1, False, False, 7), IMAGE),
    "average pool 1-D": (
        lambda x: (F.avg_pool1d(x, 3, 2), F.avg_pool1d(x, 4, 2, 1), F.avg_pool1d(x, 3, 2, 1, False, False)),
        SEQUENCE,
    ),
    "average pool 1-D, ceil_mode": (
        lambda x: (F.avg_pool1d(x, 4, 3, ceil_mode=True), F.avg_pool1d(x, 4, 3, 2, True, False)),
        (2, 6, 12),
    ),
    "adaptive average pool to one": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive average pool that divides": (nn.AdaptiveAvgPool2d((3, 4)), IMAGE),
    "adaptive average pool that does not divide": (nn.AdaptiveAvgPool2d((4, 3)), IMAGE),
    "adaptive average pool to more than there is": (nn.AdaptiveAvgPool2d((5, 11)), IMAGE),
    "adaptive average pool of one axis": (nn.AdaptiveAvgPool2d((None, 3)), IMAGE),
    "adaptive average pool that changes nothing": (nn.AdaptiveAvgPool2d((9, 8)), IMAGE),
    "adaptive average pool from one pixel": (nn.AdaptiveAvgPool2d((2, 3)), (2, 6, 1, 1)),
    "adaptive average pool 1-D": (
        lambda x: (F.adaptive_avg_pool1d(x, 1), F.adaptive_avg_pool1d(x, 4), F.adaptive_avg_pool1d(x[:, :, 1:], 5)),
        SEQUENCE,
    ),
    "adaptive average pool 3-D": (
        lambda x: (F.adaptive_avg_pool3d(x, 1), F.adaptive_avg_pool3d(x, (2, 3, 4))),
        VOLUME,
    ),
}
POOLS |= {
    "max pool 3-D": (nn.MaxPool3d((3, 2, 2), 2, (1, 0, 1)), VOLUME),
    "max pool 3-D, ceil_mode": (nn.MaxPool3d(2, ceil_mode=True), VOLUME),
    "average pool 3-D": (nn.AvgPool3d(2, (1, 2, 3)), VOLUME),
    "average pool 3-D, padding not counted, ceil_mode": (nn.AvgPool3d(3, 2, 1, True, False), VOLUME),
    "adaptive average pool 3-D that divides": (nn.AdaptiveAvgPool3d((5, 7, 3)), VOLUME),
}

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

ELEMENTWISE = {
    "signs and roundings": (lambda x: (x.abs(), x.neg(), x.sign(), (3 * x).floor(), (3 * x).ceil()), IMAGE),
    "powers": (lambda x: (x.square(), x**2, x**3, x.abs() ** 0.5, (x.abs() + 0.1) ** -1.5), IMAGE),
    "roots and logarithms": (
        positive(lambda x: (x.sqrt(), x.rsqrt(), x.reciprocal(), x.log(), 1 / x, torch.reciprocal(x))),
        IMAGE,
    ),
    "transcendental functions in float32": (lambda x: (x.exp(), x.sin(), x.cos(), x.erf()), IMAGE),
    "clamp with one bound": (lambda x: (x.clamp(-1, 0.5), x.clamp(min=0.3), x.clamp(max=-0.2)), IMAGE),
    "clamp of integers": (lambda x: (x.clamp(-1, 2), x.clamp(min=0)), INTS),
    "alpha left out": (
        lambda x, y: (torch.add(x, y, alpha=3), torch.sub(x, y, alpha=0.5), torch.add(x, 2, alpha=3)),
        IMAGE,
        IMAGE,
    ),
    "rsub and its alpha": (lambda x: (torch.rsub(x, 2), torch.rsub(x, 2, alpha=3), 1.5 - x), IMAGE),
    "scalars on either side": (lambda x: (2 + x, x + 2, 2 - x, x - 2, 2 * x, x / 2, 2 / x), IMAGE),
    "two operands the wrong way round": (
        lambda x, y: (x - y, x / y, torch.maximum(x, y), torch.minimum(x, y), x * y),
        IMAGE,
        IMAGE,
    ),
    "an operand twice": (lambda x: (x + x, x * x, x - x), IMAGE),
    "operands in different layouts": (
        Call(lambda self, x, y: self.conv(x) + y.permute(0, 3, 1, 2), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
        (2, 7, 6, 4),
    ),
    "operands in different layouts, all sizes alike": (
        Call(lambda self, x, y: self.conv(x) * y - y.transpose(1, 3), conv=nn.Conv2d(6, 6, 1)),
        CUBE,
        CUBE,
    ),
    "operands whose dimensions are factored differently": (
        lambda x, y: x.flatten(1, 2) + y.transpose(1, 2).flatten(1, 2),
        (2, 6, 4, 5),
        (2, 3, 8, 5),
    ),
    "broadcast of ones in either operand": (lambda x, y: x[:, :, :1] + y[:, :1], IMAGE, IMAGE),
    "broadcast of a lower rank": (lambda x, y: (x + y.mean(0), y.mean(0) - x, x * y.mean((0, 1))), IMAGE, (2, 9, 8)),
    "broadcast of a lower rank over a convolution": (
        Call(lambda self, x, y: self.conv(x) + y.mean(0), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
        (2, 4, 7, 6),
    ),
    "broadcast of a lower rank, all sizes alike": (
        Call(lambda self, x, y: self.conv(x) + y.mean(0)[0], conv=nn.Conv2d(6, 6, 1)),
        CUBE,
        CUBE,
    ),
    "broadcast along the channels that a view split": (
        lambda x, y: x.view(-1, 2, 3, 9, 8).transpose(1, 2).flatten(1, 2) * y[:, :, None, None],
        IMAGE,
        (2, 6),
    ),
    "squeeze and excite": (
        Call(lambda self, x: x * self.conv(x.mean((2, 3), keepdim=True)).sigmoid(), conv=nn.Conv2d(6, 6, 1)),
        IMAGE,
    ),
    "outer sum of features": (lambda x, y: x[:, :, None] + y[:, None, :], (2, 6), (2, 9)),
    "integers and floats": (lambda n, x: (n + x, n * 0.5, x - n, n / 2, n / n.abs().clamp(min=1)), INTS, (2, 6, 9)),
    "integers of different widths": (
        lambda n, m: (n + m, torch.maximum(n, m), m * 3, n - 2),
        INTS,
        Input((2, 6, 9), torch.int32),
    ),
    "booleans in arithmetic": (lambda b, x: (b * x, b + 1, b * b, b + b), Input((2, 6, 9), torch.bool), (2, 6, 9)),
    "casts": (lambda x: (x.to(torch.int32), x.double() / 3, (x.double() * 0.1).float(), x.long() * x), IMAGE),
    "float64 and float32 together": (lambda x: x.double() * 0.1 + x, IMAGE),
    "copies": (lambda x: (x.clone() + 1, x.detach() + 1, x.contiguous() + 1), IMAGE),
    "a scalar parameter": (Call(lambda self, x: (x * self.p, self.p - x), p=parameter()), IMAGE),
    "a parameter of one element": (Call(lambda self, x: (x * self.p, self.p / x), p=parameter(1)), IMAGE),
    "a buffer of one element and a higher rank": (Call(lambda self, x: x * self.p, p=torch.ones(1, 1, 1)), (2, 6)),
    "parameters per channel": (
        Call(
            lambda self, x: self.conv(x) * self.scale + self.shift,
            conv=nn.Conv2d(6, 4, 1),
            scale=parameter(4, 1, 1),
            shift=parameter(1, 4, 1, 1),
        ),
        IMAGE,
    ),
    "parameters per row and column": (
        Call(lambda self, x: x * self.p + self.q, p=parameter(9, 1), q=parameter(8)),
        IMAGE,
    ),
    "a parameter of every axis, all sizes alike": (
        Call(lambda self, x: self.conv(x) + self.p, conv=nn.Conv2d(6, 6, 1), p=parameter(1, 6, 6, 6)),
        CUBE,
    ),
    "a large buffer held in the file's JSON": (Call(lambda self, x: x * self.b, b=torch.ones(6, 9, 8)), IMAGE),
    "buffers of integers": (
        Call(lambda self, x, n: (x + self.b, n * self.b), b=torch.arange(54).view(6, 9)),
        (2, 6, 9),
        INTS,
    ),
    "a parameter used twice in different layouts": (
        Call(lambda self, x: (x + self.p, x.transpose(1, 3) * self.p), p=parameter(6, 6, 6)),
        CUBE,
    ),
    "a parameter over channels that a view split": (
        Call(lambda self, x: x.view(-1, 2, 3, 9, 8).transpose(1, 2).flatten(1, 2) * self.p, p=parameter(6, 1, 1)),
        IMAGE,
    ),
    "a parameter computed from parameters": (
        Call(lambda self, x: x * (self.p.exp() + self.q).view(6, 1, 1), p=parameter(6), q=parameter(6)),
        IMAGE,
    ),
    "a parameter of more dimensions than the input": (
        Call(lambda self, x: x[:, None, None] * self.p, p=parameter(4, 3, 1)),
        (2, 6),
    ),
}

SHAPES = {
    "permute by the inverse": (lambda x: (x.permute(0, 2, 3, 1), x.permute(0, -1, 1, 2)), IMAGE),
    "permute behind a convolution": (
        Call(lambda self, x: self.conv(x).permute(0, 3, 1, 2), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "permute of the batch": (lambda x: (x.permute(1, 0, 2, 3) + 1, x.transpose(0, -1)), IMAGE),
    "transpose, negative dimensions": (
        lambda x: (x.transpose(1, 2), x.transpose(-1, -3), x.mT, x.swapaxes(1, 1)),
        IMAGE,
    ),
    "matrix transpose": (lambda x: x.flatten(1).t() * 2, (2, 6, 9)),
    "view that splits and merges": (lambda x: (x.view(-1, 2, 3, 9, 8), x.view(-1, 6, 72), x.view(-1, 2, 27, 8)), IMAGE),
    "view across dimensions": (lambda x: (x.view(-1, 8, 9, 6), x.flatten(2).view(-1, 8, 54)), IMAGE),
    "view across dimensions behind a convolution": (
        Call(lambda self, x: self.conv(x).reshape(-1, 7, 4, 6), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "view across dimensions, all sizes alike": (
        Call(lambda self, x: self.conv(x).reshape(-1, 4, 9, 6), conv=nn.Conv2d(6, 6, 1)),
        CUBE,
    ),
    "view of what was permuted": (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 72, 6), IMAGE),
    "view that folds into the batch": (lambda x: (x.flatten(0, 1), x.flatten(0, 1).view(-1, 6, 9, 8) + 1), IMAGE),
    "view as one row": (lambda x: x.reshape(-1), IMAGE),
    "flatten of some dimensions": (
        lambda x: (x.flatten(1), x.flatten(1, 2), x.flatten(2), x.unflatten(1, (2, 3))),
        IMAGE,
    ),
    "flatten in Keras' order": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.Flatten()), IMAGE),
    "squeeze and unsqueeze": (
        lambda x: (x.squeeze(), x.squeeze(1), x.squeeze((1, 3)), x.squeeze(2), x.unsqueeze(0), x.unsqueeze(-1)),
        (2, 1, 9, 1),
    ),
    "unsqueeze of what lies channels last": (
        Call(lambda self, x: (self.conv(x).unsqueeze(2), self.conv(x)[:, None]), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "expand of ones": (lambda x: (x.expand(-1, 5, -1, -1), x.expand(3, -1, 5, 9, -1)[0] * 2), (2, 1, 9, 8)),
    "expand of what lies channels last": (
        Call(lambda self, x: self.conv(x).expand(-1, 4, -1, -1), conv=nn.Conv2d(6, 1, 3)),
        IMAGE,
    ),
    "expand that changes nothing": (lambda x: x.expand_as(x) + 1, IMAGE),
    "cat over each axis": (
        lambda x, y: (torch.cat([x, y], 1), torch.cat([x, x], -1), torch.cat([x, y, x], 1)),
        IMAGE,
        (2, 4, 9, 8),
    ),
    "cat over the batch": (lambda x: torch.cat([x, x * 2]), IMAGE),
    "cat of ones": (lambda x: (torch.cat([x[:, :1], x[:, 1:2]], 1), torch.cat([x[:, :1], x], 1)), IMAGE),
    "cat of values in different layouts": (
        Call(lambda self, x, y: torch.cat([self.conv(x), y.permute(0, 3, 1, 2)], 1), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
        (2, 7, 6, 3),
    ),
    "cat of values in different layouts, all sizes alike": (
        Call(lambda self, x: torch.cat([self.conv(x), x, x.transpose(1, 2)], 2), conv=nn.Conv2d(6, 6, 1)),
        CUBE,
    ),
    "cat of channels that a view split, into a convolution": (
        Call(
            lambda self, x: self.conv(torch.cat([x.view(-1, 2, 3, 9, 8).transpose(1, 2).flatten(1, 2), x], 1)),
            conv=nn.Conv2d(12, 4, 1),
        ),
        IMAGE,
    ),
    "cat of flattened maps into a linear": (
        Call(
            lambda self, x: self.linear(torch.cat([self.conv(x).flatten(1), x.flatten(1)], 1)),
            conv=nn.Conv2d(6, 4, 3),
            linear=nn.Linear(4 * 42 + 432, 5),
        ),
        IMAGE,
    ),
    "cat of integers and floats": (lambda n, x: torch.cat([n, x], 1), INTS, (2, 4, 9)),
    "stack at each position": (
        lambda x, y: (torch.stack([x, y], 1), torch.stack([x, y], -1), torch.stack([x, x, y])),
        IMAGE,
        IMAGE,
    ),
    "stack of convolutions": (
        Call(lambda self, x: torch.stack([self.conv(x), self.conv(-x)], 2), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "split into equal parts and a rest": (
        lambda x: (*x.split(2, 1), *x.split(4, 2), *x.split(9, 2), *x.split(3, -1)),
        IMAGE,
    ),
    "split by sizes": (lambda x: (*x.split([1, 3, 2], 1), *x.split([7, 1], -1)), IMAGE),
    "chunk into unequal parts": (lambda x: (*x.chunk(4, 2), *x.chunk(2, 1), *x.chunk(1, 1)), IMAGE),
    "split of a convolution, one part left": (
        Call(lambda self, x: self.conv(x).split([1, 3], 1)[1], conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "split of channels that a view split": (
        lambda x: x.view(-1, 2, 3, 9, 8).transpose(1, 2).flatten(1, 2).split(2, 1),
        IMAGE,
    ),
    "slice from the end, with steps and beyond": (
        lambda x: (x[:, 1:-1], x[:, :, ::2], x[..., -3:], x[:, 1::3, 2:7:2], x[:, :, :100], x[:, -100:2]),
        IMAGE,
    ),
    "slice to one": (lambda x: (x[:, 2:3], x[..., -1:]), IMAGE),
    "slice of a convolution": (Call(lambda self, x: self.conv(x)[:, 1:, ::2, 1:-1], conv=nn.Conv2d(6, 4, 3)), IMAGE),
    "slice of what a view merged": (lambda x: x.permute(0, 2, 1, 3).flatten(1, 2)[:, 5:23:4], IMAGE),
    "select from either end": (lambda x: (x[:, 2], x[:, -1], x[..., 0], x[:, :, -2], x.narrow(1, 2, 3)), IMAGE),
    "select from a convolution": (
        Call(lambda self, x: (self.conv(x)[:, 1], self.conv(x)[:, :, -1]), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "select the only one": (lambda x: (x[:, 0], x[:, :, 0]), (2, 1, 1, 8)),
    "pad of each axis": (
        lambda x: (
            F.pad(x, (1, 2)),
            F.pad(x, (1, 2, 3, 0)),
            F.pad(x, (0, 0, 0, 0, 1, 2)),
            F.pad(x, (0, 1), value=-1.5),
        ),
        IMAGE,
    ),
    "pad of a convolution": (
        Call(lambda self, x: F.pad(self.conv(x), (1, 2, 3, 4), value=0.5), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "pad of one": (lambda x: (F.pad(x, (0, 0, 2, 1)), F.pad(x, (0, 0, 0, 0, 1, 3))), (2, 1, 1, 8)),
    "pad of what a view merged": (lambda x: F.pad(x.transpose(1, 2).flatten(1, 2), (0, 0, 2, 1)), IMAGE),
    "pad of integers": (lambda x: F.pad(x, (1, 2), value=7), INTS),
    "pad by reflection, replication and wrapping": (
        lambda x: tuple(F.pad(x, (1, 2, 3, 0), mode=mode) for mode in ("reflect", "replicate", "circular")),
        IMAGE,
    ),
    "pad of a convolution by reflection, replication and wrapping": (
        nn.Sequential(
            nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(4, 3, (1, 3), padding=(0, 1), padding_mode="replicate"),
            nn.Conv2d(3, 5, 3, padding=(2, 1), padding_mode="circular"),
        ),
        IMAGE,
    ),
    "pad as an older program has it": (lambda x: aten.constant_pad_nd.default(x, [1, 2, 0, 3], 0.5), IMAGE),
    "pad that is zero": (lambda x: F.pad(x, (0, 0, 0, 0)) + 1, IMAGE),
}

REDUCTIONS = {
    "mean over each axis, kept and not": (
        lambda x: (x.mean(1), x.mean(-1, keepdim=True), x.mean((2, 3)), x.mean((1, 3), keepdim=True), x.mean((-1, -3))),
        IMAGE,
    ),
    "sum over each axis, kept and not": (
        lambda x: (x.sum(1), x.sum(-1, keepdim=True), x.sum((2, 3)), x.sum((1, 3), keepdim=True)),
        IMAGE,
    ),
    "extremes over each axis, kept and not": (
        lambda x: (x.amax(1), x.amax((2, 3), keepdim=True), x.amin(-1), x.amin((1, 2), keepdim=True)),
        IMAGE,
    ),
    "reductions of everything": (lambda x: (x + x.mean(), x + x.sum(), x + x.amax(), x + x.amin()), IMAGE),
    "reductions of the batch": (lambda x: (x + x.mean(0), x + x.sum((0, 2), keepdim=True)), IMAGE),
    "reductions of a convolution": (
        Call(
            lambda self, x: (lambda y: (y.mean(1), y.mean((2, 3)), y.sum(2), y.amax((1, 2))))(self.conv(x)),
            conv=nn.Conv2d(6, 4, 3),
        ),
        IMAGE,
    ),
    "reductions of a convolution, all sizes alike": (
        Call(lambda self, x: (lambda y: (y.mean(1), y.mean(2), y.mean((1, 3))))(self.conv(x)), conv=nn.Conv2d(6, 6, 1)),
        CUBE,
    ),
    "reductions of one": (lambda x: (x.mean(1), x.sum((1, 2), keepdim=True), x.amax(2)), (2, 1, 1, 8)),
    "reductions of what a view merged": (
        lambda x: (x.transpose(1, 2).flatten(1, 2).mean(1), x.flatten(2).transpose(1, 2).sum(1)),
        IMAGE,
    ),
    "reductions of half of what a view split": (
        lambda x: (x.view(-1, 2, 3, 9, 8).mean(1), x.view(-1, 2, 3, 9, 8).amax((2, 4), keepdim=True)),
        IMAGE,
    ),
    "sum of integers and booleans": (
        lambda n, m, b: (n.sum(1), m.sum(1), b.sum(1), m.sum(1, keepdim=True), m + m.amax(1, keepdim=True)),
        INTS,
        Input((2, 6, 9), torch.int32),
        Input((2, 6, 9), torch.bool),
    ),
    "mean in another type": (
        lambda n, x: (n.mean(1, dtype=torch.float32), x.mean(1, dtype=torch.float64)),
        INTS,
        IMAGE,
    ),
}

RESAMPLING = {
    "nearest by a whole factor": (nn.Upsample(scale_factor=2), IMAGE),
    "nearest by different factors": (lambda x: F.interpolate(x, scale_factor=(3, 2)), IMAGE),
    "nearest to a size": (lambda x: F.interpolate(x, size=(18, 24)), IMAGE),
    "nearest to sizes that do not divide": (lambda x: F.interpolate(x, size=(13, 19)), IMAGE),
    "nearest down": (lambda x: (F.interpolate(x, size=(4, 3)), F.interpolate(x, scale_factor=0.5)), IMAGE),
    "nearest by a broken factor": (nn.Upsample(scale_factor=1.7), IMAGE),
    "nearest by the given factor, not the ratio": (lambda x: F.interpolate(x, scale_factor=2.1), (2, 6, 5, 7)),
    "nearest by the ratio, recomputed": (
        lambda x: F.interpolate(x, scale_factor=2.1, recompute_scale_factor=True),
        (2, 6, 5, 7),
    ),
    "nearest of one pixel": (lambda x: F.interpolate(x, size=(4, 3)), (2, 6, 1, 1)),
    "nearest behind a convolution": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.Upsample(scale_factor=2)), IMAGE),
}

CASES = CONVOLUTIONS | POOLS | LAYERS | ACTIVATIONS | ELEMENTWISE | SHAPES | REDUCTIONS | RESAMPLING
CASES |= mapping_rows.CASES | attention_rows.CASES | sampling_rows.CASES | indexing_rows.CASES | module_rows.CASES
# Capture leaves none of these; they are put into a program by hand.
BY_HAND = {
    "reshape": (aten.reshape.default, [-1, 54, 8]),
    "flatten": (aten.flatten.using_ints, 1, 2),
    "unflatten": (aten.unflatten.int, 1, [2, 3]),
    "chunk": (aten.chunk.default, 4, 1),
    "contiguous": (aten.contiguous.default,),
    "alias": (aten.alias.default,),
    "view": (aten.view.default, [-1, 54, 8]),
    "view of fresh memory": (aten._unsafe_view.default, [-1, 54, 8]),
    "lift_fresh_copy": (aten.lift_fresh_copy.default,),
    "to another type": (aten.to.dtype, torch.int32),
    "shift": (ours.shift.default, 1, [1, 3, 2], [2, 3], [1, 0, -2, 3, 0, 0], "replicate"),
    "upsample to a size": (aten.upsample_nearest2d.default, [18, 16]),
}


EVERY = CASES | BY_HAND
# Only these may differ between a Keras model and a traced function: by their layers or their bare parameters.
TRACED = CONVOLUTIONS | LAYERS | ELEMENTWISE | mapping_rows.CONVOLUTIONS | attention_rows.ATTENTION
BATCHES = (2, 3)


@functools.cache
def program_of(case: str) -> Program:
    if case in BY_HAND:
        return by_hand(*BY_HAND[case])
    module, *inputs = EVERY[case]
    return captured(module, *inputs)


def inputs_of(case: str) -> list:
    return [IMAGE] if case in BY_HAND else EVERY[case][1:]


def by_hand(target, *arguments) -> Program:
    """A program of one operator on an image."""
    program = captured(lambda x: x + 1, IMAGE)
    output, (result,) = program.graph.output_node(), program.results
    with program.graph.inserting_before(output):
        made = program.insert_call(target, (result, *arguments), result)
        parts = [made]
        if isinstance(made.meta["val"], list):
            parts = [program.insert_call(operator.getitem, (made, i), result) for i in range(len(made.meta["val"]))]
    output.args = (tuple(parts),)
    program.outputs = [f"output_{i}" for i in range(len(parts))]
    program.cleanup()
    return program


@pytest.mark.parametrize("case", CASES | BY_HAND)
def test_is_exact_in_float64(case):
    assert_plan_is_exact(program_of(case), inputs_of(case), "auto", "nhwc", "nchw")


@pytest.mark.parametrize("case", EVERY)
def test_rounds_as_pytorch_does_in_float32(case, tmp_path):
    """As a Keras model, and bit for bit as that model saved and opened again by Keras alone."""
    program, inputs = program_of(case), inputs_of(case)
    plan = planned(program)
    model = PlanExecutor(plan, stock=True).keras_model()
    model.save(tmp_path / "model.keras")
    reopened = load_model(tmp_path / "model.keras")
    names = [output.name for output in plan.outputs]

    def results(model, arrays):
        given = dict(zip((i.name for i in plan.inputs), arrays, strict=True))
        got = model(given if len(given) > 1 else arrays[0], training=False)
        return to_torch([got[n] for n in names] if len(names) > 1 else [got], plan.outputs)

    for batch, tensors, *expected in references(program, inputs):
        arrays = to_artifact(tensors, plan.inputs)
        kept = results(model, arrays)
        assert_float32_rounds_alike(kept, *expected, f"Keras model, batch {batch}")
        assert_same(results(reopened, arrays), kept, f"Keras file, batch {batch}", bound=0)


@pytest.mark.parametrize("case", TRACED)
def test_traced_function_rounds_as_pytorch_does_in_float32(case):
    """Its grouped convolutions are TensorFlow's own, its bare parameters variables."""
    program, inputs = program_of(case), inputs_of(case)
    plan = planned(program)
    native = PlanExecutor(plan).prepare()
    traced = tf.function(native.named, input_signature=native.signature(), autograph=False)
    for batch, tensors, *expected in references(program, inputs):
        named = traced(*map(tf.constant, to_artifact(tensors, plan.inputs)))
        results = to_torch([named[output.name] for output in plan.outputs], plan.outputs)
        assert_float32_rounds_alike(results, *expected, f"traced function, batch {batch}")


DILATED = {
    "2-D": (lambda: nn.Conv2d(6, 4, 3, dilation=(2, 3)), IMAGE),
    "2-D, same": (lambda: nn.Conv2d(6, 4, 3, dilation=2, padding="same"), IMAGE),
    "2-D, in groups": (lambda: nn.Conv2d(6, 4, 3, dilation=2, groups=2), IMAGE),
    "2-D, depthwise with a multiplier": (lambda: nn.Conv2d(6, 12, 3, dilation=2, groups=6, padding=2), IMAGE),
    "2-D, depthwise, then 1x1": (
        lambda: nn.Sequential(nn.Conv2d(6, 6, 3, dilation=2, groups=6, bias=False), nn.Conv2d(6, 4, 1)), IMAGE,
    ),
    "2-D, strided": (lambda: nn.Conv2d(6, 4, 3, 2, dilation=2), IMAGE),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, dilation=2), IMAGE),
    "1-D": (lambda: nn.Conv1d(6, 4, 3, dilation=2, padding=2), (2, 6, 9)),
    "1-D, depthwise": (lambda: nn.Conv1d(6, 6, 3, dilation=3, groups=6), (2, 6, 9)),
}  # fmt: skip


@pytest.mark.parametrize("case", DILATED)
def test_dilated_convolutions_are_tensorflows_own_with_their_gradient(case):
    build, shape = DILATED[case]
    x = examples([shape])
    program = captured(build(), shape)
    rewritten, _ = rewrite(program, REWRITES["tf"], x)
    plan = make_plan(rewritten)
    raised = program.with_dtype(torch.float64)
    assert_same(run_in_float64(plan, x)[0], raised.run(*in_float64(x)), "float64")
    lowered = PlanExecutor(plan)
    operators = count_operators(lowered.traced.graph)
    assert operators["Conv2D"] >= 1
    assert not {"SpaceToBatchND", "BatchToSpaceND", "DepthwiseConv2dNative"} & operators.keys()
    (array,) = map(tf.constant, to_artifact(x, plan.inputs))
    with tf.GradientTape() as tape:
        tape.watch(array)
        (result,) = lowered(array)
        total = tf.reduce_sum(result**2)
    gradients = []
    for of, given in ((program, x[0].clone()), (raised, x[0].double())):
        given.requires_grad_()
        (y,) = of.graph_module(given)
        gradients.append(torch.autograd.grad((y**2).sum(), given)[0])
    made = to_torch([tape.gradient(total, array)], plan.inputs)
    assert_float32_rounds_alike(made, *([gradient] for gradient in gradients), "gradient")


def references(program: Program, inputs):
    """Batch, inputs, and PyTorch's results in float32 and float64."""
    raised = program.with_dtype(torch.float64)
    for batch in BATCHES:
        tensors = examples(inputs, batch)
        yield batch, tensors, program.run(*tensors), raised.run(*in_float64(tensors))


@pytest.mark.parametrize(
    "module, shape",
    [
        pytest.param(Call(lambda x: x[x > 0]), IMAGE, id="an index by a mask"),
        pytest.param(Call(lambda x: F.conv2d(x, x.mean(0)[None, :, :2, :3])), IMAGE, id="a kernel made of the input"),
    ],
)
def test_refuses_by_name(module, shape):
    """What Keras would compute otherwise is an error that names the operator, not another function."""
    program = captured(module, shape)
    with pytest.raises(UnsupportedOperatorsError) as raised:
        make_plan(program)
    assert [count for _, count, *_ in raised.value.operators] == [1]


def test_every_operator_with_a_mapping_has_a_row():
    mappings.load()
    met = {case: targets(program_of(case)) for case in EVERY}
    written_out = [case for case in EVERY if met[case] - MAPPINGS.keys()]
    met |= {f"{case}, written out": targets(planned(program_of(case)).program) for case in written_out}
    missing = MAPPINGS.keys() - set().union(*met.values())
    assert not missing, "\n".join(sorted(map(str, missing)))


def test_every_decomposition_of_ours_has_a_row():
    mappings.load()
    missing = DECOMPOSITIONS.keys() - set().union(*(targets(program_of(case)) for case in EVERY))
    assert not missing, "\n".join(sorted(map(str, missing)))


def test_operators_named_by_a_string_are_those_that_some_pytorch_lacks():
    mappings.load()
    assert {"aten::cholesky"} >= ABSENT


@pytest.mark.parametrize("broken", ["mappings.activations", "mappings.linalg", "mappings.unfold"])
def test_failed_import_registers_nothing_and_is_repeated_or_succeeds(broken):
    mappings.load()
    families = {name: module for name, module in sys.modules.items() if name.startswith("mappings.")}
    registered, nothing = snapshot(), tuple(type(table)() for table in TABLES)
    try:
        for name in families:
            del sys.modules[name]
        restore(nothing)
        sys.modules[broken] = None  # which Python refuses to import
        for _ in range(2):
            with pytest.raises(ImportError, match=broken):
                mappings.load()
            assert snapshot() == nothing
        del sys.modules[broken]
        mappings.load()
        assert [set(table) for table in TABLES] == [set(table) for table in registered]
    finally:
        sys.modules.update(families)
        restore(registered)


def targets(program: Program) -> set:
    return {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}


@pytest.mark.parametrize(
    "case, weights",
    [
        ("prelu with slopes for several ranks", 1),
        ("prelu with one slope for several ranks", 1),
        ("group norm of sequences, features and volumes", 2),
    ],
)
def test_a_layer_met_at_several_ranks_has_its_weights_once(case, weights):
    assert len(PlanExecutor(planned(program_of(case)), stock=True).prepare().tensors) <= weights


@pytest.mark.parametrize(
    "case, native",
    [("bilinear up, down and both", True), ("bilinear with aligned corners", False), ("bicubic, antialiased", False)],
)
def test_images_are_resized_by_tensorflow_where_that_is_the_same_function(case, native):
    plan = planned(program_of(case))
    lowered = PlanExecutor(plan).prepare()
    traced = tf.function(lowered.named, input_signature=lowered.signature(), autograph=False).get_concrete_function()
    assert any(op.type == "ResizeBilinear" for op in traced.graph.get_operations()) == native
    assert not plan.movements
