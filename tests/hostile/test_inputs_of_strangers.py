"""Inputs and work lists come from strangers too: arrays, images, manifests and JSON lines."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converter.batch.jobs import work_list
from converter.capture.random_inputs import InputSpec
from converter.checkpoint.file_format import file_format
from converter.errors import CheckpointError, UsageError
from converter.verification.user_inputs import load_given

SPECS = [InputSpec("x", ("batch", 3, 4, 4), "float32")]


def npy(array: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array), allow_pickle=True)
    return stream.getvalue()


def npz(content: bytes, name: str = "x.npy", **options: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def patched(archive: bytes, offset: int, value: int) -> bytes:
    """Change a field of an archive's only entry."""
    at = archive.index(b"PK\x01\x02") + offset
    return archive[:at] + bytes([value]) + archive[at + 1 :]


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


GOOD = npy(np.zeros((1, 3, 4, 4), np.float32))
ARRAYS = {
    "pickled objects": lambda: npy([Runs()]),
    "pickled objects in an archive": lambda: npz(npy([Runs()])),
    "a pickle": lambda: b"\x80\x04cposix\nmkdir\n(X\x03\0\0\0rantR.",
    "a member that is no array": lambda: npz(b"text", "x"),
    "an encrypted member": lambda: patched(npz(GOOD), 8, 1),
    "a damaged stream": lambda: npz(GOOD, compression=zipfile.ZIP_DEFLATED).replace(b"\x93NUMPY", b"\xff" * 6)[:-40],
    "a stream of another method": lambda: patched(npz(GOOD), 10, 99),
    "a header without end": lambda: header("{'descr': '<f4', 'shape': (" + "(" * 5000),
    "a header that is code": lambda: header("__import__('os').mkdir('ran')\n"),
    "a negative size": lambda: header("{'descr':'<f4','fortran_order':False,'shape':(-1,3,4,4)}\n"),
    "a size that lies": lambda: header("{'descr':'<f4','fortran_order':False,'shape':(4000000000,)}\n"),
    "fields": lambda: npy(np.zeros(3, [("a", "f4"), ("b", "O")])),
    "texts": lambda: npy(["a\x1b[2J"]),
}  # fmt: skip


@pytest.mark.threat(
    "Arrays for --inputs with pickled objects, headers that lie or are code, members that are none", "refused, status 2"
)
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_more_or_less_than_arrays_are_refused(tmp_path: Path, monkeypatch, kind: str):
    monkeypatch.chdir(tmp_path)
    Path("x.npz").write_bytes(ARRAYS[kind]())
    with pytest.raises((UsageError, MemoryError)):
        load_given("x.npz", SPECS)
    assert not Path("ran").exists()


@pytest.mark.threat("An archive of arrays, or an image, that is a bomb", "refused")
def test_arrays_that_expand_without_measure_are_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("converter.verification.user_inputs.SMALL_ARRAYS", 1 << 20)
    (tmp_path / "x.npz").write_bytes(npz(bytes(1 << 21), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(UsageError, match="expand"):
        load_given(tmp_path / "x.npz", SPECS)


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file closefile\nshowpage\n"
IMAGES: dict[str, Callable[[], bytes]] = {
    "a bomb": lambda: png(60_000, 60_000, b""),
    "a broken chunk": lambda: png(4, 4, bytes(8)).replace(b"IDAT", b"ID\0T"),
    "a cut image": lambda: png(4, 4, bytes(8))[:44],
    "PostScript": lambda: POSTSCRIPT,
    "a text": lambda: b"root:x:0:0",
}


@pytest.mark.threat("An image that is a program for another program, such as PostScript named .png", "refused")
@pytest.mark.parametrize("kind", IMAGES)
def test_images_that_are_none_are_refused(tmp_path: Path, monkeypatch, kind: str):
    from PIL import EpsImagePlugin

    ran: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: ran.append(given))
    (tmp_path / "a.png").write_bytes(IMAGES[kind]())
    with pytest.raises(UsageError, match="cannot be read"):
        load_given(tmp_path, SPECS)
    assert not ran


@pytest.mark.threat("A pipe or a device as inputs or as a manifest", "an error at once")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UsageError, match="no such file"):
        load_given(tmp_path / "a.png", SPECS)
    with pytest.raises(UsageError, match="does not contain an image"):
        load_given(tmp_path, SPECS)
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(UsageError, match="a pipe, a device or a folder"):
        work_list([str(tmp_path / "a.toml")], ["onnx"], {})


@pytest.mark.threat("A work list that is nested without measure, or names what no file can be named", "refused")
@pytest.mark.parametrize(
    "manifest",
    ["a=" + "[" * 3000, '[[models]]\npath="a\\u0000.pt"', '[[models]]\npath="a.pt"\nname="a\\u0000"', "\xff",
     '[[models]]\npath="a.pt"\nname="../../a"', f"a={'9' * 5000}", "[[models]]\npath=1979-05-27"],
)  # fmt: skip
def test_a_hostile_manifest_is_refused(tmp_path: Path, manifest: str):
    (tmp_path / "a.toml").write_text(manifest, encoding="latin-1")
    with pytest.raises(UsageError):
        work_list([str(tmp_path / "a.toml")], ["onnx"], {})


@pytest.mark.parametrize("line", ["[" * 3000, '{"path": "a\\u0000.pt"}', '{"path": "\\ud800.pt"}', "9" * 5000, "{}"])
def test_a_hostile_line_is_refused(line: str):
    with pytest.raises(UsageError):
        work_list(["-"], ["onnx"], {}, lines=[line])


def test_nested_text_is_not_a_checkpoint(tmp_path: Path):
    (tmp_path / "a.pt").write_text("[" * 4096)
    with pytest.raises(CheckpointError, match="text, which begins"):
        file_format(tmp_path / "a.pt")
