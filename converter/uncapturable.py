"""Why torch.export could not capture a model, in the words of a user: what, in which module and line, what to do."""

from __future__ import annotations

import traceback
from pathlib import Path

from torch import fx, nn
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from converter.errors import CaptureError
from converter.program import module_path, source_line

DRAWING = {
    "bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal", "normal_functional",
    "poisson", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm", "uniform",
}  # fmt: skip
LONGEST = 300  # characters of what torch says


def uncapturable(error: BaseException, module: nn.Module) -> CaptureError:
    """The error to raise for one of torch.export."""
    what = f"torch.export cannot capture this model: {first_line(error)}"
    cure = "keep control flow that depends on tensors' values out of forward, and what is computed outside of torch"
    if is_decided_by_values(error):
        what = "forward decides by the values of tensors what it does, or how large something is"
        cure = (
            "choose among a fixed number with torch.where and topk, or convert a part of the model with --model and a "
            "wrapper around it"
        )
    elif "fake impl" in str(error):
        cure = "register what shape the operator gives (register_fake), and a mapping for it: --mappings my_ops.py"
    where = ", ".join(filter(None, (module_of(error, module), user_frame(error))))
    return CaptureError(what, where=where or None, cure=cure)


def is_decided_by_values(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, GuardOnDataDependentSymNode) or "data-dependent" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:LONGEST] if lines else type(error).__name__


def module_of(error: BaseException, module: nn.Module) -> str | None:
    """The innermost module of the model whose code was running."""
    paths = {id(part): path for path, part in module.named_modules()}
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        running = frame.f_locals.get("self")
        if id(running) in paths:
            path, kind = paths[id(running)], type(running).__name__
            found = f"module `{path}` ({kind})" if path else f"the model itself ({kind})"
    return found


def user_frame(error: BaseException) -> str | None:
    """The innermost line that is not torch's or ours."""
    trace = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent)
    frames = [f for f in trace if "/torch/" not in f.filename and not f.filename.startswith(ours)]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else None


def refuse_draws(graph: fx.Graph) -> None:
    """Operators of a captured graph that draw at random; those that draw for nobody are left out.

    Raises:
        CaptureError: there are any.
    """
    drawing = []
    for node in list(graph.nodes):
        if isinstance(node.target, OpOverload) and node.target._opname in DRAWING:
            if node.users:
                drawing.append(node)
            else:
                graph.erase_node(node)
    if drawing:
        names = ", ".join(dict.fromkeys(str(node.target) for node in drawing))
        places = (f"module `{module_path(drawing[0])}`" if module_path(drawing[0]) else "", source_line(drawing[0]))
        raise CaptureError(
            f"forward draws at random, in eval mode too: {names}",
            where=", ".join(filter(None, places)) or None,
            cure="draw outside of the model, and pass what was drawn in as an input",
        )
