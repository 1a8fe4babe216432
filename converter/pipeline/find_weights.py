"""Find a model's weights in an artifact from another tool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from converter.artifacts.runner import Runner
from converter.artifacts.runtime.formats import Format
from converter.checkpoint.factory import build
from converter.checkpoint.import_isolation import OUR_NAMES, UserCode
from converter.checkpoint.load import load_state_dict
from converter.checkpoint.trust import ARTIFACT, is_guard_lifted
from converter.errors import Note
from converter.ir.module_tensors import named_tensors
from converter.options import VerifyOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import Source
from converter.report.results import VerificationReport, status_of
from converter.verification.weight_search import WeightSearch, weights_proof

SHOWN = 5


def verify_weights(
    model: Source,
    artifact: Path,
    format: Format,
    options: VerifyOptions,
    clock: Clock,
) -> VerificationReport:
    """Find every tensor of the checkpoint in the artifact by its content."""
    with Runner(format) as runner:
        with clock("load"):
            module: nn.Module | None = None
            if isinstance(model, str | Path):
                tensors, module = load_state_dict(model, trust=options.model.trust, drop_keys=options.model.drop_keys)
            elif isinstance(model, Mapping):
                tensors = {name: value for name, value in model.items() if isinstance(value, Tensor)}
            else:
                module = model if isinstance(model, nn.Module) else build(model, {}, UserCode((Path.cwd(),), OUR_NAMES))
                tensors = named_tensors(module)
        with clock("open"):
            runner.open(artifact, options.match.signature, trusted=is_guard_lifted(ARTIFACT, options.model.trust))
            held = runner.held()
    with clock("compare the weights"):
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        search = WeightSearch(arrays, held, epsilons(module) if module is not None else {})
        matches = search.run()
    notes = []
    if more := search.unexplained():
        listed = ", ".join(more[:SHOWN]) + (f" and {len(more) - SHOWN} more" if len(more) > SHOWN else "")
        text = f"These tensors of the artifact do not come from a single tensor of the checkpoint: {listed}."
        notes.append(Note(text, code="PTC6508"))
    proof = weights_proof(matches)
    return VerificationReport(
        source=str(model) if isinstance(model, str | Path) else type(model).__name__,
        artifact=str(artifact),
        proofs=(proof,),
        notes=options.report.shown(notes),
        status=status_of([proof]),
        weights=matches,
        timings=clock.timings,
    )


def epsilons(module: nn.Module) -> dict[str, float]:
    """Return the epsilon of each module that has one, such as a batch norm, by path."""
    return {path: m.eps for path, m in module.named_modules() if isinstance(getattr(m, "eps", None), float)}
