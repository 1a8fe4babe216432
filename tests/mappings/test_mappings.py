"""Every mapping against PyTorch: in float64 to rounding, in float32 as closely as PyTorch itself rounds.

A row is named by what it would catch. No two axes of a shape have the same size, except where a row says so.
"""

import ast
import functools
import operator
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from cases import FAMILIES, attention, conv, elementwise, layers
from cases.common import IMAGE, aten, ours
from equivalence import (
    Call,
    assert_float32_rounds_alike,
    assert_plan_is_exact,
    assert_same,
    captured,
    examples,
    in_float64,
    planned,
    run_in_float64,
    to_artifact,
    to_torch,
)
from keras.saving import load_model
from torch import nn
from torch.export import Dim

import mappings
from converter.artifacts.runtime.graph_ops import count_operators
from converter.capture.import_exported import from_exported
from converter.errors import UnsupportedOperatorsError
from converter.ir.program import Program
from converter.lowering.executor import PlanExecutor
from converter.lowering.planner import make_plan
from converter.plan import dynamic_reshape, lazy_keras
from converter.plan.registry import BUILT_IN
from converter.rewrites.pipelines import REWRITES
from converter.verification.checked_rewrite import rewrite

# Capture leaves none of these; they are put into a program by hand.
BY_HAND = {
    "reshape": (aten.reshape.default, [-1, 54, 8]),
    "flatten": (aten.flatten.using_ints, 1, 2),
    "unflatten": (aten.unflatten.int, 1, [2, 3]),
    "chunk": (aten.chunk.default, 4, 1),
    "contiguous": (aten.contiguous.default,),
    "alias": (aten.alias.default,),
    "view": (aten.view.default, [-1, 54, 8]),
    "view of fresh memory": (aten._unsafe_view.default, [-1, 54, 8]),
    "lift_fresh_copy": (aten.lift_fresh_copy.default,),
    "to another type": (aten.to.dtype, torch.int32),
    "shift": (ours.shift.default, 1, [1, 3, 2], [2, 3], [1, 0, -2, 3, 0, 0], "replicate"),
    "upsample to a size": (aten.upsample_nearest2d.default, [18, 16]),
}


CASES = {row: case for family in FAMILIES.values() for row, case in family.items()}
EVERY = CASES | BY_HAND
ROWS = [
    pytest.param(row, id=row, marks=pytest.mark.family(name))
    for name, family in (*FAMILIES.items(), ("put in by hand", BY_HAND))
    for row in family
]
# Only these may differ between a Keras model and a traced function: by their layers or their bare parameters.
TRACED = conv.CONVOLUTIONS | layers.LAYERS | elementwise.ELEMENTWISE | attention.ATTENTION
BATCHES = (2, 3)


@functools.cache
def program_of(case: str) -> Program:
    if case in BY_HAND:
        return by_hand(*BY_HAND[case])
    module, *inputs = EVERY[case]
    return captured(module, *inputs)


def inputs_of(case: str) -> list:
    return [IMAGE] if case in BY_HAND else EVERY[case][1:]


def by_hand(target, *arguments) -> Program:
    """A program of one operator on an image."""
    program = captured(lambda x: x + 1, IMAGE)
    output, (result,) = program.graph.output_node(), program.results
    with program.graph.inserting_before(output):
        made = program.insert_call(target, (result, *arguments), result)
        parts = [made]
        if isinstance(made.meta["val"], list):
            parts = [program.insert_call(operator.getitem, (made, i), result) for i in range(len(made.meta["val"]))]
    output.args = (tuple(parts),)
    program.outputs = [f"output_{i}" for i in range(len(parts))]
    program.cleanup()
    return program


@pytest.mark.parametrize("case", ROWS)
def test_is_exact_in_float64(case):
    assert_plan_is_exact(program_of(case), inputs_of(case), "auto", "nhwc", "nchw")


@pytest.mark.parametrize("case", ROWS)
def test_rounds_as_pytorch_does_in_float32(case, tmp_path):
    """As a Keras model, and bit for bit as that model saved and opened again by Keras alone."""
    program, inputs = program_of(case), inputs_of(case)
    plan = planned(program)
    model = PlanExecutor(plan, stock=True).keras_model()
    model.save(tmp_path / "model.keras")
    reopened = load_model(tmp_path / "model.keras")
    names = [output.name for output in plan.outputs]

    def results(model, arrays):
        given = dict(zip((i.name for i in plan.inputs), arrays, strict=True))
        got = model(given if len(given) > 1 else arrays[0], training=False)
        return to_torch([got[n] for n in names] if len(names) > 1 else [got], plan.outputs)

    for batch, tensors, *expected in references(program, inputs):
        arrays = to_artifact(tensors, plan.inputs)
        kept = results(model, arrays)
        assert_float32_rounds_alike(kept, *expected, f"Keras model, batch {batch}")
        assert_same(results(reopened, arrays), kept, f"Keras file, batch {batch}", bound=0)


@pytest.mark.parametrize("case", TRACED)
def test_traced_function_rounds_as_pytorch_does_in_float32(case):
    """Its grouped convolutions are TensorFlow's own, its bare parameters variables, its products of two axes."""
    program, inputs = program_of(case), inputs_of(case)
    plan = planned(program, stock=False)
    native = PlanExecutor(plan).prepare()
    traced = tf.function(native.run_named, input_signature=native.signature(), autograph=False)
    for batch, tensors, *expected in references(program, inputs):
        named = traced(*map(tf.constant, to_artifact(tensors, plan.inputs)))
        results = to_torch([named[output.name] for output in plan.outputs], plan.outputs)
        assert_float32_rounds_alike(results, *expected, f"traced function, batch {batch}")


class Block(nn.Module):
    """The second half of a transformer's block, on windows of an image."""

    def __init__(self, activation):
        super().__init__()
        self.norm, self.widen, self.narrow = nn.LayerNorm(6), nn.Linear(6, 24), nn.Linear(24, 6)
        self.activation = activation

    def forward(self, x):
        return x + self.narrow(self.activation(self.widen(self.norm(x))))


@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU(), nn.GELU("tanh")], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 4, 5, 6)], ids=str)
def test_nothing_is_between_a_product_and_its_activation(shape, activation):
    """TensorFlow computes both at once if the product has two axes and no reshape follows it."""
    program = captured(Block(activation), shape)
    plan = planned(program, stock=False)
    raised, (x,) = program.with_dtype(torch.float64), examples([shape])
    assert_same(run_in_float64(plan, [x])[0], raised.run(x.double()), "float64")
    graph = PlanExecutor(plan).traced.graph
    operators = count_operators(graph)
    assert operators["MatMul"] == operators["BiasAdd"] == 2
    assert "Einsum" not in operators
    first = next(o for o in graph.get_operations() if o.type == "BiasAdd")
    assert {o.type for o in first.outputs[0].consumers()} <= {"Mul", "AddV2", "Relu"}


def test_rows_of_two_dynamic_sizes_stay_apart():
    """One reshape can restore one dynamic size only."""
    sizes = ({0: Dim("batch", min=1), 1: Dim("time", min=1, max=64)},)
    program = from_exported(torch.export.export(Block(nn.GELU()), (torch.randn(2, 5, 6),), dynamic_shapes=sizes))
    x = torch.randn(3, 7, 6)
    lowered = PlanExecutor(planned(program, stock=False))
    assert_float32_rounds_alike(
        lowered(tf.constant(x.numpy())), program.run(x), program.with_dtype(torch.float64).run(x.double()), "Block"
    )
    assert not lowered.plan.movements


CONSTANT_ROWS = {"last axis": (nn.LayerNorm(6), (2, 5, 6)), "two axes": (nn.LayerNorm((5, 6)), (2, 5, 6))}


@pytest.mark.parametrize("case", CONSTANT_ROWS)
@pytest.mark.parametrize("number", [0.1, 1e4, 3e-20])
def test_layer_norm_of_constant_rows_is_its_offset(case, number):
    module, shape = CONSTANT_ROWS[case]
    program = captured(module, shape)
    lowered = PlanExecutor(planned(program, stock=False))
    (result,) = lowered(tf.fill(shape, tf.constant(number)))
    (expected,) = program.run(torch.full(shape, number))
    assert_same([np.asarray(result)], [expected], "constant rows", bound=1e-6)


DILATED = {
    "2-D": (lambda: nn.Conv2d(6, 4, 3, dilation=(2, 3)), IMAGE),
    "2-D, same": (lambda: nn.Conv2d(6, 4, 3, dilation=2, padding="same"), IMAGE),
    "2-D, in groups": (lambda: nn.Conv2d(6, 4, 3, dilation=2, groups=2), IMAGE),
    "2-D, depthwise with a multiplier": (lambda: nn.Conv2d(6, 12, 3, dilation=2, groups=6, padding=2), IMAGE),
    "2-D, depthwise, then 1x1": (
        lambda: nn.Sequential(nn.Conv2d(6, 6, 3, dilation=2, groups=6, bias=False), nn.Conv2d(6, 4, 1)), IMAGE,
    ),
    "2-D, strided": (lambda: nn.Conv2d(6, 4, 3, 2, dilation=2), IMAGE),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, dilation=2), IMAGE),
    "1-D": (lambda: nn.Conv1d(6, 4, 3, dilation=2, padding=2), (2, 6, 9)),
    "1-D, depthwise": (lambda: nn.Conv1d(6, 6, 3, dilation=3, groups=6), (2, 6, 9)),
}  # fmt: skip


@pytest.mark.parametrize("case", DILATED)
def test_dilated_convolutions_are_tensorflows_own_with_their_gradient(case):
    build, shape = DILATED[case]
    x = examples([shape])
    program = captured(build(), shape)
    rewritten, _ = rewrite(program, REWRITES["tf"], x)
    plan = make_plan(rewritten)
    raised = program.with_dtype(torch.float64)
    assert_same(run_in_float64(plan, x)[0], raised.run(*in_float64(x)), "float64")
    lowered = PlanExecutor(plan)
    operators = count_operators(lowered.traced.graph)
    assert operators["Conv2D"] >= 1
    assert not {"SpaceToBatchND", "BatchToSpaceND", "DepthwiseConv2dNative"} & operators.keys()
    (array,) = map(tf.constant, to_artifact(x, plan.inputs))
    with tf.GradientTape() as tape:
        tape.watch(array)
        (result,) = lowered(array)
        total = tf.reduce_sum(result**2)
    gradients = []
    for of, given in ((program, x[0].clone()), (raised, x[0].double())):
        given.requires_grad_()
        (y,) = of.graph_module(given)
        gradients.append(torch.autograd.grad((y**2).sum(), given)[0])
    made = to_torch([tape.gradient(total, array)], plan.inputs)
    assert_float32_rounds_alike(made, *([gradient] for gradient in gradients), "gradient")


def references(program: Program, inputs):
    """Batch, inputs, and PyTorch's results in float32 and float64."""
    raised = program.with_dtype(torch.float64)
    for batch in BATCHES:
        tensors = examples(inputs, batch)
        yield batch, tensors, program.run(*tensors), raised.run(*in_float64(tensors))


@pytest.mark.parametrize(
    "module, shape",
    [
        pytest.param(Call(lambda x: x[x > 0]), IMAGE, id="an index by a mask"),
        pytest.param(Call(lambda x: F.conv2d(x, x.mean(0)[None, :, :2, :3])), IMAGE, id="a kernel made of the input"),
    ],
)
def test_refuses_by_name(module, shape):
    """What Keras would compute otherwise is an error that names the operator, not another function."""
    program = captured(module, shape)
    with pytest.raises(UnsupportedOperatorsError) as raised:
        make_plan(program)
    assert [count for _, count, *_ in raised.value.operators] == [1]


@pytest.mark.slow
def test_every_operator_with_a_mapping_has_a_row():
    mapped = mappings.load().having("lowering").keys()
    met = {case: targets(program_of(case)) for case in EVERY}
    written_out = [case for case in EVERY if met[case] - mapped]
    met |= {f"{case}, written out": targets(planned(program_of(case)).program) for case in written_out}
    missing = mapped - set().union(*met.values())
    assert not missing, "\n".join(sorted(map(str, missing)))


@pytest.mark.slow
def test_every_decomposition_of_ours_has_a_row():
    missing = mappings.load().having("decomposition").keys() - set().union(
        *(targets(program_of(case)) for case in EVERY)
    )
    assert not missing, "\n".join(sorted(map(str, missing)))


def test_operators_named_by_a_string_are_those_that_some_pytorch_lacks():
    assert {"aten::cholesky", "torchvision::deform_conv2d"} >= mappings.load().absent


def test_keras_has_all_that_mappings_name():
    """A wrong name would be found where a plan is carried out only, as Keras is not imported before."""
    modules = {name: module for name, module in vars(lazy_keras).items() if isinstance(module, lazy_keras.LazyModule)}
    named = {
        (node.value.id, node.attr)
        for file in (*Path(mappings.__file__).parent.glob("*.py"), Path(dynamic_reshape.__file__))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    assert {module for module, _ in named} == set(modules)
    for module, name in named:
        assert callable(getattr(modules[module], name).resolve())


@pytest.mark.parametrize("broken", ["mappings.activations", "mappings.linalg", "mappings.unfold"])
def test_failed_import_registers_nothing_and_is_repeated_or_succeeds(broken):
    registered = dict(mappings.load().records)
    families = {name: module for name, module in sys.modules.items() if name.startswith("mappings.")}
    try:
        for name in families:
            del sys.modules[name]
        BUILT_IN.records.clear()
        sys.modules[broken] = None  # which Python refuses to import
        for _ in range(2):
            with pytest.raises(ImportError, match=broken):
                mappings.load()
            assert not BUILT_IN.records
        del sys.modules[broken]
        assert mappings.load().records.keys() == registered.keys()
    finally:
        sys.modules.update(families)
        BUILT_IN.records.clear()
        BUILT_IN.records.update(registered)


def targets(program: Program) -> set:
    return {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}


@pytest.mark.parametrize(
    "case, weights",
    [
        ("prelu with slopes for several ranks", 1),
        ("prelu with one slope for several ranks", 1),
        ("group norm of sequences, features and volumes", 2),
    ],
)
def test_a_layer_met_at_several_ranks_has_its_weights_once(case, weights):
    assert len(PlanExecutor(planned(program_of(case)), stock=True).prepare().tensors) <= weights


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, native",
    [("bilinear up, down and both", True), ("bilinear with aligned corners", False), ("bicubic, antialiased", False)],
)
def test_images_are_resized_by_tensorflow_where_that_is_the_same_function(case, native):
    plan = planned(program_of(case))
    lowered = PlanExecutor(plan).prepare()
    traced = tf.function(
        lowered.run_named, input_signature=lowered.signature(), autograph=False
    ).get_concrete_function()
    assert any(op.type == "ResizeBilinear" for op in traced.graph.get_operations()) == native
    assert not plan.movements
