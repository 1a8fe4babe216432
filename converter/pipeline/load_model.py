"""Load and capture a model, with inputs to call it with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from converter.capture.dataclass_outputs import return_dicts_for_dataclasses
from converter.capture.default_shapes import infer_input_shapes
from converter.capture.example_inputs import CallSpec, bind_shapes, choose_sizes
from converter.capture.export import capture
from converter.capture.import_exported import from_exported
from converter.capture.input_domains import dynamic_size_choices, input_specs
from converter.capture.input_shapes import InputShape, check_batches, parse_input_shape
from converter.capture.random_inputs import draw
from converter.capture.run_forward import run_forward
from converter.capture.submodel import extract_submodel, rename
from converter.checkpoint.import_isolation import OUR_NAMES, UserCode
from converter.checkpoint.load import Checkpoint, load
from converter.checkpoint.state_dict import as_float32, unwrap
from converter.errors import CaptureError, ConversionError, Note, UsageError
from converter.ir.program import Program
from converter.lowering.user_lowerings import mapping_notes
from converter.options import LoadOptions, SubmodelOptions
from converter.pipeline.clock import Clock
from converter.pipeline.program_cache import CachedProgram, ProgramCache, architecture
from converter.plan.registry import Registry

WHOLE = SubmodelOptions()


@dataclass
class LoadedModel:
    """A model, loaded and captured.

    Attributes:
        module: None where the checkpoint is an exported program.
        captured: what is cached for later models of the same architecture, if allowed.
        calling: how the whole model is called; None for an exported program.
        part: which submodel this is.
        probe: inputs of batch 1 and the program's float64 results on them, once known.
        tensor_names: every tensor of the checkpoint's model.
        code: a context in which the user's code may run.
        mappings: what the user and installed packages add to the built-in mappings.
        debug: print the plans made of it.
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
    captured: CachedProgram | None = None
    calling: CallSpec | None = None
    part: SubmodelOptions = WHOLE
    freeze_control_flow: bool = False
    strict: bool = False
    drop_keys: tuple[str, ...] = ()
    mappings: Registry = field(default_factory=Registry)
    debug: bool = False

    def shape_texts(self) -> list[str]:
        """Return the `--input-shape` values that give the same inputs."""
        if self.calling is not None:
            return [str(shape) for shape in self.calling.shapes]
        named = zip(self.program.inputs, self.examples, strict=True)
        return [str(InputShape(name, tuple(x.shape), x.dtype)) for name, x in named]

    def running(self) -> AbstractContextManager[None]:
        """Return a context in which the user's code may run."""
        return self.code


def load_model(
    model: str | Path | nn.Module,
    options: LoadOptions,
    *,
    clock: Clock,
    fixed_batch: int | None = None,
    cache: ProgramCache | None = None,
    mappings: Registry | None = None,
) -> LoadedModel:
    """Load a checkpoint, or take a module, and capture it, without changing the caller's module, its mode or buffers.

    Args:
        fixed_batch: the only batch size wanted.
        cache: the programs captured before; a model of the same architecture is not captured again.
        mappings: what the user and installed packages add to the built-in mappings (`load_mappings`).
    """
    mappings = mappings or Registry()
    part, seed, strict = options.submodel, options.capture.seed, options.capture.strict
    freeze_control_flow = options.capture.freeze_control_flow
    input_shapes, image_size = options.capture.input_shapes, options.capture.image_size
    captured: CachedProgram | None = None
    calling: CallSpec | None = None
    module: nn.Module | None
    if isinstance(model, nn.Module):
        code = UserCode((Path.cwd(),), OUR_NAMES)
        with code:
            inner, told = unwrap(model)
            module, changes = as_float32(copy_module(inner))
        checkpoint = Checkpoint(Path("model"), "", "module", module, None, (*told, *changes), code)
    else:
        path = Path(model)
        with clock("load"):
            checkpoint = load(path, **vars(options.model))
    notes, code = list(checkpoint.notes), checkpoint.code
    if checkpoint.module is not None:
        module = checkpoint.module
        with clock("capture"), code:
            tried, told = _choose_shapes(module, input_shapes, image_size)
            notes += told
            key = None
            if cache is not None:
                key = architecture(module, tuple(map(tuple, tried)), fixed_batch, part, freeze_control_flow, strict)
            calling = _choose_call(module, tried, fixed_batch, seed)
            module, within = extract_submodel(module, calling, part, run_forward, fixed_batch, seed)
            examples = within.examples(fixed_batch, seed)
            return_dicts_for_dataclasses(module, run_forward(module, examples))
            captured = cache.find(key) if cache is not None else None
            if captured is not None:
                captured.take(module)
                program = captured.program
            else:
                program = capture(
                    module, examples, fixed_batch is not None, within.free, freeze_control_flow, strict, runs=True
                )
                rename(program, part)
                captured = cache.keep(key, program, module) if cache is not None else None
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        parameters = sum(p.numel() for p in module.parameters())
    else:
        if checkpoint.program is None:
            raise AssertionError("a checkpoint holds a module or a program")
        with clock("capture"):
            program = from_exported(checkpoint.program)
        _refuse_other_precisions(program)
        if part.cuts:
            raise UsageError(
                "an exported program has no modules to cut it at",
                code="PTC6029",
                where="--submodule" if part.submodule else "--outputs",
                fix="cut the module before torch.export.export",
            )
        rename(program, part)
        module = None
        if input_shapes or image_size:
            asked = "--input-shape" if input_shapes else "--image-size"
            notes.append(Note(f"{asked} is not needed: an exported program has its own shapes.", code="PTC6501"))
        if program.fixed_batch is not None:
            text = f"Converted for batch {program.fixed_batch} only, for which the program was exported."
            notes.append(Note(text, code="PTC6502"))
        examples = program_examples(program, seed)
        tensors = {**checkpoint.program.state_dict, **checkpoint.program.constants}
        parameters = sum(p.numel() for p in checkpoint.program.parameters())
    if options.capture.debug:
        program.debug = True
        program.verify("capture")
    return LoadedModel(
        name=str(model) if not isinstance(model, nn.Module) else type(model).__name__,
        sha256=checkpoint.sha256 or None,
        kind=checkpoint.kind,
        module=module,
        program=program,
        examples=examples,
        tensor_names=set(tensors),
        parameters=parameters,
        notes=[*notes, *mapping_notes(mappings, program)],
        code=code,
        captured=captured,
        calling=calling,
        part=part,
        freeze_control_flow=freeze_control_flow,
        strict=strict,
        drop_keys=options.model.drop_keys,
        mappings=mappings,
        debug=options.capture.debug,
    )


def _choose_shapes(
    module: nn.Module, texts: Sequence[str], image_size: str | None
) -> tuple[list[list[InputShape]], list[Note]]:
    """Choose input shapes, floats in float32 as the weights are, and notes on what differs from the request.

    Returns:
        Shapes to try, to use the first that the model accepts.

    Raises:
        UsageError: there are none, or they are not valid.
    """
    if not texts:
        tried, told = infer_input_shapes(module, image_size)
        for one in tried:
            check_batches(one)
        return tried, [told]
    if image_size is not None:
        raise UsageError(
            "give either --input-shape or --image-size",
            code="PTC6030",
            where=f"--image-size {image_size}",
            fix="--image-size is for a model whose only input is an image",
        )
    shapes = [parse_input_shape(text) for text in texts]
    check_batches(shapes)
    notes = [note for shape in shapes if (note := _lowered(shape.dtype))]
    floats = {shape: replace(shape, dtype=torch.float32) for shape in shapes if shape.dtype.is_floating_point}
    return [[floats.get(shape, shape) for shape in shapes]], notes


def _choose_call(module: nn.Module, tried: Sequence[Sequence[InputShape]], batch: int | None, seed: int) -> CallSpec:
    """Return a call with the first of the shapes that the module accepts, and bind it to the module."""
    failure: CaptureError | None = None
    for shapes in tried:
        calling = bind_shapes(module, shapes)
        calling.bind(module)
        try:
            calling = choose_sizes(calling, partial(run_forward, module), batch, seed)
            if len(tried) > 1:
                run_forward(module, calling.examples(batch, seed))
            return calling
        except CaptureError as error:
            failure = failure or error
    if failure is None:
        raise AssertionError("there are no shapes")
    raise failure


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
            f"the module cannot be copied: {type(error).__name__}: {error}",
            code="PTC6031",
            where=type(module).__name__,
            fix="conversion runs the model, and does so on a copy; save it with torch.save and convert the file",
        ) from error


def _lowered(dtype: torch.dtype) -> Note | None:
    if not dtype.is_floating_point or dtype == torch.float32:
        return None
    text = f"Inputs are float32, as the weights are, not {str(dtype).removeprefix('torch.')}."
    return Note(text, code="PTC6503")


def _refuse_other_precisions(program: Program) -> None:
    """Raise CaptureError for an exported program whose inputs or weights are floats of another size than float32."""
    nodes = [*program.placeholders, *program.graph.find_nodes(op="get_attr")]
    kinds = {node.meta["val"].dtype for node in nodes if node.meta["val"].is_floating_point()} - {torch.float32}
    if kinds:
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise CaptureError(
            f"the exported program has inputs or weights in {named}",
            code="PTC6032",
            fix="export the model in float32: torch.export.export(model.float(), ...)",
        )


def program_examples(program: Program, seed: int) -> list[Tensor]:
    """Return seeded random inputs of the program's shapes."""
    specs = input_specs(program)
    sizes = next(iter(dynamic_size_choices(program)), {})
    return [torch.from_numpy(array) for array in draw(specs, 2, seed, sizes).values()]
