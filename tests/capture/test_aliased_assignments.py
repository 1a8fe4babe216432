"""Assignments that read what they write are refused; `--accept aliased-shift` takes them as if each read a copy."""

import numpy as np
import pytest
import torch
from equivalence import examples, with_random_tensors
from torch import nn

import converter
from converter.errors import CaptureError, UsageError
from converter.options import ConvertOptions, VerifyOptions
from converter.pipeline.build import build
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import compute_reference, load_model
from converter.pipeline.verify import apply_stamp


def shifted(x, copied):
    """The first shift of S2-MLPv2, as published; with `copied`, as it is meant."""
    old = x.clone() if copied else x
    _, w, h, c = x.size()
    x[:, 1:, :, : c // 4] = old[:, : w - 1, :, : c // 4]
    x[:, : w - 1, :, c // 4 : c // 2] = old[:, 1:, :, c // 4 : c // 2]
    x[:, :, 1:, c // 2 : c * 3 // 4] = old[:, :, : h - 1, c // 2 : c * 3 // 4]
    x[:, :, : h - 1, 3 * c // 4 :] = old[:, :, 1:, 3 * c // 4 :]
    return x


def shifted_otherwise(x, copied):
    """The second one."""
    old = x.clone() if copied else x
    _, w, h, c = x.size()
    x[:, :, 1:, : c // 4] = old[:, :, : h - 1, : c // 4]
    x[:, :, : h - 1, c // 4 : c // 2] = old[:, :, 1:, c // 4 : c // 2]
    x[:, 1:, :, c // 2 : c * 3 // 4] = old[:, : w - 1, :, c // 2 : c * 3 // 4]
    x[:, : w - 1, :, 3 * c // 4 :] = old[:, 1:, :, 3 * c // 4 :]
    return x


class Attention(nn.Module):
    """The part of S2-MLPv2 around its shifts."""

    def __init__(self, copied=False, added=False):
        super().__init__()
        self.copied, self.added = copied, added
        self.mlp1, self.mlp2 = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        c = x.shape[1]
        x = self.mlp1(x.permute(0, 2, 3, 1))
        x1 = shifted(x[:, :, :, :c], self.copied)
        x2 = shifted_otherwise(x[:, :, :, c : 2 * c], self.copied)
        if self.added:
            x2[:, 1:] += x2[:, :-1]
        return self.mlp2(x1 * x2 + x[..., 2 * c :]).permute(0, 3, 1, 2)


SHAPE = (2, 8, 9, 40)
OPTIONS = {"input_shapes": [",".join(map(str, SHAPE))]}
ACCEPTED = OPTIONS | {"accept": ["aliased-shift"]}


@pytest.mark.slow
def test_the_refusal_names_the_line_and_the_option():
    with pytest.raises(CaptureError, match="elements that it also writes") as refused:
        load_model(Attention().eval(), ConvertOptions.of(**OPTIONS), clock=Clock(None))
    assert refused.value.where.startswith(__file__)
    assert "shifted" in refused.value.where
    assert "--accept aliased-shift" in refused.value.fix


@pytest.mark.slow
def test_sums_onto_themselves_stay_refused():
    with pytest.raises(CaptureError, match="elements that it also writes") as refused:
        load_model(Attention(added=True).eval(), ConvertOptions.of(**ACCEPTED), clock=Clock(None))
    assert "--accept" not in refused.value.fix


@pytest.mark.slow
def test_accepted_assignments_read_the_old_values():
    module, meant = (with_random_tensors(Attention(copied)) for copied in (False, True))
    options = ConvertOptions.of(**ACCEPTED)
    source = load_model(module, options, clock=Clock(None))
    reference = compute_reference(source, options, Clock(None))  # compares with the module itself
    (x,) = examples([SHAPE])
    expected = meant(x).detach()
    torch.testing.assert_close(source.program.run(x)[0], expected, rtol=0, atol=1e-4)
    assert not torch.allclose(module(x), expected, atol=0.1), "PyTorch gives something else here"
    for number, values in enumerate(reference.float64):
        exact = meant.double()(torch.from_numpy(reference.rounds[number].arrays["x"]).double()).detach().numpy()
        np.testing.assert_allclose(values["output"], exact, rtol=0, atol=1e-9 * np.abs(exact).max())
    (note,) = (note for note in source.program.notes if note.code == "PTC2508")
    assert __file__ in note.text
    assert "PyTorch itself gives something else" in note.text
    stamp = build(source, "onnx", options.artifact, Clock(None)).stamp()
    assert apply_stamp(VerifyOptions.of(), stamp).capture.reads_old_values
    # without the option, the module's own result is another
    source.options = ConvertOptions.of(**OPTIONS)
    with pytest.raises(CaptureError, match="computes something else than the model"):
        compute_reference(source, options, Clock(None))


@pytest.mark.slow
def test_an_exported_program_is_taken_alike(tmp_path):
    exported = torch.export.export(Attention().eval(), tuple(examples([SHAPE])), strict=False)
    torch.export.save(exported, tmp_path / "a.pt2")
    with pytest.raises(CaptureError, match="elements that it also writes"):
        load_model(tmp_path / "a.pt2", ConvertOptions.of(), clock=Clock(None))
    source = load_model(tmp_path / "a.pt2", ConvertOptions.of(accept=["aliased-shift"]), clock=Clock(None))
    assert "PTC2508" in [note.code for note in source.program.notes]


@pytest.mark.parametrize("kind, message", [("softmax", "Only `verify`"), ("swapped", "Unknown difference: swapped")])
def test_a_conversion_accepts_no_difference_of_artifacts(kind, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        converter.convert(nn.Linear(2, 2), to="onnx", output=tmp_path / "a.onnx", accept=[kind])
