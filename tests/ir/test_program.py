"""`Program.verify` holds for what capture and rewrites give, and names the step and the node where it does not."""

import operator

import pytest
import torch
from equivalence import Call, captured, planned
from torch import nn

from converter.errors import ConversionError
from converter.ir.program import Program
from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model
from converter.rewrites.base import Change
from converter.rewrites.pipelines import REWRITES
from converter.rewrites.run import apply_rewrites

aten, ours = torch.ops.aten, torch.ops.converter
IMAGE = (2, 6, 8, 7)
MODEL = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU())


def relu_of(program):
    return program.graph.find_nodes(op="call_function", target=aten.relu.default)[0]


def without_metadata(program):
    with program.graph.inserting_after(relu_of(program)):
        added = program.graph.call_function(aten.sigmoid.default, (relu_of(program),))
    program.graph.output_node().args = ((added,),)


def of_another_shape(program):
    relu_of(program).meta["val"] = relu_of(program).meta["val"][:, :, 1:]


def of_another_batch(program):
    node = relu_of(program)
    node.meta["val"] = node.meta["val"].new_empty(2, *node.meta["val"].shape[1:])


def of_another_type(program):
    relu_of(program).target = aten.isnan.default


def with_an_operator_that_writes(program):
    relu_of(program).target = aten.relu_.default


def with_an_operator_of_another_stage(program):
    node = relu_of(program)
    node.target, node.args = ours.dropout.default, (*node.args, 0.5)


def with_a_function_of_python(program):
    node = relu_of(program)
    node.target, node.args = operator.mul, (*node.args, 2)


def with_a_tensor_of_no_origin(program):
    del program.origins["0.weight"]


def with_a_tensor_of_another_shape(program):
    program.graph_module.get_submodule("0").weight = nn.Parameter(torch.zeros(4, 6, 1, 3))


def with_another_name(program):
    program.outputs[:] = ["another"]


def with_another_result(program):
    program.graph.output_node().args = (tuple(program.placeholders),)


def with_more_results_than_names(program):
    program.graph.output_node().args = ((relu_of(program), relu_of(program)),)


FAULTS = {
    without_metadata: "has no metadata",
    of_another_shape: r"has metadata of torch.float32 \(3, 4, 5, 5\), not torch.float32 \(3, 4, 6, 5\)",
    of_another_batch: r"has metadata of torch.float32 \(2, 4, 6, 5\), not torch.float32 \(3, 4, 6, 5\)",
    of_another_type: "has metadata of torch.float32 .*, not torch.bool",
    with_an_operator_that_writes: "has an effect",
    with_an_operator_of_another_stage: "is not an operator of this stage",
    with_a_function_of_python: "is not an ATen operator",
    with_a_tensor_of_no_origin: "has no origin",
    with_a_tensor_of_another_shape: "has metadata of torch.float32 .*, not torch.float32 .*4, 6, 1, 3",
    with_another_name: "has other names than",
    with_another_result: "changes `output`",
    with_more_results_than_names: "does not match the names",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_the_rewrite_the_node_and_its_line(fault):
    def rewrite(program):
        fault(program)
        return [Change(fault.__name__, "")]

    rewrite.__name__ = fault.__name__
    with pytest.raises(ConversionError, match=FAULTS[fault]) as raised:
        apply_rewrites(captured(MODEL, IMAGE), [rewrite])
    assert f"The rewrite `{fault.__name__}`" in raised.value.what
    assert raised.value.fix
    if "stage" in FAULTS[fault] or "effect" in FAULTS[fault]:
        assert raised.value.where.startswith("module `1`, ")
        assert "F.relu" in raised.value.where


@pytest.mark.parametrize("debug", [False, True])
def test_programs_of_users_are_verified_with_debug_only(debug, monkeypatch):
    steps = []
    monkeypatch.setattr(Program, "__init__", vars(Program)["__init__"].func)  # conftest.py sets debug
    monkeypatch.setattr(Program, "verify", lambda self, after, *rest: steps.append(after))
    options = LoadOptions.of(input_shapes="1,6,8,7", debug=debug)
    program = load_model(
        nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)).eval(), options, clock=Clock(None)
    ).program
    apply_rewrites(program, REWRITES["tf"])
    assert steps == (["Capture", "The rewrite `fold_batch_norm`"] if debug else [])


def test_sizes_that_depend_on_values_are_not_run():
    captured(Call(lambda x: x[x > 0].sum().reshape(1)), (2, 3)).verify("Capture")


@pytest.mark.slow
def test_a_program_is_verified_after_its_operators_are_decomposed(monkeypatch):
    """Constants of float64 in a decomposition are of float64 in the program too."""
    steps = []
    verify = Program.verify
    monkeypatch.setattr(Program, "verify", lambda self, after, *rest: (steps.append(after), verify(self, after, *rest)))
    planned(captured(Call(lambda x: torch.linalg.matrix_rank(x[0, :, :3] @ x[0, :, :3].mT)), (2, 6, 5, 4)))
    assert "The decomposition of operators" in steps
