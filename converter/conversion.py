"""The way of one model: load, capture, rewrite, plan, write, open again, prove, put in place."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from converter.artefacts.formats import Format
from converter.artefacts.placement import Placement
from converter.artefacts.runner import Runner
from converter.capture import capture, from_exported
from converter.checkpoint import Checkpoint, load, user_code
from converter.errors import ConversionError, UsageError
from converter.layout import Size
from converter.outputs import ENDINGS, output_path
from converter.plan import Plan
from converter.planning import make_plan
from converter.program import Program
from converter.reference import Reference, take_reference
from converter.report import (
    Accuracy,
    ArtefactReport,
    ConversionReport,
    Movement,
    Proof,
    Rewrite,
    Shape,
    TensorFacts,
    status_of,
)
from converter.rewrites import KEEP_BATCHNORM, REWRITES, rewrite
from converter.rewrites.change import Change
from converter.shapes import example_inputs
from converter.steps import Constant, Interface, sizes
from converter.verification.compare import Outputs, accuracy, compare_artefact, compare_function
from converter.verification.weights import Expected, compare_weights

if TYPE_CHECKING:
    from converter.lower import Lowered

MOVING = {"Transpose": ("Transpose",), "Gather": ("Gather", "GatherV2", "GatherNd", "GatherND", "GatherElements")}

Progress = Callable[[str], AbstractContextManager]


@dataclass(frozen=True)
class Options:
    """What decides the bytes of an artefact, besides the model."""

    layout: str = "auto"
    fixed_batch: int | None = None
    keep_batchnorm: bool = False
    opset: int | None = None


@dataclass
class Source:
    """A model, loaded and captured.

    Attributes:
        module: None where the checkpoint is an exported program.
        probe: inputs of batch 1 and what the program makes of them in float64, once that is known.
        tensor_names: every tensor of the checkpoint's model.
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
    notes: list[str]
    folders: tuple[Path, ...]

    def running(self) -> AbstractContextManager:
        """A context in which the user's code may run."""
        return user_code(*self.folders)


@dataclass
class Clock:
    """Times the steps and tells the caller which one runs."""

    progress: Progress | None
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        with self.progress(step) if self.progress else contextlib.nullcontext():
            yield
        self.timings[step] = self.timings.get(step, 0.0) + time.perf_counter() - started


def convert(
    model: str | Path | nn.Module,
    *,
    to: Sequence[str],
    output: str | Path | None = None,
    factory: str | None = None,
    factory_args: Mapping[str, Any] | None = None,
    input_shapes: Sequence[str] = (),
    trust: Sequence[str] = (),
    layout: str = "auto",
    fixed_batch: int | None = None,
    keep_batchnorm: bool = False,
    opset: int | None = None,
    verify: bool = True,
    keep_failed: bool = False,
    atol: float | None = None,
    rtol: float | None = None,
    seed: int = 0,
    inputs: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a model to one or more formats, and prove for each that it is the same function.

    Args:
        model: a checkpoint file, or a module.
        to: of "tf", "keras", "onnx".
        output: the artefact's path for one format, else a folder.
        factory: what builds a state dict's architecture, `package.module:name` or `file.py:name`.
        input_shapes: `[name=]1,3,224,224[:dtype]` for each input, batch first.
        trust: packages whose classes may be unpickled.
        layout: of inputs and outputs of Keras and TensorFlow artefacts: "auto", "nhwc", "nchw".
        atol, rtol: take the place of our own bound in the comparison of the artefact.
        inputs: an .npz of the user's arrays, to compare on besides random ones.

    Returns:
        The report; an artefact that does not agree is reported as such and not put in place.

    Raises:
        ConversionError: the model cannot be read, captured, converted or written.
    """
    formats = _formats(to)
    clock = Clock(progress)
    options = Options(layout, fixed_batch, keep_batchnorm, opset)
    source_path = Path("model" if isinstance(model, nn.Module) else model)
    paths = {f: output_path(source_path, f, Path(output) if output else None, len(formats) > 1) for f in formats}

    with ExitStack() as stack:
        placements = {f: stack.enter_context(Placement(paths[f], force=force)) for f in formats}
        runners = {f: stack.enter_context(Runner(f)) for f in formats} if verify else {}
        source = open_source(
            model, factory=factory, factory_args=factory_args, input_shapes=input_shapes, trust=trust,
            fixed_batch=fixed_batch, seed=seed, clock=clock,
        )  # fmt: skip
        reference = None
        if verify:
            with clock("run PyTorch"):
                reference = take_reference(
                    source.program,
                    source.module,
                    seed=seed,
                    inputs=Path(inputs) if inputs else None,
                    running=source.running,
                )
                source.probe = reference.probe(source.program)
        changes: list[Change] = []
        artefacts = []
        for format in formats:
            started = time.perf_counter()
            built = build(source, format, options, clock)
            changes += [c for c in built.changes if c not in changes]
            with clock(f"write {format}"):
                built.write(placements[format].temporary)
            proofs: tuple[Proof, ...] = ()
            operators: Mapping[str, int] = {}
            labelled = None
            if reference is not None:
                with clock(f"prove {format}: the same function"):
                    first = built.prove_function(reference)
                with clock(f"prove {format}: the same artefact"):
                    runner = runners[format]
                    runner.open(placements[format].temporary)
                    results = run_artefact(runner, built.inputs, built.outputs, reference)
                    second = compare_artefact(
                        reference.float64, reference.float32, results, atol=atol, rtol=rtol, constant=reference.constant
                    )
                    labelled = labelled_accuracy(reference, results)
                with clock(f"prove {format}: the same weights"):
                    third = built.prove_weights(runner.tensors())
                operators = runner.operators()
                runner.close()
                proofs = (first, second, third)
            status = status_of(proofs)
            path: Path | None = None
            if not verify or status == "verified":
                placements[format].commit()
                path = paths[format]
            elif keep_failed:
                path = placements[format].keep_failed()
            artefacts.append(
                ArtefactReport(
                    format=format,
                    path=path,
                    inputs=tuple(facts(i) for i in built.inputs),
                    outputs=tuple(facts(o) for o in built.outputs),
                    proofs=proofs,
                    operators=operators,
                    movements=built.movements(operators),
                    status=status,
                    seconds=time.perf_counter() - started,
                    accuracy=labelled,
                )
            )
    return ConversionReport(
        source=source.name,
        source_sha256=source.sha256,
        kind=source.kind,
        parameters=source.parameters,
        batch=source.program.fixed_batch or "dynamic",
        rewrites=tuple(described(changes)),
        notes=tuple(dict.fromkeys((*source.notes, *source.program.notes))),
        artefacts=tuple(artefacts),
        timings=clock.timings,
    )


def _formats(to: Sequence[str]) -> list[Format]:
    wanted = [to] if isinstance(to, str) else list(dict.fromkeys(to))
    unknown = [f for f in wanted if f not in ENDINGS]
    if unknown or not wanted:
        raise UsageError(f"no such format: {', '.join(unknown) or '(none given)'}", cure=f"one of {', '.join(ENDINGS)}")
    return wanted  # type: ignore[return-value]


def open_source(
    model: str | Path | nn.Module,
    *,
    factory: str | None,
    factory_args: Mapping[str, Any] | None,
    input_shapes: Sequence[str],
    trust: Sequence[str],
    fixed_batch: int | None,
    seed: int,
    clock: Clock,
) -> Source:
    """Load a checkpoint, or take a module, and capture it."""
    if isinstance(model, nn.Module):
        checkpoint = Checkpoint(Path("model"), "", "module", model.eval(), None, ())
        folders: tuple[Path, ...] = (Path.cwd(),)
    else:
        path = Path(model)
        folders = (Path.cwd(), path.resolve().parent)
        with clock("load"):
            checkpoint = load(path, factory=factory, factory_args=dict(factory_args or {}), trust=trust)
    notes = list(checkpoint.notes)
    if checkpoint.module is not None:
        examples = example_inputs(checkpoint.module, input_shapes, fixed_batch, seed)
        with clock("capture"), user_code(*folders):
            program = capture(checkpoint.module, examples, fixed_batch is not None)
        tensors = {**dict(checkpoint.module.named_parameters()), **dict(checkpoint.module.named_buffers())}
        parameters = sum(p.numel() for p in checkpoint.module.parameters())
    else:
        if checkpoint.program is None:
            raise AssertionError("a checkpoint holds a module or a program")
        with clock("capture"):
            program = from_exported(checkpoint.program)
        if input_shapes:
            notes.append("--input-shape is not needed: an exported program has its own")
        if program.fixed_batch is not None:
            notes.append(f"exported for batch {program.fixed_batch}, converted for that batch only")
        examples = program_examples(program, seed)
        tensors = {**checkpoint.program.state_dict, **checkpoint.program.constants}
        parameters = sum(p.numel() for p in checkpoint.program.parameters())
    return Source(
        name=str(model) if not isinstance(model, nn.Module) else type(model).__name__,
        sha256=checkpoint.sha256 or None,
        kind=checkpoint.kind,
        module=checkpoint.module,
        program=program,
        examples=examples,
        tensor_names=set(tensors),
        parameters=parameters,
        notes=notes,
        folders=folders,
    )


def program_examples(program: Program, seed: int) -> list[Tensor]:
    """Seeded random inputs of the shapes that the program has, free sizes as 2."""
    from converter.reference import input_specs
    from converter.verification.inputs import draw

    specs = input_specs(program)
    sizes = {str(n): 2 for spec in specs for n in spec.shape if not isinstance(n, int)}
    return [torch.from_numpy(array) for array in draw(specs, 2, seed, sizes).values()]


# -- one format


@dataclass
class Built:
    """A rewritten program and how it becomes an artefact of one format."""

    source: Source
    format: Format
    options: Options
    program: Program
    changes: list[Change]
    inputs: list[Interface]
    outputs: list[Interface]
    plan: Plan | None = None
    _constants: dict[str, Constant] | None = None

    def movements(self, operators: Mapping[str, int]) -> tuple[Movement, ...]:
        """What the plan moves, and what else moves by the operators counted in the artefact."""
        planned = self.plan.movements if self.plan else []
        found = [Movement(m.kind, m.module, m.reason, m.elements) for m in planned]
        by = "PyTorch's exporter" if self.format == "onnx" else "Keras"
        for kind, names in MOVING.items():
            more = sum(operators.get(name, 0) for name in names) - sum(m.kind == kind for m in planned)
            if more > 0:
                found.append(Movement(kind, "", f"{more} more in the graph, put there by {by}", "unknown"))
        return tuple(found)

    def stamp(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "converter": own_version(),
            "format": self.format,
            "source_sha256": self.source.sha256,
            "options": vars(self.options),
            "batch": self.source.program.fixed_batch or "dynamic",
            "input_shapes": [
                f"{name}={','.join(map(str, x.shape))}:{str(x.dtype).removeprefix('torch.')}"
                for name, x in zip(self.source.program.inputs, self.source.examples, strict=True)
            ],
            "inputs": [_described(i) for i in self.inputs],
            "outputs": [_described(o) for o in self.outputs],
            "rewrites": [[c.name, c.module, c.description] for c in self.changes if not c.minor],
        }

    def write(self, path: Path) -> None:
        if self.format == "onnx":
            from converter.artefacts import onnx_file

            batch = torch.export.Dim("batch", min=1)
            dynamic = self.source.program.fixed_batch is None
            lowest = self.program.at(torch.float32)
            shapes = tuple({0: batch} if dynamic and x.ndim else None for x in self.source.examples)
            onnx_file.write(
                lowest.graph_module,
                [_for_dynamic(x) if dynamic else x for x in self.source.examples],
                self.program.inputs,
                self.program.outputs,
                shapes,
                path,
                self.stamp(),
                self.options.opset,
            )
            return
        from converter.artefacts import keras_file, saved_model

        lowered = self._lowered("float32")
        if self.format == "keras":
            keras_file.write(lowered.keras_model(), path, self.stamp())
        else:
            variables = {name: variable for name, (variable, _) in lowered.tensors.items()}
            saved_model.write(lowered.named, lowered.signature(), variables, path, self.stamp())

    def prove_function(self, reference: Reference) -> Proof:
        """Proof 1: in float64, the lowered graph (ONNX: the rewritten program) against the captured one."""
        actual: list[Outputs] = []
        if self.plan is None:
            raised = self.program.at(torch.float64)
            for each in reference.rounds:
                tensors = [torch.from_numpy(_raised(each.arrays[name])) for name in self.program.inputs]
                actual.append(dict(zip(raised.outputs, [r.numpy() for r in raised.run(*tensors)], strict=True)))
        else:
            rounds = [
                [_eager(to_artefact(_raised(each.arrays[i.name]), i)) for i in self.inputs] for each in reference.rounds
            ]
            for results in self._lowered("float64").run_once(rounds):
                named = zip(self.outputs, map(np.asarray, results), strict=True)
                actual.append({o.name: to_torch(r, o) for o, r in named})
        return compare_function(reference.float64, actual, constant=reference.constant)

    def prove_weights(self, tensors: Mapping[str, np.ndarray]) -> Proof:
        """Proof 3: what the artefact holds is what the checkpoint holds, rearranged or folded."""
        expected = self.expected(tensors)
        used = {s for e in expected.values() for s in e.sources}
        if self.plan is None:  # the exporter's own, without a name of ours: shapes, axes, operators' arguments
            tensors = {n: t for n, t in tensors.items() if n in expected or (t.dtype.kind == "f" and t.size > 1)}
        return compare_weights(expected, tensors, self.source.tensor_names | used, self._unused(used))

    def expected(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Expected]:
        if self.plan is None:
            return expected_initialisers(self.program, tensors)
        if self._constants is None:
            self._lowered("float32")
        origins = self.program.origins
        return {
            name: Expected(c, tuple(dict.fromkeys(s for t in c.sources for s in origins[t].sources)), c.exact)
            for name, c in (self._constants or {}).items()
        }

    def _unused(self, used: set[str]) -> dict[str, str]:
        """Why a tensor of the checkpoint is in no tensor of the artefact."""
        in_graph, live = tensors_read(self.source.program), tensors_read(self.program)
        reasons = {}
        for name in self.source.tensor_names - used:
            if name not in in_graph:
                reasons[name] = "not read by forward"
            elif name in live and self._inlined(name):
                reasons[name] = "a constant of the graph"
            elif name.endswith("num_batches_tracked"):
                reasons[name] = "read in training only"
        return reasons

    def _inlined(self, name: str) -> bool:
        """Small constants stand in the graph itself; weights never do."""
        return not any(
            self.source.program.trainable(node)
            for node in self.source.program.graph.find_nodes(op="get_attr")
            if node.target == name
        )

    def _lowered(self, precision: str) -> Lowered:
        """The plan with variables of its own: they are gone with it."""
        from converter.lower import Lowered

        if self.plan is None:
            raise AssertionError("ONNX is not lowered")
        stock = self.format == "keras" and precision == "float32"
        lowered = Lowered(self.plan, precision, stock)
        if precision == "float32":
            lowered.prepare()
            self._constants = {name: constant for name, (_, constant) in lowered.tensors.items()}
        return lowered


def build(source: Source, format: Format, options: Options, clock: Clock) -> Built:
    chosen = [r for r in REWRITES[format] if not (options.keep_batchnorm and r in KEEP_BATCHNORM)]
    with clock("rewrite"):
        inputs, expected = source.probe or (source.examples, None)
        program, changes = rewrite(source.program, chosen, inputs, expected)
    if format == "onnx":
        nodes = zip(program.inputs, program.placeholders, strict=True)
        results = zip(program.outputs, program.results, strict=True)
        return Built(
            source, format, options, program, changes,
            [_as_torch(name, node) for name, node in nodes],
            [_as_torch(name, node) for name, node in results],
        )  # fmt: skip
    with clock("plan"):
        plan = make_plan(program, options.layout)
    return Built(source, format, options, program, changes, plan.inputs, plan.outputs, plan)


def expected_initialisers(program: Program, tensors: Mapping[str, np.ndarray]) -> dict[str, Expected]:
    """What ONNX's initialisers must be: the rewritten program's tensors; the exporter may transpose a matrix."""
    expected = {}
    for name, origin in program.origins.items():
        if name not in tensors:
            continue
        node = next((n for n in program.graph.find_nodes(op="get_attr") if n.target == name), None)
        if node is None:
            continue
        array = program.tensor(node).detach().numpy()
        if array.ndim == 2 and array.shape != tensors[name].shape == array.T.shape:
            array = array.T
        expected[name] = Expected(array, origin.sources, origin.exact)
    return expected


def tensors_read(program: Program) -> set[str]:
    """The checkpoint's tensors that some operator of the program reads."""
    nodes = [node for node in program.graph.find_nodes(op="get_attr") if node.users]
    return {s for node in nodes for s in program.origins[node.target].sources}


# -- arrays between PyTorch's layout and the artefact's


def to_artefact(array: np.ndarray, interface: Interface) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(interface.order))


def to_torch(array: np.ndarray, interface: Interface) -> np.ndarray:
    return array.transpose(np.argsort(interface.order)) if array.ndim == len(interface.order) else array


def run_artefact(
    runner: Runner, inputs: Sequence[Interface], outputs: Sequence[Interface], reference: Reference
) -> list[Outputs]:
    """The opened artefact's results on every round, in PyTorch's layout."""
    if len(runner.inputs) != len(inputs) or len(runner.outputs) != len(outputs):
        raise ConversionError(
            f"the artefact has {len(runner.inputs)} inputs and {len(runner.outputs)} outputs, "
            f"the model {len(inputs)} and {len(outputs)}"
        )
    input_names = _matched([s.name for s in runner.inputs], [i.name for i in inputs])
    output_names = _matched([s.name for s in runner.outputs], [o.name for o in outputs])
    dtypes = {s.name: s.dtype for s in runner.inputs}
    results: list[Outputs] = []
    for each in reference.rounds:
        fed = {
            theirs: to_artefact(each.arrays[i.name], i).astype(dtypes[theirs])
            for theirs, i in zip(input_names, inputs, strict=True)
        }
        given = runner.run(fed)
        results.append({o.name: to_torch(given[n], o) for n, o in zip(output_names, outputs, strict=True)})
    return results


def _matched(theirs: Sequence[str], ours: Sequence[str]) -> list[str]:
    """Their names in our order: by name where all are the same, else by position."""
    return list(ours) if set(theirs) == set(ours) else list(theirs)


def labelled_accuracy(reference: Reference, results: Sequence[Outputs]) -> Accuracy | None:
    if reference.labels is None:
        return None
    given = slice(reference.first_given, None)
    before, after = (
        np.concatenate([next(iter(each.values())) for each in outputs[given]]) for outputs in (reference.float32, results)
    )
    return accuracy(before, after, reference.labels) if before.ndim == 2 else None


def facts(interface: Interface) -> TensorFacts:
    shape = sizes_shown(interface.shape)
    rank = len(interface.order)
    layout = "as PyTorch" if interface.layout == "as PyTorch" or rank < 3 else "channels_last"
    return TensorFacts(interface.name, shape, str(interface.dtype).removeprefix("torch."), layout)


def sizes_shown(shape: Sequence[Size]) -> Shape:
    """A shape as reports give it, the unknown batch by its name."""
    return tuple(n if isinstance(n, int) else "batch" if i == 0 else str(n) for i, n in enumerate(shape))


def described(changes: Sequence[Change]) -> list[Rewrite]:
    """Every telling change, and one line for each kind of minor one."""
    told = [Rewrite(c.name, c.module, c.description) for c in changes if not c.minor]
    minor: dict[str, int] = {}
    for change in changes:
        if change.minor:
            minor[change.name] = minor.get(change.name, 0) + 1
    return told + [Rewrite(name, "", f"{count} times" if count > 1 else "once") for name, count in minor.items()]


def own_version() -> str:
    try:
        return version("pt-convert")
    except PackageNotFoundError:
        return "0"


def _as_torch(name: str, node: torch.fx.Node) -> Interface:
    shape = sizes(node.meta["val"])
    return Interface(name, shape, node.meta["val"].dtype, tuple(range(len(shape))))


def _described(interface: Interface) -> dict[str, Any]:
    return {
        "name": interface.name,
        "shape": [n if isinstance(n, int) else None for n in interface.shape],
        "dtype": str(interface.dtype).removeprefix("torch."),
        "order": list(interface.order),
    }


def _for_dynamic(x: Tensor) -> Tensor:
    return x if x.ndim == 0 or x.shape[0] > 1 else torch.cat([x, x])


def _raised(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _eager(array: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.constant(array)
