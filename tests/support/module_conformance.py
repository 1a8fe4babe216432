"""PyTorch's own samples of its modules (`module_db`), each captured, rewritten, planned and compared in this process.

A sample is right if for every format the function is the same in float64, and the numbers are in float32, from a Keras
model and from a traced TensorFlow function. With `files` the artifact is also written, opened again, and compared, its
weights too. (`convert` has fresh processes open the files, here this one does.) A sample is refused if the converter
says that it cannot, wrong if anything differs, and failed if the converter broke without a word of its own.

Left out are losses, which train and do not infer, and FractionalMaxPool, which draws its regions at random in eval mode
too.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.testing._internal.common_modules import ModuleInfo, module_db
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from converter.artifacts.paths import SUFFIXES
from converter.artifacts.runner import TensorSpec
from converter.artifacts.runtime import keras as keras_reader
from converter.artifacts.runtime import onnx as onnx_reader
from converter.artifacts.runtime import saved_model as saved_model_reader
from converter.capture.export import capture
from converter.capture.input_domains import input_specs
from converter.capture.random_inputs import Round, rounds
from converter.errors import ConversionError, UnsupportedOperatorsError
from converter.ir.program import Program
from converter.options import ArtifactOptions
from converter.pipeline.build import RewrittenModel, build
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import LoadedModel
from converter.plan.interface import to_artifact, to_torch
from converter.report.results import ComparedOn, Proof
from converter.verification.output_proofs import compare_artifact
from converter.verification.prove import prove_function, prove_weights
from converter.verification.reference import Reference, constant_outputs
from converter.verification.run_artifact import run_artifact

READERS: dict[str, Any] = {"tf": saved_model_reader, "keras": keras_reader, "onnx": onnx_reader}
FORMATS = tuple(READERS)
LEFT_OUT = ("Loss", "FractionalMaxPool2d", "FractionalMaxPool3d")
MODULES: dict[str, ModuleInfo] = {
    info.name.removeprefix("nn."): info for info in module_db if not info.name.endswith(LEFT_OUT)
}


class ModuleCall(nn.Module):
    """A call of `module`: the tensors among its arguments are inputs, everything else is fixed."""

    def __init__(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]):
        super().__init__()
        self.module = module
        leaves, self.spec = tree_flatten((tuple(args), kwargs))
        self.fixed = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        self.given = [leaf.detach().contiguous() for leaf in leaves if isinstance(leaf, Tensor)]

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if fixed is None else fixed[0] for fixed in self.fixed]
        args, kwargs = tree_unflatten(leaves, self.spec)
        return self.module(*args, **kwargs)


@dataclass(frozen=True)
class Outcome:
    """What became of a sample: "right", "refused", "wrong" or "failed"; `reason` for all but the right ones."""

    status: str
    reason: str = ""


def samples(name: str) -> list[ModuleCall]:
    """The suite's own calls of a module, weights drawn."""
    info = MODULES[name]
    torch.manual_seed(0)
    given = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=False)
    calls = []
    for sample in given:
        args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
        made = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs).eval()
        calls.append(ModuleCall(with_unlike_weights(made, args, kwargs), args, kwargs).eval())
    return calls


@torch.no_grad()
def with_unlike_weights(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> nn.Module:
    """No two weights alike: what initialization leaves at 1 and 0 shows no fault."""
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        module(*args, **kwargs)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
    return module


def check(call: ModuleCall, files: bool = False) -> Outcome:
    """Prove one sample in this process."""
    with quiet():
        try:
            return compare(call, files)
        except Exception as error:
            return described(error)


def described(error: Exception) -> Outcome:
    if isinstance(error, UnsupportedOperatorsError):
        return Outcome("refused", "; ".join(row[0] for row in error.operators))
    if isinstance(error, ConversionError):
        return Outcome("refused", error.what)
    return Outcome("failed", f"{type(error).__name__}: {str(error).strip()[:300]}")


def compare(call: ModuleCall, files: bool) -> Outcome:
    program = capture(call, call.given)
    reference, own = taken(program, call)
    same = compare_artifact(reference.float64, own, reference.float32, constant=reference.constant)
    if disagrees(same):
        return Outcome("wrong", f"captured: {same.failures[0]}")
    tensors = {name for name, _ in (*call.named_parameters(), *call.named_buffers())}
    source = LoadedModel("sample", None, "module", call, program, call.given, tensors, 0, [], ())
    source.probe = reference.probe(program)
    for format in FORMATS:
        built = build(source, format, ArtifactOptions(), Clock(None))  # type: ignore[arg-type]
        proofs = {"function": prove_function(reference, built)}
        if files:
            proofs |= in_file(built, reference)
        elif built.plan is not None:
            proofs["float32"] = in_memory(built, reference)
        for name, proof in proofs.items():
            if disagrees(proof):
                return Outcome("wrong", f"{format}, {name}: {proof.failures[0]}")
    return Outcome("right")


def disagrees(proof: Proof) -> bool:
    return not proof.holds and not proof.proves_nothing


def taken(program: Program, call: ModuleCall) -> tuple[Reference, list[dict[str, np.ndarray]]]:
    """PyTorch's results on the sample and on random rounds, and what the module itself makes of them."""
    specs = input_specs(program)
    given = Round("the sample", {s.name: x.numpy() for s, x in zip(specs, call.given, strict=True)})
    every = [given, *rounds(specs, 0)]
    raised = program.with_dtype(torch.float64)
    float64, float32, own = [], [], []
    for each in every:
        tensors = [torch.from_numpy(np.asarray(each.arrays[s.name], order="C")) for s in specs]
        float32.append(named(program, program.run(*tensors)))
        float64.append(named(program, raised.run(*(x.double() if x.dtype == torch.float32 else x for x in tensors))))
        with torch.no_grad():
            results = [r for r in tree_leaves(call(*(x.clone() for x in tensors))) if isinstance(r, Tensor)]
        own.append(named(program, results))
    described = ComparedOn(0, tuple(each.description for each in every))
    return Reference(every, float64, float32, own, None, len(every), constant_outputs(program), program, described), own


def named(program: Program, results: Sequence[Tensor]) -> dict[str, np.ndarray]:
    return {name: r.detach().numpy() for name, r in zip(program.outputs, results, strict=True)}


@dataclass
class Opened:
    """An artifact opened in this process, as `run_artifact` takes one."""

    reader: Any

    @property
    def inputs(self) -> list[TensorSpec]:
        return [TensorSpec(name, shape and tuple(shape), dtype) for name, shape, dtype in self.reader.inputs]

    @property
    def outputs(self) -> list[TensorSpec]:
        return [TensorSpec(name, shape and tuple(shape), dtype) for name, shape, dtype in self.reader.outputs]

    def run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.reader.run(arrays)


def in_memory(built: RewrittenModel, reference: Reference) -> Proof:
    """What the artifact would compute, without writing it: the Keras model itself, or the traced function."""
    import tensorflow as tf

    from converter.lowering.executor import PlanExecutor

    assert built.plan is not None
    lowered = PlanExecutor(built.plan, "float32", stock=built.format == "keras")
    names = [i.name for i in built.inputs]
    run: Any
    if built.format == "keras":
        model = lowered.keras_model()

        def run(*arrays: Any) -> dict[str, Any]:
            results = model(arrays[0] if len(arrays) == 1 else dict(zip(names, arrays, strict=True)))
            return results if isinstance(results, dict) else {built.outputs[0].name: results}

    else:
        lowered.prepare()
        run = tf.function(lowered.run_named, input_signature=lowered.signature(), autograph=False)
    actual = []
    for each in reference.rounds:
        results = run(*[tf.constant(to_artifact(each.arrays[i.name], i)) for i in built.inputs])
        actual.append({o.name: to_torch(np.asarray(results[o.name]), o) for o in built.outputs})
    return compare_artifact(reference.float64, reference.float32, actual, constant=reference.constant)


def in_file(built: RewrittenModel, reference: Reference) -> dict[str, Proof]:
    """Write the artifact and open it again: the same numbers, the same weights."""
    reader = READERS[built.format].Reader()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"artifact{SUFFIXES[built.format]}")
        built.write(path)
        reader.open(path)
        results = run_artifact(Opened(reader), built.inputs, built.outputs, reference)  # type: ignore[arg-type]
        same = compare_artifact(reference.float64, reference.float32, results, constant=reference.constant)
        return {"artifact": same, "weights": prove_weights(built, reader.tensors())}


def most_telling(calls: Sequence[ModuleCall]) -> ModuleCall:
    """Of the largest inputs: what has a batch is larger."""
    return max(calls, key=lambda call: max(x.numel() for x in call.given))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither torch.export's notes nor the modules' own warnings concern the comparison."""
    logging.getLogger("torch.__trace").propagate = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
