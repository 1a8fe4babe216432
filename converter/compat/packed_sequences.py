"""Capture packed sequences as padded ones with their lengths.

PyTorch's packed form has as many rows as the lengths add up to, which no captured size can be. A recurrent layer
computes the same of padded sequences when it stops at each one's length: `converter::packed_recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from converter.errors import CaptureError


@dataclass(frozen=True)
class Padded:
    """Padded sequences, and how many steps of each count.

    Attributes:
        zeroed: all later steps are zeros.
    """

    x: Tensor
    lengths: Tensor
    batch_first: bool
    sorted_by_length: bool
    zeroed: bool = False

    @property
    def time(self) -> int:
        return 1 if self.batch_first else 0


class PaddedSequence(PackedSequence):
    """Stands for a packed sequence while `torch.export` captures."""

    padded: Padded

    @staticmethod
    def of(padded: Padded) -> PaddedSequence:
        sequence = tuple.__new__(PaddedSequence, (None, None, None, None))
        sequence.padded = padded
        return sequence

    def _refused(self, *_: Any) -> Any:
        raise _refusal()

    data = batch_sizes = sorted_indices = unsorted_indices = property(_refused)
    __iter__ = _refused


def _refusal() -> CaptureError:
    return CaptureError(
        "The fields of a packed sequence (`data`, `batch_sizes`) are not supported: their size depends on the values "
        "of the lengths.",
        code="PTC2036",
        fix="Use it only between pack_padded_sequence, recurrent layers and pad_packed_sequence; compute anything else "
        "on the padded sequences.",
    )


def pack(x: Tensor, lengths: Tensor | Sequence[int], batch_first: bool, enforce_sorted: bool) -> PaddedSequence:
    """Pack padded sequences, as `pack_padded_sequence` does."""
    if not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
    if lengths.shape[0] != x.shape[0 if batch_first else 1]:
        raise CaptureError(
            f"{lengths.shape[0]} lengths were given for {x.shape[0 if batch_first else 1]} sequences.",
            code="PTC2049",
            fix="Give one length for each sequence of the batch.",
        )
    return PaddedSequence.of(Padded(x, lengths.to(torch.int64), bool(batch_first), bool(enforce_sorted)))


def pad(
    sequence: PackedSequence, batch_first: bool, padding_value: float, total_length: int | None
) -> tuple[Tensor, Tensor]:
    """Pad packed sequences to the length that they had before, as `pad_packed_sequence` does if one is that long."""
    if not isinstance(sequence, PaddedSequence):
        raise _refusal()
    held = sequence.padded
    x, lengths, time = held.x, held.lengths, held.time
    if total_length is None:
        x = torch.ops.converter.as_long_as_the_longest(x, lengths)
    if padding_value != 0 or not held.zeroed:
        valid = torch.arange(x.shape[time], device=x.device) < lengths.unsqueeze(1)
        valid = valid if held.batch_first else valid.t()
        x = x.masked_fill(~valid.reshape(*valid.shape, *(1,) * (x.dim() - 2)), padding_value)
    if total_length is not None and total_length > x.shape[time]:
        shape = [*x.shape[:time], total_length - x.shape[time], *x.shape[time + 1 :]]
        x = torch.cat([x, x.new_full(shape, padding_value)], time)
    elif total_length is not None:
        x = x.narrow(time, 0, total_length)
    return x if batch_first == held.batch_first else x.transpose(0, 1), lengths


def run_layer(layer: nn.RNNBase, sequence: PaddedSequence, hx: Any) -> tuple[PaddedSequence, Any]:
    """Run a recurrent layer over packed sequences."""
    held, kind = sequence.padded, layer.mode.lower()
    batch, directions = held.x.shape[1 - held.time], 2 if layer.bidirectional else 1
    if hx is None:
        sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)[: 2 if kind == "lstm" else 1]
        states = [held.x.new_zeros(directions * layer.num_layers, batch, size) for size in sizes]
    else:
        states = list(hx) if kind == "lstm" else [hx]
    weights = [getattr(layer, name) for name in layer._flat_weights_names]
    y, *last = torch.ops.converter.packed_recurrent(
        kind, held.x, held.lengths, states, weights, layer.bias, layer.num_layers, layer.dropout, layer.training,
        layer.bidirectional, held.batch_first, held.sorted_by_length,
    )  # fmt: skip
    out = Padded(y, held.lengths, held.batch_first, held.sorted_by_length, zeroed=True)
    return PaddedSequence.of(out), tuple(last) if kind == "lstm" else last[0]


def layer_of_either(before: Any) -> Callable[..., Any]:
    """Return a recurrent layer's forward that also takes what stands for packed sequences."""

    def forward(self: nn.RNNBase, input: Any, hx: Any = None) -> Any:
        return run_layer(self, input, hx) if isinstance(input, PaddedSequence) else before(self, input, hx)

    return forward


# Modules have these two functions by names of their own, so their code is replaced; it may refer to nothing out here.


def _pack_padded_sequence(input, lengths, batch_first=False, enforce_sorted=True):  # type: ignore[no-untyped-def]
    from converter.compat.packed_sequences import pack

    return pack(input, lengths, batch_first, enforce_sorted)


def _pad_packed_sequence(sequence, batch_first=False, padding_value=0.0, total_length=None):  # type: ignore[no-untyped-def]
    from converter.compat.packed_sequences import pad

    return pad(sequence, batch_first, padding_value, total_length)


CODE = {
    "pack_padded_sequence": _pack_padded_sequence.__code__,
    "pad_packed_sequence": _pad_packed_sequence.__code__,
}
