"""Capture: names a user knows, a batch that stays free, errors that speak of the user's own lines."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from equivalence import Call, Input, assert_same, captured, examples, in_float64, with_random_tensors
from torch import Tensor, nn

from converter.capture.export import capture
from converter.errors import CaptureError
from converter.ir.program import module_class, module_path, source_line

aten, ours = torch.ops.aten, torch.ops.converter

FEATURES = (2, 3)
IMAGE = (2, 6, 9, 8)


class Detections(NamedTuple):
    boxes: Tensor
    scores: Tensor


# -- names


@pytest.mark.parametrize(
    "function, names",
    [
        pytest.param(lambda x: x + 1, ["output"], id="a tensor"),
        pytest.param(lambda x: (x + 1,), ["output_0"], id="a tuple of one"),
        pytest.param(lambda x: (x + 1, x + 2), ["output_0", "output_1"], id="a tuple"),
        pytest.param(lambda x: [x + 1, x + 2], ["output_0", "output_1"], id="a list"),
        pytest.param(lambda x: {"scores": x + 1, "boxes": x + 2}, ["scores", "boxes"], id="a dictionary in its order"),
        pytest.param(lambda x: Detections(x + 1, x + 2), ["boxes", "scores"], id="a named tuple"),
        pytest.param(
            lambda x: {"boxes": (x + 1, x + 2), "extra": {"mask": x}},
            ["boxes_0", "boxes_1", "extra_mask"],
            id="sequences and dictionaries in a dictionary",
        ),
        pytest.param(
            lambda x: (x + 1, {"a": x + 2, "b": [x + 3]}),
            ["output_0", "output_1_a", "output_1_b_0"],
            id="a dictionary in a tuple",
        ),
        pytest.param(lambda x: {"a_0": x + 1, "a": [x + 2]}, 2, id="two paths of one name"),
        pytest.param(lambda x: {"": x + 1}, 1, id="a key without letters"),
        pytest.param(lambda x: {0: x + 1, 1: x + 2}, ["0", "1"], id="keys that are numbers"),
        pytest.param(lambda x: (lambda y: (y, y))(x + 1), ["output_0", "output_1"], id="one value twice"),
        pytest.param(lambda x: (x, x + 1), ["output_0", "output_1"], id="an input passed through"),
    ],
)
def test_outputs_are_named_by_the_structure_that_forward_returns(function, names):
    """And keep its order; a number says how many different names there must be."""
    program = captured(function, FEATURES)
    if isinstance(names, int):
        assert len(set(program.outputs)) == names
        assert all(program.outputs)
    else:
        assert program.outputs == names
    (x,) = examples([FEATURES])
    assert len(program.run(x)) == len(program.outputs)
    assert_same(program.run(x), torch.utils._pytree.tree_leaves(function(x)), "the captured program")


def test_sizes_that_forward_returns_are_no_tensors():
    program = captured(lambda x: (x * 2, x.shape[0], tuple(x.shape)), FEATURES)
    assert program.outputs == ["output_0"]
    assert [note.code for note in program.notes] == ["PTC2505"]
    assert len(program.run(*examples([FEATURES], 3))) == 1


def test_outputs_that_are_no_tensors_are_noted():
    program = captured(lambda x: (None, x + 1, 3, x + 2), FEATURES)
    assert program.outputs == ["output_1", "output_3"]
    assert [note.text for note in program.notes] == ["Outputs that are not tensors were left out."]


class Options(nn.Module):
    def forward(self, image, size=None, *, scale=2.0):
        return image * scale if size is None else image * scale + size


class Variadic(nn.Module):
    def forward(self, first, *rest):
        return first + sum(rest)


@pytest.mark.parametrize(
    "module, count, names",
    [
        pytest.param(Options(), 1, ["image"], id="optional ones left out"),
        pytest.param(Options(), 2, ["image", "size"], id="in the order of forward"),
        pytest.param(Variadic(), 3, ["first", "rest_0", "rest_1"], id="a variable number"),
        pytest.param(nn.Sequential(nn.Linear(3, 2)), 1, ["input"], id="a container's"),
    ],
)
def test_inputs_are_named_by_forward(module, count, names):
    program = captured(module, *[FEATURES] * count)
    assert program.inputs == names
    tensors = examples([FEATURES] * count, 3)
    assert_same(program.run(*tensors), [module(*tensors).detach()], "the captured program")


def test_inputs_may_bear_the_names_of_parameters_and_operators():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.register = nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 2)

        def forward(self, weight, linear, relu):
            return self.register(F.linear(weight, self.weight).relu() * linear) + relu

    module, given = Named().eval(), [torch.randn(2, size) for size in (3, 4, 2)]
    program = capture(module, given)
    assert program.inputs == ["weight", "linear", "relu"]
    assert torch.equal(program.run(*given)[0], module(*given))


def test_input_that_is_not_read_keeps_its_place():
    program = captured(lambda x, y: y * 2, FEATURES, IMAGE)
    assert len(program.inputs) == len(program.placeholders) == 2
    x, y = examples([FEATURES, IMAGE], 3)
    assert_same(program.run(x, y), [y * 2], "the captured program")


def test_inputs_of_several_types():
    inputs = FEATURES, Input((2, 4), torch.int64), Input((2, 4), torch.bool)
    program = captured(lambda x, n, b: (x + 1, n * 2, ~b), *inputs)
    assert [node.meta["val"].dtype for node in program.placeholders] == [torch.float32, torch.int64, torch.bool]


# -- the batch


def test_batch_stays_free_where_the_example_has_one_sample():
    program = capture(nn.Linear(3, 2), [torch.zeros(1, 3)])
    assert program.fixed_batch is None
    assert program.run(torch.zeros(7, 3))[0].shape == (7, 2)


def test_batch_of_several_inputs_is_one():
    program = captured(lambda x, y: x[:, :, None] * y[:, None], FEATURES, (2, 4))
    assert program.run(*examples([FEATURES, (2, 4)], 5))[0].shape == (5, 3, 4)


def test_asked_for_a_fixed_batch():
    program = capture(nn.Linear(3, 2), [torch.zeros(4, 3)], fixed_batch=True)
    assert (program.fixed_batch, program.notes) == (4, [])


BY_BATCH = "forward uses the batch size as a number, in a branch or a loop"


@pytest.mark.parametrize(
    "function, why",
    [
        pytest.param(
            lambda x: x.reshape(2, -1) + torch.ones(2, 1),
            "the model does not take other sizes: ",
            id="a view to a batch of its own",
        ),
        pytest.param(
            lambda x: torch.stack([sample * 2 for sample in x]),
            BY_BATCH,
            id="a loop over samples",
        ),
        pytest.param(
            lambda x: x * 2 if x.shape[0] == 2 else x,
            BY_BATCH,
            id="a branch on the batch",
        ),
    ],
)
def test_model_of_one_batch_size_is_captured_for_that_and_says_so(function, why):
    x = examples([FEATURES])
    program = capture(Call(function).eval(), x)
    assert program.fixed_batch == 2
    assert len(program.notes) == 1
    assert program.notes[0].text.startswith(f"Converted for batch 2 only; {why}")
    assert_same(program.run(*x), [function(*x)], "the captured program")


# -- where an operator comes from


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 3)
        self.steps = nn.ModuleList([nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid())])

    def forward(self, x):
        x = self.conv(x) * 2
        for step in self.steps:
            x = step(x)
        return x


def test_operators_know_their_module_and_line():
    program = captured(nn.Sequential(Block(), nn.Tanh()), IMAGE)
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    assert [(n.target._opname, module_path(n)) for n in nodes] == [
        ("conv2d", "0.conv"),
        ("mul", "0"),
        ("relu", "0.steps.0"),
        ("conv2d", "0.steps.1.0"),
        ("sigmoid", "0.steps.1.1"),
        ("tanh", "1"),
    ]
    assert module_class(nodes[0]) == "torch.nn.modules.conv.Conv2d"
    assert source_line(nodes[1]).endswith("x = self.conv(x) * 2")
    assert source_line(nodes[1]).startswith(__file__)


def test_a_recurrent_layer_knows_the_line_that_calls_it():
    program = captured(Call(lambda self, x: self.read(x)[0], read=nn.LSTM(6, 4, batch_first=True)), (2, 7, 6))
    (node,) = program.graph.find_nodes(op="call_function", target=aten.lstm.input)
    assert source_line(node).startswith(str(Path(__file__).parents[1]))


def test_module_called_twice_keeps_one_path():
    program = captured(Call(lambda self, x: self.conv(self.conv(x)), conv=nn.Conv2d(6, 6, 3)), IMAGE)
    convolutions = program.graph.find_nodes(op="call_function", target=aten.conv2d.default)
    assert [module_path(n) for n in convolutions] == ["conv", "conv"]
    assert convolutions[0].args[1].target == convolutions[1].args[1].target == "conv.weight"


# -- what capture makes of a graph


def test_batch_norm_and_dropout_stay_whole():
    model = nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, 1e-4, 0.3), nn.Dropout(0.25), nn.Dropout2d(0.1))
    program = captured(model, IMAGE)
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    assert [n.target for n in nodes] == [aten.conv2d.default, aten.batch_norm.default, *[ours.dropout.default] * 2]
    assert nodes[1].args[5:8] == (False, 0.3, 1e-4)
    assert [n.args[1] for n in nodes[2:]] == [0.25, 0.1]


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda x: torch.empty(x.shape), torch.empty_like, lambda x: x.new_empty(x.shape)])
def test_undefined_values_are_zeros(make):
    def halves_exchanged(x):
        y = make(x)
        y[:, :3], y[:, 3:] = x[:, 3:], x[:, :3]
        return y

    program = captured(Call(halves_exchanged), IMAGE)
    assert not [n for n in program.graph.nodes if "empty" in str(n.target)]
    (x,) = examples([IMAGE])
    assert torch.equal(program.run(x)[0], x.roll(3, 1))


def test_tensors_bear_the_checkpoint_names():
    model = Call(
        lambda self, x: self.conv(x) * self.scale + self.shift,
        conv=nn.Conv2d(6, 4, 3),
        scale=nn.Parameter(torch.ones(4, 1, 1)),
        shift=torch.zeros(4, 1, 1),
    )
    program = captured(model, IMAGE)
    attributes = {n.target: n for n in program.graph.find_nodes(op="get_attr")}
    assert attributes.keys() == {"conv.weight", "conv.bias", "scale", "shift"} == program.origins.keys()
    assert all(origin.sources == (name,) and origin.exact for name, origin in program.origins.items())
    assert {name for name, node in attributes.items() if program.trainable(node)} == attributes.keys() - {"shift"}
    assert all(torch.equal(program.tensor(n), model.get_parameter(t)) for t, n in attributes.items() if t != "shift")


@pytest.mark.parametrize("name", ["graph", "code", "meta", "recompile", "class", "training_", "x/y"])
def test_tensors_may_bear_names_that_a_graph_module_has_itself(name):
    """Or that are keywords of Python: the checkpoint's name is that of the source all the same."""
    model = Call(lambda self, x: getattr(self, name)(x), **{name: nn.Linear(3, 3)})
    program = captured(model, FEATURES)
    sources = {source for origin in program.origins.values() for source in origin.sources}
    assert sources == {f"{name}.weight", f"{name}.bias"}
    x = examples([FEATURES], 3)
    with torch.no_grad():
        assert_same(program.run(*x), [model(*x)], "the captured program", bound=1e-6)


class Counts(nn.Module):
    def __init__(self, reads: bool):
        super().__init__()
        self.reads = reads
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return x * self.calls if self.reads else x * 2


@pytest.mark.slow
def test_state_that_outputs_hang_on_is_refused():
    with pytest.raises(CaptureError, match="`calls`") as raised:
        capture(Counts(reads=True).eval(), examples([FEATURES]))
    assert "input" in raised.value.fix


def test_state_that_no_output_reads_is_left_out():
    program = capture(Counts(reads=False).eval(), examples([FEATURES]))
    assert not program.graph.find_nodes(op="get_attr")


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def test_tied_weights_are_captured_once_or_with_both_values():
    program = captured(tied(), FEATURES)
    x = examples([FEATURES], 3)
    with torch.no_grad():
        assert_same(program.run(*x), [with_random_tensors(tied())(*x)], "the captured program", bound=1e-6)


def mutated_before_and_behind(x):
    y = x * 2
    before = y + 1
    y.mul_(3)
    behind = y + 1
    y.add_(before)
    return before, behind, y


def mutated_through_a_view(x):
    y = x * 2
    y[:, 1:].mul_(5)
    return y, y[:, 0].add_(1), y.relu()


def mutated_through_a_flat_view(x):
    y = x * 2
    flat = y.view(-1)
    y.add_(1)
    return flat * 2


def mutated_by_an_alias(x):
    y = x + 1
    z = y
    z += 1
    return y, z * y


def mutated_by_a_part(x):
    y = x + 1
    y[:, 0] = 7
    y[:, 1:] = y[:, :-1] * 2
    return y


def mutated_by_itself(x):
    y = x + 1
    y.mul_(y).add_(y)
    return y


def mutated_in_one_of_two_copies(x):
    y = x + 1
    z = y.clone()
    z.relu_()
    return y, z


def mutated_input(x):
    x.mul_(2)
    return x + 1


def mutated_slice_of_the_input(x):
    x[:, 1:] *= 2
    return x.sum(1)


def mutated_contiguous_input(x):
    """`contiguous` returns the input itself."""
    y = x.contiguous()
    y.add_(1)
    return x * y


def mutated_reshaped_result(x):
    y = x * 2
    z = y.reshape(-1)
    z.add_(1)
    return y, z


def mutated_part_of_a_split(x):
    a, b = (x * 2).split([1, 2], 1)
    a.add_(1)
    b.mul_(a)
    return torch.cat([b, a], 1)


def mutated_to_another_type(x):
    n = (x * 3).int()
    n.add_(2)
    return n, n + x


@pytest.mark.parametrize(
    "function",
    [
        mutated_before_and_behind,
        mutated_through_a_view,
        mutated_through_a_flat_view,
        mutated_by_an_alias,
        mutated_by_a_part,
        mutated_by_itself,
        mutated_in_one_of_two_copies,
        mutated_input,
        mutated_slice_of_the_input,
        mutated_contiguous_input,
        mutated_reshaped_result,
        mutated_part_of_a_split,
        mutated_to_another_type,
    ],
)
def test_in_place_operators_become_functional_ones(function):
    program = captured(function, FEATURES)
    targets = [n.target for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    assert not [t for t in targets if t._schema.is_mutable]
    for batch in (2, 3):
        (x,) = examples([FEATURES], batch)
        kept = x.clone()
        expected = torch.utils._pytree.tree_leaves(function(x.clone()))
        assert_same(program.run(x), expected, f"batch {batch}")
        assert torch.equal(x, kept), "the program changed its input"


@pytest.mark.slow
def test_program_in_float64_has_no_float32_left():
    """Casts, integers divided and results of another type: the reference must not round to float32 in between."""
    model = Call(
        lambda self, x, n: (
            (x.float() * self.b).to(torch.float32),
            n * 0.1,
            n / 3,
            n.float().mean(1, dtype=torch.float32),
            x.new_full((3,), 0.1) * x,
            torch.full((3,), 0.1) + x,
            x.double().float() / 3,
        ),
        b=torch.ones(3),
    )
    inputs = (FEATURES, Input((2, 4), torch.int64))
    results = captured(model, *inputs).with_dtype(torch.float64).run(*in_float64(examples(inputs)))
    assert [r.dtype for r in results] == [torch.float64] * len(results)
    _, n = examples(inputs)
    assert torch.equal(results[1], n.double() * 0.1)
    assert torch.get_default_dtype() == torch.float32


def test_module_is_left_as_it_was():
    model = with_random_tensors(nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    capture(model, examples([IMAGE])).with_dtype(torch.float64).run(*in_float64(examples([IMAGE])))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


# -- errors


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(6, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(5, 4, 3)))

    def forward(self, x):
        return self.stages(x)


class FailsItself(nn.Module):
    def forward(self, x):
        raise NotImplementedError("no such mode")


class AlwaysDrops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def forward(self, x):
        return self.gate(x.relu())


class Gate(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x


def test_failing_forward_names_the_layer_and_the_shape():
    with pytest.raises(CaptureError, match=r"fails on an input of shape \(2, 6, 9, 8\)") as raised:
        capture(Fails(), examples([IMAGE]))
    assert raised.value.where.startswith(f"module `stages.1.1` (Conv2d), {__file__}:")
    assert raised.value.where.endswith("return self.stages(x)")
    assert "--input-shape" in raised.value.fix


def test_failing_forward_of_the_model_itself():
    with pytest.raises(CaptureError, match="no such mode") as raised:
        capture(FailsItself(), examples([FEATURES]))
    assert "FailsItself" in raised.value.where
    assert "``" not in raised.value.where


def absent(x):
    import no_such_package  # noqa: F401


def to_the_gpu(x):
    return x.to("cuda")


def beyond_the_table(x):
    return F.embedding(x.long() * 0 + 7, torch.ones(3, 2))


def misspelt(x):
    return features  # noqa: F821


def of_another_type(x):
    return F.embedding(x, torch.ones(3, 2))


def of_a_dictionary(x):
    return x["image"] * 2


@pytest.mark.parametrize(
    "function, inputs, fix",
    [
        (absent, 1, "Install no_such_package"),
        (to_the_gpu, 1, "`.to(x.device)` in place of `.cuda()`"),
        (misspelt, 1, "Correct this line"),
        (beyond_the_table, 1, "within its table"),
        (of_another_type, 1, ":int64"),
        (of_a_dictionary, 1, "--input-shape batch.image="),
        (of_a_dictionary, 2, "each parameter of forward(x)"),
    ],
)
def test_failing_forward_has_the_line_and_a_fix_that_fits(function, inputs, fix):
    class Model(nn.Module):
        def forward(self, x):
            return function(x)

    with pytest.raises(CaptureError, match="The model fails on an input of shape") as raised:
        capture(Model(), examples([FEATURES] * inputs))
    assert fix in raised.value.fix
    assert inputs > 1 or f"{__file__}:" in raised.value.where


def test_torchscript_within_a_module_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(6, 4, 3), torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())))
    with pytest.raises(CaptureError, match="Module `1` is TorchScript") as raised:
        capture(model.eval(), examples([IMAGE]))
    assert "before torch.jit.script" in raised.value.fix


def test_what_forward_returns_must_be_made_of_tensors():
    with pytest.raises(CaptureError, match="Forward returns generator") as raised:
        capture(Call(lambda x: (part for part in [x])).eval(), examples([FEATURES]))
    assert "dataclass" in raised.value.fix


def test_hooks_are_gone_after_a_failure():
    module = Fails()
    with pytest.raises(CaptureError):
        capture(module, examples([IMAGE]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_control_flow_on_values_names_the_line():
    with pytest.raises(CaptureError, match="depends on tensor values") as raised:
        capture(ByValue().eval(), examples([FEATURES]))
    assert raised.value.where.startswith(f"module `gate` (Gate), {__file__}:")
    assert raised.value.where.endswith("if x.sum() > 0:")
    assert "torch.where" in raised.value.fix


def test_numpy_in_forward_that_torch_has_no_function_for_names_the_line():
    def by_numpy(x):
        return x + len(x.numpy().tobytes())

    with pytest.raises(CaptureError, match=r"reads tensor values.*NumPy inside forward") as raised:
        capture(Call(by_numpy).eval(), examples([FEATURES]))
    assert raised.value.where.endswith("return x + len(x.numpy().tobytes())")


@pytest.mark.slow
def test_nothing_is_printed(capfd):
    """torch.export tells its own story of a failure; the error has the line, and that is enough."""
    with pytest.raises(CaptureError):
        capture(ByValue().eval(), examples([FEATURES]))
    captured(nn.Sequential(nn.Conv2d(6, 4, (2, 3), padding="same"), nn.ReLU(inplace=True)), IMAGE)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_dropout_that_drops_in_eval_mode_too():
    """`F.dropout` without `training=self.training`: no conversion may call that the identity."""
    with pytest.raises(CaptureError, match="stays active in eval mode") as raised:
        capture(AlwaysDrops().eval(), examples([FEATURES]))
    assert raised.value.where.startswith(__file__)
    assert raised.value.where.endswith("return F.dropout(x, 0.5)")
    assert "training=self.training" in raised.value.fix


def test_a_forward_that_draws_at_random_is_refused_with_its_line():
    with pytest.raises(CaptureError, match=r"uses random numbers, also in eval mode: aten\.randn_like") as raised:
        capture(Call(lambda x: x + torch.randn_like(x)), [torch.zeros(2, 3)])
    assert "test_capture.py" in raised.value.where or "equivalence.py" in raised.value.where


def test_what_is_drawn_for_nothing_is_left_out():
    assert capture(Call(lambda x: (torch.rand(3), x.relu())[1]), [torch.zeros(2, 3)]).outputs
