"""Put the weights of another checkpoint into an artifact, by the recipe in its stamp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from converter.artifacts.detect_format import detect_format
from converter.artifacts.placement import Placement
from converter.artifacts.refill import WrittenArtifact, open_written
from converter.artifacts.runtime import graph_digest as digests
from converter.artifacts.runtime.stamp import read_stamp
from converter.artifacts.stamp_schema import checked_stamp
from converter.checkpoint.load import load_state_dict, sha256_of
from converter.checkpoint.state_dict import KeyFilter, other_kinds, renamed_for, unfit, unwrap
from converter.errors import CheckpointError, ConversionError, Note
from converter.ir.module_tensors import persistent_tensors
from converter.ir.recipe import Condition, DamagedRecipe, Kitchen, Recipe, Spec
from converter.options import ModelOptions, SyncKeywords, SyncOptions
from converter.pipeline.clock import Clock, Progress
from converter.pipeline.recipes import KEY, REASON, array_digest, coincidences
from converter.report.results import Proof, VerificationReport, status_of
from converter.verification.weight_proof import Expected, compare_weights

AGAIN = "Convert the checkpoint again."
SHOWN = 3


def sync(
    model: str | Path | nn.Module,
    artifact: str | Path,
    *,
    output: str | Path | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[SyncKeywords],
) -> VerificationReport:
    """Put the weights of a checkpoint of the same architecture into an artifact that pt-convert wrote.

    The result is what a conversion of the checkpoint writes, byte for byte; nothing is captured, and no code of the
    model runs.

    Args:
        model: the new checkpoint, or a module with the weights.
        artifact: a SavedModel folder, frozen or not, a `.keras`, `.onnx` or float `.tflite` file, or a folder of
            `--to torch`.
        output: where to write it; by default, in place of `artifact`.
        keywords: those of `converter.options.SyncOptions`. With `factory`, the outputs are compared too.

    Raises:
        ConversionError: the artifact has no recipe, the checkpoint does not fit it, or a value differs on which the
            conversion depended.

    Examples:
        With the file of `convert`'s example:

        >>> better = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
        >>> converter.sync(better, "net.onnx", output="better.onnx").verified
        True
    """
    artifact, options, clock = Path(artifact), SyncOptions.of(**keywords), Clock(progress)
    format = detect_format(artifact)
    given, recipe = read_recipe(artifact)
    with clock("load"):
        part = given.get("part") or {}
        state, _, notes = read_state(model, recipe, options.model, part)
    with clock("compute the weights"):
        written = open_written(artifact, format, list(recipe.tensors))
        _refuse_changed(artifact, written, recipe, given)
        arrays = compute_tensors(recipe, state, written.tensors, artifact)
    stamp = {**(read_stamp(artifact) or {}), "source_sha256": _digest(model)}
    with Placement(Path(output) if output is not None else artifact, force=options.write.force) as placement:
        with clock("write"):
            written.write(placement.temporary, arrays, stamp)
        with clock("compare the weights"):
            again = open_written(placement.temporary, format, list(recipe.tensors))
            same = again.rest_digest() == written.rest_digest()
            as_written = same and again.graph_digest() == (read_stamp(placement.temporary) or {}).get(digests.KEY)
            proofs = [_proof(recipe, arrays, again, as_written)]
        if options.model.factory is not None:
            proofs, told = _proven_outputs(model, placement.temporary, options.model, proofs)
            notes += told
        if status_of(proofs) == "verified":
            placement.commit()
        notes += placement.notes
    return VerificationReport(
        source=str(model) if not isinstance(model, nn.Module) else type(model).__name__,
        artifact=str(placement.target),
        proofs=tuple(proofs),
        notes=options.report.shown(notes),
        status=status_of(proofs),
        timings=clock.timings,
    )


def read_recipe(artifact: Path) -> tuple[dict[str, Any], Recipe]:
    """Return an artifact's stamp and the recipe in it.

    Raises:
        ConversionError: there is none.
    """
    stamp, damaged = checked_stamp(artifact)
    return stamp, recipe_in(stamp, damaged, artifact)


def recipe_in(stamp: Mapping[str, Any], damaged: str | None, artifact: Path) -> Recipe:
    """Return the recipe in a stamp.

    Raises:
        ConversionError: there is none.
    """
    reason = stamp.get(REASON) or (f"its stamp is damaged ({damaged})" if damaged else "")
    if stamp.get("quantize"):
        reason = "its weights are quantized"
    if not stamp:
        reason = reason or "pt-convert did not write it"
    if reason or KEY not in stamp:
        raise ConversionError(
            f"The artifact cannot take the weights of another checkpoint: {reason or 'its stamp has no recipe'}.",
            code="PTC6080",
            where=str(artifact),
            fix=AGAIN,
        )
    try:
        return Recipe.decode(stamp[KEY])
    except DamagedRecipe as error:
        raise _damaged(artifact, error) from error


def read_state(
    model: str | Path | nn.Module, recipe: Recipe, options: ModelOptions, part: Mapping[str, Any]
) -> tuple[dict[str, Tensor], nn.Module | None, list[Note]]:
    """Return the checkpoint's tensors under the recipe's keys, the module that it holds, and notes.

    Args:
        part: the entry of the stamp that says how the first checkpoint was read.

    Raises:
        CheckpointError: keys are missing or left over, or have other shapes or types.
    """
    where, drop = (
        Path("model" if isinstance(model, nn.Module) else model),
        KeyFilter(options.drop_keys or tuple(part.get("drop_keys") or ())),
    )
    if isinstance(model, nn.Module):
        inner: nn.Module | None = unwrap(model)[0]
    else:
        held, inner = load_state_dict(where, trust=options.trust, state=options.state or part.get("state"))
    if inner is not None:
        held = persistent_tensors(inner)
    own = {key: torch.empty(spec.shape, dtype=spec.dtype, device="meta") for key, spec in recipe.keys.items()}
    kept, notes = renamed_for(own, {name: tensor.detach() for name, tensor in held.items()}, where, drop)
    twins = {key: group for group in recipe.tied for key in group}
    read = {key for formula in recipe.formulas.values() for key in formula.keys}
    missing = [
        key
        for key in own
        if not kept.keys() & {key, *twins.get(key, ())}
        and (key in read or not key.endswith("num_batches_tracked"))  # which old versions of PyTorch do not save
    ]
    left_over = [name for name in kept if name not in own]
    fitting = {key: kept.get(key) for key in own}
    shapes, types = other_kinds(own, fitting)
    if missing or left_over or shapes or types:
        fix = "Give a checkpoint of the same architecture, or convert it."
        raise unfit(missing, left_over, shapes, types, where=str(where), fix=fix)
    state = {name: _as(tensor, recipe.keys[name]) for name, tensor in kept.items()}
    for group in recipe.tied:
        present = [state[key] for key in group if key in state]
        if not all(torch.equal(one, present[0]) for one in present[1:]):
            raise CheckpointError(
                f"{group[0]} and {group[1]} were one tensor, and differ in this checkpoint.",
                code="PTC6081",
                where=str(where),
                fix=AGAIN,
            )
        state |= dict.fromkeys(group, present[0])
    return state, inner, notes


def _as(tensor: Tensor, spec: Spec) -> Tensor:
    return tensor.detach().cpu().to(spec.dtype).contiguous()


def compute_tensors(
    recipe: Recipe, state: Mapping[str, Tensor], held: Mapping[str, np.ndarray], artifact: Path
) -> dict[str, np.ndarray]:
    """Return the new values of the artifact's tensors.

    Raises:
        ConversionError: a value differs on which the conversion depended, or the recipe is damaged.
    """
    if recipe.tensors.keys() != held.keys():
        other = ", ".join(sorted(recipe.tensors.keys() ^ held.keys())[:SHOWN])
        raise _damaged(artifact, f"the recipe and the artifact have other tensors: {other}")
    kitchen = Kitchen(recipe, dict(state), sum(array.size for array in held.values()))
    try:
        changed = [condition for condition in recipe.conditions if not kitchen.holds(condition)]
        if changed:
            raise _other_values(changed, artifact)
        arrays = {name: _stored(kitchen.compute(f), held[name], name) for name, f in recipe.formulas.items()}
    except DamagedRecipe as error:
        raise _damaged(artifact, error) from error
    if recipe.coincidences not in (None, coincidences(arrays)):
        raise ConversionError(
            "Other weights are equal, or one number throughout, than in the first checkpoint; the artifact's writer "
            "merges or drops such weights.",
            code="PTC6090",
            where=str(artifact),
            fix=AGAIN,
        )
    return arrays


def _stored(value: Any, held: np.ndarray, name: str) -> np.ndarray:
    if not isinstance(value, Tensor) or tuple(value.shape) != held.shape:
        raise DamagedRecipe(f"it makes {name} of another shape")
    with np.errstate(over="ignore"):
        return value.contiguous().numpy().astype(held.dtype, copy=False)


def _other_values(changed: list[Condition], artifact: Path) -> ConversionError:
    keys = list(dict.fromkeys(key for condition in changed for key in condition.formula.keys))
    shown = ", ".join(f"`{key}`" for key in keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" * (len(keys) > SHOWN))
    return ConversionError(
        f"The conversion depended on values of {shown}, which differ in this checkpoint.",
        code="PTC6082",
        where=str(artifact),
        fix=AGAIN,
    )


def _damaged(artifact: Path, reason: object) -> ConversionError:
    return ConversionError(
        f"The recipe in the artifact's stamp is damaged: {reason}.", code="PTC6083", where=str(artifact), fix=AGAIN
    )


def _refuse_changed(artifact: Path, written: WrittenArtifact, recipe: Recipe, stamp: Mapping[str, Any]) -> None:
    """Refuse an artifact whose graph, or a tensor that stays, is not as pt-convert wrote it."""
    changed = [
        name
        for name, held in recipe.tensors.items()
        if isinstance(held, str) and (name not in written.tensors or array_digest(written.tensors[name]) != held)
    ]
    if written.graph_digest() != stamp.get(digests.KEY):
        changed.append("its graph")
    if changed:
        raise ConversionError(
            f"The artifact was changed after pt-convert wrote it: {', '.join(changed[:SHOWN])}.",
            code="PTC6084",
            where=str(artifact),
            fix=AGAIN,
        )


def _proof(recipe: Recipe, arrays: Mapping[str, np.ndarray], written: WrittenArtifact, as_written: bool) -> Proof:
    """Compare what was written with what was computed (proof 3)."""
    expected = {name: Expected(arrays[name], formula.keys, True) for name, formula in recipe.formulas.items()}
    used = {key for formula in recipe.formulas.values() for key in formula.keys}
    twins = {key for group in recipe.tied for key in group if used.intersection(group)}
    unused = dict.fromkeys(recipe.keys.keys() - used - twins, "not in the artifact")
    return compare_weights(
        expected,
        {name: array for name, array in written.tensors.items() if name in expected},
        used | unused.keys(),
        unused,
        as_written,
    )


def _proven_outputs(
    model: str | Path | nn.Module, artifact: Path, options: ModelOptions, proofs: list[Proof]
) -> tuple[list[Proof], list[Note]]:
    """Compare the outputs with PyTorch's too (proof 2), and the weights with those of a new plan."""
    from converter.pipeline.verify import verify

    report = verify(model, artifact, **vars(options))
    return [*report.proofs, *(proof for proof in proofs if not proof.holds)], list(report.notes)


def _digest(model: str | Path | nn.Module) -> str | None:
    return None if isinstance(model, nn.Module) else sha256_of(Path(model))
