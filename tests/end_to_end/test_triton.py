"""Processes with both TensorFlow and triton, which pip brings with PyTorch on Linux: neither order ends them."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from converter.compat.llvm_conflict import TritonGuard

# Stands for triton where that is not installed, and shows what ends the process where it is.
PLANTED = """
import os, sys
if "tensorflow" in sys.modules:
    os.abort()
raise ImportError("planted")
"""
ORDERS = {
    "TensorFlow first": """
        import keras
        import converter
        from converter.testing import assert_equivalent
        convert("tf", "keras", "onnx")
        assert_equivalent(net, folder / "net.onnx")
        assert_equivalent(net, folder / "net.keras")
        assert converter.inspect(net, input_shapes=["1,3,8,7"], strict=True, check=["tf"]).checks[0].converts
        try:
            import triton
        except ImportError as error:
            assert "after TensorFlow" in str(error), error
        else:
            raise AssertionError("triton was imported")
        """,
    "converter first": """
        import converter
        convert("onnx")
        import tensorflow
        convert("tf", "keras")
        """,
}
HEAD = """
    import sys
    from pathlib import Path
    import torch
    folder = Path(sys.argv[1])
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()

    def convert(*formats):
        outputs = {"tf": folder / "net_saved_model", "keras": folder / "net.keras", "onnx": folder / "net.onnx"}
        report = converter.convert(
            net, to=formats, input_shapes=["1,3,8,7"], output={format: outputs[format] for format in formats}
        )
        assert report.status == "verified", report
    """
TRITONS = ["planted", *(["installed"] if find_spec("triton") else [])]


@pytest.mark.slow
@pytest.mark.parametrize("triton", TRITONS)
@pytest.mark.parametrize("order", ORDERS)
def test_process_with_tensorflow_and_triton_goes_on(tmp_path: Path, order: str, triton: str):
    environment = dict(os.environ)
    if triton == "planted":
        package = tmp_path / "planted" / "triton"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(PLANTED)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(package.parent), os.environ.get("PYTHONPATH"))))
    script = textwrap.dedent(HEAD) + textwrap.dedent(ORDERS[order])
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=environment,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]


def test_guard_answers_only_where_the_import_would_end_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import tensorflow  # noqa: F401

    (tmp_path / "triton.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    guard = TritonGuard()
    assert guard.find_spec("torch", None) is None
    spec = guard.find_spec("triton", None)
    assert spec is not None
    assert spec.loader is guard
    flags = sys.getdlopenflags()
    try:
        sys.setdlopenflags(flags | os.RTLD_DEEPBIND)  # which gives triton its own LLVM
        assert guard.find_spec("triton", None) is None
    finally:
        sys.setdlopenflags(flags)
    monkeypatch.delitem(sys.modules, "tensorflow")
    assert guard.find_spec("triton", None) is None
