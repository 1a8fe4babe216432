"""Every system in every format: the network is the same function, and its movement moves elements exactly.

The SavedModel's rows run by default; all formats with -m systems.
"""

import numpy as np
import pytest
import torch
from equivalence import ROUNDING, examples, in_float64, run_in_float64
from systems_in_formats import in_format, movement_alone, program_of, rewritten
from torchvision_for_tests import load_torchvision

from converter.errors import UnsupportedOperatorsError
from converter.lowering.planner import make_plan
from converter.options import CaptureOptions
from sample_models.systems import SYSTEMS, System

ROWS = [
    pytest.param(system, format, id=f"{system.title}, {format}", marks=[] if format == "tf" else pytest.mark.systems)
    for system in SYSTEMS
    for format in ("tf", "keras", "onnx", "torch")
]
LEARNED_OFFSETS = ("Active Shift", "Deformable ConvNets v1", "Deformable ConvNets v2")
NEEDS_TORCHVISION = {system.title for system in SYSTEMS if system.name in LEARNED_OFFSETS}
ROUNDS = {"grid_sample, bilinear"}  # itself rounds


@pytest.fixture(autouse=True)
def _operators(torchvision):
    """deform_conv2d is torchvision's."""


def differences(system: System, format: str, path) -> tuple[float, float, dict[str, int]]:
    """The largest difference from PyTorch in float64 in units of the bound, of the movement, and what moves."""
    load_torchvision()
    program = program_of(system.build(), system.shapes, how=CaptureOptions(accept=system.accept))
    inputs = examples([(2, *shape[1:]) for shape in system.shapes])
    changed = rewritten(program, format, inputs, system.exact_shifts)
    expected = program.with_dtype(torch.float64).run(*in_float64(inputs))
    if format in ("tf", "keras"):
        (exact,) = run_in_float64(make_plan(changed), inputs)
        assert all(np.abs(a - e.numpy()).max() <= 1e-12 * e.abs().max() for a, e in zip(exact, expected, strict=True))
    run, moves = in_format(changed, format, inputs, path / "network.onnx")
    single = program.with_dtype(torch.float32).run(*inputs)
    worst = 0.0
    for actual, one, double in zip(run(inputs), single, expected, strict=True):
        own = max(float((one - double).abs().max()), 4 * np.finfo(np.float32).eps * float(double.abs().max()))
        worst = max(worst, float(np.abs(actual - double.numpy()).max()) / own)
    return worst, moved_by(system, format, path), moves


def moved_by(system: System, format: str, path) -> float:
    """The largest difference of the movement alone in float32."""
    if system.movement is None:
        return 0.0
    program, x, expected = movement_alone(system)
    run, _ = in_format(rewritten(program, format, [x], system.exact_shifts), format, [x], path / "movement.onnx")
    return float(np.abs(run([x])[0] - expected).max())


@pytest.mark.parametrize("system, format", ROWS)
def test_system_is_the_same_function_and_its_movement_exact(system, format, tmp_path):
    if format == "torch" and system.title in NEEDS_TORCHVISION:  # a written module needs PyTorch only
        with pytest.raises(UnsupportedOperatorsError, match="deform_conv2d"):
            differences(system, format, tmp_path)
        return
    worst, moved, _ = differences(system, format, tmp_path)
    assert worst <= ROUNDING
    assert moved == 0 or (system.spelling in ROUNDS and moved < 1e-5)
