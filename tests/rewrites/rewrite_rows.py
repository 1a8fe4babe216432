"""Rows for the tables of rewrites: shifts, and convolutions that are written otherwise."""

import torch
import torch.nn.functional as F
from equivalence import Call
from shift_spellings import Spec, by_bilinear_grid, by_deformable, by_depthwise, by_grid, by_roll, by_slices
from torch import nn
from torchvision_for_tests import load_torchvision

ours = torch.ops.converter

SEQUENCE = (2, 6, 11)
IMAGE = (2, 6, 9, 8)
VOLUME = (2, 6, 5, 7, 4)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def separable(depthwise: dict | None = None, pointwise: dict | None = None, multiplier: int = 1) -> nn.Module:
    channels = 6 * multiplier
    return nn.Sequential(
        nn.Conv2d(6, channels, **{"kernel_size": 3, "groups": 6, "bias": False} | (depthwise or {})),
        nn.Conv2d(channels, 4, **{"kernel_size": 1} | (pointwise or {})),
    )


LARGE_IMAGE = (2, 32, 24, 24)

# -- shifts

SHIFTED = (2, 8, 5, 4)
SPEC = Spec(SHIFTED, (1, 3, 2, 2), ((0, 1), (-1, 0), (1, 2), (0, 0)), "zeros")
REPEATED = Spec(SHIFTED, (1, 3, 2, 2), ((0, 1), (-1, 0), (1, 2), (0, 0)), "replicate")


def behind_conv(function):
    return Call(lambda self, x: function(self.conv(x)), conv=nn.Conv2d(8, 8, 1))


def scaled_kernel(x):
    weight = F.pad(torch.full((8, 1, 1, 1), 2.0), [0, 2, 1, 1])
    return F.conv2d(x, weight, padding=1, groups=8)


def two_hot_kernel(x):
    weight = F.pad(torch.ones(8, 1, 1, 2), [0, 1, 1, 1])
    return F.conv2d(x, weight, padding=1, groups=8)


def strided_kernel(x):
    return F.conv2d(x, F.pad(torch.ones(8, 1, 1, 1), [0, 2, 1, 1]), stride=2, padding=1, groups=8)


def assigned_last(x):
    y = torch.zeros_like(x)
    y[:, 1:, :, :3] = x[:, :-1, :, :3]
    y[:, :, :-1, 3:] = x[:, :, 1:, 3:]
    return y


def rolled_and_scaled(first):
    def forward(x):
        y = x.relu()
        return torch.cat([y[:, :3].roll(1, 3) * torch.tensor([first, 1, 1, 1]), y[:, 3:]], 1)

    return forward


def rolled_and_cleared(x):
    moved, others = x[:, :3].roll(1, 3), x[:, 3:]
    moved[..., 0] = 0
    return torch.cat([moved, others], 1)


DEFORMABLE_FIRE = {
    "a deformable convolution": (behind_conv(by_deformable(SPEC)), SHIFTED, "conv2d shift"),
    "a deformable convolution behind a pad": (behind_conv(by_deformable(REPEATED)), SHIFTED, "conv2d shift"),
}
SHIFTS_FIRE = {
    "slices assigned in place": (by_slices(SPEC), SHIFTED, "shift"),
    "slices assigned, the border left as it was": (
        by_slices(Spec(SHIFTED, (3, 5), ((2, 1), (-1, 0)), "keep")), SHIFTED, "shift"
    ),
    "padded, rolled and cropped": (by_roll(REPEATED), SHIFTED, "shift"),
    "by indices, the first repeated": (
        lambda x: torch.cat([x[:, :4, [0, 0, 0, 1, 2]], x[:, 4:]], 1), SHIFTED, "shift",
    ),
    "groups rolled": (by_roll(Spec(SHIFTED, (3, 5), ((2, 1), (-1, 0)), "circular")), SHIFTED, "shift"),
    "a one-hot depthwise convolution": (behind_conv(by_depthwise(SPEC)), SHIFTED, "conv2d shift"),
    "a one-hot depthwise convolution behind a pad": (behind_conv(by_depthwise(REPEATED)), SHIFTED, "conv2d shift"),
    "a nearest sample of a constant grid": (behind_conv(by_grid(REPEATED)), SHIFTED, "conv2d shift"),
    "in channels last": (
        lambda x: by_slices(SPEC)(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), (2, 5, 4, 8), "permute shift permute"
    ),
    "of time, as TSM has it": (
        lambda x: torch.cat(
            [F.pad(x[:, 1:, :2], (0,) * 7 + (1,)), F.pad(x[:, :-1, 2:3], (0,) * 6 + (1, 0)), x[:, :, 3:]], 2
        ),
        (2, 4, 6, 3, 5),
        "shift",
    ),
    "of channels first, written channels last": (
        lambda x: assigned_last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), SHIFTED, "shift"
    ),
    "rolled, what wraps assigned zero": (rolled_and_cleared, SHIFTED, "shift"),
    "rolled, what wraps masked": (
        rolled_and_scaled(0.0), SHIFTED, "relu shift"
    ),
    "read by others half way": (
        lambda x: (lambda y: (y, y[:, :2].relu()))(by_slices(SPEC)(x)), SHIFTED, "shift slice relu"
    ),
    "one behind the other": (
        lambda x: by_roll(REPEATED)(by_slices(SPEC)(x).relu()), SHIFTED, "shift relu shift"
    ),
}  # fmt: skip
SHIFTS_LEAVE = {
    "a roll of everything": (lambda x: torch.roll(x, (1, -1), (2, 3)), SHIFTED),
    "a roll of everything, cut in two": (
        lambda x: torch.cat([x[:, :, -2:], x[:, :, :-2]], 2), SHIFTED
    ),
    "a slice doubled": (
        lambda x: torch.cat([x[:, :4, [0, 0, 1, 1, 2]], x[:, 4:]], 1), SHIFTED
    ),
    "a group moved with a step": (lambda x: torch.cat([x[:, :4, ::2], x[:, 4:, 1:4]], 1), SHIFTED),
    "borders that differ": (
        lambda x: torch.cat([F.pad(x[:, :4, :-1], (0, 0, 1, 0)), F.pad(x[:, 4:, :-1], (0, 0, 1, 0), "replicate")], 1),
        SHIFTED,
    ),
    "a border that is not zero": (
        lambda x: torch.cat([F.pad(x[:, :4, :-1], (0, 0, 1, 0), value=1.0), x[:, 4:]], 1), SHIFTED
    ),
    "channels moved to others": (lambda x: torch.cat([x[:, 5:].roll(1, 2), x[:, :5].roll(1, 3)], 1), SHIFTED),
    "one example moved to another": (lambda x: torch.cat([x.roll(1, 0)[:, :4], x[:, 4:].roll(1, 2)], 1), SHIFTED),
    "a kernel that scales": (behind_conv(scaled_kernel), SHIFTED),
    "a kernel that adds": (behind_conv(two_hot_kernel), SHIFTED),
    "a kernel with a stride": (behind_conv(strided_kernel), SHIFTED),
    "a kernel where an infinity may come": (by_depthwise(SPEC), SHIFTED),
    "a bilinear sample": (behind_conv(by_bilinear_grid(REPEATED)), SHIFTED),
    "a sample between pixels": (
        behind_conv(lambda x: F.grid_sample(
            x, torch.linspace(-0.9, 0.9, 40).reshape(1, 5, 4, 2).expand(x.shape[0], -1, -1, -1), "nearest",
            align_corners=True,
        )),
        SHIFTED,
    ),
    "rolled, what wraps scaled": (
        rolled_and_scaled(0.5), SHIFTED
    ),
    "rolled, what wraps assigned one": (
        lambda x: torch.cat([x[:, :3].roll(1, 3).index_fill(3, torch.tensor([0]), 1.0), x[:, 3:]], 1), SHIFTED
    ),
    "two values": (lambda x: torch.cat([x.relu()[:, :4].roll(1, 2), x[:, 4:].roll(1, 3)], 1), SHIFTED),
}  # fmt: skip


def shifted_by_operator(border, distances=(0, 1, -1, 0), dim=1, dims=(2, 3), shape=SHIFTED):
    sizes = [3, shape[dim] - 3]
    return lambda x: ours.shift(x, dim, sizes, list(dims), list(distances), border)


SEQUENCE_OF_8 = (2, 8, 11)
TO_DEPTHWISE_FIRES = {
    "zeros": (behind_conv(shifted_by_operator("zeros")), SHIFTED, "conv2d conv2d"),
    "a border repeated": (behind_conv(shifted_by_operator("replicate")), SHIFTED, "conv2d pad conv2d"),
    "a larger reach along one axis": (
        behind_conv(shifted_by_operator("replicate", (4, -1), dims=(2,))), SHIFTED, "conv2d pad conv2d"
    ),
    "a sequence": (
        Call(lambda self, x: shifted_by_operator("zeros", (2, -1), dims=(2,))(self.conv(x)), conv=nn.Conv1d(8, 8, 1)),
        SEQUENCE_OF_8, "conv1d conv1d",
    ),
}  # fmt: skip
TO_DEPTHWISE_LEAVES = {
    "infinities may come": (shifted_by_operator("zeros"), SHIFTED),
    "a border that is kept": (behind_conv(shifted_by_operator("keep")), SHIFTED),
    "wrapped": (behind_conv(shifted_by_operator("circular")), SHIFTED),
    "a kernel of more elements": (behind_conv(shifted_by_operator("zeros", (2, 1, -1, 0))), SHIFTED),
    "groups of rows": (behind_conv(shifted_by_operator("zeros", (1, -1), 2, (3,))), SHIFTED),
    "a large map": (behind_conv(shifted_by_operator("zeros")), (2, 8, 33, 32)),
    "a map too large for a border repeated": (behind_conv(shifted_by_operator("replicate")), (2, 8, 13, 12)),
}

# -- convolutions written otherwise


def activated(channels=8, norm=False, plain=False):
    """Four parts, each before a ReLU."""

    def made():
        after = [nn.BatchNorm2d(channels)] * norm + [nn.ReLU()] * (not plain)
        return nn.Sequential(nn.Conv2d(channels, channels, 3), *after)

    return in_parts(4, **{name: made() for name in "abcd"})


def offset_convolution(offset, kernel=1, groups=1, **geometry):
    """A deformable convolution of what a convolution made, by constant offsets: (C, 2), one for each channel."""

    def forward(self, x):
        from torchvision.ops import deform_conv2d

        x = self.conv(x)
        by = (self.offset if offset is None else torch.tensor(offset)).reshape(1, -1, 1, 1)
        return deform_conv2d(x, by.expand(x.shape[0], -1, *self.made), self.weight, self.bias, **geometry)

    load_torchvision()
    module = Call(
        forward,
        conv=nn.Conv2d(6, 6, 1),
        weight=parameter(4, 6 // groups, kernel, kernel),
        bias=parameter(4),
        **({"offset": parameter(12)} if offset is None else {}),
    )
    stride, pad, dilation = (geometry.get(name, n) for name, n in (("stride", 1), ("padding", 0), ("dilation", 1)))
    module.made = tuple((n + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for n in IMAGE[2:])
    return module


def stacked_slices(parts, each=2):
    return " ".join(["conv2d pad", *["slice"] * (parts * each), "cat conv2d"])


WHOLE = [[1.0, 0], [0, -2], [0, 0], [0, 0], [-1, 1], [2, 0]]
BETWEEN = [[0.5, 0], [0, -1.25], [0, 0], [0, 0], [-1, 1], [2, 0]]
OFFSETS_FIRE = {
    "of whole pixels": (offset_convolution(WHOLE), IMAGE, "conv2d shift conv2d"),
    "of whole pixels, strided": (offset_convolution(WHOLE, stride=2), IMAGE, "conv2d shift conv2d"),
    "of whole pixels, in groups": (offset_convolution(WHOLE, groups=2), IMAGE, "conv2d shift conv2d"),
    "of a larger kernel, whole pixels": (
        offset_convolution([[i % 3 - 1.0, i % 2] for i in range(9)], kernel=3, padding=1),
        IMAGE,
        stacked_slices(9),
    ),
    "of a larger kernel, strided and dilated": (
        offset_convolution([[i % 4 - 2.0, -i % 3] for i in range(18)], kernel=3, padding=2, stride=2, dilation=2),
        IMAGE,
        stacked_slices(18, 3),
    ),
    "padded": (offset_convolution(WHOLE, padding=1), IMAGE, stacked_slices(6, 3)),
}
OFFSETS_LEAVE = {
    "a larger kernel, in groups": (offset_convolution(WHOLE * 9, groups=2, kernel=3), IMAGE),
    "a larger kernel, between pixels": (offset_convolution(BETWEEN * 9, kernel=3), IMAGE),
    "farther than a kernel should reach, between pixels": (offset_convolution([[9.5, 0], *WHOLE[1:]]), IMAGE),
    "a plain convolution": (nn.Conv2d(6, 4, 1), IMAGE),
}
LEARNED_FIRE = OFFSETS_FIRE | {
    "between pixels": (offset_convolution(BETWEEN), IMAGE, "conv2d conv2d conv2d"),
    "learned": (offset_convolution(None), IMAGE, "conv2d conv2d conv2d"),
}
FIXED_LEAVE = OFFSETS_LEAVE | {
    "between pixels": (offset_convolution(BETWEEN), IMAGE),
    "learned": (offset_convolution(None), IMAGE),
}


def in_parts(count=2, dim=1, **parts):
    def forward(self, x):
        given = x.chunk(count, 1)
        return torch.cat([getattr(self, name)(part) for name, part in zip(parts, given, strict=False)], dim)

    return Call(forward, **parts)


def cut_in_slices(self, x):
    return torch.cat([self.a(x[:, :3]), self.b(x[:, 3:])], 1)


def cut_by_an_index(self, x, first=0):
    parts = [x.index_select(1, torch.arange(3) + first), x[:, torch.tensor([3, 4, 5])]]
    return torch.cat([self.a(parts[0]), self.b(parts[1])], 1)


def stacked_deck(read=lambda stack: stack.sum(0)):
    return Call(lambda self, x: read(torch.stack(self.conv(x).chunk(3, 1))), conv=nn.Conv2d(6, 6, 3, groups=6))


def in_another_order(self, x):
    return torch.cat([self.b(x[:, 3:]), self.a(x[:, :3])], 1)


def deck(count=2, multiplier=1, bias=True, change=lambda part: part):
    def forward(self, x):
        first, *others = self.conv(x).chunk(count, 1)
        total = first
        for other in others:
            total = total + change(other)
        return total

    return Call(forward, conv=nn.Conv2d(6, 6 * multiplier, 3, groups=6, bias=bias))


def in_view(cut=lambda parts: parts.unbind(1), **convs):
    """Cut out of a view by groups, and stacked to another."""

    def forward(self, x):
        parts = cut(x.unflatten(1, (len(convs), -1)))
        made = [getattr(self, name)(part) for name, part in zip(convs, parts, strict=True)]
        return torch.stack(made, 1).flatten(1, 2)

    return Call(forward, **convs)


GROUPS_FIRE = {
    "parts of their own, joined": (in_parts(a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3)), IMAGE, "conv2d"),
    "three parts without a bias": (
        in_parts(3, **{name: nn.Conv2d(2, 5, (3, 1), 2, bias=False) for name in "abc"}), IMAGE, "conv2d"
    ),
    "parts that are grouped themselves": (
        in_parts(a=nn.Conv2d(3, 6, 3, groups=3), b=nn.Conv2d(3, 6, 3, groups=3)), IMAGE, "conv2d"
    ),
    "parts cut by slices": (Call(cut_in_slices, a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3)), IMAGE, "conv2d"),
    "parts cut by an index": (Call(cut_by_an_index, a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3)), IMAGE, "conv2d"),
    "thirds of a depthwise one, stacked and summed": (stacked_deck(), IMAGE, "reorder_channels conv2d"),
    "halves of a depthwise one, added": (deck(), IMAGE, "reorder_channels conv2d"),
    "thirds of a depthwise one, added": (deck(3), IMAGE, "reorder_channels conv2d"),
    "halves of a depthwise one with a multiplier": (deck(2, 3, False), IMAGE, "reorder_channels conv2d"),
    "1-D": (
        in_parts(a=nn.Conv1d(3, 2, 3), b=nn.Conv1d(3, 2, 3)), SEQUENCE, "conv1d"
    ),
    "depthwise parts, each before a ReLU": (
        in_parts(3, **{name: nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.ReLU()) for name in "abc"}), IMAGE,
        "conv2d relu",
    ),
    "parts of a view": (in_view(a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3)), IMAGE, "conv2d"),
    "parts selected from a view": (
        in_view(lambda parts: [parts[:, 0], parts[:, -1]], a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3)), IMAGE, "conv2d"
    ),
    "halves of a depthwise one, in Python's sum": (
        Call(lambda self, x: sum(self.conv(x).chunk(2, 1)), conv=nn.Conv2d(6, 6, 3, groups=6)), IMAGE,
        "reorder_channels conv2d",
    ),
    "parts before several operators alike": (
        in_parts(**{name: nn.Sequential(nn.Conv2d(3, 2, 3), nn.LeakyReLU(0.2), nn.Hardswish()) for name in "ab"}),
        IMAGE,
        "conv2d leaky_relu hardswish",
    ),
}  # fmt: skip
GROUPS_LEAVE = {
    "parts of one convolution": (
        Call(lambda self, x: torch.cat([self.a(x[:, :3]), self.a(x[:, 3:])], 1), a=nn.Conv2d(3, 2, 3)), IMAGE
    ),
    "parts in another order": (Call(in_another_order, a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3)), IMAGE),
    "parts that overlap": (
        Call(
            lambda self, x: torch.cat([self.a(x[:, :3]), self.b(x[:, 2:5])], 1),
            a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3),
        ),
        IMAGE,
    ),
    "a part left out": (
        Call(
            lambda self, x: torch.cat([self.a(x[:, :2]), self.b(x[:, 2:4])], 1),
            a=nn.Conv2d(2, 2, 3), b=nn.Conv2d(2, 2, 3),
        ),
        IMAGE,
    ),
    "parts of other kernels": (
        in_parts(a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3, dilation=1, padding=0, stride=(1, 1), bias=False)), IMAGE
    ),
    "parts before operators that differ": (
        in_parts(**{name: nn.Sequential(nn.Conv2d(3, 2, 3), nn.LeakyReLU(n)) for name, n in (("a", 0.1), ("b", 0.2))}),
        IMAGE,
    ),
    "parts of a view, in another order": (
        in_view(lambda parts: [parts[:, 1], parts[:, 0]], a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3)), IMAGE
    ),
    "parts cut by an index, that overlap": (
        Call(lambda self, x: cut_by_an_index(self, x, 1), a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3)), IMAGE
    ),
    "thirds of a depthwise one, stacked, summed along rows": (stacked_deck(lambda stack: stack.sum(3)), IMAGE),
    "thirds of a depthwise one, stacked for others too": (
        stacked_deck(lambda stack: (stack.sum(0), stack.relu())), IMAGE
    ),
    "a sum of two thirds that others read": (
        Call(
            lambda self, x: (lambda s, c: (s.relu(), s + c))(*(lambda a, b, c: (a + b, c))(*self.conv(x).chunk(3, 1))),
            conv=nn.Conv2d(6, 6, 3, groups=6),
        ),
        IMAGE,
    ),
    "parts joined over rows": (in_parts(dim=2, a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3)), IMAGE),
    "halves that are changed before": (deck(change=torch.relu), IMAGE),
    "halves that are scaled": (deck(change=lambda part: 2 * part), IMAGE),
    "halves of a full convolution": (
        Call(lambda self, x: (lambda y: y[0] + y[1])(self.conv(x).chunk(2, 1)), conv=nn.Conv2d(6, 6, 3)), IMAGE
    ),
    "a half added to itself": (
        Call(lambda self, x: (lambda y: y[0] + y[0])(self.conv(x).chunk(2, 1)), conv=nn.Conv2d(6, 6, 3, groups=6)),
        IMAGE,
    ),
}  # fmt: skip


class SamePadded(nn.Module):
    """Pads computed from the input's size, as TensorFlow's SAME has them."""

    def __init__(self, *conv, **options):
        super().__init__()
        self.conv = nn.Conv2d(*conv, **options)

    def forward(self, x):
        pads = []
        for n, k, s, d in list(
            zip(x.shape[2:], self.conv.kernel_size, self.conv.stride, self.conv.dilation, strict=True)
        )[::-1]:
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            pads += [total // 2, total - total // 2]
        return self.conv(F.pad(x, pads))


PADDING_FIRES = {
    "behind more than before, as SAME has it": (
        nn.Sequential(nn.ZeroPad2d((7, 8, 0, 0)), nn.Conv2d(6, 4, (1, 16))), IMAGE, "padded_conv"
    ),
    "before more than behind, which SAME has not": (
        nn.Sequential(nn.ZeroPad2d((8, 7, 0, 0)), nn.Conv2d(6, 4, (1, 16))), IMAGE, "padded_conv"
    ),
    "computed from the size": (SamePadded(6, 4, 3, 2), IMAGE, "padded_conv"),
    "computed from the size, strided and grouped": (SamePadded(6, 4, (4, 3), (3, 2), groups=2), IMAGE, "padded_conv"),
    "added to the convolution's own": (
        nn.Sequential(nn.ZeroPad2d((1, 0, 2, 3)), nn.Conv2d(6, 4, 3, 2, (1, 2), bias=False)), IMAGE, "padded_conv"
    ),
    "along one axis": (nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(6, 4, 3)), SEQUENCE, "padded_conv"),
    "of a volume": (nn.Sequential(nn.ZeroPad3d((1, 0, 2, 3, 0, 1)), nn.Conv3d(6, 4, 2)), VOLUME, "padded_conv"),
}  # fmt: skip
PADDING_LEAVES = {
    "of another value": (nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(6, 4, 3)), IMAGE),
    "by reflection": (nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(6, 4, 3)), IMAGE),
    "that cuts off": (nn.Sequential(nn.ZeroPad2d((-1, 1, 0, 0)), nn.Conv2d(6, 4, 3)), IMAGE),
    "of channels": (Call(lambda self, x: self.conv(F.pad(x, (0, 0, 0, 0, 1, 1))), conv=nn.Conv2d(8, 4, 3)), IMAGE),
    "that others read": (
        Call(lambda self, x: (lambda y: (self.conv(y), y.relu()))(F.pad(x, (1, 1))), conv=nn.Conv2d(6, 4, 3)), IMAGE
    ),
    "before another operator": (nn.Sequential(nn.ZeroPad2d(1), nn.ReLU(), nn.Conv2d(6, 4, 3)), IMAGE),
    "a pad that is computed between": (nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(2)), IMAGE),
}  # fmt: skip
DEPTHWISE_BIAS_FIRES = {
    "both have one": (separable({"bias": True}), IMAGE, "conv2d conv2d"),
    "the pointwise part has none": (separable({"bias": True}, pointwise={"bias": False}), IMAGE, "conv2d conv2d"),
    "a multiplier and padding": (separable({"bias": True, "padding": 1}, multiplier=2), IMAGE, "conv2d conv2d"),
    "along one axis": (nn.Sequential(nn.Conv1d(6, 6, 3, groups=6), nn.Conv1d(6, 4, 1)), SEQUENCE, "conv1d conv1d"),
}
REDUNDANT_BIAS_LEAVES = {
    "the pointwise part has none": (separable({"bias": True}, pointwise={"bias": False}), IMAGE),
}
DEPTHWISE_BIAS_LEAVES = {
    "no bias": (separable(), IMAGE),
    "an activation between": (
        nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1)), IMAGE
    ),
    "a pointwise part that is padded": (separable({"bias": True}, pointwise={"padding": 1}), IMAGE),
    "a full convolution before": (nn.Sequential(nn.Conv2d(6, 5, 3), nn.Conv2d(5, 4, 1)), IMAGE),
}  # fmt: skip


def normalized(change, **conv):
    """A convolution of a changed image."""
    return Call(lambda self, x: self.conv(change(x)), conv=nn.Conv2d(6, 4, 3, **conv))


def by_channel(*values):
    return torch.tensor(values).view(1, 6, 1, 1)


MEANS, DEVIATIONS = (0.1, 0.2, 0.3, 0.4, 0.5, -0.6), (1.0, 2.0, 0.5, 4.0, 0.25, 3.0)


INPUT_SCALE_FIRES = {
    "a factor": (normalized(lambda x: x / 255, padding=1), IMAGE, "conv2d"),
    "a factor of each channel, in groups": (
        normalized(lambda x: x * by_channel(*DEVIATIONS), groups=2), IMAGE, "conv2d",
    ),
    "mean and deviation": (
        normalized(lambda x: (x / 255 - by_channel(*MEANS)) / by_channel(*DEVIATIONS), bias=False), IMAGE, "conv2d",
    ),
    "mean and deviation, padded": (
        normalized(lambda x: (x - by_channel(*MEANS)) / by_channel(*DEVIATIONS), padding=1), IMAGE, "sub conv2d",
    ),
    "a constant added from the left": (normalized(lambda x: 2.0 * (0.5 + x)), IMAGE, "conv2d"),
    "a factor before a Focus": (
        Call(lambda self, x: self.conv(ours.space_to_depth(x / 255, 2)), conv=nn.Conv2d(24, 4, 3)), (2, 6, 8, 6),
        "space_to_depth conv2d",
    ),
    "features before a linear layer": (
        Call(lambda self, x: self.linear(x * torch.arange(1.0, 7.0) - 0.5), linear=nn.Linear(6, 4)), (2, 6), "linear"
    ),
    "features of tokens before several linear layers": (
        Call(
            lambda self, x: (self.q(y := x * torch.arange(1.0, 7.0) - 0.5), self.k(y)),
            q=nn.Linear(6, 4), k=nn.Linear(6, 5, bias=False),
        ),
        (2, 7, 6), "linear linear",
    ),
    "pixels before a convolution and another that is grouped": (
        Call(lambda self, x: (self.a(y := x / 255), self.b(y)), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 6, 3, groups=6)),
        IMAGE, "conv2d conv2d",
    ),
}  # fmt: skip
INPUT_SCALE_LEAVES = {
    "a feature that a factor makes several": (
        Call(lambda self, x: self.linear(x * torch.arange(1.0, 7.0)), linear=nn.Linear(6, 4)), (2, 5, 1)
    ),
    "a gray image less the means of several channels": (
        Call(lambda self, x: self.conv(x - by_channel(*MEANS)), conv=nn.Conv2d(6, 4, 3)), (2, 1, 9, 8)
    ),
    "a difference that one of two convolutions pads": (
        Call(lambda self, x: (self.a(y := x - 0.5), self.b(y)), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 4, 3, padding=1)),
        IMAGE,
    ),
    "positions before a linear layer": (
        Call(lambda self, x: self.linear(x * torch.arange(1.0, 7.0)[:, None]), linear=nn.Linear(8, 4)), (2, 6, 8)
    ),
    "a difference, padded": (normalized(lambda x: x - by_channel(*MEANS), padding=1), IMAGE),
    "a factor of each pixel": (normalized(lambda x: x * torch.arange(8.0)), IMAGE),
    "a factor that is read twice": (
        Call(lambda self, x: self.conv(y := x * 2) + y[:, :4, 1:-1, 1:-1], conv=nn.Conv2d(6, 4, 3)), IMAGE,
    ),
    "a product of inputs": (normalized(lambda x: x * x.mean((2, 3), keepdim=True)), IMAGE),
}  # fmt: skip
NORM_FIRES = {
    "behind an activation": (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6)), IMAGE, "relu mul add"),
    "before a convolution": (nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)), IMAGE, "mul add conv2d"),
    "before a convolution that pads": (
        nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1, groups=2)), IMAGE, "add mul conv2d"
    ),
    "before a convolution that pads by name": (
        nn.Sequential(nn.BatchNorm1d(6), nn.Conv1d(6, 4, 3, padding="same")), SEQUENCE, "add mul conv1d"
    ),
    "a channel that vanishes, before a convolution that pads": (
        Call(
            lambda self, x: self.conv(F.batch_norm(x, self.mean, self.var, self.gamma)),
            mean=torch.ones(6), var=torch.full((6,), 0.5), gamma=torch.arange(6.0),
            conv=nn.Conv2d(6, 4, 3, padding=1),
        ),
        IMAGE, "mul add conv2d"
    ),
    "read by a convolution that pads and by a sum": (
        Call(
            lambda self, x: self.conv(y := self.norm(x)) + y,
            norm=nn.BatchNorm2d(6), conv=nn.Conv2d(6, 6, 3, padding=1),
        ),
        IMAGE, "mul add conv2d add",
    ),
    "no scale and shift": (nn.Sequential(nn.BatchNorm3d(6, affine=False, eps=0.3)), VOLUME, "mul add"),
    "features": (nn.BatchNorm1d(6), (2, 6), "mul add"),
}  # fmt: skip
NORM_LEAVES = {"statistics of the batch": (nn.BatchNorm2d(6, track_running_stats=False), IMAGE)}
MORE_SEPARABLE = {
    "along one axis": (
        nn.Sequential(nn.Conv1d(6, 12, 3, 2, 1, groups=6, bias=False), nn.Conv1d(12, 4, 1)), SEQUENCE,
        "separable_conv1d",
    ),
    "along one axis, padding='same'": (
        nn.Sequential(nn.Conv1d(6, 6, 4, padding="same", groups=6, bias=False), nn.Conv1d(6, 4, 1)), SEQUENCE,
        "separable_conv1d",
    ),
    "unequal strides, one result along an axis": (
        separable({"kernel_size": (3, 8), "stride": (2, 1)}), IMAGE, "separable_conv2d"
    ),
    "padding='same', an even kernel": (
        separable({"kernel_size": (1, 4), "padding": "same"}), IMAGE, "separable_conv2d"
    ),
    "padding='valid'": (separable({"padding": "valid"}), IMAGE, "separable_conv2d"),
    "the depthwise part of more outputs, as a class that takes depth": (
        nn.Sequential(nn.Conv2d(6, 4 * 3, (1, 4), groups=6, bias=False), nn.Conv2d(4 * 3, 4, 1, bias=False)),
        IMAGE,
        "separable_conv2d",
    ),
    "padded unequally": (
        Call(
            lambda self, x: F.conv2d(ours.padded_conv(x, self.d, None, [1, 1], [0, 2, 1, 0], [1, 1], 6), self.p),
            d=parameter(12, 1, 3, 2),
            p=parameter(4, 12, 1, 1),
        ),
        IMAGE,
        "separable_conv2d",
    ),
}  # fmt: skip

VOLUMES_FIRE = {"in two groups": (nn.Conv3d(6, 4, 2, groups=2), VOLUME, "conv3d")}
VOLUMES_LEAVE = {
    "not grouped": (nn.Conv3d(6, 4, 2), VOLUME),
    "of an image": (nn.Conv2d(6, 4, 2, groups=2), IMAGE),
}

# -- space to depth for ONNX


def by_views(x, block=4):
    b, c, h, w = x.shape
    split = x.view(b, c, h // block, block, w // block, block)
    return split.permute(0, 3, 5, 1, 2, 4).contiguous().view(b, c * block**2, h // block, w // block)


def by_unfold(x, block=2):
    b, c, h, w = x.shape
    return F.unfold(x, block, stride=block).view(b, c * block**2, h // block, w // block)


def by_nested_slices(x):
    rows = [x[:, :, i::2] for i in (0, 1)]
    return torch.cat([torch.cat([row[..., j::2] for row in rows], 1) for j in (0, 1)], 1)


def back_by_views(x):
    b, c, h, w = x.shape
    return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)


def before_conv(function, channels):
    return Call(lambda self, x: self.conv(function(x)), conv=nn.Conv2d(channels, 4, 1))


PACKED = (2, 3, 8, 12)
SPACE_TO_DEPTH_FIRES = {
    "view, permute, view": (before_conv(by_views, 48), PACKED, "space_to_depth conv2d"),
    "view, permute, view at the output": (Call(by_views), PACKED, "space_to_depth"),
    "unfold in tiles": (before_conv(by_unfold, 12), PACKED, "space_to_depth reorder_channels conv2d"),
    "pixel_unshuffle": (nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3)), PACKED,
                        "space_to_depth reorder_channels conv2d"),
    "slices, joined twice": (before_conv(by_nested_slices, 12), PACKED, "space_to_depth reorder_channels conv2d"),
    "of a part": (
        before_conv(lambda x: by_unfold(x[:, :, :-2]), 12), PACKED, "slice space_to_depth reorder_channels conv2d"
    ),
    "all sizes alike": (before_conv(by_unfold, 16), (2, 4, 4, 4), "space_to_depth reorder_channels conv2d"),
    "Tensor.unfold": (
        before_conv(
            lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).reshape(x.shape[0], 12, 4, 6), 12
        ),
        PACKED,
        "space_to_depth reorder_channels conv2d",
    ),
    "back by views": (Call(lambda self, x: back_by_views(self.conv(x)), conv=nn.Conv2d(3, 8, 1)), PACKED,
                      "conv2d depth_to_space"),
}  # fmt: skip
SPACE_TO_DEPTH_LEAVES = {
    "an order that no weights take": (nn.PixelUnshuffle(2), PACKED),
    "windows that overlap": (
        Call(lambda self, x: self.conv(F.unfold(x, 3, stride=2).view(-1, 27, 3, 5)), conv=nn.Conv2d(27, 4, 1)), PACKED
    ),
    "blocks that are no squares": (
        before_conv(lambda x: F.unfold(x, (2, 4), stride=(2, 4)).view(-1, 24, 4, 3), 24), PACKED
    ),
    "rows of a block taken for columns of the image": (
        before_conv(lambda x: x.reshape(x.shape[0], 12, 4, 6), 12), PACKED
    ),
    "a flat view": (lambda x: x.flatten(2), PACKED),
}  # fmt: skip

# -- space to depth as PyTorch has it

PACKED = (2, 6, 8, 6)
BY_COLUMN = [6 * block + channel for block in (0, 2, 1, 3) for channel in range(6)]


def packed_behind(conv, order=None):
    def forward(self, x):
        y = ours.space_to_depth(x, 2)
        return self.conv(y if order is None else ours.reorder_channels(y, order))

    return Call(forward, conv=conv)


UNSHUFFLE_FIRES = {
    "in order": (packed_behind(nn.Conv2d(24, 4, 3)), PACKED, "pixel_unshuffle reorder_channels conv2d"),
    "as a Focus": (packed_behind(nn.Conv2d(24, 4, 1), BY_COLUMN), PACKED, "pixel_unshuffle reorder_channels conv2d"),
    "the inverse": (
        Call(lambda self, x: ours.depth_to_space(self.conv(x), 2), conv=nn.Conv2d(6, 12, 1)),
        PACKED,
        "conv2d reorder_channels pixel_shuffle",
    ),
}
UNSHUFFLE_LEAVES = {
    "no weights take the order": (lambda x: ours.space_to_depth(x, 2), PACKED),
    "nor for the inverse": (lambda x: ours.depth_to_space(x, 2), (2, 8, 5, 4)),
    "returned too": (
        Call(lambda self, x: (lambda y: (y, self.conv(y)))(ours.space_to_depth(x, 2)), conv=nn.Conv2d(24, 4, 1)),
        PACKED,
    ),
}
AS_CONVOLUTION_FIRES = {
    "in order": (packed_behind(nn.Conv2d(24, 4, 3, padding=1)), PACKED, "conv2d"),
    "as a Focus, with strides": (packed_behind(nn.Conv2d(24, 4, (1, 3), (2, 1), (0, 2)), BY_COLUMN), PACKED, "conv2d"),
    "read twice": (
        Call(
            lambda self, x: (lambda y: (self.a(y), self.b(y)))(ours.space_to_depth(x, 2)),
            a=nn.Conv2d(24, 4, 1), b=nn.Conv2d(24, 2, 3),
        ),
        PACKED,
        "conv2d conv2d",
    ),
    "dilated": (packed_behind(nn.Conv2d(24, 4, 2, dilation=2)), PACKED, "pixel_unshuffle reorder_channels conv2d"),
}  # fmt: skip

# -- moves

TOKENS = (2, 6, 8)
WINDOWS_OF = (2, 6, 4, 8)


def heads_apart(self, x):
    q, k, v = self.qkv(x.transpose(0, 1)).view(6, -1, 3, 8).permute(2, 1, 0, 3).unbind(0)
    q, k, v = (y.reshape(-1, 6, 2, 4).transpose(1, 2) for y in (q, k, v))
    return self.out((q @ k.transpose(-2, -1) @ v).permute(2, 0, 1, 3).reshape(-1, 8)).view(6, -1, 8).transpose(0, 1)


def in_windows(self, x):
    windows = x.view(-1, 3, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
    return self.layer(windows).relu().view(-1, 3, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 6, 4, 8)


def parts_permuted(x):
    y = x.view(-1, 6, 2, 4).permute(2, 3, 0, 1)
    return y[0].permute(1, 2, 0).exp(), y[1].permute(1, 2, 0).exp()


MOVES_FIRE = {
    "a linear layer between two that undo each other": (
        Call(lambda self, x: self.layer(x.transpose(0, 1)).transpose(0, 1), layer=nn.Linear(8, 5)),
        TOKENS,
        "linear",
    ),
    "norms, functions and vectors in between": (
        Call(
            lambda self, x: ((self.norm(x.permute(1, 0, 2)) + 1).sigmoid() * self.scale).movedim(1, 0),
            norm=nn.LayerNorm(8), scale=parameter(8),
        ),
        TOKENS,
        "layer_norm add sigmoid mul",
    ),
    "three views and two permutations": (
        lambda x: x.view(-1, 6, 2, 4).permute(0, 2, 1, 3).reshape(-1, 2, 24).transpose(1, 2).exp(),
        TOKENS,
        "exp reshape permute reshape",
    ),
    "an operand with swapped dimensions": (
        Call(lambda self, x: x @ (x.view(-1, 6, 2, 4).permute(0, 2, 3, 1).reshape(-1, 8, 6)), m=parameter(2)),
        TOKENS,
        "transpose matmul",
    ),
    "attention of the time first": (
        Call(heads_apart, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8)),
        TOKENS,
        "linear reshape permute select transpose select matmul select matmul permute reshape linear reshape",
    ),
    "read between": (
        Call(
            lambda self, x: (lambda y: (self.layer(y).transpose(0, 1), y.cumsum(0)))(x.transpose(0, 1)),
            layer=nn.Linear(8, 99),
        ),
        TOKENS,
        "linear permute cumsum",
    ),
    "a layer in windows": (Call(in_windows, layer=nn.Linear(8, 8)), WINDOWS_OF, "linear relu"),
    "parts that go back": (parts_permuted, TOKENS, "split exp exp"),
}  # fmt: skip
MOVES_LEAVE = {
    "one move": (lambda x: x.transpose(1, 2).exp(), TOKENS),
    "channels in groups": (lambda x: x.view(-1, 2, 3, 8).transpose(1, 2).reshape(-1, 6, 8).exp(), TOKENS),
    "a layer of the other dimension": (
        Call(lambda self, x: self.layer(x.transpose(1, 2)).transpose(1, 2), layer=nn.Linear(6, 6)), TOKENS
    ),
    "a softmax over what moves": (lambda x: x.transpose(1, 2).softmax(-1).transpose(1, 2).exp(), TOKENS),
    "a view across them": (lambda x: x.transpose(1, 2).reshape(-1, 16, 3).exp(), TOKENS),
}  # fmt: skip
