"""PyTorch's own sample inputs of its operators (`op_db`), each captured, planned, lowered and compared.

**In scope** is every operator of op_db that is an inference operator on float32, int64, int32 or bool tensors. Left
out are:

- random: an operator that PyTorch tags as seeded, or whose two calls differ;
- complex or sparse: no sample of those four types, or complex or sparse tensors among the arguments or results;
- Fourier transforms (`fft.*`, `stft`, `istft`): their results are complex, or their steps are;
- gradients: the `*_backward` operators and those whose only purpose is autograd;
- uninitialized memory (`empty*`): there is nothing to compare;
- results that are not tensors;
- `as_strided` of memory outside of its tensors, and what runs on a GPU only (`jiterator_*`).

Tensors among a call's arguments are inputs of the captured module, except that what PyTorch's modules hold as
parameters and statistics (the weight of a convolution, the table of an embedding) are parameters here, too. Where
PyTorch leaves open which of several equal elements a position means (sort, topk, median, ...), what stands at the
positions is compared.

`out=` variants are not in op_db. Operators whose result's shape depends on values are in scope and must be refused.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from equivalence import array_of, assert_float32_rounds_alike, assert_same, in_float64, to_artifact, to_torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.testing._internal import common_utils
from torch.testing._internal.opinfo import core
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from converter.capture.export import capture
from converter.errors import ConversionError
from converter.lowering.planner import make_plan
from converter.plan.builder import PlanBuilder
from converter.rewrites.pipelines import REWRITES
from converter.verification.checked_rewrite import rewrite

DTYPES = (torch.float32, torch.int64, torch.int32, torch.bool)
EXACT = 1e-10  # of an output's scale in float64, as in the product's first proof
TOGETHER = 24  # samples captured as one module
# Positions of equal elements are not specified: what stands at them is compared. The argument that is the dimension.
UNORDERED = {"sort": 0, "argsort": 0, "topk": 1, "kthvalue": 1, "median": 0, "nanmedian": 0, "mode": 0}
# Tensors behind the first are parameters and statistics of a module, not inputs of a model.
MODULES = {
    "nn.functional.linear", "nn.functional.prelu", "nn.functional.layer_norm",
    "nn.functional.group_norm", "nn.functional.batch_norm", "nn.functional.instance_norm", "nn.functional.rms_norm",
    "nn.functional.multi_head_attention_forward", "native_batch_norm", "native_layer_norm", "native_group_norm",
    "_native_batch_norm_legit", "_batch_norm_with_update", "nn.functional.conv1d", "nn.functional.conv2d",
    "nn.functional.conv3d", "nn.functional.conv_transpose1d", "nn.functional.conv_transpose2d",
    "nn.functional.conv_transpose3d", "nn.functional.linear_cross_entropy",
}  # fmt: skip
TABLES = {"nn.functional.embedding", "nn.functional.embedding_bag"}  # of these the first tensor is the parameter
GRADIENTS = ("_backward", "gradient_scaler", "clone_backward")


@dataclass(frozen=True)
class Sample:
    """One call of an operator: its tensors become inputs of a module, all else is closed over."""

    label: str
    function: Callable
    leaves: tuple
    spec: Any
    weights: frozenset[int] = frozenset()

    @property
    def tensors(self) -> list[Tensor]:
        return [x for i, x in enumerate(self.leaves) if isinstance(x, Tensor) and i not in self.weights]

    @property
    def parameters(self) -> list[Tensor]:
        return [self.leaves[i] for i in sorted(self.weights)]

    def __call__(self, *tensors: Tensor, weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        given, own = iter(tensors), iter(self.parameters if weights is None else weights)
        filled = [
            x if not isinstance(x, Tensor) else next(own) if i in self.weights else next(given)
            for i, x in enumerate(self.leaves)
        ]
        args, kwargs = tree_unflatten(filled, self.spec)
        return [r for r in tree_leaves(self.function(*args, **kwargs)) if isinstance(r, Tensor)]


@dataclass(frozen=True)
class Outcome:
    """What became of a sample: "right", "refused", "wrong", or "failed" where the converter itself broke down."""

    status: str
    reason: str = ""


class Calls(nn.Module):
    """Several samples side by side, so that they are captured and planned together; an unused input comes first."""

    def __init__(self, samples: Sequence[Sample]):
        super().__init__()
        self.samples = list(samples)
        for i, sample in enumerate(samples):
            for j, weight in enumerate(sample.parameters):
                self.register_buffer(f"weight_{i}_{j}", weight.detach().clone())

    def forward(self, unused: Tensor, *tensors: Tensor) -> tuple[list[Tensor], ...]:
        results, at = [], 0
        for i, sample in enumerate(self.samples):
            count = len(sample.tensors)
            weights = [self.get_buffer(f"weight_{i}_{j}") for j in range(len(sample.parameters))]
            results.append(sample(*tensors[at : at + count], weights=weights))
            at += count
        return tuple(results)


def samples_of(info: Any, most: int | None = None) -> Iterator[Sample]:
    """The operator's samples in each type, at most `most` of a type, evenly spread."""
    function = info.op if info.name not in UNORDERED else pointed_at(info.op, UNORDERED[info.name])
    for dtype in DTYPES:
        if dtype not in info.supported_dtypes("cpu"):
            continue
        torch.manual_seed(0)
        with warnings.catch_warnings(), _no_search_for_a_test():
            warnings.simplefilter("ignore")
            every = list(info.sample_inputs("cpu", dtype, requires_grad=False))
        step = 1 if most is None else max(1, -(-len(every) // most))
        for i, given in enumerate(every):
            if i % step == 0:
                leaves, spec = tree_flatten(((given.input, *given.args), given.kwargs))
                weights = weights_of(info.name, leaves)
                yield Sample(f"{str(dtype).removeprefix('torch.')} {i}", function, tuple(leaves), spec, weights)


@contextlib.contextmanager
def _no_search_for_a_test() -> Iterator[None]:
    """PyTorch looks through the stack for a `unittest` test that asks for samples, which there is none of here; it
    takes longer than the samples."""
    with contextlib.ExitStack() as stack:
        for module in (common_utils, core):
            stack.enter_context(mock.patch.object(module, "extract_test_fn", return_value=None))
        yield


def weights_of(name: str, leaves: Sequence[Any]) -> frozenset[int]:
    """Which of a call's arguments are a module's own tensors."""
    tensors = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    if name == "nn.functional.bilinear":
        return frozenset(tensors[2:])
    return frozenset(tensors[1:] if name in MODULES else tensors[:1] if name in TABLES else ())


def pointed_at(function: Callable, position: int) -> Callable:
    """`function`, returning in place of its indices along a dimension what stands there."""

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = function(x, *args, **kwargs)
        dim = kwargs.get("dim", args[position] if len(args) > position else -1)
        indices = result if isinstance(result, Tensor) else result[1]
        if (
            x.ndim == 0
            or indices.dtype != torch.int64
            or (isinstance(result, Tensor) and function is not torch.argsort)
        ):
            return result
        kept = indices if indices.ndim == x.ndim else indices.unsqueeze(dim)
        values = () if isinstance(result, Tensor) else (result[0],)
        return (*values, x.gather(dim, kept))

    return call


def out_of_scope(sample: Sample) -> str:
    """Which rule leaves this call out; "" where none does."""
    given = sample.tensors
    if any(x.is_complex() or x.dtype in (torch.float64, torch.complex64) for x in given):
        return "complex"
    if any(x.layout is not torch.strided for x in given):
        return "sparse"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = sample(*(x.clone() for x in given))
        second = sample(*(x.clone() for x in given))
    if not first:
        return "no tensor results"
    if any(x.is_complex() for x in first):
        return "complex"
    if any(x.layout is not torch.strided for x in first):
        return "sparse"
    if not all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in zip(first, second, strict=True)):
        return "random"
    return ""


def check(samples: Sequence[Sample], artifacts: bool = False) -> list[Outcome]:
    """What becomes of each of `samples`; those that hinder others are found by halving."""
    try:
        return compare(samples, artifacts)
    except Exception as error:
        if len(samples) > 1:
            half = len(samples) // 2
            return check(samples[:half], artifacts) + check(samples[half:], artifacts)
        return [Outcome(*described(error))]


def described(error: Exception) -> tuple[str, str]:
    if isinstance(error, ConversionError) and "bug in pt-convert" in (error.fix or ""):
        return "failed", f"{error.what} ({error.where})"
    if isinstance(error, ConversionError):
        operators = getattr(error, "operators", None)
        return "refused", "; ".join(row[0] for row in operators) if operators else error.what
    if isinstance(error, AssertionError) and str(error).startswith("artifact"):
        return "wrong", str(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    last = frames[-1]
    first_line = (str(error).strip().splitlines() or [""])[0]
    return "failed", f"{type(error).__name__}: {first_line} ({Path(last.filename).name}:{last.lineno})"


def compare(samples: Sequence[Sample], artifacts: bool) -> list[Outcome]:
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # a function traced for every group is meant
    module = Calls(samples).eval()
    inputs = inputs_of(samples)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = module(*(x.clone() for x in inputs))
    program = capture(module, inputs, fixed_batch=True)
    rewritten, _ = rewrite(program, REWRITES["tf"], inputs)
    plan = make_plan(rewritten)
    counts = [len(results) for results in own]
    outcomes = [Outcome("right")] * len(samples)
    flat = [r for results in own for r in results]
    single = program.run(*inputs)
    double = program.with_dtype(torch.float64).run(*in_float64(inputs))
    made = run(plan, inputs, "float64")
    at = 0
    for i, count in enumerate(counts):
        part = slice(at, at + count)
        at += count
        try:
            assert_same(list(map(array_of, single[part])), list(map(array_of, flat[part])), "captured", EXACT)
            assert_same(made[part], list(map(array_of, double[part])), "lowered", EXACT)
        except AssertionError as difference:
            outcomes[i] = Outcome("wrong", " ".join(str(difference).split())[:300])
    if artifacts and all(outcome.status == "right" for outcome in outcomes):
        for name, arrays in written(plan, inputs).items():
            at = 0
            for i, count in enumerate(counts):
                part = slice(at, at + count)
                at += count
                try:
                    single_arrays, exact = ([array_of(x) for x in results[part]] for results in (flat, double))
                    assert_float32_rounds_alike(arrays[part], single_arrays, exact, f"artifact {name}")
                except AssertionError as difference:
                    outcomes[i] = Outcome("wrong", " ".join(str(difference).split())[:300])
    return outcomes


def inputs_of(samples: Sequence[Sample]) -> list[Tensor]:
    return [torch.zeros(2), *(x.detach().contiguous() for sample in samples for x in sample.tensors)]


def run(plan: PlanBuilder, inputs: Sequence[Tensor], precision: str) -> list[np.ndarray]:
    from converter.lowering.executor import PlanExecutor

    given = in_float64(inputs) if precision == "float64" else inputs
    results = PlanExecutor(plan, precision)(*eager(plan, given))
    return to_torch(results, plan.outputs)


def eager(plan: PlanBuilder, inputs: Sequence[Tensor]) -> list:
    import tensorflow as tf

    return [tf.constant(x) for x in to_artifact(inputs, plan.inputs)]


def written(plan: PlanBuilder, inputs: Sequence[Tensor]) -> dict[str, list[np.ndarray]]:
    """The results of what is shipped: the traced function in float32, and the Keras file, opened again."""
    import tensorflow as tf
    from keras.saving import load_model

    from converter.lowering.executor import PlanExecutor

    names = [output.name for output in plan.outputs]
    arrays = eager(plan, inputs)
    lowered = PlanExecutor(plan, "float32").prepare()
    traced = tf.function(lowered.run_named, input_signature=lowered.signature(), autograph=False)(*arrays)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        PlanExecutor(plan, "float32", stock=True).keras_model().save(path)
        model = load_model(path)
    given = dict(zip([i.name for i in plan.inputs], arrays, strict=True))
    results = model(given if len(arrays) > 1 else arrays[0])
    opened = [results[name] for name in names] if len(names) > 1 else [results]
    return {
        "traced": to_torch([traced[name] for name in names], plan.outputs),
        "keras": to_torch(opened, plan.outputs),
    }


def conformance(info: Any, most: int | None = None, artifacts: int = 4) -> dict[str, Any]:
    """The operator's row of the table: how many samples are right, refused, wrong, and why.

    Args:
        most: samples of each type.
        artifacts: samples of each type whose written artifacts are compared, too.
    """
    name = ".".join(filter(None, (info.name, info.variant_test_name)))
    row: dict[str, Any] = {
        "name": name, "counts": {}, "reasons": [], "left_out": {}, "scope": rule_for(info), "written": 0, "targets": [],
    }  # fmt: skip
    if row["scope"]:
        return row
    judged = [(sample, out_of_scope(sample)) for sample in samples_of(info, most)]
    row["left_out"] = dict(Counter(rule for _, rule in judged if rule))
    samples = [sample for sample, rule in judged if not rule]
    if not samples:
        row["scope"] = next(iter(row["left_out"]), "no samples of these types")
        return row
    row["targets"] = targets_of(samples[0])
    outcomes: list[Outcome] = []
    for i in range(0, len(samples), TOGETHER):
        outcomes += check(samples[i : i + TOGETHER])
    chosen: list[int] = []
    for dtype in dict.fromkeys(sample.label.split()[0] for sample in samples):
        right = [i for i, s in enumerate(samples) if s.label.split()[0] == dtype and outcomes[i].status == "right"]
        chosen += right[:: max(1, -(-len(right) // artifacts))] if artifacts else []
    for i, outcome in zip(chosen, check([samples[i] for i in chosen], artifacts=True) if chosen else [], strict=True):
        outcomes[i] = outcome
    row["written"] = len(chosen)
    row["counts"] = dict(Counter(outcome.status for outcome in outcomes))
    found: dict[tuple[str, str], list[str]] = {}
    for sample, outcome in zip(samples, outcomes, strict=True):
        if outcome.status != "right":
            found.setdefault((outcome.status, outcome.reason), []).append(sample.label)
    row["reasons"] = [[*key, len(labels), labels[0]] for key, labels in found.items()]
    return row


def targets_of(sample: Sample) -> list[str]:
    """The ATen operators that a call is captured as; of one that capture refuses, what PyTorch makes of it."""
    module, inputs = Calls([sample]).eval(), inputs_of([sample])
    try:
        graph = capture(module, inputs, fixed_batch=True).graph
    except ConversionError:
        try:
            graph = torch.export.export(module, (*inputs,), strict=False).run_decompositions({}).graph
        except Exception:  # of what PyTorch cannot capture either, nothing is known
            return []
    return sorted({str(n.target) for n in graph.nodes if isinstance(n.target, OpOverload)})


def rule_for(info: Any) -> str:
    """Which rule leaves the whole operator out; "" where none does."""
    name = info.name
    if not set(DTYPES) & set(info.supported_dtypes("cpu")):
        return "complex"
    if name.startswith("jiterator_"):
        return "a GPU only"
    if name.startswith("fft.") or name in ("stft", "istft"):
        return "fourier transform"
    if any(part in name for part in GRADIENTS):
        return "gradient"
    if name.startswith("as_strided") and info.variant_test_name == "partial_views":
        return "memory outside of its tensor"
    if name.startswith(("empty", "new_empty")):
        return "uninitialized memory"
    packet = getattr(torch.ops.aten, info.aten_name, None)
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    if overloads and all(
        torch.Tag.nondeterministic_seeded in o.tags for o in overloads if "out" not in o._overloadname
    ):
        return "random"
    return ""
