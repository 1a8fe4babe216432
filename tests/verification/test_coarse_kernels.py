"""What ONNX Runtime's kernels are known to give, measured again, and that comparisons allow that and no more."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from equivalence import captured
from onnx import TensorProto, helper
from torch import nn

import converter
from converter.verification.coarse_kernels import ONNX_RUNTIME, SUMMING
from converter.verification.perturbation import run_perturbed

aten = torch.ops.aten
IDLE = 8  # a bound this far above what is measured has no reason
MAGNITUDES = np.logspace(-8, 1.9, 60)
# Of each row: the operator that ONNX Runtime runs, with its attributes.
KERNELS = {
    aten.sigmoid.default: ("Sigmoid", {}),
    aten.elu.default: ("Elu", {}),
    aten.celu.default: ("Celu", {}),
    aten.selu.default: ("Selu", {}),
    aten.hardsigmoid.default: ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    aten.hardswish.default: ("HardSwish", {}),
}
EXACT = {"Erf": torch.erf, "Tanh": torch.tanh, "Exp": torch.exp, "Mish": nn.functional.mish}


def measured(operator, attributes, function):
    """x, the errors of the kernel and what float64 gives."""
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    drawn = np.random.default_rng(0).uniform(0.7, 1.4, (len(MAGNITUDES), 2000))
    positive = (MAGNITUDES[:, None] * drawn).ravel()
    x = np.concatenate([positive, -positive]).astype(np.float32)
    wanted = function(torch.from_numpy(x).double())
    return torch.from_numpy(x), (torch.from_numpy(session.run(None, {"x": x})[0]).double() - wanted).abs(), wanted


@pytest.mark.parametrize("target", KERNELS, ids=str)
def test_a_kernel_is_as_exact_as_the_table_says(target):
    x, errors, wanted = measured(*KERNELS[target], target)
    relative = 8 * torch.finfo(torch.float32).eps * wanted.abs()
    beyond = (errors - relative).clamp(min=0)
    bound = ONNX_RUNTIME[target].error(x).double()
    assert (beyond <= bound).all()
    assert (IDLE * beyond.max()) >= bound[beyond.argmax()]


@pytest.mark.parametrize("operator", EXACT)
def test_a_kernel_that_is_not_listed_is_exact_relatively(operator):
    _, errors, wanted = measured(operator, {}, EXACT[operator])
    normal = (wanted.abs() > 1e-20) & (wanted.abs() < torch.finfo(torch.float32).max)
    assert (errors[normal] <= 8 * torch.finfo(torch.float32).eps * wanted[normal].abs()).all()


def test_what_a_kernel_may_be_off_by_passes_through_the_operators_behind():
    program = captured(lambda x: 1000 * torch.sigmoid(x - 12), (4, 5))
    x = torch.randn(4, 5)
    (exact,) = program.run(x)
    plain = [abs(run[0] - exact).max().item() for run in run_perturbed(program, [x], torch.float32, 0)]
    coarse = [
        abs(run[0] - exact).max().item()
        for run in run_perturbed(
            program, [x], torch.float32, 0, {aten.sigmoid.default: ONNX_RUNTIME[aten.sigmoid.default]}
        )
    ]
    assert max(plain) < 1e-6 < 3e-5 < min(coarse) < 6e-5


class Tail(nn.Sequential):
    def __init__(self, activation, bias=-8.0):
        super().__init__(nn.Conv2d(3, 2, 3), activation)
        nn.init.constant_(self[0].bias, bias)


class Scaled(nn.Module):
    def forward(self, x):
        return torch.sigmoid(x).mean((2, 3)) * 300 - 0.02


TAILS = {"sigmoid": nn.Sigmoid(), "SiLU": nn.SiLU(), "GLU": nn.GLU(1), "scaled": Scaled()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    model = Tail(nn.Sigmoid()).eval()
    path = tmp_path_factory.mktemp("tail") / "tail.onnx"
    report = converter.convert(model, to=["onnx"], output=path, input_shapes=["1,3,16,16"])
    assert report.status == "verified"
    return model, path


@pytest.mark.slow
@pytest.mark.parametrize("activation", TAILS.values(), ids=TAILS)
def test_a_tail_is_verified(tmp_path, activation):
    torch.manual_seed(0)
    report = converter.convert(
        Tail(activation).eval(), to=["onnx"], output=tmp_path / "tail.onnx", input_shapes=["1,3,16,16"]
    )
    assert report.status == "verified", [proof.failures for proof in report.artifacts[0].proofs]


def changed(path, to, change, *, stamped=False):
    """The same file with other weights, as of another tool or as written."""
    model = onnx.load(path)
    if not stamped:
        del model.metadata_props[:]
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(change(array).astype(np.float32), tensor.name))
    onnx.save(model, to)
    return to


@pytest.mark.slow
def test_a_foreign_file_is_verified_too(written, tmp_path):
    model, path = written
    foreign = changed(path, tmp_path / "foreign.onnx", lambda array: array)
    assert converter.verify(model, foreign, input_shapes=["1,3,16,16"]).status == "verified"


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda a: a * (1 + 1e-4), lambda a: a + 1e-5], ids=["factor", "offset"])
def test_a_small_fault_in_the_weights_of_a_tail_is_caught(written, tmp_path, change):
    model, path = written
    report = converter.verify(model, changed(path, tmp_path / "foreign.onnx", change), input_shapes=["1,3,16,16"])
    assert report.status == "disagrees"
    assert any("--atol" in failure for failure in report.proofs[0].failures)


@pytest.mark.slow
def test_a_factor_below_what_the_kernel_resolves_is_caught_in_a_file_of_pt_convert(written, tmp_path):
    """It changes a sigmoid by 2e-6 at most, which is float32 rounding of the scale."""
    model, path = written
    ours = changed(path, tmp_path / "ours.onnx", lambda array: array * (1 + 1e-5), stamped=True)
    report = converter.verify(model, ours, input_shapes=["1,3,16,16"])
    assert report.status == "disagrees"
    assert [proof.name for proof in report.proofs if not proof.holds] == ["weights"]


@pytest.mark.slow
def test_the_module_behind_a_tail_is_named_where_it_is_at_fault(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(Tail(nn.Sigmoid()), nn.Conv2d(2, 4, 3)).eval()
    path = tmp_path / "net.onnx"
    assert converter.convert(model, to=["onnx"], output=path, input_shapes=["1,3,16,16"]).status == "verified"
    foreign = changed(path, path, lambda array: array * 1.01 if array.shape == (4, 2, 3, 3) else array)
    (proof,) = converter.verify(model, foreign, input_shapes=["1,3,16,16"]).proofs
    assert proof.first_difference == "1"


class ByHand(nn.Module):
    def forward(self, x):
        return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-3)


SUMS = {  # over all of a large image
    "moments by hand": (nn.ReLU(), ByHand(), nn.Conv2d(4, 2, 1)),
    "a global pool": (nn.AdaptiveAvgPool2d(1),),
    "an instance norm behind a ReLU": (nn.ReLU(), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 2, 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SUMS)
def test_sums_of_many_numbers_in_turn_are_no_fault_and_a_weight_off_by_a_hundredth_is(tmp_path, case):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *copy.deepcopy(SUMS[case])).eval()
    shape = ["1,3,256,256"]
    report = converter.convert(model, to=["onnx", "tf"], output=tmp_path, input_shapes=shape)
    assert report.status == "verified", [artifact.proofs[1].failures for artifact in report.artifacts]
    path = report.artifacts["onnx"].path
    off = changed(path, tmp_path / "off.onnx", lambda a: a * np.where(np.arange(a.size) == 0, 1.01, 1).reshape(a.shape))
    assert converter.verify(model, off, input_shapes=shape).status == "disagrees"


def test_what_is_added_in_turn_is_off_by_what_adding_in_turn_gives():
    alike = torch.full((1, 1, 200_000), 0.1)
    (of_alike, of_spread) = (SUMMING[aten.mean.dim].error(x, [2]).item() for x in (alike, torch.randn(1, 1, 200_000)))
    actual = abs(np.add.accumulate(alike.numpy().ravel(), dtype=np.float32)[-1] / 200_000 - 0.1)
    assert of_alike == pytest.approx(actual, rel=1e-3)
    assert of_alike > 1e-4
    assert 1e-6 < of_spread < 3e-5
    assert SUMMING[aten.instance_norm.default].error(
        torch.randn(1, 2, 100), None, None, None, None, True, 0.1, 1e-5, False
    ).max() < 1e-5  # fmt: skip


CALLS = {
    "a pool without a batch": (aten.adaptive_avg_pool2d.default, (torch.randn(3, 8, 8), [1, 1])),
    "a pool to several places": (aten.adaptive_avg_pool1d.default, (torch.randn(2, 3, 12), [4])),
    "a pool with one size for two axes": (aten.avg_pool2d.default, (torch.randn(3, 8, 8), [4])),
    "a mean of all": (aten.mean.default, (torch.randn(4, 5),)),
    "a sum of nothing": (aten.sum.dim_IntList, (torch.randn(4, 0), [1])),
    "a sum from the end": (aten.sum.dim_IntList, (torch.randn(4, 5, 6), [-1, 0], True)),
    "a variance of all": (aten.var.correction, (torch.randn(4, 5),)),
    "a deviation by its bias": (aten.std.dim, (torch.randn(4, 5), [1], False, True)),
    "logsumexp": (aten.logsumexp.default, (torch.randn(4, 5), [1])),
    "softmax": (aten.softmax.int, (torch.randn(4, 5), 1)),
    "a norm of vectors": (aten.linalg_vector_norm.default, (torch.randn(4, 5), 2, [1])),
    "a group norm": (aten.group_norm.default, (torch.randn(2, 4, 5), 2, torch.randn(4), None)),
    "a layer norm": (aten.layer_norm.default, (torch.randn(2, 4, 5), [4, 5], torch.randn(4, 5))),
    "a batch norm": (
        aten.batch_norm.default, (torch.randn(2, 4), torch.randn(4), None, None, None, True, 0.1, 1e-5, False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("target, arguments", CALLS.values(), ids=CALLS)
def test_the_error_of_a_sum_has_the_shape_of_its_result_and_is_small(target, arguments):
    result, error = target(*arguments), SUMMING[target].error(*arguments)
    assert torch.broadcast_shapes(error.shape, result.shape) == result.shape
    assert ((error >= 0) & (error < 1e-5)).all()
