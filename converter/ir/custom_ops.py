"""Custom operators of capture and the rewrites. Each runs in PyTorch, so a rewritten graph can be executed."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


@torch.library.custom_op("converter::space_to_depth", mutates_args=())
def space_to_depth(x: Tensor, block: int) -> Tensor:
    """Move (B, C, H, W) to (B, block * block * C, H / block, W / block), channels ordered (row, column, channel)."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return _copied(x).view(b, block * block * c, h // block, w // block)


@space_to_depth.register_fake
def _(x: Tensor, block: int) -> Tensor:
    b, c, h, w = x.shape
    return x.new_empty(b, block * block * c, h // block, w // block)


@torch.library.custom_op("converter::reorder_channels", mutates_args=())
def reorder_channels(x: Tensor, order: list[int]) -> Tensor:
    """Reorder dimension 1: channel i of the result is channel order[i] of x."""
    return x[:, order]


@reorder_channels.register_fake
def _(x: Tensor, order: list[int]) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("converter::dropout", mutates_args=())
def dropout(x: Tensor, rate: float) -> Tensor:
    """Return x unchanged: dropout in eval mode, kept so that later passes still see a dropout."""
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
    """Apply a depthwise convolution (depthwise: (C * m, 1, kh, kw)), then a 1x1 one (pointwise: (O, C * m, 1, 1)).

    `padding` holds one pad for rows and one for columns, or both pads before, then both pads after.
    """
    x = _padded_conv(x, depthwise, None, stride, [*padding[:2], *padding[-2:]], dilation, x.shape[1])
    return F.conv2d(x, pointwise, bias)


@torch.library.custom_op("converter::separable_conv1d", mutates_args=())
def separable_conv1d(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Do the same along one axis; `padding` holds one pad, or the pads before and after."""
    x = _padded_conv(x, depthwise, None, stride, [padding[0], padding[-1]], dilation, x.shape[1])
    return F.conv1d(x, pointwise, bias)


@separable_conv1d.register_fake
@separable_conv2d.register_fake
def _(x: Tensor, depthwise: Tensor, pointwise: Tensor, *settings: Any) -> Tensor:
    _, stride, padding, dilation = settings
    axes = x.dim() - 2
    sizes = _convolved(x, depthwise, stride, [*padding[:axes], *padding[-axes:]], dilation)
    return x.new_empty(x.shape[0], pointwise.shape[0], *sizes)


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
    """Run `aten.lstm`, `gru`, `rnn_tanh` or `rnn_relu` (`kind`), which capture would otherwise trace step by step."""
    given = states if kind == "lstm" else states[0]
    return list(
        getattr(torch, kind)(x, given, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    )


@recurrent.register_fake
def _(kind: str, x: Tensor, states: list[Tensor], weights: list[Tensor], *settings: Any) -> list[Tensor]:
    *_, bidirectional, _ = settings
    features = weights[1].shape[1] * (2 if bidirectional else 1)
    return [x.new_empty(*x.shape[:2], features), *(torch.empty_like(state) for state in states)]


@torch.library.custom_op("converter::packed_recurrent", mutates_args=())
def packed_recurrent(
    kind: str,
    input: Tensor,
    lengths: Tensor,
    hx: list[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    enforce_sorted: bool,
) -> list[Tensor]:
    """Run a recurrent layer over the first `lengths` steps of each sequence; the results of later steps are zeros.

    The last states are those at each sequence's length, and the other direction begins there.
    """
    packed = pack_padded_sequence(input, lengths, batch_first, enforce_sorted)
    states = [state if packed.sorted_indices is None else state[:, packed.sorted_indices] for state in hx]
    given = states if kind == "lstm" else states[0]
    settings = (has_biases, num_layers, dropout, train, bidirectional)
    data, *last = getattr(torch, kind)(packed.data, packed.batch_sizes, given, params, *settings)
    steps = input.shape[1 if batch_first else 0]
    y, _ = pad_packed_sequence(packed._replace(data=data), batch_first, total_length=steps)
    back = packed.unsorted_indices
    return [_copied(y), *(state.clone() if back is None else state[:, back] for state in last)]


@packed_recurrent.register_fake
def _(
    kind: str, input: Tensor, lengths: Tensor, hx: list[Tensor], params: list[Tensor], *settings: Any
) -> list[Tensor]:
    *_, bidirectional, _, _ = settings
    features = params[1].shape[1] * (2 if bidirectional else 1)
    return [input.new_empty(*input.shape[:2], features), *(torch.empty_like(state) for state in hx)]


@torch.library.custom_op("converter::as_long_as_the_longest", mutates_args=())
def as_long_as_the_longest(x: Tensor, lengths: Tensor) -> Tensor:
    """Return x unchanged: PyTorch would cut it at the longest of `lengths`. Capture drops it and leaves a note."""
    return x.clone()


@as_long_as_the_longest.register_fake
def _(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("converter::shift", mutates_args=())
def shift(x: Tensor, dim: int, sizes: list[int], dims: list[int], distances: list[int], border: str) -> Tensor:
    """Move groups of `dim`, of `sizes` elements, along `dims`; elements moved past the end are lost.

    Args:
        distances: for each group, one for each of `dims`: element i comes from i - distance.
        border: what fills the vacated positions: "zeros", the nearest element that was moved ("replicate"), what lies
            as far on its other side ("reflect"), the elements lost at the other end ("circular"), or the previous
            elements ("keep").
    """
    moved, first = [], 0
    for group, size in enumerate(sizes):
        part = x.narrow(dim, first, size)
        first += size
        by = distances[group * len(dims) : (group + 1) * len(dims)]
        y, inside = part, torch.ones((), dtype=torch.bool)
        for d, distance in zip(dims, by, strict=True):
            n = x.shape[d]
            source = torch.arange(n) - distance
            along = [n if i == d else 1 for i in range(x.dim())]
            inside = inside & ((source >= 0) & (source < n)).reshape(along)
            if border == "reflect":
                source = n - 1 - (n - 1 - source.abs()).abs()
            y = y.index_select(d, source % n if border == "circular" else source.clamp(0, n - 1))
        if border == "zeros":
            y = torch.where(inside, y, torch.zeros((), dtype=y.dtype))
        elif border == "keep":
            y = torch.where(inside, y, part)
        moved.append(y)
    return torch.cat(moved, dim)


@shift.register_fake
def _(x: Tensor, dim: int, sizes: list[int], dims: list[int], distances: list[int], border: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("converter::depth_to_space", mutates_args=())
def depth_to_space(x: Tensor, block: int) -> Tensor:
    """Move (B, block * block * C, H, W) to (B, C, H * block, W * block), channels ordered (row, column, channel)."""
    b, c, h, w = x.shape
    x = x.reshape(b, block, block, c // (block * block), h, w).permute(0, 3, 4, 1, 5, 2)
    return _copied(x).view(b, c // (block * block), h * block, w * block)


@depth_to_space.register_fake
def _(x: Tensor, block: int) -> Tensor:
    b, c, h, w = x.shape
    return x.new_empty(b, c // (block * block), h * block, w * block)


def _copied(x: Tensor) -> Tensor:
    """Return a contiguous copy, never a view, even where sizes of 1 would make it one.

    PyTorch refuses custom operators whose result aliases an input.
    """
    return x.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("converter::padded_conv", mutates_args=())
def padded_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], pads: list[int], dilation: list[int], groups: int
) -> Tensor:
    """Apply a convolution to zero-padded spatial axes: `pads` lists the pads before each, then those after each."""
    return _padded_conv(x, weight, bias, stride, pads, dilation, groups)


@padded_conv.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], pads: list[int], dilation: list[int], groups: int
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *_convolved(x, weight, stride, pads, dilation))


def _convolved(x: Tensor, weight: Tensor, stride: list[int], pads: list[int], dilation: list[int]) -> list[int]:
    """Return the spatial sizes of a convolution's result."""
    rank = len(pads) // 2
    reach = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    padded = [n + before + behind for n, before, behind in zip(x.shape[2:], pads[:rank], pads[rank:], strict=True)]
    return [(n - r) // s + 1 for n, r, s in zip(padded, reach, stride, strict=True)]


def _padded_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], pads: list[int], dilation: list[int], groups: int
) -> Tensor:
    rank = len(pads) // 2
    widths = [n for axis in reversed(range(rank)) for n in (pads[axis], pads[rank + axis])]
    convolution = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    return convolution(F.pad(x, widths), weight, bias, stride, 0, dilation, groups)


@torch.library.custom_op("converter::multi_head_attention", mutates_args=())
def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    query_rows: list[int],
    key_rows: list[int],
    value_rows: list[int],
    columns: list[int],
    heads: int,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Map (B, T, features) and twice (B, S, features) to (B, T, features), and to the scores, (B, heads, T, S).

    Args:
        weights: of query, key, value and result; `biases` likewise, or empty.
        query_rows: rows of the first weight that make the query's heads, one head after the other; `key_rows` and
            `value_rows` likewise.
        columns: columns of the last weight that take the results of the heads, one head after the other.
        dropout: rate, for a model in training.
    """
    held: list[Tensor | None] = list(biases) if biases else [None] * 4
    projected = [
        F.linear(x, weight[rows], None if bias is None else bias[rows]).unflatten(-1, (heads, -1)).transpose(1, 2)
        for x, weight, bias, rows in zip(
            (query, key, value), weights[:3], held[:3], (query_rows, key_rows, value_rows), strict=True
        )
    ]
    scores = torch.softmax(projected[0] * projected[0].shape[-1] ** -0.5 @ projected[1].mT, -1)
    result = (scores @ projected[2]).transpose(1, 2).flatten(2)
    return F.linear(result, weights[3][:, columns], held[3]), scores


@multi_head_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, weights: list[Tensor], *settings: Any) -> tuple[Tensor, Tensor]:
    *_, heads, _ = settings
    scores = query.new_empty(query.shape[0], heads, query.shape[1], key.shape[1])
    return query.new_empty(*query.shape[:2], weights[3].shape[0]), scores
