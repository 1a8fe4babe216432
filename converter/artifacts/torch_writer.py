"""Write a PyTorch module: a folder with its source, its weights and the stamp."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from converter.ir.program import default_dtype

from .runtime import graph_digest as digests
from .runtime import stamp as stamps
from .runtime.formats import TORCH_SOURCE, TORCH_STAMP, TORCH_WEIGHTS
from .torch_source import ModuleSource, tensors


def write(source: ModuleSource, path: Path, stamp: Mapping[str, Any]) -> None:
    """Write the folder `path`; the same program gives the same bytes."""
    path.mkdir()
    (path / TORCH_SOURCE).write_text(source.text, encoding="utf-8")
    torch.save(tensors(source), path / TORCH_WEIGHTS)
    text = stamps.stamp_text(digests.stamped(stamp, source_digest(source)))
    (path / TORCH_STAMP).write_text(text, encoding="utf-8")


def source_digest(source: ModuleSource) -> str:
    """Return the digest of the source, which is the graph of this format."""
    return hashlib.sha256(source.text.encode()).hexdigest()


def runner(source: ModuleSource) -> Callable[..., list[Tensor]]:
    """Return what runs the source on inputs in its precision."""
    module = ModuleType("model")
    module.__file__ = TORCH_SOURCE
    exec(compile(source.text, TORCH_SOURCE, "exec"), module.__dict__)  # of checked names and literals
    with torch.device("meta"):
        model = module.Model()
    model.load_state_dict(tensors(source), assign=True)
    model.eval()

    def run(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad(), default_dtype(source.dtype):
            results = model(*inputs)
        return list(results) if isinstance(results, tuple) else [results]

    return run
