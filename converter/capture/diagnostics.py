"""Explain in a user's terms why torch.export could not capture a model: cause, module and line, fix."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from converter.checkpoint.user_source import how_to_supply
from converter.errors import CaptureError
from converter.ir.aten import draws
from converter.ir.program import module_path, source_line

WITHOUT_VALUES = ("FakeTensor", ".numpy() is not supported", "data is not allocated")
ANY = "Choose among a fixed number of elements with torch.where and topk."
OTHERWISE = (
    "Or stop before it with --outputs, or freeze the branches taken on random inputs with --freeze-control-flow, if "
    "other inputs take the same ones."
)
NESTED = (
    "For a parameter that is a list or a dictionary, name each tensor in it: --input-shape xs.0=1,3,224,224 or "
    "--input-shape batch.image=1,3,224,224."
)
NO_TENSOR = "For one that is not a tensor, give its value: --input-value sr=16000."
IN_SCRIPT = "The following operation failed in the TorchScript interpreter"
LONGEST = 300  # characters of torch's message


@dataclass(frozen=True)
class Kind:
    """One way in which forward needs values, recognized by its source line.

    Attributes:
        pattern: that the line matches.
    """

    pattern: str
    what: str
    fix: str


# The first match wins; a line may match several.
KINDS = (
    Kind(
        r"^\s*assert\b", "an assertion on a tensor's values",
        "Leave it out while exporting: `if not torch.compiler.is_exporting(): assert ...`.",
    ),
    Kind(
        r"^\s*while\b", "a loop that a tensor's value ends",
        "Use a fixed number of steps, and keep finished results: `x = torch.where(done, x, step(x))`.",
    ),
    Kind(
        r"\.numpy\(|\bnp\.|\bnumpy\.", "NumPy inside forward",
        "Use torch's function of the same name: `np.clip(x.numpy(), 0, 1)` is `x.clamp(0, 1)`.",
    ),
    Kind(
        r"\bmath\.", "a function of Python's math module",
        "Use torch's function of the same name: `math.sqrt(x.sum())` is `x.sum().sqrt()`.",
    ),
    Kind(
        r"^\s*(el)?if\b|\bif\b.*\belse\b", "a branch on a tensor's value",
        "Compute both and choose: `torch.where(x.sum() > 0, a, b)`.",
    ),
    Kind(
        r"\.tolist\(", "a list of Python numbers from a tensor",
        "Keep it a tensor; sizes are in `x.shape`.",
    ),
    Kind(
        r"\bprint\(|\bf[\"']|\.format\(|\blog(ger|ging)?\.", "a text with a tensor's values",
        "Leave it out while exporting: `if not torch.compiler.is_exporting(): print(...)`.",
    ),
    Kind(
        r"^\s*for\b", "a loop whose length depends on a tensor's values",
        "Compute on the whole tensor, or loop over `range` of a fixed number.",
    ),
    Kind(
        r"\.item\(|\b(float|int|bool|range)\(", "a Python number from a tensor",
        "Keep it a tensor, which computes like a number; an index is `x.index_select(1, i)`.",
    ),
    Kind(r"\b(and|or|not|any|all|min|max)\b", "a branch on a tensor's value", "Use `&`, `|`, `~` and torch.where."),
)  # fmt: skip


def kind_of(line: str) -> Kind | None:
    return next((kind for kind in KINDS if re.search(kind.pattern, line)), None)


def explain_export_error(error: BaseException, module: nn.Module) -> CaptureError:
    """Return the error to raise for an error of torch.export."""
    where = ", ".join(filter(None, (module_of(error, module), user_frame(error)))) or None
    if needs_values(error):
        kind = kind_of(user_line(error))
        fix = f"{ANY if kind is None else kind.fix} {OTHERWISE}."
        if is_decided_by_values(error):
            what = f"Control flow or a size in forward depends on tensor values{f': {kind.what}' if kind else ''}."
            return CaptureError(what, code="PTC2004", where=where, fix=fix)
        what = f"Forward reads tensor values, unknown during capture: {kind.what if kind else first_line(error)}."
        return CaptureError(what, code="PTC2038", where=where, fix=fix)
    if returned := re.search(r"Found <class '([^']+)'> in output", str(error)):
        what = f"Forward returns {returned[1]}, a class in which torch.export finds no tensors."
        fix = "Return a tensor, or a tuple, list, dictionary or dataclass of tensors."
        return CaptureError(what, code="PTC2039", where=where, fix=fix)
    if scripted := [path for path, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]:
        what = f"Module `{scripted[0]}` is TorchScript, which torch.export does not accept inside a Python model."
        fix = "Use the original module, as it was before torch.jit.script or torch.jit.trace."
        return CaptureError(what, code="PTC2040", where=where, fix=fix)
    if "fake impl" in str(error):
        what = f"An operator does not declare the shape of its result: {first_line(error)}"
        fix = "Declare it with register_fake, and give a mapping for the operator: --mappings my_ops.py."
        return CaptureError(what, code="PTC2041", where=where, fix=fix)
    what = f"torch.export cannot capture this model: {first_line(error)}"
    fix = "Keep control flow that depends on tensor values, and computation outside of torch, out of forward."
    return CaptureError(what, code="PTC2042", where=where, fix=fix)


def explain_forward_error(error: Exception, module: nn.Module, path: str, inputs: Sequence[Tensor]) -> CaptureError:
    """Return the error to raise for an error of forward itself.

    Args:
        path: of the innermost module that was running.
    """
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    running = f"{f'module `{path}`' if path else 'the model itself'} ({type(module.get_submodule(path)).__name__})"
    text = str(error)
    fix = "Give every input the shape that the model expects, as in --input-shape 1,3,224,224, batch first."
    if isinstance(error, ImportError):
        supply = how_to_supply(error.name) if error.name else "Install what forward imports."
        fix = f"{supply} Or import it outside of forward."
    elif re.search(r"CUDA|NVIDIA|MPS|XPU|GPU", text):
        fix = "Follow the inputs' device: `.to(x.device)` in place of `.cuda()`, `device=x.device` for new tensors."
    elif re.search(r"scalar type|data ?type|dtype|Input type|'indices'", text):
        fix = "Give the inputs the types that the model expects, as in --input-shape 1,128:int64 (default: float32)."
    elif isinstance(error, TypeError) and not path and re.search(r"forward\(\) (takes|missing|got)", text):
        taken = inspect.signature(module.forward)
        fix = f"Give one --input-shape for each parameter of forward{taken}. {NO_TENSOR} {NESTED}"
    elif "index out of range in self" in text:
        fix = (
            "No integers were found that keep every index within its table: give the table more rows, or clamp the "
            "integers in forward."
        )
    elif not path and isinstance(error, (IndexError, TypeError, KeyError, AttributeError)):
        fix += f" {NESTED}"
    elif isinstance(error, NameError):
        fix = "Correct this line: the model does not run in PyTorch either."
    elif meant := _channels_first(module, inputs):
        fix = f"Did you mean --input-shape {meant}? PyTorch's images have their channels first."
    elif meant := _with_batch(module, inputs):
        fix = f"Did you mean --input-shape {meant}? The batch comes first."
    return CaptureError(
        f"The model fails on an input of shape {shapes}: {first_line(error)}",
        code="PTC2005",
        where=", ".join(filter(None, (running, user_frame(error)))),
        fix=fix,
    )


def _channels_first(module: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """Return the shape of the only input with its channels first, if only so it fits the first convolution."""
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    first = next((part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Conv3d))), None)
    if first is None or len(shape) != len(first.kernel_size) + 2:
        return None
    batch, *sizes, channels = shape
    fits = channels == first.in_channels != shape[1]
    return ",".join(map(str, (batch, channels, *sizes))) if fits else None


def _with_batch(module: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """Return the shape of the only input with a batch before it, if only so it has what a first convolution takes."""
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    first = next((part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Conv3d))), None)
    if first is None or len(shape) != len(first.kernel_size) + 1 or shape[0] not in (first.in_channels, 1):
        return None
    return ",".join(map(str, (1, first.in_channels, *shape[1:])))


def needs_values(error: BaseException) -> bool:
    """Return whether capture met values where it knows only shapes: a branch, a Python number, NumPy, a text."""
    return is_decided_by_values(error) or any(words in str(error) for words in WITHOUT_VALUES)


def is_decided_by_values(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, GuardOnDataDependentSymNode) or "data-dependent" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and IN_SCRIPT in lines[0]:
        lines = [_failed_in_script(lines)]
    return lines[0][:LONGEST] if lines else type(error).__name__


def _failed_in_script(lines: Sequence[str]) -> str:
    """Return what TorchScript's interpreter says at the end, with the innermost line of the model."""
    marked = [i for i, line in enumerate(lines) if line.endswith("<--- HERE")]
    places = [match for line in lines if (match := re.match(r'File "([^"]+)", line (\d+), in', line))]
    code = f": {lines[marked[-1] - 1]}" if marked else ""
    where = f" ({places[-1][1]}:{places[-1][2]}{code})" if places else ""
    return f"{lines[-1].partition('Error: ')[2] or lines[-1]}{where}"


def module_of(error: BaseException, module: nn.Module) -> str | None:
    """Return the innermost module of the model whose code was running."""
    paths = {id(part): path for path, part in module.named_modules()}
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        running = frame.f_locals.get("self")
        if id(running) in paths:
            path, kind = paths[id(running)], type(running).__name__
            found = f"module `{path}` ({kind})" if path else f"the model itself ({kind})"
    return found


def user_frame(error: BaseException) -> str | None:
    """Return the innermost line outside torch and pt-convert, with its file and line number."""
    frame = _own_frame(error)
    return f"{frame.filename}:{frame.lineno}: {frame.line}" if frame else None


def user_line(error: BaseException) -> str:
    frame = _own_frame(error)
    return (frame.line or "") if frame else ""


def _own_frame(error: BaseException) -> traceback.FrameSummary | None:
    trace = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parents[1])
    frames = [f for f in trace if "/torch/" not in f.filename and not f.filename.startswith((ours, "<"))]
    return frames[-1] if frames else None


def refuse_draws(graph: fx.Graph) -> None:
    """Refuse random operators in a captured graph; erase those whose result is unused.

    Raises:
        CaptureError: there are any whose result is used.
    """
    drawing = []
    for node in list(graph.nodes):
        if draws(node):
            if node.users:
                drawing.append(node)
            else:
                graph.erase_node(node)
    if drawing:
        names = ", ".join(dict.fromkeys(str(node.target) for node in drawing))
        places = (f"module `{module_path(drawing[0])}`" if module_path(drawing[0]) else "", source_line(drawing[0]))
        raise CaptureError(
            f"Forward uses random numbers, also in eval mode: {names}.",
            code="PTC2006",
            where=", ".join(filter(None, places)) or None,
            fix="Draw the random numbers outside of the model, and pass them in as an input.",
        )
