"""Bags of embeddings whose offsets are an input, as in text classifiers: of any number of indices and of bags."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import torch
from torch import nn

import converter


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.EmbeddingBag(30, 5)
        self.sum = nn.EmbeddingBag(30, 5, mode="sum", padding_idx=2)
        self.max = nn.EmbeddingBag(30, 5, mode="max", include_last_offset=True)

    def forward(self, text, offsets, ends):
        return {"mean": self.mean(text, offsets), "sum": self.sum(text, offsets), "max": self.max(text, ends)}


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    torch.manual_seed(0)
    module = Bags().eval()
    report = converter.convert(
        module, to=["tf", "onnx"], output=tmp_path_factory.mktemp("bags"),
        input_shapes=["text=tokens:int64", "offsets=batch:int64", "ends=ends:int64"],
    )  # fmt: skip
    assert report.status == "verified", report
    assert not any("batch" in note.text for note in report.notes)
    return module, {artifact.format: artifact.path for artifact in report.artifacts}


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, offsets, ends",
    [
        pytest.param(9, [0, 2, 5], [0, 4, 9], id="three bags"),
        pytest.param(6, [0, 0, 3, 3, 6], [0, 2, 2, 6, 6, 6], id="empty ones among them"),
        pytest.param(4, [0], [0, 1, 3, 4], id="one"),
    ],
)
def test_bags_are_pytorchs(bags, count, offsets, ends):
    module, paths = bags
    text = np.random.default_rng(0).integers(0, 30, count)
    text[0] = 2
    given = {"text": text, "offsets": np.array(offsets), "ends": np.array(ends)}
    session = onnxruntime.InferenceSession(paths["onnx"])
    loaded = tf.saved_model.load(paths["tf"]).signatures["serving_default"]
    found = [
        dict(zip([output.name for output in session.get_outputs()], session.run(None, given), strict=True)),
        loaded(**{name: tf.constant(array) for name, array in given.items()}),
    ]
    with torch.no_grad():
        expected = module(*map(torch.from_numpy, given.values()))
    for results in found:
        for name, value in expected.items():
            np.testing.assert_allclose(np.asarray(results[name]), value.numpy(), atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_bag_without_indices_may_be_the_last(bags):
    """Of a sum it is 0, and so are PyTorch's mean and maximum."""
    _, paths = bags
    session = onnxruntime.InferenceSession(paths["onnx"])
    given = {"text": np.array([3, 4]), "offsets": np.array([0, 2]), "ends": np.array([0, 2, 2])}
    for result in session.run(None, given):
        assert (result[0] != 0).all()
        assert (result[1] == 0).all()
