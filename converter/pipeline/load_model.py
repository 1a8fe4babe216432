"""Load and capture a model, with inputs to call it with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from converter.artifacts.runtime.formats import Format
from converter.capture.alias_analysis import ReadOldValues
from converter.capture.autocast import compute_in_float32
from converter.capture.boundary import set_boundary, takes_pixels
from converter.capture.dataclass_outputs import return_dicts_for_dataclasses
from converter.capture.default_shapes import infer_input_shapes
from converter.capture.example_inputs import CallSpec, bind_shapes, choose_integers, choose_sizes, fix_values
from converter.capture.export import capture
from converter.capture.import_exported import from_exported
from converter.capture.input_domains import dynamic_size_choices, input_specs
from converter.capture.input_shapes import FLOATS, InputShape, place_batch, requested_shapes
from converter.capture.random_inputs import draw
from converter.capture.run_forward import run_forward
from converter.capture.submodel import extract_submodel, rename, select_outputs
from converter.capture.ultralytics_models import set_exported_outputs
from converter.checkpoint.factory import name_of
from converter.checkpoint.import_isolation import OUR_NAMES, UserCode
from converter.checkpoint.load import Checkpoint, load, load_object
from converter.checkpoint.state_dict import as_float32, unwrap
from converter.compat.patches import lost_patches
from converter.compat.tested_versions import newer_versions
from converter.errors import CaptureError, ConversionError, Note, UsageError
from converter.ir.module_tensors import persistent_tensors
from converter.ir.program import Program
from converter.ir.sizes import per_example, symbolic_shape
from converter.lowering.user_lowerings import load_mappings, mapping_notes
from converter.options import (
    ArtifactOptions,
    ConvertOptions,
    InspectOptions,
    IntoOptions,
    LoadOptions,
    PullOptions,
    VerifyOptions,
)
from converter.pipeline.clock import Clock
from converter.pipeline.program_cache import CachedProgram, ProgramCache, architecture
from converter.plan.registry import Registry
from converter.verification.reference import Reference, take_reference

NEEDS_TWO = "Expected more than 1 value per channel"  # PyTorch, of a norm with the statistics of its batch


@dataclass
class LoadedModel:
    """A model, loaded and captured.

    Attributes:
        module: None where the checkpoint is an exported program.
        cached: what is cached for later models of the same architecture, if allowed.
        calling: how the whole model is called; None for an exported program.
        options: how it was loaded and captured.
        probe: inputs of batch 1 and the program's float64 results on them, once known.
        tensor_names: every tensor of the checkpoint's model.
        code: a context in which the user's code may run.
        mappings: what the user and installed packages add to the built-in mappings.
        state: the checkpoint's tensors by their keys.
        keys: the key of each tensor of the captured program that the checkpoint has.
    """

    name: str
    sha256: str | None
    kind: str
    module: nn.Module | None
    program: Program
    examples: list[Tensor]
    probe: tuple[list[Tensor], list[Tensor]] | None = field(default=None, init=False)
    tensor_names: set[str]
    parameters: int
    notes: list[Note]
    code: UserCode
    cached: CachedProgram[Any] | None = None
    calling: CallSpec | None = None
    options: LoadOptions = field(default_factory=LoadOptions)
    mappings: Registry = field(default_factory=Registry)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)

    def shape_texts(self) -> list[str]:
        """Return the `--input-shape` values that give the same inputs."""
        if self.calling is not None:
            return [str(shape) for shape in self.calling.shapes]
        named = zip(self.program.inputs, self.examples, strict=True)
        return [str(InputShape(name, tuple(x.shape), str(x.dtype).removeprefix("torch."))) for name, x in named]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the user's code run, in the way that was captured."""
        with self.code, ReadOldValues() if self.options.capture.reads_old_values else nullcontext():
            yield


Source = str | Path | nn.Module | Mapping[str, Any] | Callable[..., nn.Module]


def load_model(
    model: Source,
    options: LoadOptions,
    *,
    clock: Clock,
    fixed_batch: int | None = None,
    cache: ProgramCache[Any] | None = None,
    mappings: Registry | None = None,
    proposed: Sequence[Sequence[str]] = (),
) -> LoadedModel:
    """Load a checkpoint, or take what Python holds, and capture it, without changing a module, its mode or buffers.

    Args:
        fixed_batch: the only batch size wanted.
        cache: the programs captured before; a model of the same architecture is not captured again.
        mappings: what the user and installed packages add to the built-in mappings (`load_mappings`).
        proposed: input shapes of an artifact, to try if the options have none.
    """
    name = str(model) if isinstance(model, str | Path) else type(model).__name__
    if isinstance(model, str | Path):
        with clock("load"):
            checkpoint = load(Path(model), **vars(options.model))
    else:
        code = UserCode((Path.cwd(),), OUR_NAMES)
        held: nn.Module | Checkpoint
        if isinstance(model, nn.Module):
            held = model
        else:
            name = name_of(options.model.factory or cast(Any, model))
            with clock("load"):
                held = load_object(model, code, **vars(options.model))
        if isinstance(held, Checkpoint):
            checkpoint = held
        else:
            with code:
                inner, unwrapped = unwrap(held)
                module, changes = as_float32(copy_module(inner))
            checkpoint = Checkpoint(Path("model"), "", "module", module, None, (*unwrapped, *changes), code)
    with clock("capture"):
        if checkpoint.module is None:
            source = _from_exported(name, checkpoint, options)
        else:
            with checkpoint.code:
                source = _from_module(name, checkpoint, checkpoint.module, options, fixed_batch, cache, proposed)
    if options.capture.debug:
        source.program.debug = True
        source.program.verify("Capture")
    source.mappings = mappings or Registry()
    source.notes += [*mapping_notes(source.mappings, source.program), *newer_versions(), *lost_patches("torch")]
    return source


def for_format(source: LoadedModel, format: Format, options: ArtifactOptions) -> LoadedModel:
    """Return the model as an artifact of a format takes it: a LiteRT file is for batch 1 unless asked otherwise."""
    if format != "tflite" or options.dynamic_batch or source.program.fixed_batch is not None:
        return source
    sizes = [symbolic_shape(node.meta["val"])[0] for node in source.program.placeholders if node.meta["val"].ndim]
    batch = next((per_example(size) for size in sizes if not isinstance(size, int)), None)
    return replace(source, program=replace(source.program, fixed_batch=batch))


def load_with_mappings(
    model: Source, options: InspectOptions, clock: Clock, proposed: Sequence[Sequence[str]] = ()
) -> tuple[LoadedModel, ArtifactOptions]:
    """Load a model and the user's mappings; return it, and options that name the mappings' digests.

    Args:
        proposed: input shapes of an artifact, for `load_model`.
    """
    added, batch = load_mappings(options.artifact.mappings), options.artifact.fixed_batch
    source = load_model(model, options, fixed_batch=batch, clock=clock, mappings=added, proposed=proposed)
    return source, replace(options.artifact, mappings=added.digests)


def _from_module(
    name: str,
    checkpoint: Checkpoint,
    module: nn.Module,
    options: LoadOptions,
    fixed_batch: int | None,
    cache: ProgramCache[Any] | None,
    proposed: Sequence[Sequence[str]],
) -> LoadedModel:
    part, how, seed = options.submodel, options.capture, options.capture.seed
    state = persistent_tensors(module)
    fix_values(module, how.input_values)
    choices = _choose_shapes(module, how.input_shapes, how.image_size, fixed_batch, proposed)
    notes = set_exported_outputs(module, part.all_outputs)
    _refuse_boundary(options, module)
    choices = replace(choices, tried=[takes_pixels(shapes, options.boundary) for shapes in choices.tried])
    key = None
    if cache is not None:
        shapes = (*map(tuple, choices.tried),)
        key = architecture(module, shapes, fixed_batch, part, how, options.boundary)
    notes += set_boundary(module, options.boundary)
    calling, told = _choose_call(module, choices, fixed_batch, seed)
    notes = [*told, *notes]
    module, within = extract_submodel(module, calling, part, run_forward, fixed_batch, seed)
    examples = within.examples(fixed_batch, seed)
    try:
        result, told = compute_in_float32(module, lambda: run_forward(module, examples))
    except CaptureError as error:
        if fixed_batch is not None or NEEDS_TWO not in error.what:
            raise
        examples = within.examples(2, seed)
        result, told = compute_in_float32(module, lambda: run_forward(module, examples))
    notes += told
    return_dicts_for_dataclasses(module, result)

    def captured() -> Program:
        fixed = fixed_batch is not None or not within.batch_first
        program = capture(module, examples, fixed, within.free, how, runs=True)
        if not within.batch_first:
            program.fixed_batch = fixed_batch
        rename(program, part)
        if options.boundary.embedded is not None:
            program.pixels = frozenset(program.inputs[:1])
        return program

    program, cached = (captured(), None) if cache is None else cache.capture(key, module, captured)
    keys = {id(tensor): key for key, tensor in reversed(state.items())}
    own = (*module.named_parameters(), *module.named_buffers())
    return LoadedModel(
        name=name,
        sha256=checkpoint.sha256 or None,
        kind=checkpoint.kind,
        module=module,
        program=program,
        examples=examples,
        tensor_names={name for name, _ in (*module.named_parameters(), *module.named_buffers())},
        parameters=sum(p.numel() for p in module.parameters()),
        notes=[*checkpoint.notes, *notes],
        code=checkpoint.code,
        cached=cached,
        calling=calling,
        options=options,
        state=state,
        keys={name: keys[id(tensor)] for name, tensor in own if id(tensor) in keys},
    )


def _from_exported(name: str, checkpoint: Checkpoint, options: LoadOptions) -> LoadedModel:
    exported, part, how = checkpoint.program, options.submodel, options.capture
    if exported is None:
        raise AssertionError("a checkpoint holds a module or a program")
    program, state = from_exported(exported, how.reads_old_values), {**exported.state_dict, **exported.constants}
    _refuse_other_precisions(program)
    _refuse_boundary(options, None)
    if part.submodule:
        raise UsageError(
            "An exported program does not have modules to select.",
            code="PTC6029",
            where="--submodule",
            fix="Select the submodel before torch.export.export.",
        )
    if part.outputs:
        select_outputs(program, part.outputs)
    rename(program, part)
    notes = list(checkpoint.notes)
    if how.input_shapes or how.image_size:
        asked = "--input-shape" if how.input_shapes else "--image-size"
        notes.append(Note(f"{asked} is not needed: an exported program has its own shapes.", code="PTC6501"))
    if program.fixed_batch is not None:
        text = f"Converted for batch {program.fixed_batch} only, for which the program was exported."
        notes.append(Note(text, code="PTC6502"))
    return LoadedModel(
        name=name,
        sha256=checkpoint.sha256 or None,
        kind=checkpoint.kind,
        module=None,
        program=program,
        examples=program_examples(program, how.seed),
        tensor_names={*state},
        parameters=sum(p.numel() for p in exported.parameters()),
        notes=notes,
        code=checkpoint.code,
        options=options,
        state={name: value for name, value in state.items() if isinstance(value, Tensor)},
        keys={name: name for name in state},
    )


def _refuse_boundary(options: LoadOptions, module: nn.Module | None) -> None:
    """Raise UsageError if what lies before or after a model is asked for, and the model's forward cannot be changed."""
    asked = options.boundary.embed_preprocessing or options.boundary.append is not None
    if asked and (module is None or options.submodel.submodule or isinstance(module, torch.jit.ScriptModule)):
        raise UsageError(
            "Only a whole PyTorch module can be given a preprocessing or another output.",
            code="PTC6064",
            where="--embed-preprocessing" if options.boundary.embed_preprocessing else "--append",
            fix="Give the module's own checkpoint, without --submodule; or leave it out.",
        )


def compute_reference(
    source: LoadedModel, options: ConvertOptions | VerifyOptions | IntoOptions | PullOptions, clock: Clock
) -> Reference:
    """Run PyTorch on every round of inputs, and keep the first round as the model's probe."""
    with clock("run PyTorch"):
        reference = take_reference(
            source.program,
            source.module,
            seed=options.capture.seed,
            inputs=options.proof.inputs,
            running=source.running,
            preprocessing=options.boundary.of(options.proof.inputs),
            more=isinstance(options, ConvertOptions),
        )
        source.probe = reference.probe(source.program)
    return reference


@dataclass(frozen=True)
class _Choices:
    """Input shapes to try, to use the first that the model accepts, and what to note of each.

    Attributes:
        guessed: nobody gave these shapes; the module must run on them.
        unknown: what to raise if it accepts none of them; else its own error.
    """

    tried: Sequence[list[InputShape]]
    notes: Sequence[list[Note]]
    guessed: bool
    unknown: UsageError | None = None


def _choose_shapes(
    module: nn.Module,
    texts: Sequence[str],
    image_size: str | None,
    fixed_batch: int | None,
    proposed: Sequence[Sequence[str]],
) -> _Choices:
    """Choose input shapes, floats in float32 as the weights are.

    What an artifact takes only comes before what the module tells, and that before dynamic sizes of an artifact.

    Args:
        proposed: input shapes of an artifact.

    Raises:
        UsageError: there are none, or they are not valid.
    """
    if texts:
        shapes = place_batch(requested_shapes(texts, image_size), fixed_batch)
        notes = [note for shape in shapes if (note := _lowered(shape.dtype))]
        given = [replace(shape, dtype="float32") if shape.dtype in FLOATS else shape for shape in shapes]
        return _Choices([given], [notes], False)
    of_artifact = [] if image_size else [place_batch(requested_shapes(one, None), fixed_batch) for one in proposed]
    fixed = [shapes for shapes in of_artifact if not any(shape.free for shape in shapes)]
    unknown: UsageError | None = None
    told: list[list[InputShape]] = []
    of_module: list[Note] = []
    try:
        told, note = infer_input_shapes(module, image_size)
        of_module.append(note)
    except UsageError as error:
        if error.code != "PTC2002" or not of_artifact:
            raise
        unknown = error
    tried = [*fixed, *(place_batch(one, fixed_batch) for one in told), *(s for s in of_artifact if s not in fixed)]
    notes_of = [[_shapes_of_artifact(shapes)] if shapes in of_artifact else of_module for shapes in tried]
    return _Choices(tried, notes_of, len(tried) > 1 or unknown is not None, unknown)


def _shapes_of_artifact(shapes: Sequence[InputShape]) -> Note:
    return Note(f"The input shapes are those of the artifact: {', '.join(map(str, shapes))}.", code="PTC6510")


def _choose_call(module: nn.Module, choices: _Choices, batch: int | None, seed: int) -> tuple[CallSpec, list[Note]]:
    """Return a call with the first of the shapes that the module accepts, and its notes; bind it to the module."""
    failure: CaptureError | None = None
    for shapes, notes in zip(choices.tried, choices.notes, strict=True):
        calling = bind_shapes(module, shapes)
        calling.bind(module)
        try:
            calling = choose_integers(calling, partial(run_forward, module), batch, seed)
            calling = choose_sizes(calling, partial(run_forward, module), batch, seed)
            if choices.guessed:
                run_forward(module, calling.examples(batch, seed))
            return calling, notes
        except CaptureError as error:
            failure = failure or error
    if failure is None:
        raise AssertionError("there are no shapes")
    raise choices.unknown or failure from failure


def copy_module(module: nn.Module) -> nn.Module:
    """Return a copy to run and to change, with its own buffers and Python state, and parameters unless all are float32.

    Raises:
        ConversionError: it cannot be copied.
    """
    parameters = list(module.parameters())
    shared: dict[int, Tensor] = (
        {} if any(p.dtype != torch.float32 for p in parameters) else {id(p): p for p in parameters}
    )
    # What a hook computes of parameters before each forward, as weight norm does; deepcopy takes no such tensors.
    held = (value for part in module.modules() for value in vars(part).values())
    shared |= {id(value): value.detach().clone() for value in held if isinstance(value, Tensor) and not value.is_leaf}
    try:
        return copy.deepcopy(module, shared)
    except Exception as error:
        raise ConversionError(
            f"The module cannot be copied: {type(error).__name__}: {error}",
            code="PTC6031",
            where=type(module).__name__,
            fix="Save the model with torch.save and convert the file: conversion runs a copy of the model.",
        ) from error


def _lowered(dtype: str) -> Note | None:
    if dtype not in FLOATS or dtype == "float32":
        return None
    return Note(f"Inputs are float32, as the weights are, not {dtype}.", code="PTC6503")


def _refuse_other_precisions(program: Program) -> None:
    """Raise CaptureError for an exported program whose inputs or weights are floats of another size than float32."""
    nodes = [*program.placeholders, *program.graph.find_nodes(op="get_attr")]
    kinds = {node.meta["val"].dtype for node in nodes if node.meta["val"].is_floating_point()} - {torch.float32}
    if kinds:
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise CaptureError(
            f"The exported program has inputs or weights in {named}.",
            code="PTC6032",
            fix="Export the model in float32: torch.export.export(model.float(), ...).",
        )


def program_examples(program: Program, seed: int) -> list[Tensor]:
    """Return seeded random inputs of the program's shapes."""
    specs = input_specs(program)
    sizes = next(iter(dynamic_size_choices(program)), {})
    return [torch.from_numpy(array) for array in draw(specs, 2, seed, sizes).values()]
