"""Operators that capture and the rewrites introduce. Each runs in PyTorch, so a rewritten graph can be executed."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("converter::space_to_depth", mutates_args=())
def space_to_depth(x: Tensor, block: int) -> Tensor:
    """(B, C, H, W) to (B, block * block * C, H / block, W / block), channels ordered (row, column, channel)."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // block, block, w // block, block)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(b, block * block * c, h // block, w // block)


@space_to_depth.register_fake
def _(x: Tensor, block: int) -> Tensor:
    b, c, h, w = x.shape
    return x.new_empty(b, block * block * c, h // block, w // block)


@torch.library.custom_op("converter::reorder_channels", mutates_args=())
def reorder_channels(x: Tensor, order: list[int]) -> Tensor:
    """Channel i of the result is channel order[i] of x (dimension 1)."""
    return x[:, order]


@reorder_channels.register_fake
def _(x: Tensor, order: list[int]) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("converter::dropout", mutates_args=())
def dropout(x: Tensor, rate: float) -> Tensor:
    """Dropout of a model in eval mode: the identity, but still known to be a dropout."""
    return x.clone()


@dropout.register_fake
def _(x: Tensor, rate: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("converter::separable_conv2d", mutates_args=())
def separable_conv2d(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """A depthwise convolution (depthwise: (C * m, 1, kh, kw)), then a 1x1 one (pointwise: (O, C * m, 1, 1))."""
    x = F.conv2d(x, depthwise, None, stride, padding, dilation, groups=x.shape[1])
    return F.conv2d(x, pointwise, bias)


@separable_conv2d.register_fake
def _(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    x = F.conv2d(x, depthwise, None, stride, padding, dilation, groups=x.shape[1])
    return F.conv2d(x, pointwise, bias)


@torch.library.custom_op("converter::recurrent", mutates_args=())
def recurrent(
    kind: str,
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[Tensor]:
    """`aten.lstm`, `gru`, `rnn_tanh` or `rnn_relu` (`kind`), which capture would trace step by step."""
    given = states if kind == "lstm" else states[0]
    return list(
        getattr(torch, kind)(x, given, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    )


@recurrent.register_fake
def _(
    kind: str,
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[Tensor]:
    features = weights[1].shape[1] * (2 if bidirectional else 1)
    return [x.new_empty(*x.shape[:2], features), *(torch.empty_like(state) for state in states)]
