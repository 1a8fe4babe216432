"""Arguments of operators by the names of their schemas."""

import operator
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from equivalence import Call, captured, examples
from torch import fx
from torch._ops import OpOverload

from converter.capture.import_exported import from_exported
from converter.ir.aten import (
    _UNTAGGED_POINTWISE,
    bound_arguments,
    canonicalize_arguments,
    draws,
    first_input,
    has_effects,
    has_tag,
    is_pointwise,
    is_view,
    may_draw,
    read_item,
    set_arguments,
)

aten = torch.ops.aten
IMAGE = (2, 6, 9, 8)


def call(target, *args, **kwargs) -> fx.Node:
    """Return a call in a new graph; every "x" among the arguments becomes an input."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    swap = lambda values: [x if isinstance(v, str) and v == "x" else v for v in values]  # noqa: E731
    return graph.call_function(target, tuple(swap(args)), dict(zip(kwargs, swap(kwargs.values()), strict=True)))


def shown(node: fx.Node) -> tuple:
    name = lambda n: n.name  # noqa: E731
    return fx.node.map_arg((node.args, node.kwargs), name)


CANONICAL = {
    "defaults at the end": (
        call(aten.conv2d.default, "x", "x", None, [2, 2], [0, 0], [1, 1], 1), (("x", "x", None, [2, 2]), {}),
    ),
    "a default before another argument": (call(aten.slice.Tensor, "x", 0, None, 3), (("x", 0, None, 3), {})),
    "keywords that may be positional": (
        call(aten.conv2d.default, input="x", weight="x", groups=2),
        (("x", "x", None, [1, 1], [0, 0], [1, 1], 2), {}),
    ),
    "required arguments, whatever they are": (call(aten.dropout.default, "x", 0.0, False), (("x", 0.0, False), {})),
    "a number of another type than the default": (
        call(aten.add.Tensor, "x", "x", alpha=1.0), (("x", "x"), {"alpha": 1.0}),
    ),
    "a default that only a keyword gives": (call(aten.add.Tensor, "x", "x", alpha=1), (("x", "x"), {})),
    "a type": (
        call(aten.ones_like.default, "x", dtype=torch.int64, memory_format=None), (("x",), {"dtype": torch.int64}),
    ),
    "numbers, a text and None": (call(aten.pad.default, "x", [1, 1], "constant", None), (("x", [1, 1]), {})),
}  # fmt: skip


@pytest.mark.parametrize("node, expected", [pytest.param(*row, id=name) for name, row in CANONICAL.items()])
def test_canonical_form(node: fx.Node, expected: tuple):
    before = bound_arguments(node).values
    canonicalize_arguments(node.graph)
    assert shown(node) == expected
    assert bound_arguments(node).values == before


@pytest.mark.slow
def test_captured_programs_are_canonical_and_keep_the_order_of_users():
    """Assigning arguments anew would move a node to the end of its inputs' users, which the search of layouts sees."""

    def forward(self, x):
        y = F.conv2d(x, self.weight, padding=1)
        y = F.max_pool2d(F.pad(y, (0, 1)), 2) + F.interpolate(y, scale_factor=0.5)[..., :4, :4]
        return F.layer_norm(y, y.shape[-1:]).softmax(1), y.sum(dim=(2, 3)), y[:, 2:].chunk(2, 1)[0]

    program = captured(Call(forward, weight=torch.nn.Parameter(torch.zeros(6, 6, 3, 3))), IMAGE)
    before = [(shown(n), list(n.users)) for n in program.graph.nodes if n.op == "call_function"]
    canonicalize_arguments(program.graph)
    assert [(shown(n), list(n.users)) for n in program.graph.nodes if n.op == "call_function"] == before


def test_exported_program_with_other_forms_is_captured_alike():
    exported = torch.export.export(Call(lambda x: F.relu(x + 1)), tuple(examples([IMAGE])))
    for node in exported.graph.find_nodes(op="call_function", target=aten.add.Tensor):
        x, one = node.args
        node.args, node.kwargs = (), {"self": x, "other": one, "alpha": 1}
    program = from_exported(exported)
    (add,) = program.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    assert shown(add) == ((program.inputs[0], 1), {})


def test_arguments_by_name_and_type():
    given = bound_arguments(call(aten.conv2d.default, "x", "x", None, [2]))
    assert given.node("weight").name == "x"
    assert given.optional_node("bias") is None
    assert given.integers("stride", 2) == [2, 2]
    assert given.integers("padding", 2) == [0, 0]
    assert given.integer("groups") == 1
    assert bound_arguments(call(aten.conv2d.padding, "x", "x")).text("padding") == "valid"
    assert bound_arguments(call(aten.softmax.int, "x", 1)).value("dtype") is None
    computed = bound_arguments(call(aten.reshape.default, "x", ["x", 2]))
    assert computed.known_integers("shape") is None


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda given: given.node("bias"), id="None for a node"),
        pytest.param(lambda given: given.integer("stride"), id="a list for a number"),
        pytest.param(lambda given: given.flag("groups"), id="a number for a flag"),
        pytest.param(lambda given: given.text("padding"), id="a list for a text"),
    ],
)
def test_argument_of_another_type_is_an_error(read):
    with pytest.raises(TypeError, match=r"of aten\.conv2d\.default"):
        read(bound_arguments(call(aten.conv2d.default, "x", "x")))


def test_set_arguments_leaves_the_others():
    node = call(aten.conv2d.default, "x", "x", None, [1, 1], [0, 0], [1, 1], 3)
    set_arguments(node, bias=node.args[0], groups=1)
    assert shown(node) == (("x", "x", "x"), {})
    with pytest.raises(TypeError, match="no_such"):
        set_arguments(node, no_such=1)


def test_results_of_several_are_read_by_position():
    node = call(aten.max_pool2d_with_indices.default, "x", [2, 2])
    item = node.graph.call_function(torch.ops.aten.relu.default, (node,))
    assert read_item(item) is None
    assert first_input(item) is node
    assert read_item(node.graph.call_function(operator.getitem, (node, 1))) == (node, 1)


# -- traits


def overloads() -> Iterator[OpOverload]:
    """Yield all functional ATen operators."""
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::") and "out" not in name.partition(".")[2]:
            packet, _, overload = name.removeprefix("aten::").partition(".")
            found = getattr(getattr(aten, packet, None), overload or "default", None)
            if isinstance(found, OpOverload) and not found._schema.is_mutable:
                yield found


def test_views_are_those_of_the_schema():
    """These composites return their operand itself or a view of it where they can."""
    views = {operator for operator in overloads() if is_view(call(operator))}
    composite = {
        aten.chunk.default, aten.contiguous.default, aten.flatten.using_ints, aten.reshape.default, aten.to.dtype,
        aten.unflatten.int,
    }  # fmt: skip
    assert composite | {aten.view.default, aten.permute.default, aten.detach.default, aten.split.Tensor} <= views
    assert not views & {aten.clone.default, aten.cat.default, aten.relu.default, aten.index.Tensor}
    assert not any(is_pointwise(view) for view in views - {aten.positive.default})


def test_pointwise_operators_that_pytorch_does_not_tag():
    """An exception that PyTorch tags is one no more."""
    assert not any(has_tag(target, torch.Tag.pointwise) for target in _UNTAGGED_POINTWISE)
    assert is_pointwise(aten.hardswish.default)
    assert is_pointwise(aten.relu.default)
    assert not is_pointwise(aten.softmax.int)
    assert not is_pointwise(operator.getitem)


@pytest.mark.parametrize(
    "name",
    [
        "bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal", "normal_functional",
        "poisson", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm", "uniform",
    ],
)  # fmt: skip
def test_operators_that_draw(name: str):
    assert may_draw(name)
    functional = [target for target in overloads() if target._opname == name]
    assert functional
    assert all(draws(call(target)) for target in functional)


def test_operators_of_numbers_without_chance_draw_nothing():
    assert not may_draw("relu")
    assert not may_draw("no_such_operator")
    assert not draws(call(aten.relu.default, "x"))


def recurrent(dropout: float, train: bool) -> fx.Node:
    return call(aten.lstm.input, "x", ["x", "x"], ["x"], True, 2, dropout, train, False, True)


@pytest.mark.parametrize(
    "node, expected",
    [
        pytest.param(recurrent(0.5, False), False, id="an LSTM in evaluation"),
        pytest.param(recurrent(0.0, True), False, id="an LSTM without dropout"),
        pytest.param(recurrent(0.5, True), True, id="an LSTM in training"),
        pytest.param(call(aten.scaled_dot_product_attention.default, "x", "x", "x"), False, id="attention"),
        pytest.param(
            call(aten.scaled_dot_product_attention.default, "x", "x", "x", None, 0.5), True, id="attention with dropout"
        ),
        pytest.param(call(aten.alpha_dropout.default, "x", 0.5, False), False, id="a dropout in evaluation"),
        pytest.param(call(aten.alpha_dropout.default, "x", 0.5, True), True, id="a dropout in training"),
        pytest.param(call(aten.rrelu.default, "x"), False, id="a slope that is random in training only"),
        pytest.param(call(aten.native_dropout.default, "x", 0.5, None), True, id="a dropout that is on by default"),
    ],
)
def test_what_draws_depends_on_arguments(node: fx.Node, expected: bool):
    assert draws(node) == expected
    assert has_effects(node) == expected
