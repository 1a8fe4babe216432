"""Put a PyTorch model's weights into a hand-written Keras model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from converter.artifacts.local_model import LocalModel
from converter.artifacts.paths import output_path
from converter.artifacts.placement import Placement
from converter.artifacts.runner import Runner
from converter.artifacts.runtime.protocol import Refused
from converter.artifacts.runtime.refusals import refuse_keras_parts
from converter.capture.input_domains import dynamic_size_choices, input_specs
from converter.capture.random_inputs import draw
from converter.checkpoint.factory import Asked, call_factory, find_definition, named_code
from converter.checkpoint.import_isolation import UserCode
from converter.checkpoint.user_source import APPLICATIONS, BUILDER, attribute_errors, close_names, split_builder
from converter.errors import ConversionError, Note, UsageError
from converter.options import IntoKeywords, IntoOptions
from converter.pipeline.build import interfaces
from converter.pipeline.clock import Clock, Progress
from converter.pipeline.load_model import LoadedModel, compute_reference, load_model
from converter.pipeline.verify import batch_note, fixed_batch, foreign_proof
from converter.plan.interface import TensorInterface
from converter.report.results import IntoReport, status_of
from converter.verification.input_bindings import input_bindings
from converter.verification.io_matching import Match, Matching
from converter.verification.reference import Reference
from converter.verification.run_artifact import labeled_accuracy
from converter.verification.user_inputs import batches, load_given
from converter.verification.value_matching import Matched, match_layers
from converter.verification.weighted_operators import Values, run_operators

BUILT = Asked(BUILDER, "--build-args")
SUFFIXES = (".keras", ".weights.h5")
BATCH = 2
OTHER_SEED = 26  # the values that are matched are not those of the proof


def into(
    model: str | Path | nn.Module,
    builder: str,
    *,
    output: str | Path | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[IntoKeywords],
) -> IntoReport:
    """Put a PyTorch model's weights into a Keras model that somebody wrote, and check that it computes the same.

    Weights are matched by the values that flow through both models, not by their shapes or names.

    Args:
        model: a checkpoint file, or a module.
        builder: what builds the Keras model: `file.py:name`, `package.module:name` or `keras_app:NAME`.
        output: the `.keras` or `.weights.h5` file to write; by default that of the checkpoint's name.
        keywords: those of `converter.options.IntoOptions`: `input_shapes`, `build_args`, `accept`, ...

    Returns:
        The report. Nothing is put in place if the proof does not hold.

    Raises:
        ConversionError: a model cannot be read or built, or a Keras layer is none of PyTorch's operators.

    Examples:
        With the model of `convert`'s example:

        >>> lines = [
        ...     "import keras",
        ...     "def net():",
        ...     "    image = keras.Input((8, 8, 3))",
        ...     "    return keras.Model(image, keras.layers.Conv2D(4, 3, activation='relu')(image))",
        ... ]
        >>> written = Path("build.py").write_text("\\n".join(lines))
        >>> report = converter.into(model, "build.py:net", input_shapes=(1, 3, 8, 8), output="filled.keras")
        >>> report
        <IntoReport Sequential: verified; filled.keras>
        >>> [(pair.module, pair.layer) for pair in report.pairs]
        [('0', 'conv2d')]
    """
    options = IntoOptions.of(**keywords)
    name = type(model).__name__ if isinstance(model, nn.Module) else model
    output = output_path(Path(name), "keras", None, several=False) if output is None else checked_output(output)
    clock = Clock(progress)
    build = Build(builder, dict(options.build.build_args or {}))
    with ExitStack() as stack:
        placement = stack.enter_context(Placement(output, force=options.write.force))
        runner = stack.enter_context(Runner("keras")) if output.suffix == ".keras" else None
        source = load_model(model, options, clock=clock)
        with clock("build the Keras model"):
            built = build.make()
            opened = LocalModel(functional(built, source, build.code))
        inputs, outputs = interfaces(source.program)
        batch = fixed_batch(source.program, inputs, opened.inputs, layouts_known=False)
        if batch is not None:
            source.program.fixed_batch = batch
        with clock("match the layers"):
            matched = match(source, opened, inputs, options)
        reference = compute_reference(source, options, clock)
        with clock("write"):
            save(built, placement.temporary)
        notes = [*source.notes, *source.program.notes, *reference.notes]
        if batch is not None:
            notes.append(batch_note(batch))
        with clock("open"):
            reopened, own = build.reopen(placement.temporary, runner, source, built)
        if own:
            text = (
                "The file was opened in this process, for its layers are your own: elsewhere it needs their code too."
            )
            notes.append(Note(text, code="PTC5540"))
        with clock("run the artifact"):
            found = compare(reopened, inputs, outputs, reference, options)
        with clock("coverage"):
            proof = foreign_proof(found.proof, reference, options, reopened.held)
        status = status_of([proof])
        written: Path | None = None
        if status == "verified":
            placement.commit()
            written = output
        elif options.write.keep_failed:
            written = placement.keep_failed()
    return IntoReport(
        source=source.name,
        builder=builder,
        artifact=None if written is None else str(written),
        pairs=tuple(matched.pairs),
        unused=tuple(matched.unused),
        kept=tuple(matched.kept),
        proofs=(proof,),
        notes=options.report.shown([*notes, *found.notes]),
        status=status,
        accuracy=labeled_accuracy(reference, found.results),
        explanations=tuple(found.explanations),
        timings=clock.timings,
        compared_on=reference.compared_on,
    )


def checked_output(output: str | Path) -> Path:
    """Return the path to write, or raise UsageError if its name is not one that Keras opens."""
    path = Path(output)
    if not path.name.endswith(SUFFIXES):
        raise UsageError(
            f"{path} is not a valid name for a Keras model.",
            code="PTC4040",
            where="-o",
            fix=f"Name it {path.with_suffix('')}.keras, or {path.with_suffix('')}.weights.h5 for its weights alone.",
        )
    return path


class Build:
    """Builds the user's Keras model, with their code, as often as it is needed.

    Args:
        builder: as the user names it.
    """

    def __init__(self, builder: str, arguments: Mapping[str, Any]):
        self.builder, self.arguments = builder, arguments
        self.home, self.name = split_builder(builder)
        names, files = named_code(None if self.home == APPLICATIONS else builder)
        self.code = UserCode((Path.cwd(),), names, files)

    def make(self) -> Any:
        """Return a new model.

        Raises:
            UsageError: the function does not exist, or does not take the arguments.
            ConversionError: it raises, or returns something else.
        """
        import keras

        arguments = dict(self.arguments)
        if self.home == APPLICATIONS:
            function = getattr(keras.applications, self.name, None)
            if not callable(function):
                known = [name for name, one in vars(keras.applications).items() if callable(one)]
                raise UsageError(
                    f"keras.applications does not have a model {self.name!r}.",
                    code="PTC1120",
                    where=f"{BUILDER} {self.builder}",
                    fix=close_names(self.name, known),
                )
            arguments = {"weights": None, **arguments}
        else:
            function = find_definition(self.home, self.name, self.builder, self.code, BUILT)
        if isinstance(function, keras.Model) and not arguments:
            return function
        if not callable(function):
            raise UsageError(
                f"{self.builder} is a {type(function).__name__}, not a function that returns a Keras model.",
                code="PTC1121",
                where=f"{BUILDER} {self.builder}",
                fix="Name the function, or the class of the model.",
            )
        with self.code:
            built = call_factory(function, arguments, self.builder, BUILT)
        if not isinstance(built, keras.Model):
            raise ConversionError(
                f"The function returned an object of type {type(built).__name__}, not a keras.Model.",
                code="PTC1122",
                where=f"{BUILDER} {self.builder}",
                fix="Return the model alone. A model of PyTorch is the first argument of this command.",
            )
        return built

    def reopen(
        self, path: Path, runner: Runner | None, source: LoadedModel, built: Any
    ) -> tuple[Runner | LocalModel, bool]:
        """Open what was written: in a new process if stock Keras can, else in this one, with the user's code.

        Args:
            built: the model that was written, whose classes may be in no registry of Keras.

        Returns:
            The opened model, and whether a `.keras` file needs the user's code.
        """
        import keras

        if runner is not None:
            try:
                refuse_keras_parts(path)
                runner.open(path)
            except (Refused, ConversionError):
                own = {type(layer).__name__: type(layer) for layer in built._flatten_layers()}
                try:
                    with self.code, attribute_errors("opening the Keras file"):
                        held = keras.saving.load_model(path, own, compile=False, safe_mode=False)
                except ConversionError as error:
                    error.fix = f"{error.fix} Or write the weights alone: -o {path.stem}.weights.h5"
                    raise
                return LocalModel(functional(held, source, self.code)), True
            return runner, False
        again = self.make()
        called = functional(again, source, self.code)
        with self.code, attribute_errors("loading the weights"):
            again.load_weights(path)
        return LocalModel(called), False


def functional(model: Any, source: LoadedModel, code: AbstractContextManager[Any] | None = None) -> Any:
    """Return the model itself if its inputs are known, or else one that calls it with those of PyTorch's.

    Args:
        code: a context in which the user's code may run.

    Raises ConversionError if it takes them neither channels last nor as PyTorch does.
    """
    import keras

    if getattr(model, "inputs", None):
        return model
    taken, _ = interfaces(source.program)
    failure: ConversionError | None = None
    for last in (True, False):
        inputs = [symbolic(one, last) for one in taken]
        try:
            with code or nullcontext(), attribute_errors("the Keras model"):
                return keras.Model(inputs, model(inputs[0] if len(inputs) == 1 else inputs))
        except ConversionError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def symbolic(interface: TensorInterface, last: bool) -> Any:
    """Return a Keras input for one of PyTorch's, with its channels last or not."""
    import keras

    shape = [n if isinstance(n, int) else None for n in interface.shape]
    if last and len(shape) > 3:
        shape = [shape[0], *shape[2:], shape[1]]
    dtype = str(interface.dtype).removeprefix("torch.")
    return keras.Input(batch_shape=shape, dtype=dtype, name=interface.name)


def match(source: LoadedModel, opened: LocalModel, inputs: list[TensorInterface], options: IntoOptions) -> Matched:
    """Match the layers on the user's inputs or random ones, fed in the first way under which they match.

    Raises ConversionError if there is none; that of the likeliest way.
    """
    program, given = source.program, options.proof.inputs
    specs = input_specs(program)
    if given is None:
        sizes = next(iter(dynamic_size_choices(program)), {})
        arrays = draw(specs, program.fixed_batch or BATCH, (options.capture.seed, OTHER_SEED), sizes, "uniform")
    else:
        loaded, _ = load_given(given, specs, options.boundary.of(given))
        arrays = dict(next(iter(batches(loaded, specs, BATCH))).arrays)
    values: Values = run_operators(program, [torch.from_numpy(arrays[name]) for name in program.inputs])
    failure: ConversionError | None = None
    for binding in input_bindings(inputs, opened.inputs, layouts_known=False):
        fed = {
            theirs: arrays[one.name].transpose(order)
            for theirs, one, order in zip(binding.names, inputs, binding.orders, strict=True)
        }
        try:
            return match_layers(opened.model, opened.pack(fed), values)
        except ConversionError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def save(model: Any, path: Path) -> None:
    """Write a Keras model, or its weights."""
    with attribute_errors("saving the Keras model"):
        if path.suffix == ".keras":
            model.save(path)
        else:
            model.save_weights(path)


def compare(
    opened: Runner | LocalModel,
    inputs: list[TensorInterface],
    outputs: list[TensorInterface],
    reference: Reference,
    options: IntoOptions,
) -> Match:
    """Compare what was written with PyTorch, as `verify` compares an artifact from any tool."""
    return Matching(
        opened, inputs, outputs, reference,
        accepted=options.capture.accept, atol=options.proof.atol, rtol=options.proof.rtol,
    ).match()  # fmt: skip
