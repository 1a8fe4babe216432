"""Build one format of a model: its rewritten program, the artifact to write, and its expected content."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from converter.artifacts import torch_writer
from converter.artifacts.gpu_delegate import gpu_delegate_note
from converter.artifacts.onnx_writer import refuse_projections, refuse_untranslated
from converter.artifacts.runtime.formats import Format
from converter.artifacts.torch_source import ModuleSource
from converter.artifacts.torch_source import tensors as module_tensors
from converter.capture.input_domains import export_shapes, size_ranges
from converter.errors import ConversionError, Note, UnsupportedOperatorsError
from converter.ir.lazy_tensor import LazyTensor, ValueQueries, recording_queries
from converter.ir.program import Program, source_line
from converter.ir.sizes import symbolic_shape
from converter.lowering.planner import make_plan
from converter.memory import reusing_blocks, swept
from converter.options import ArtifactOptions
from converter.pipeline.clock import Clock
from converter.pipeline.describe_tensors import describe_tensors
from converter.pipeline.load_model import LoadedModel
from converter.pipeline.recipes import REASON, is_alike, stamped_recipe, take_same_elements
from converter.plan.builder import PlanBuilder
from converter.plan.interface import TensorInterface
from converter.plan.steps import Constant
from converter.report.results import Movement, Rewrite, library_version
from converter.rewrites.base import Change
from converter.rewrites.pipelines import AS_CONVOLUTION, EXACT_SHIFTS, KEEP_BATCHNORM, REWRITES
from converter.verification.array_arrangement import content
from converter.verification.checked_rewrite import rewrite
from converter.verification.onnx_weights import named, refillable
from converter.verification.prove import expected_tensors
from converter.verification.tflite_weights import expected_constants, moved_to
from converter.verification.weight_proof import Expected

if TYPE_CHECKING:
    from converter.artifacts.folded_constants import FoldedConstants
    from converter.artifacts.onnx_writer import Exported
    from converter.lowering.executor import PlanExecutor
    from converter.lowering.frozen_constants import FrozenConstant

MOVING = {
    "Transpose": ("Transpose", "TRANSPOSE", "permute", "transpose"),
    "Gather": (
        "Gather", "GatherV2", "GatherNd", "GatherND", "GatherElements", "GATHER", "GATHER_ND", "gather", "index_select",
    ),
}  # fmt: skip
LARGEST_GRAPH = 2**31 - 2**26  # bytes of constants, with room for the operators
BY = {"onnx": "PyTorch's exporter", "tflite": "TensorFlow's converter", "torch": "the model itself"}


@dataclass
class Reusable:
    """What later models of the architecture fill with their weights: layers and variables, and an exported graph."""

    executors: dict[str, PlanExecutor] = field(default_factory=dict)
    exported: tuple[Exported, Mapping[str, Expected]] | None = None


@dataclass
class RewrittenModel:
    """A rewritten program that can be written as an artifact of one format."""

    source: LoadedModel
    format: Format
    options: ArtifactOptions
    program: Program
    changes: list[Change]
    inputs: list[TensorInterface]
    outputs: list[TensorInterface]
    plan: PlanBuilder | None = None
    queries: ValueQueries = field(default_factory=ValueQueries)
    reusable: Reusable | None = None
    _constants: dict[str, Constant] | None = None
    _folded: FoldedConstants | None = None
    _frozen: Sequence[FrozenConstant] | None = None
    _written: PlanExecutor | None = None

    @property
    def captured(self) -> Program:
        return self.source.program

    @property
    def tensor_names(self) -> set[str]:
        return self.source.tensor_names

    def movements(self, operators: Mapping[str, int]) -> tuple[Movement, ...]:
        """Return the movements of the plan, and others that the artifact's operator counts reveal."""
        planned = self.plan.movements if self.plan else []
        found = [
            Movement(m.kind, m.module, m.reason, m.elements, source_line(m.asked_by) if m.asked_by else "")
            for m in planned
        ]
        by = BY.get(self.format, "Keras")
        for kind, names in MOVING.items():
            more = sum(operators.get(name, 0) for name in names) - sum(m.kind == kind for m in planned)
            if more > 0:
                found.append(Movement(kind, "", f"{more} more in the graph, put there by {by}", "unknown"))
        return tuple(found)

    def stamp(self) -> dict[str, Any]:
        options = self.source.options
        return {
            "schema": 1,
            "converter": library_version("pt-convert") or "0",
            "format": self.format,
            "source_sha256": self.source.sha256,
            "options": {name: value for name, value in vars(self.options).items() if name != "labels"},
            "batch": self.source.program.fixed_batch or "dynamic",
            "input_shapes": self.source.shape_texts(),
            "part": {
                **vars(options.submodel),
                "freeze_control_flow": options.capture.freeze_control_flow,
                "strict": options.capture.strict,
                **({"accept": list(options.capture.accept)} if options.capture.accept else {}),
                **({"drop_keys": list(options.model.drop_keys)} if options.model.drop_keys else {}),
                **({"state": options.model.state} if options.model.state else {}),
                **options.boundary.stamped(),
                **({"input_values": list(options.capture.input_values)} if options.capture.input_values else {}),
            },
            "inputs": [_describe_interface(i) for i in self.inputs],
            "outputs": [_describe_interface(o) for o in self.outputs],
            "choices": self.plan.choices.by_name() if self.plan else None,
            "rewrites": [[c.name, c.module, c.description] for c in self.changes if not c.routine],
        }

    def write(self, path: Path) -> None:
        if self.format == "torch":
            torch_writer.write(self.module_source(), path, self.stamp() | self.recipe())
            return
        with swept():
            if self.format == "onnx":
                self._write_onnx(path)
            else:
                self._write_lowered(path)

    def prepare(self) -> list[Note]:
        """Do everything that comes before writing, raise what writing would raise, and return notes on the artifact."""
        if self.format == "torch":
            self.module_source()
        elif self.format == "onnx":
            self._in_onnx()
        elif self.format == "tflite":  # its converter decides
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.tflite"
                self.write(file)
                return self.notes_on(file)
        else:
            self.executor("float32")
        return []

    def notes_on(self, path: Path) -> list[Note]:
        """Return notes on a written artifact."""
        return [gpu_delegate_note(path.read_bytes())] if self.format == "tflite" else []

    def module_source(self, dtype: torch.dtype = torch.float32) -> ModuleSource:
        """Return the program as Python source."""
        return ModuleSource(self.program, self.inputs, self.outputs, dtype)

    def _write_onnx(self, path: Path) -> None:
        from converter.artifacts import onnx_writer

        exported = self._in_onnx()
        exported.save(path, self.stamp() | self._recipe_in_onnx(exported))
        onnx_writer.name_by_content(path)

    def _recipe_in_onnx(self, exported: Exported) -> dict[str, Any]:
        arrays = exported.initializers()
        expected = refillable(self.program, arrays, exported.folded.literals)
        if expected is None:
            return {REASON: "PyTorch's exporter merges, drops or folds weights of this checkpoint"}
        tensors = {n: (one.array, arrays[n].dtype) for n, one in expected.items() if isinstance(one.array, LazyTensor)}
        folded = [name for name, made in exported.folded.folded.items() if made.weights and name in arrays]
        if tensors.keys() < expected.keys() or not tensors.keys() >= set(folded):
            return {REASON: "PyTorch's exporter computes with weights of this checkpoint"}
        nodes = [node for node in self.program.graph.find_nodes(op="get_attr") if node.users]
        by_content = sorted(tensors.keys() - named(self.program))
        known = [np.asarray(self.program.values(node)) for node in nodes] if by_content else []
        if alike := [name for name in by_content if is_alike(arrays[name], known)]:
            return {REASON: f"nothing tells which weight {alike[0]} is, because several have the same values"}
        held = {source for one in expected.values() for source in one.sources}
        others = [
            self.program.values(node)
            for node in nodes
            if not node.meta["val"].is_floating_point() and not held.issuperset(self.program.origin(node).sources)
        ]
        return stamped_recipe(self.source, self.queries, tensors, others, arrays)

    def _recipe_in_tflite(self, file: bytes) -> dict[str, Any]:
        from converter.artifacts.runtime.tflite_content import slopes, stored_tensors
        from converter.lowering.frozen_constants import literals

        stored = {tensor.name: tensor.array for tensor in stored_tensors(file)}
        floats = {name: array for name, array in stored.items() if array.dtype.kind == "f" and array.size}
        read = floats | dict(slopes(file))
        held = expected_constants(self.frozen_constants() or (), read, self.program.origins)
        lazy = {n: one.array for n, one in held.items() if isinstance(one.array, LazyTensor) and n in floats}
        executor = self.executor("float32")
        constants = [*(constant for _, constant in executor.tensors.values()), *executor.inlined]
        known = [(c, c.array().astype(np.float32)) for c in constants if c.dtype.is_floating_point]
        by_content: dict[tuple[int, int], list[tuple[Constant, np.ndarray]]] = {}
        for one, array in known:
            by_content.setdefault(content(array), []).append((one, array))
        numbers = [array for array in literals(executor.traced) if content(array) not in by_content]
        inverse = [np.reciprocal(a) for a in numbers if a.size == 1 and a.all()]  # multiplied by, not divided
        own = {content(array) for array in (*numbers, *inverse)} - by_content.keys()
        computed = [
            name
            for name, array in read.items()
            if name not in lazy
            and (name not in held or held[name].sources)
            and array.any()
            and content(array) not in own
        ]
        if computed:
            return {REASON: f"TensorFlow's converter computes {computed[0]}, or writes it into an operator"}

        def rivals(name: str) -> list[np.ndarray]:
            """Return what else has the values of a tensor, and would not for another checkpoint."""
            same = by_content.get(content(floats[name]), ())
            moved = ((array, moved_to(floats[name], array, one.values)) for one, array in same if len(same) > 1)
            return [a for a, m in moved if m is None or not take_same_elements(self.source, lazy[name], m)]

        if alike := [n for n in lazy if held[n].sources and is_alike(floats[n], [floats[n], *rivals(n)])]:
            return {REASON: f"nothing tells which weight {alike[0]} is, because several have the same values"}
        covered: dict[str, int] = {}
        for name in lazy:
            for source in held[name].sources:
                covered[source] = covered.get(source, 0) + floats[name].size
        left_out = [
            one
            for one, array in known
            if any(covered.get(s, 0) < array.size for t in one.sources for s in self.program.origins[t].sources)
        ]
        tensors = {name: (values, floats[name].dtype) for name, values in lazy.items()}
        others = [one for one in constants if not one.dtype.is_floating_point]
        return stamped_recipe(self.source, self.queries, tensors, [one.values for one in (*others, *left_out)], floats)

    def _in_onnx(self) -> Exported:
        if self.reusable is not None and self.reusable.exported is not None:
            exported, expected = self.reusable.exported
            exported.reload_weights({name: one.array for name, one in expected.items()})
            return exported
        exported = self._export()
        self._folded = exported.folded
        if self.reusable is not None and (
            found := refillable(self.program, exported.initializers(), exported.folded.literals)
        ):
            self.reusable.exported = exported, found
        return exported

    def _export(self) -> Exported:
        from converter.artifacts import onnx_writer
        from converter.artifacts.onnx_rnn_translations import leave_whole

        shapes = [node.meta["val"].shape for node in self.source.program.placeholders]
        examples = [
            _for_dynamic(x) if isinstance(next(iter(shape), None), torch.SymInt) else x
            for x, shape in zip(self.source.examples, shapes, strict=True)
        ]
        return onnx_writer.export(
            leave_whole(self.program.with_dtype(torch.float32).graph_module),
            examples,
            self.program.inputs,
            self.program.outputs,
            export_shapes(self.source.program),
            self.options.opset,
            self.source.mappings.having("translation"),
            size_ranges(self.source.program),
        )

    def tensors_written_anew(self) -> dict[str, np.ndarray]:
        """Return the constants of a `.tflite` file that is written for this alone."""
        from converter.artifacts.runtime.tflite_content import real_tensors

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.tflite"
            self.write(file)
            return real_tensors(file.read_bytes())

    def folded_constants(self) -> FoldedConstants:
        """Return what the exporter folds of this program; to learn it again takes an export."""
        if self._folded is None:
            self._folded = self._export().folded
        return self._folded

    def _write_lowered(self, path: Path) -> None:
        self._written = self.executor("float32")  # what the stamp says is of the same layers and variables
        try:
            self._write_plan(self._written, path)
        finally:
            self._written = None

    def _write_plan(self, executor: PlanExecutor, path: Path) -> None:
        from converter.artifacts import keras_writer, saved_model_writer, tflite_writer

        variables = {name: variable for name, (variable, _) in executor.tensors.items()}
        if self.format == "tflite":

            def stamp_of(content: bytes) -> dict[str, Any]:
                return self.stamp() | self._recipe_in_tflite(content)

            assert not isinstance(self.options.labels, str | Path)
            described, labels = describe_tensors(self.source, self.inputs, self.outputs, self.options.labels)
            tflite_writer.write(
                executor.traced, variables, path, stamp_of, executor.places(), self.source.name, described, labels
            )
            return
        stamp = self.stamp() | self.recipe()
        if self.format == "keras":
            keras_writer.write(executor.model, path, stamp | {"layers": executor.paths})
        elif self.options.freeze:
            frozen = saved_model_writer.freeze(executor.traced, variables, executor.signature())
            saved_model_writer.save(frozen, {}, path, stamp)
        elif executor.saved is None:
            executor.saved = saved_model_writer.save(executor.traced, variables, path, stamp)
        else:
            saved_model_writer.save_again(executor.saved, variables, path, stamp)

    def recipe(self) -> dict[str, Any]:
        """Return the entry of the stamp of a format with a plan, or of a module, for filling it from a checkpoint."""
        if self.format == "torch":
            expected = expected_tensors(self, {})
            held = module_tensors(self.module_source())
            lazy = {n: one.array for n, one in expected.items() if isinstance(one.array, LazyTensor)}
            tensors = {name: (values, held[name].numpy().dtype) for name, values in lazy.items()}
            return stamped_recipe(self.source, self.queries, tensors)
        executor = self.executor("float32")
        tensors = {
            name: (constant.values, np.dtype(getattr(variable.dtype, "as_numpy_dtype", variable.dtype)))
            for name, (variable, constant) in executor.tensors.items()
        }
        inlined = (constant.values for constant in executor.inlined)
        return stamped_recipe(self.source, self.queries, tensors, inlined)

    def frozen_constants(self) -> Sequence[FrozenConstant] | None:
        """Return what the artifact's graph computes of weights alone; None where it holds them as variables."""
        if self.format == "tflite" and self._frozen is None:
            from converter.lowering.frozen_constants import frozen_constants

            executor = self.executor("float32")
            self._frozen = frozen_constants(executor.traced, executor.tensors)
        return self._frozen

    def constants(self) -> Mapping[str, Constant]:
        """Return the constant that each variable of the plan holds, by the variable's name."""
        if self._constants is None:
            self.executor("float32")
        return self._constants or {}

    def executor(self, precision: str) -> PlanExecutor:
        """Return the plan's layers and variables, which are freed with it unless later models reuse them."""
        from converter.lowering.executor import PlanExecutor

        if self.plan is None:
            raise AssertionError(f"{self.format} is not lowered")
        if precision == "float32" and self._written is not None:
            return self._written
        executors = {} if self.reusable is None else self.reusable.executors
        executor = executors.get(precision)
        if executor is None or not _refill(executor):
            stock = self.format == "keras" and precision == "float32"
            lite = self.format == "tflite" and precision == "float32"
            batch = self.source.program.fixed_batch if lite else None
            executors[precision] = executor = PlanExecutor(self.plan, precision, stock, lite, batch)
            if precision == "float32" or self.reusable is not None:
                executor.prepare()
        if precision == "float32":
            self._constants = {name: constant for name, (_, constant) in executor.tensors.items()}
        return executor


def build(
    source: LoadedModel,
    format: Format,
    options: ArtifactOptions,
    clock: Clock,
    known: Mapping[str, Any] | None = None,
    *,
    checked: bool = True,
) -> RewrittenModel:
    """Rewrite and plan a model for one format, or reuse the build of an earlier model of the same architecture.

    Args:
        known: the choices of an artifact's plan, from its stamp, so that they are not searched for again.
        checked: run the rewritten program, and compare it with the captured one.
    """
    cached = source.cached if known is None else None

    def make() -> RewrittenModel:
        with recording_queries(queries := ValueQueries()):
            built = replace(_build_uncached(source, format, options, clock, known, checked), queries=queries)
        return replace(built, reusable=Reusable()) if cached is not None and cached.is_small else built

    def has_our_mappings(built: RewrittenModel) -> bool:
        return built.source.mappings.records == source.mappings.records

    try:
        built = make() if cached is None else cached.reuse((format, options, checked), make, has_our_mappings)
    except UnsupportedOperatorsError as error:
        for broken in source.mappings.broken:
            error.fix = f"{broken.fix} ({broken.what}) {error.fix}"
        raise
    if source.options.capture.debug and built.plan is not None:
        print(built.plan, file=sys.stderr)
    return built if cached is None else replace(built, source=source, _constants=None, _frozen=None)


def _build_uncached(
    source: LoadedModel,
    format: Format,
    options: ArtifactOptions,
    clock: Clock,
    known: Mapping[str, Any] | None,
    checked: bool,
) -> RewrittenModel:
    chosen = [r for r in REWRITES[format] if not (options.keep_batchnorm and r in KEEP_BATCHNORM)]
    if options.focus_as_convolution:
        chosen = [AS_CONVOLUTION.get(r, r) for r in chosen]
    if options.exact_shifts:
        chosen = [EXACT_SHIFTS.get(r, r) for r in chosen]
    with clock("rewrite"):
        inputs, expected = (source.probe or (source.examples, None)) if checked else (None, None)
        captured = replace(source.program, exact_infinities=options.exact_infinities)
        program, changes = rewrite(captured, chosen, inputs, expected)
    if format in ("onnx", "torch"):
        if format == "onnx":
            refuse_untranslated(program, source.mappings)
            refuse_projections(program)
        return RewrittenModel(source, format, options, program, changes, *interfaces(program))
    if options.freeze and format == "tf":
        _refuse_large_constants(program)
    with clock("plan"):
        plan = make_plan(program, options.layout, known, source.mappings, stock=format == "keras")
    return RewrittenModel(source, format, options, program, changes, plan.inputs, plan.outputs, plan)


def _refuse_large_constants(program: Program) -> None:
    held = {node.target: node.meta["val"] for node in program.graph.find_nodes(op="get_attr") if node.users}
    size = sum(value.numel() * value.element_size() for value in held.values())
    if size > LARGEST_GRAPH:
        raise ConversionError(
            f"A frozen SavedModel holds at most 2 GB of weights; this model has {size / 1e9:.1f} GB.",
            code="PTC4047",
            fix="Leave --freeze out: variables have no such limit.",
        )


@reusing_blocks()
def _refill(executor: PlanExecutor) -> bool:
    return executor.reload_weights()


def interfaces(program: Program) -> tuple[list[TensorInterface], list[TensorInterface]]:
    """Return the program's inputs and outputs in PyTorch's layout."""

    def of(names: Sequence[str], nodes: Sequence[torch.fx.Node]) -> list[TensorInterface]:
        values = [node.meta["val"] for node in nodes]
        return [
            TensorInterface(name, symbolic_shape(v), v.dtype, tuple(range(v.ndim)))
            for name, v in zip(names, values, strict=True)
        ]

    return of(program.inputs, program.placeholders), of(program.outputs, program.results)


def _describe_interface(interface: TensorInterface) -> dict[str, Any]:
    return {
        "name": interface.name,
        "shape": [n if isinstance(n, int) else None for n in interface.shape],
        "dtype": str(interface.dtype).removeprefix("torch."),
        "order": list(interface.order),
    }


def _for_dynamic(x: Tensor) -> Tensor:
    return x if x.ndim == 0 or x.shape[0] > 1 else torch.cat([x, x])


def summarize_changes(changes: Sequence[Change]) -> list[Rewrite]:
    """Return every change of interest, and one line for each kind of routine one."""
    major = [Rewrite(c.name, c.module, c.description) for c in changes if not c.routine]
    routine: dict[str, int] = {}
    for change in changes:
        if change.routine:
            routine[change.name] = routine.get(change.name, 0) + 1
    return major + [Rewrite(name, "", f"{count} times" if count > 1 else "once") for name, count in routine.items()]
