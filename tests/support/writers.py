"""Artifacts written from modules and functions without a conversion."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import torch

from converter.artifacts import onnx_writer, saved_model_writer
from converter.lowering.tf_function import trace


def write_onnx(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Any,
    path: Path,
    stamp: Mapping[str, Any],
    opset: int | None = None,
    *,
    external_data: bool | None = None,
) -> None:
    exported = onnx_writer.export(module, inputs, input_names, output_names, dynamic_shapes, opset)
    exported.save(path, stamp, external_data=external_data)


def write_saved_model(
    function: Callable[..., Mapping[str, tf.Tensor]],
    signature: Sequence[tf.TensorSpec],
    variables: Mapping[str, tf.Variable],
    path: Path,
    stamp: Mapping[str, Any],
) -> None:
    saved_model_writer.save(trace(function, signature), variables, path, stamp)
