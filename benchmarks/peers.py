"""What other converters make of YOLOv5's stem: as it is, and as `--to torch` writes it.

    python benchmarks/peers.py write FOLDER                     with pt-convert
    python benchmarks/peers.py count FOLDER onnx2tf nobuco litert    in an environment with these packages

Prints for each converter and spelling what moves elements in its artifact, and by how much its result differs from the
model's. litert is litert-torch with channels last at its input and output, as the others have them.
"""

from __future__ import annotations

import collections
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 64
SPELLINGS = {"as it is": None, "--to torch": {}, "--to torch --focus-as-convolution": {"focus_as_convolution": True}}
MOVING = {
    "Transpose", "Gather", "GatherV2", "StridedSlice", "Slice", "ConcatV2", "Concat", "SpaceToDepth", "TRANSPOSE",
    "GATHER", "GATHER_ND", "STRIDED_SLICE", "SLICE", "CONCATENATION", "SPACE_TO_DEPTH",
}  # fmt: skip


class Conv(nn.Module):
    """YOLOv5's."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)))


class Focus(nn.Module):
    def __init__(self, c1: int, c2: int, k: int):
        super().__init__()
        self.conv = Conv(c1 * 4, c2, k)

    def forward(self, x: Tensor) -> Tensor:
        quadrants = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.conv(torch.cat(quadrants, 1))


def stem() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Focus(3, 16, 3), Conv(16, 32, 3, 2), Conv(32, 8)).eval()


@click.group()
def main() -> None:
    """Write the model with pt-convert, or count what peers make of it."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def write(folder: Path) -> None:
    """Write the model as `--to torch` does, without and with the option."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import converter

    for number, options in enumerate(SPELLINGS.values()):
        if options is not None:
            path = folder / f"stem{number}"
            report = converter.convert(stem(), to="torch", output=path, input_shapes=[f"1,3,{SIZE},{SIZE}"], **options)
            click.echo(f"{path}: {report.status}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.argument("peers", nargs=-1, type=click.Choice(["onnx2tf", "nobuco", "litert"]))
def count(folder: Path, peers: tuple[str, ...]) -> None:
    """Convert each spelling with each of the peers, and count what moves elements."""
    x = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    expected = stem()(x).detach().permute(0, 2, 3, 1).numpy()
    for peer in peers:
        for number, (name, options) in enumerate(SPELLINGS.items()):
            model = stem() if options is None else written(folder / f"stem{number}")
            try:
                operators, result = PEERS[peer](model, x)
            except Exception as error:
                click.echo(f"{peer} | {name} | fails: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
                continue
            moves = ", ".join(f"{kind} {n}" for kind, n in sorted(operators.items()) if kind in MOVING) or "none"
            click.echo(f"{peer} | {name} | {moves} | {np.abs(result - expected).max():.1e}")


def written(path: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location(path.name, path / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


Counted = tuple[collections.Counter[str], np.ndarray]


def in_tflite(content: bytes, x: Tensor) -> Counted:
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x.permute(0, 2, 3, 1).contiguous().numpy())
    interpreter.invoke()
    operators = collections.Counter(details["op_name"] for details in interpreter._get_ops_details())
    return operators, interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def litert(model: nn.Module, x: Tensor) -> Counted:
    import litert_torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        last = litert_torch.to_channel_last_io(model, args=[0], outputs=[0])
        litert_torch.convert(last, (x.permute(0, 2, 3, 1),)).export(str(path))
        return in_tflite(path.read_bytes(), x)


def onnx2tf(model: nn.Module, x: Tensor) -> Counted:
    import onnx2tf
    import onnx2tf.onnx2tf
    import onnx2tf.utils.common_functions

    for module in (onnx2tf.onnx2tf, onnx2tf.utils.common_functions):  # they would be downloaded
        module.download_test_image_data = lambda *_, **__: np.random.default_rng(0).random(
            (20, 128, 128, 3), np.float32
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), str(path), dynamo=False, opset_version=17)
        onnx2tf.convert(
            input_onnx_file_path=str(path), output_folder_path=f"{folder}/out", non_verbose=True, not_use_onnxsim=True
        )
        return in_tflite(next(Path(folder).glob("out/*float32.tflite")).read_bytes(), x)


def nobuco(model: nn.Module, x: Tensor) -> Counted:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    import tf_keras

    for sub in (
        "",
        ".src",
        ".src.engine",
        ".src.engine.keras_tensor",
        ".src.engine.base_layer",
        ".src.layers",
        ".layers",
    ):
        importlib.import_module(f"tf_keras{sub}")
    for name, module in list(sys.modules.items()):  # nobuco imports keras, of version 2
        if name.partition(".")[0] == tf_keras.__name__:
            sys.modules[name.replace("tf_keras", "keras", 1)] = module
    import nobuco
    from nobuco import ChannelOrder

    last = ChannelOrder.TENSORFLOW
    made = nobuco.pytorch_to_keras(model, args=[x], inputs_channel_order=last, outputs_channel_order=last)
    traced = tf.function(lambda image: made(image)).get_concrete_function(tf.TensorSpec((1, SIZE, SIZE, 3)))
    operators = collections.Counter(operator.type for operator in traced.graph.get_operations())
    return operators, traced(tf.constant(x.permute(0, 2, 3, 1).numpy())).numpy()


PEERS: dict[str, Callable[[nn.Module, Tensor], Counted]] = {"onnx2tf": onnx2tf, "nobuco": nobuco, "litert": litert}


if __name__ == "__main__":
    main()
