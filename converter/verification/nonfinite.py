"""Compare an artifact with PyTorch on inputs that hold NaN and infinities, which runtimes treat differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from converter.capture.input_domains import dynamic_size_choices, input_specs
from converter.capture.random_inputs import draw
from converter.errors import ConversionError, Note
from converter.ir.program import Program, module_path
from converter.verification.metrics import classes_of, plain
from converter.verification.output_proofs import Outputs

aten = torch.ops.aten
# Operators that compare values: some runtimes drop a NaN there, which PyTorch passes on.
COMPARING = {
    aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices,
    aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d, aten.amax, aten.amin, aten.max,
    aten.min, aten.maximum, aten.minimum, aten.topk, aten.sort, aten.argsort, aten.argmax, aten.argmin, aten.softmax,
    aten._softmax, aten.log_softmax, aten._log_softmax, aten.searchsorted, aten.bucketize, aten.clamp, aten.clamp_min,
    aten.clamp_max, aten.relu, aten.relu6, aten.hardtanh, aten.hardsigmoid, aten.hardswish, aten.cummax, aten.median,
    aten.scaled_dot_product_attention, aten.leaky_relu, aten.threshold, aten.sign,
}  # fmt: skip
# LAPACK's routines for these end the process on a NaN.
FATAL = {aten.linalg_eig, aten.linalg_eigvals, aten._linalg_eigvals}


@dataclass(frozen=True)
class NonFinite:
    """One round of inputs with NaN and infinities, and PyTorch's results.

    Attributes:
        reached: the module and operator of each comparison of values that a NaN reaches.
    """

    arrays: Mapping[str, np.ndarray]
    expected: Outputs
    reached: tuple[str, ...]

    def differences(self, run: Callable[[Mapping[str, np.ndarray]], Outputs], artifact: str) -> list[Note]:
        """Return a note on the outputs in which an artifact has a number where PyTorch has NaN, or the other way.

        Args:
            run: returns the artifact's outputs on inputs in PyTorch's layout.
        """
        try:
            found = run(self.arrays)
            names = [name for name, expected in self.expected.items() if not _same(expected, found[name])]
            how = f": {', '.join(f'`{name}`' for name in names)}"
        except ConversionError as error:
            names, how = list(self.expected), f": it fails ({error.what})"
        if not names:
            return []
        passed = f" PyTorch passes NaN on at {', '.join(self.reached[:3])}." if self.reached else ""
        text = f"The {artifact} artifact differs on NaN or infinities in the inputs{how}.{passed}"
        return [Note(text, code="PTC5508")]


def nonfinite_inputs(program: Program, seed: int) -> NonFinite | None:
    """Return PyTorch's results on inputs that hold NaN and infinities; None without floats, or if PyTorch fails."""
    if any(getattr(node.target, "overloadpacket", None) in FATAL for node in program.graph.nodes):
        return None
    arrays = draw(input_specs(program), 2, (seed, 1000), next(iter(dynamic_size_choices(program)), {}))
    rng = np.random.default_rng((seed, 1000))
    floats = [array for array in arrays.values() if array.dtype.kind == "f" and array.size]
    for array in floats:
        samples = array.reshape(len(array) if array.ndim else 1, -1)
        for number, sample in enumerate(samples):
            places = rng.choice(sample.size, min(2, sample.size), replace=False)
            sample[places] = [np.nan, np.nan][: len(places)] if number % 2 == 0 else [np.inf, -np.inf][: len(places)]
    if not floats:
        return None
    reached, results = [], {}
    wanted = set(program.results)
    operands: dict[torch.fx.Node, bool] = {}
    try:
        for node, value in program.walk([torch.from_numpy(np.ascontiguousarray(arrays[n])) for n in program.inputs]):
            operands[node] = _holds_nan(value)
            packet = getattr(node.target, "overloadpacket", None)
            if packet in COMPARING and any(operands[n] for n in node.all_input_nodes):
                reached.append(f"`{module_path(node) or node.name}` ({packet.__name__})")
            if node in wanted:
                results[node] = value.numpy()
    except (RuntimeError, IndexError, ValueError):
        return None
    named = dict(zip(program.outputs, (results[node] for node in program.results), strict=True))
    return NonFinite(arrays, named, tuple(dict.fromkeys(reached)))


def _holds_nan(value: object) -> bool:
    if isinstance(value, Sequence):
        return any(map(_holds_nan, value))
    return isinstance(value, torch.Tensor) and value.is_floating_point() and bool(value.isnan().any())


def _same(expected: np.ndarray, found: np.ndarray) -> bool:
    expected, found = plain(expected), plain(found)
    if expected.shape != found.shape:
        return False
    if expected.dtype.kind not in "fc":
        return bool((expected == found).all())
    return bool((classes_of(expected) == classes_of(found)).all())
