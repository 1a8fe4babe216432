"""TorchScript files: checked, loaded, and rebuilt as modules that `torch.export` can trace."""

import contextlib
import warnings
from pathlib import Path

import torch
from torch import nn

from converter.checkpoint.pickle_allowlist import installed_module
from converter.checkpoint.state_dict import as_float32, check_expansion
from converter.checkpoint.torchscript.archive import open_archive
from converter.checkpoint.torchscript.module import rebuilt
from converter.checkpoint.trust import NotFoundError
from converter.errors import Note


def load_torchscript(path: Path, *, trusted: bool) -> tuple[nn.Module, list[Note]]:
    """Return the module in a file of torch.jit.save, in eval mode and float32, and notes.

    Its parameters and buffers have their names from the original module, unless it was frozen.

    Args:
        trusted: take its code as it is, as the user requested with `--trust torchscript`.

    Raises:
        CheckpointError: the file is damaged, of another version, or uses more than a model's arithmetic.
    """
    archive = open_archive(path, trusted=trusted)
    if any("ops.torchvision." in text for text in archive.code.values()):
        with contextlib.suppress(NotFoundError):  # then PyTorch names the operator that it does not know
            installed_module("torchvision.ops")
    unit = torch._C.CompilationUnit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit._recursive.wrap_cpp_module(archive.imported(unit, path))
        check_expansion((*script.parameters(), *script.buffers()), path)
        script, notes = as_float32(script)
        return rebuilt(unit, script, archive.code, path, trusted), notes
