"""Take the weights of a model that was trained in Keras, after its conversion, back into PyTorch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from converter.artifacts.detect_format import detect_format
from converter.artifacts.placement import Placement
from converter.artifacts.runner import Runner
from converter.artifacts.stamp_schema import checked_stamp
from converter.checkpoint.load import load
from converter.checkpoint.trust import ARTIFACT, is_guard_lifted
from converter.errors import ConversionError, Note
from converter.ir.inverse import CannotInvert, Inverse
from converter.ir.module_tensors import persistent_tensors
from converter.ir.recipe import DamagedRecipe, Formula, Kitchen, Recipe
from converter.options import PullKeywords, PullOptions
from converter.pipeline.build import build
from converter.pipeline.clock import Clock, Progress
from converter.pipeline.load_model import compute_reference, load_model, load_with_mappings
from converter.pipeline.recipes import array_digest
from converter.pipeline.sync import SHOWN, read_state, recipe_in
from converter.pipeline.verify import apply_stamp, proposed_shapes, stamped_interfaces
from converter.plan.interface import TensorInterface
from converter.report.results import Proof, VerificationReport, status_of
from converter.verification.output_proofs import compare_artifact
from converter.verification.run_artifact import run_artifact
from converter.verification.weight_proof import Expected, compare_weights

Interfaces = tuple[list[TensorInterface], list[TensorInterface]]
# What training changes in a layer's configuration, and what does nothing at inference.
TRAINING = {"trainable", "dtype", "rate", "seed", "momentum", "quantization_config"}


def pull(
    trained: str | Path,
    original: str | Path,
    *,
    output: str | Path,
    artifact: str | Path | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[PullKeywords],
) -> VerificationReport:
    """Write a state dict with the weights of a Keras model that was trained after its conversion.

    Args:
        trained: the `.keras` file that Keras saved after the training.
        original: the checkpoint that was converted.
        output: the state dict to write, as safetensors if its name ends so.
        artifact: the `.keras` file that it was converted to; without it, the checkpoint is captured and planned again.
        keywords: those of `converter.options.PullOptions`.

    Raises:
        ConversionError: layers were added, removed or changed, or a weight does not determine the checkpoint's.

    Examples:
        With the model of `convert`'s example:

        >>> torch.save(model, "net.pt")
        >>> report = converter.convert("net.pt", to="keras", output="net.keras", input_shapes=(1, 3, 8, 8))
        >>> trained = keras.saving.load_model("net.keras")
        >>> kernel, bias = trained.layers[1].get_weights()
        >>> trained.layers[1].set_weights([kernel, 0 * bias + 0.5])  # in place of training
        >>> trained.save("trained.keras")
        >>> converter.pull("trained.keras", "net.pt", output="trained.pt", artifact="net.keras")
        <VerificationReport net.pt: verified; trained.pt>
        >>> torch.load("trained.pt")["0.bias"]
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    trained, original, output, clock = Path(trained), Path(original), Path(output), Clock(progress)
    options = PullOptions.of(**keywords)
    for path in (trained, *([] if artifact is None else [Path(artifact)])):
        if (format := detect_format(path)) != "keras":
            raise ConversionError(
                f"Only Keras files are trained and pulled, not this one of the format {format}.",
                code="PTC6085",
                where=str(path),
                fix="Save the trained model with model.save('trained.keras').",
            )
    with Runner("keras") as runner:
        stamp: Mapping[str, Any] = {}
        interfaces: Interfaces | None = None
        with clock("open"):
            runner.open(trained, trusted=is_guard_lifted(ARTIFACT, options.model.trust))
        if artifact is None:
            with clock("plan"):
                source, settings = load_with_mappings(original, options, clock, proposed_shapes(runner))
                built = build(source, "keras", settings, clock)
                recipe, interfaces = recipe_in(built.recipe(), None, original), (built.inputs, built.outputs)
        else:
            stamp, damaged = checked_stamp(Path(artifact))
            recipe = recipe_in(stamp, damaged, Path(artifact))
            options = apply_stamp(options, stamp)
            _refuse_other_layers(_layers_of(trained), _layers_of(Path(artifact)), trained)
        with clock("compute the weights"):
            held = runner.tensors()
            arrays = {name: np.asarray(held[name]) for name in held}
            state, module, notes = read_state(original, recipe, options.model, stamp.get("part") or {})
            _invert(recipe, state, arrays, trained)
            proofs = [_prove_round_trip(recipe, state, arrays)]
        if module is not None or options.model.factory is not None:
            proofs.append(_prove_outputs(original, state, options, stamp, interfaces, runner, clock))
        else:
            text = "The weights are compared with the Keras file's; without --model, their outputs cannot be."
            notes.append(Note(text, code="PTC6520"))
    with Placement(output, force=options.write.force) as placement:
        with clock("write"):
            _save({key: tensor.clone() for key, tensor in state.items()}, placement.temporary)
        if status_of(proofs) == "verified":
            placement.commit()
        notes += placement.notes
    return VerificationReport(
        source=str(original),
        artifact=str(output),
        proofs=tuple(proofs),
        notes=options.report.shown(notes),
        status=status_of(proofs),
        timings=clock.timings,
    )


def _layers_of(path: Path) -> dict[str, Any]:
    """Return the configuration of each layer, by name, without what only training reads."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    config.pop("compile_config", None)
    found: dict[str, Any] = {}
    pending = [config]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            inner = part.get("config")
            if "class_name" in part and isinstance(inner, dict) and isinstance(inner.get("name"), str):
                kept = {k: v for k, v in inner.items() if isinstance(v, int | str | float | list) and k not in TRAINING}
                found[inner["name"]] = part["class_name"], {k: v for k, v in kept.items() if k != "layers"}
            pending += part.values()
    return found


def _refuse_other_layers(trained: Mapping[str, Any], before: Mapping[str, Any], path: Path) -> None:
    added, removed = trained.keys() - before.keys(), before.keys() - trained.keys()
    changed = [name for name in trained.keys() & before.keys() if trained[name] != before[name]]
    _refuse_changes(
        {"added layers": added, "removed layers": removed, "layers of another configuration": changed}, path
    )


def _refuse_changes(changes: Mapping[str, Any], path: Path) -> None:
    parts = [
        f"{what}: {', '.join(sorted(names)[:SHOWN])}" + (f" and {len(names) - SHOWN} more" * (len(names) > SHOWN))
        for what, names in changes.items()
        if names
    ]
    if parts:
        raise ConversionError(
            f"The trained model is not the converted one: {'; '.join(parts)}.",
            code="PTC6086",
            where=str(path),
            fix="Pull the model that has the layers of the conversion, with their names.",
        )


def _invert(recipe: Recipe, state: dict[str, Tensor], arrays: Mapping[str, np.ndarray], trained: Path) -> None:
    """Change the tensors of the checkpoint so that they give the trained ones.

    Raises:
        ConversionError: the tensors are others, or one does not determine the checkpoint's.
    """
    kitchen = Kitchen(recipe, state, sum(array.size for array in arrays.values()))
    same = recipe.tensors.keys() & arrays.keys()
    kept = {n: held for n, held in recipe.tensors.items() if isinstance(held, str) and n in same}
    try:
        shapes = {n: tuple(kitchen.compute(f).shape) for n, f in recipe.formulas.items() if n in same}
        _refuse_changes(
            {
                "missing weights": recipe.tensors.keys() - same,
                "added weights": arrays.keys() - same,
                "weights of another shape": [n for n, shape in shapes.items() if shape != arrays[n].shape],
                "constants that were trained": [n for n, held in kept.items() if array_digest(arrays[n]) != held],
            },
            trained,
        )
        inverse = Inverse(kitchen)
        # Sums read what other tensors determine.
        for name, formula in sorted(recipe.formulas.items(), key=lambda pair: len(pair[1].keys) > 1):
            try:
                inverse.take(formula, torch.from_numpy(np.array(arrays[name])))
            except CannotInvert as error:
                raise ConversionError(
                    f"{name} does not determine {', '.join(formula.keys)}: {error}.",
                    code="PTC6087",
                    where=str(trained),
                    fix="Train the PyTorch model, or keep this layer as it was.",
                ) from error
    except DamagedRecipe as error:
        raise ConversionError(
            f"The recipe in the artifact's stamp is damaged: {error}.",
            code="PTC6088",
            where=str(trained),
            fix="Convert the checkpoint again.",
        ) from error
    for group in recipe.tied:
        state |= dict.fromkeys(group, state[group[0]])


def _prove_round_trip(recipe: Recipe, state: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray]) -> Proof:
    """Compare the trained tensors with those that the new checkpoint gives."""
    kitchen = Kitchen(recipe, dict(state), sum(array.size for array in arrays.values()))
    expected = {n: _expected(kitchen.compute(f), f) for n, f in recipe.formulas.items()}
    used = {key for formula in recipe.formulas.values() for key in formula.keys}
    unused = dict.fromkeys(recipe.keys.keys() - used, "as it was")
    held = {name: array for name, array in arrays.items() if name in expected}
    return compare_weights(expected, held, used | unused.keys(), unused)


def _expected(value: Tensor, formula: Formula) -> Expected:
    return Expected(value.contiguous().numpy(), formula.keys, exact=value.dtype != torch.float64)


def _prove_outputs(
    original: Path,
    state: Mapping[str, Tensor],
    options: PullOptions,
    stamp: Mapping[str, Any],
    interfaces: Interfaces | None,
    runner: Runner,
    clock: Clock,
) -> Proof:
    """Compare the outputs of PyTorch's module with the new weights with those of the trained file (proof 2)."""
    checkpoint = load(original, **vars(options.model))
    module = checkpoint.module
    if module is None:
        raise ConversionError(
            "An exported program cannot take other weights.",
            code="PTC6089",
            where=str(original),
            fix="Give --artifact and leave out --model.",
        )
    fill(module, state)
    batch = options.artifact.fixed_batch or (stamp.get("options") or {}).get("fixed_batch")
    with checkpoint.code:
        proposed = () if stamp else proposed_shapes(runner)
        source = load_model(module, options, fixed_batch=batch, clock=clock, proposed=proposed)
    source.code = checkpoint.code
    inputs, outputs = interfaces or stamped_interfaces(source.program, stamp) or ([], [])
    reference = compute_reference(source, options, clock)
    with clock("compare the outputs"):
        return compare_artifact(
            reference.float64, reference.float32, run_artifact(runner, inputs, outputs, reference),
            atol=options.proof.atol, rtol=options.proof.rtol, constant=reference.constant,
            perturbed_runs=reference.perturbed_runs_in(runner),
        )  # fmt: skip


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module's tensors these values; a `num_batches_tracked` may be missing."""
    with torch.no_grad():
        for key, tensor in persistent_tensors(module).items():
            if key in state:
                tensor.copy_(state[key])


def _save(state: dict[str, Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
