"""Each patch finds what it replaces in the versions that are installed, and prevents what is lost without it."""

import math
import sys
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import _register_namedtuple
from torch.utils._sympy.functions import FloatTrueDiv, ToFloat, TruncToInt

from converter.artifacts.onnx_writer import export
from converter.capture.sizes_as_numbers import noting_numbers
from converter.checkpoint.exported_program import load_exported
from converter.compat import export_patches, patches
from converter.compat.llvm_conflict import TritonGuard
from converter.compat.patches import PATCHES, Patch, lost_patches
from converter.errors import CheckpointError
from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model

pytestmark = pytest.mark.versions

aten = torch.ops.aten
Pair = namedtuple("Pair", "first second")
_register_namedtuple(Pair, serialized_type_name="test_patches.Pair")


def of_packed(kind):
    class Packed(nn.Module):
        def __init__(self, *sizes, **options):
            super().__init__()
            self.layer = kind(*sizes, **options)

        def forward(self, x):
            packed, last = self.layer(pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True))
            return last, pad_packed_sequence(packed)[0]

    return Packed


class Masked(nn.Module):
    """A transformer asks whether the mask, an input, is causal."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 1, 8, batch_first=True), 1)

    def forward(self, x, mask):
        return self.encoder(x, mask[0])


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if int(x.shape[0]) > 1 else x * 3


class Folding(nn.Module):
    """A batch norm behind a convolution, almost a product with 1, a weight that is transposed."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.weight = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Parameter(torch.randn(5, 2))

    def forward(self, x):
        return (self.norm(self.conv(x)) * (1 + 9e-6)).mean((2, 3)) @ self.weight.T


class Clashing(nn.Module):
    """A parameter is named as the output, another as the first would be renamed."""

    def __init__(self):
        super().__init__()
        self.output, self.output_1 = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x * self.output_1 + self.output


class Paired(nn.Module):
    def forward(self, x):
        return Pair(x + 1, x * 2)


def captured(module, *shapes):
    return load_model(module.eval(), LoadOptions.of(input_shapes=shapes), clock=Clock(None)).program


def in_onnx(module, *shape):
    return export(module.eval(), [torch.randn(shape)], ["x"], ["output"], None)


def recurrent_layers_stay(_):
    assert captured(nn.GRU(4, 5, batch_first=True), "1,T,4").graph.find_nodes(op="call_function", target=aten.gru.input)


def packed_sequences_stay_padded(kind):
    def check(_):
        graph = captured(of_packed(kind)(4, 5, batch_first=True), "2,3,4").graph
        assert graph.find_nodes(op="call_function", target=torch.ops.converter.packed_recurrent.default)

    return check


def a_mask_is_an_input(_):
    captured(Masked(), "2,3,4", "1,3,3")


def pools_take_every_size(_):
    size = torch.export.Dim("width", min=4)
    with export_patches.exporting():
        pool, image = nn.MaxPool2d(3, 2, ceil_mode=True), torch.randn(1, 1, 9, 9)
        torch.export.export(pool, (image,), dynamic_shapes=({3: size},))


def sequences_have_every_length(_):
    captured(nn.MaxPool1d(2), "1,3,T")


class Cut(nn.Module):
    """Applies a function of a tensor and its dynamic length."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x, x.shape[2])


def parts_have_dynamic_sizes(_):
    captured(Cut(lambda x, length: torch.chunk(x, 2, 2)[0]), "1,3,T")


def parts_of_tensors_have_dynamic_sizes(_):
    captured(Cut(lambda x, length: x.chunk(2, 2)[0]), "1,3,T")


def equal_parts_have_dynamic_sizes(use, size="4*T"):
    def check(_):
        program = captured(Cut(lambda x, length: use(x.split(4, 2))), f"1,3,{size}")
        assert not program.notes

    return check


def uneven_parts_have_dynamic_sizes(_):
    captured(Cut(lambda x, length: torch.tensor_split(x, 3, 2)[0]), "1,3,T")


def uneven_parts_of_tensors_have_dynamic_sizes(_):
    captured(Cut(lambda x, length: x.tensor_split(3, 2)[0]), "1,3,T")


def places_have_dynamic_sizes(take):
    return lambda _: captured(Cut(lambda x, length: take(x, x.argsort(1)[:, :2], 1)), "1,3,T")


def maxima_keep_dynamic_sizes(rank):
    shape = (1, *(3,) * (rank - 1))
    return lambda _: captured(
        Cut(lambda x, length: getattr(F, f"adaptive_max_pool{rank}d")(x.view(1, *shape, -1), (*shape[1:], None))),
        f"1,{3 ** (rank - 1)},T",
    )


def steps_are_dynamic(_):
    captured(Cut(lambda x, length: x + torch.linspace(0, 1, length)), "1,3,T")


def quotients_are_whole(_):
    """int(4 * n / 4.0) is n: tests/capture/test_batch_of_transformers.py has the Swin that needs it."""
    size = sympy.Symbol("size", integer=True, positive=True)
    with export_patches.exporting():
        assert TruncToInt.eval(FloatTrueDiv(ToFloat(4 * size), sympy.Float(4.0))) == size


def sizes_are_divided(_):
    captured(Cut(lambda x, length: x[:, :, : divmod(length, 2)[0]]), "1,3,T")


def of_numpy(compute):
    """A function of NumPy keeps every length."""
    return no_length_is_refused(lambda x, length: F.pad(x, (0, int(compute(length)) % length), "replicate"))


class Shuffled(nn.Module):
    """Pads to multiples of 16; the strides that follow depend on them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 2, 2)

    def forward(self, x):
        height, width = x.shape[2:]
        x = F.pad(x, (0, -(-width // 16) * 16 - width, 0, -(-height // 16) * 16 - height))
        return F.pixel_shuffle(self.conv(x), 2)[..., :height, :width]


def next_multiple_if_needed(x, length):
    return F.pad(x, (0, 16 - length % 16), "reflect") if length % 16 else x


def no_length_is_refused(forward):
    def effect(_):
        notes = [note.text for note in captured(Cut(forward), "1,3,T").notes]
        assert not [text for text in notes if "multiple" in text or "at most" in text]

    return effect


def strides_restrict_no_size(_):
    sizes = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    with patches.SIZES_AS_UNKNOWN.applied(lambda _: True), export_patches.exporting():
        torch.export.export(Shuffled(), (torch.randn(2, 3, 64, 96),), dynamic_shapes=(sizes,))


def structures_name_no_class(folder):
    exported = torch.export.export(Paired(), (torch.randn(3),))
    torch.export.save(exported, folder / "pair.pt2")
    program, _ = load_exported(folder / "pair.pt2", trusted=False)
    assert program.call_spec.out_spec.type is dict


def lines_are_noted(_):
    with noting_numbers() as lines, export_patches.quiet():
        size = torch.export.Dim("batch", min=1)
        with pytest.raises(Exception, match="batch"):
            torch.export.export(Branching(), (torch.randn(2, 3),), dynamic_shapes=({0: size},))
    assert any("int(x.shape[0])" in line for line in lines)


def every_conversion_is_noted(_):
    """Each name, by itself: PyTorch calls one or another."""
    before = [patch.find()[1] for patch in patches.NUMBERS]
    with noting_numbers():
        within = [patch.find()[1] for patch in patches.NUMBERS]
    assert all(one is not other for one, other in zip(before, within, strict=True))
    assert [patch.find()[1] for patch in patches.NUMBERS] == before


def folded_weights_are_traced(_):
    assert in_onnx(Folding(), 1, 2, 3, 3).folded.folded


def only_exact_no_ops_are_dropped(_):
    operators = [node.op_type for node in in_onnx(Folding(), 1, 2, 3, 3)._program.model.graph]
    assert {"BatchNormalization", "Mul"} <= set(operators)


def a_parameter_may_have_an_outputs_name(_):
    in_onnx(Clashing(), 1, 4)


def triton_is_guarded(_):
    assert any(isinstance(finder, TritonGuard) for finder in sys.meta_path)


EFFECTS = {
    patches.RECURRENT_LAYERS: recurrent_layers_stay,
    **dict.fromkeys(patches.PACKED_SEQUENCES.values(), packed_sequences_stay_padded(nn.GRU)),
    **{
        patch: packed_sequences_stay_padded(kind)
        for patch, kind in zip(patches.LAYERS_OF_PACKED, (nn.RNN, nn.LSTM, nn.GRU), strict=True)
    },
    patches.CAUSAL_MASKS: a_mask_is_an_input,
    patches.POOL_SIZES: pools_take_every_size,
    patches.SEQUENCE_POOLS: sequences_have_every_length,
    patches.PARTS: parts_have_dynamic_sizes,
    patches.PARTS_OF_TENSORS: parts_of_tensors_have_dynamic_sizes,
    patches.UNEVEN_PARTS: uneven_parts_have_dynamic_sizes,
    patches.UNEVEN_PARTS_OF_TENSORS: uneven_parts_of_tensors_have_dynamic_sizes,
    patches.EQUAL_PARTS: equal_parts_have_dynamic_sizes(lambda parts: parts[-1], "T"),
    **{
        patch: equal_parts_have_dynamic_sizes(lambda parts, name=name: getattr(torch, name)(parts))
        for name, patch in patches.JOINED_PARTS.items()
    },
    patches.PLACES: places_have_dynamic_sizes(lambda *given: torch.take_along_dim(*given)),
    patches.PLACES_OF_TENSORS: places_have_dynamic_sizes(lambda x, *given: x.take_along_dim(*given)),
    **{patch: maxima_keep_dynamic_sizes(rank) for rank, patch in patches.ADAPTIVE_MAXIMA.items()},
    patches.LINES: steps_are_dynamic,
    patches.QUOTIENTS: quotients_are_whole,
    patches.QUOTIENTS_AND_REMAINDERS: sizes_are_divided,
    patches.REMAINDERS: no_length_is_refused(lambda x, length: F.pad(x, (0, int(math.fmod(length, 8))))),
    patches.NUMPY[0]: of_numpy(lambda length: np.ceil(length / 8)),
    patches.NUMPY[1]: of_numpy(lambda length: np.floor(length / 8)),
    patches.NUMPY[2]: of_numpy(lambda length: np.maximum(20, length)),
    patches.SIZES_AS_UNKNOWN: strides_restrict_no_size,
    patches.PADS: no_length_is_refused(next_multiple_if_needed),
    patches.STRUCTURES: structures_name_no_class,
    **dict.fromkeys(patches.NUMBERS, every_conversion_is_noted),
    patches.NUMBERS[0]: lines_are_noted,
    patches.OPTIMIZER: folded_weights_are_traced,
    patches.RULES: only_exact_no_ops_are_dropped,
    patches.NAMES: a_parameter_may_have_an_outputs_name,
    patches.TRITON: triton_is_guarded,
}


@pytest.mark.slow
@pytest.mark.parametrize("patch", [pytest.param(p, marks=pytest.mark.family(str(p)), id=str(p)) for p in PATCHES])
def test_a_patch_has_its_effect_and_without_it_that_is_lost(patch, monkeypatch, tmp_path):
    found = patch.find()
    assert found is not None, patch.lost
    EFFECTS[patch](tmp_path)
    assert patch.find()[1] == found[1]
    if patch is patches.TRITON:  # no context: tests/end_to_end/test_triton.py shows a process without it
        return
    applied = Patch.applied
    monkeypatch.setattr(Patch, "applied", lambda self, make: nullcontext() if self is patch else applied(self, make))
    with pytest.raises((Exception, pytest.fail.Exception)):
        EFFECTS[patch](tmp_path)


SPELLINGS = {
    "tensor_split by indices": lambda x: torch.tensor_split(x, indices=(1,), dim=2)[1],
    "tensor_split by sections": lambda x: torch.tensor_split(input=x, sections=3, dim=2)[0],
    "tensor_split by a tensor": lambda x: x.tensor_split(torch.tensor([1, 2]), dim=2)[1],
    "tensor_split along an axis": lambda x: x.tensor_split(indices=[1], axis=2)[0],
    "chunk along an axis": lambda x: x.chunk(chunks=2, axis=2)[1],
    "chunk of an input": lambda x: torch.chunk(input=x, chunks=2, dim=-1)[0],
    "split by name": lambda x: x.split(split_size=2, dim=2)[0],
    "split by sizes": lambda x: torch.split(x, split_size_or_sections=[1, 2], dim=1)[1],
    "cat along an axis": lambda x: torch.cat((x, x), axis=1),
    "cat of tensors": lambda x: torch.cat(tensors=[x, x], dim=-1),
    "concat along an axis": lambda x: torch.concat([x, x], axis=0),
    "concatenate along an axis": lambda x: torch.concatenate((x, x), axis=0),
    "cat into a tensor": lambda x: torch.cat((x, x), 1, out=x.new_empty(0)),
    "stack along an axis": lambda x: torch.stack([x, x], axis=1),
    "take_along_dim by names": lambda x: torch.take_along_dim(x, indices=x.argmax(1, keepdim=True), dim=1),
    "take_along_dim, broadcast": lambda x: x.take_along_dim(torch.tensor([[[2], [0]]]), dim=-2),
    "take_along_dim of all": lambda x: torch.take_along_dim(x, torch.tensor([3, 1])),
    "linspace by names": lambda x: x + torch.linspace(start=0, end=1, steps=3, dtype=torch.float32)[:, None],
    "linspace by names of a size": lambda x: x + torch.linspace(start=0, end=1, steps=x.shape[2]),
    "max_pool1d by names": lambda x: torch.max_pool1d(x, kernel_size=[2], stride=[1], padding=[1]),
    "adaptive maxima": lambda x: F.adaptive_max_pool2d(input=x[:, None], output_size=(None, 3)),
    "a ufunc's methods": lambda x: x + float(np.maximum.reduce([1.0, 3.0])),
}


@pytest.mark.parametrize("length", ["6", "6*T"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_replaced_function_takes_each_spelling(spelling, length):
    model = Cut(lambda x, length: SPELLINGS[spelling](x))
    x = torch.randn(2, 3, 12 if "T" in length else 6)
    (output,) = captured(model, f"2,3,{length}").graph_module(x)
    torch.testing.assert_close(output, model(x))


def test_a_patch_of_what_a_library_lacks_is_a_note_that_says_what_is_lost(monkeypatch):
    assert not lost_patches("torch")
    assert not lost_patches("onnxscript")
    gone = replace(patches.RECURRENT_LAYERS, name="gone")
    monkeypatch.setattr(patches, "PATCHES", (gone,))
    monkeypatch.setattr(export_patches, "REPLACEMENTS", ((gone, lambda _: None),))
    source = load_model(nn.Linear(4, 5).eval(), LoadOptions.of(input_shapes=["1,4"]), clock=Clock(None))
    (note,) = [note for note in source.notes if note.code == "PTC2513"]
    assert f"torch {version('torch')} has no torch.nn.modules.rnn.gone" in note.text
    assert note.text.endswith(gone.lost)


def test_nothing_is_read_where_a_required_name_is_gone(monkeypatch, tmp_path):
    torch.export.save(torch.export.export(Paired(), (torch.randn(3),)), tmp_path / "pair.pt2")
    gone = replace(patches.STRUCTURES, name="gone")
    monkeypatch.setattr("converter.checkpoint.exported_program.STRUCTURES", gone)
    with pytest.raises(CheckpointError, match=r"has no torch\._export\.serde\.serialize\.gone"):
        load_exported(tmp_path / "pair.pt2", trusted=False)
