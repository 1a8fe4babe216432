"""TFLite Metadata of LiteRT files: what libraries of devices read of pixels and classes."""

import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from flatbuffers.number_types import Float32Flags, Int8Flags
from flatbuffers.table import Table
from PIL import Image
from torch import nn

import converter
from converter.artifacts.runtime.stamp import ZIP_MEMBER, read_stamp, stamp_text
from converter.artifacts.runtime.tflite_content import attached_files, model_bytes
from converter.artifacts.stamp_schema import checked_stamp
from converter.artifacts.tflite_writer import write_content
from converter.errors import UsageError
from converter.pipeline.describe_tensors import class_names

SHAPE = "1,3,16,16"
NAMES = ("cat", "dog", "élan", "cow")


def classifier() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 14 * 14, 4)).eval()
    module.names = dict(enumerate(NAMES))  # as ultralytics has them
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("metadata") / "classifier.tflite"
    report = converter.convert(
        classifier(), to="tflite", output=path, input_shapes=SHAPE, preprocessing="imagenet scale=1/128"
    )
    assert report.status == "verified"
    return path


class Reader:
    """A table of metadata_schema.fbs, whose fields are read by their numbers there."""

    def __init__(self, buffer, place):
        self.table = Table(buffer, place)

    @classmethod
    def of(cls, path):
        model = schema.Model.GetRootAs(path.read_bytes())
        (entry,) = (e for e in map(model.Metadata, range(model.MetadataLength())) if e.Name() == b"TFLITE_METADATA")
        buffer = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
        assert buffer[4:8] == b"M001"
        return cls(buffer, int.from_bytes(buffer[:4], "little"))

    def at(self, field):
        offset = self.table.Offset(4 + 2 * field)
        return offset and self.table.Pos + offset

    def text(self, field):
        return self.table.String(self.at(field)).decode() if self.at(field) else None

    def number(self, field):
        return self.table.Get(Int8Flags, self.at(field)) if self.at(field) else 0

    def one(self, field):
        return Reader(self.table.Bytes, self.table.Indirect(self.at(field))) if self.at(field) else None

    def many(self, field):
        if not self.at(field):
            return []
        place = self.at(field) - self.table.Pos
        start, count = self.table.Vector(place), self.table.VectorLen(place)
        return [Reader(self.table.Bytes, self.table.Indirect(start + 4 * i)) for i in range(count)]

    def floats(self, field):
        return self.table.GetVectorAsNumpy(Float32Flags, self.at(field) - self.table.Pos)


def tensors(path):
    (graph,) = Reader.of(path).many(3)
    return graph.many(2), graph.many(3)


@pytest.mark.slow
def test_pixels_and_classes_are_described(written):
    whole = Reader.of(written)
    assert (whole.text(0), whole.text(7)) == ("Sequential", "1.0.0")
    ((image,), (scores,)) = tensors(written)
    assert (image.text(0), scores.text(0)) == ("input", "output")
    content = image.one(3)
    assert (content.number(0), content.one(1).number(0)) == (2, 1)  # an image, in RGB
    (unit,) = image.many(4)
    mean, std = unit.one(1).floats(0), unit.one(1).floats(1)
    assert unit.number(0) == 1
    np.testing.assert_allclose(mean, [0.485 * 128, 0.456 * 128, 0.406 * 128], rtol=1e-6)
    np.testing.assert_allclose(std, [0.229 * 128, 0.224 * 128, 0.225 * 128], rtol=1e-6)
    stats = image.one(5)
    np.testing.assert_allclose(stats.floats(0), (255 - mean) / std, rtol=1e-6)
    np.testing.assert_allclose(stats.floats(1), -mean / std, rtol=1e-6)
    (labels,) = scores.many(6)
    assert (labels.text(0), labels.number(2)) == ("labels.txt", 2)
    with zipfile.ZipFile(written) as archive:
        assert archive.read("labels.txt").decode().split("\n") == list(NAMES)


@pytest.mark.slow
def test_constants_stay_aligned(written):
    content = written.read_bytes()
    model = schema.Model.GetRootAs(content)
    start = np.frombuffer(content, np.uint8).ctypes.data
    held = [model.Buffers(i).DataAsNumpy() for i in range(model.BuffersLength()) if model.Buffers(i).DataLength()]
    assert len(held) > 4
    assert {(each.ctypes.data - start) % 16 for each in held} == {0}


@pytest.mark.slow
def test_sync_and_quantization_keep_it(written, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    quantized = tmp_path / "quantized.tflite"
    converter.convert(
        classifier(), to="tflite", output=quantized, input_shapes=SHAPE, preprocessing="imagenet scale=1/128",
        quantize="int8", calibrate=images,
    )  # fmt: skip
    checkpoint = tmp_path / "new.pt"
    torch.save({name: 2 * tensor for name, tensor in classifier().state_dict().items()}, checkpoint)
    synced = tmp_path / "synced.tflite"
    assert converter.sync(checkpoint, written, output=synced).status == "verified"
    for path in (quantized, synced):
        assert attached_files(path.read_bytes()) == attached_files(written.read_bytes())
        ((image,), (scores,)) = tensors(path)
        assert image.many(4)
        assert scores.many(6)


def test_names_that_a_user_gives_must_fit(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n\n")
    with pytest.raises(UsageError, match="2 names of classes") as refused:
        converter.convert(classifier(), to="tflite", output=tmp_path / "a.tflite", input_shapes=SHAPE, labels=names)
    assert "output ['batch', 4]" in refused.value.what or "output [1, 4]" in refused.value.what
    with pytest.raises(UsageError, match="cannot be read"):
        converter.convert(classifier(), to="tflite", output=tmp_path / "a.tflite", labels=tmp_path / "none.txt")
    with pytest.raises(UsageError, match="0 names of classes"):
        converter.convert(classifier(), to="tflite", output=tmp_path / "a.tflite", input_shapes=SHAPE, labels=[])
    assert not (tmp_path / "a.tflite").exists()


@pytest.mark.parametrize(
    "held, expected",
    [
        ({"names": ["a", "b"]}, ("a", "b")),
        ({"names": {1: "b", 0: "a"}}, ("a", "b")),
        ({"config": SimpleNamespace(id2label={0: "no", 1: "yes"})}, ("no", "yes")),
        ({"config": SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})}, ()),  # transformers' names of no names
        ({"names": {1: "a", 2: "b"}}, ()),
        ({"names": [1, 2]}, ()),
        ({"names": {0: "a", "one": "b"}}, ()),
        ({"names": ["a", "b\nc"]}, ()),  # a line each
        ({}, ()),
    ],
)
def test_names_of_classes_are_the_models_own(held, expected):
    inner = nn.Linear(2, 2)
    vars(inner).update(held)
    assert class_names(nn.Sequential(inner)) == expected


@pytest.mark.slow
def test_a_strangers_stamp_reads_no_file(written, tmp_path):
    path = tmp_path / "hostile.tflite"
    stamp = read_stamp(written)
    stamp["options"]["labels"] = "/etc/hostname"
    write_content(path, model_bytes(written.read_bytes()), stamp_text(stamp), {})
    assert checked_stamp(path) == ({}, "options")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [ZIP_MEMBER]
