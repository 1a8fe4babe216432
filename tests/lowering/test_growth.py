"""The project's own steps take work that grows with a network's depth, not with its square: calls are counted."""

import cProfile
from pathlib import Path

import onnx_ir
import pytest
import torch
from onnxscript import rewriter
from onnxscript.rewriter._matcher import SimplePatternMatcher
from torch import nn

from converter.artifacts import onnx_writer
from converter.capture.export import capture
from converter.lowering import layout_search, planner
from converter.rewrites.pipelines import REWRITES
from converter.rewrites.run import apply_rewrites
from converter.verification.onnx_weights import refillable

ROOT = str(Path(__file__).parents[2])


class Convolutions(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)) for _ in range(depth)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x):
        batch, tokens, width = x.shape
        heads = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads.unbind())
        x = x + self.projection(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(x)


def transformer(depth):
    return nn.Sequential(*(Block() for _ in range(depth)))


def calls(function):
    """Return a function's result, and how many calls of the project's own functions it took."""
    profile = cProfile.Profile()
    result = profile.runcall(function)
    held = [entry for entry in profile.getstats() if not isinstance(entry.code, str)]
    return result, sum(entry.callcount for entry in held if entry.code.co_filename.startswith(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, shape, depth",
    [(Convolutions, (2, 4, 6, 6), 6), (transformer, (2, 5, 8), 4)],
    ids=["convolutions", "blocks"],
)
def test_work_grows_with_depth(make, shape, depth):
    def work(times):
        program = capture(make(times * depth).eval(), [torch.randn(shape)])
        program.debug = False
        counts = {}
        for format in ("tf", "keras", "onnx"):
            (rewritten, _), counts[f"rewrite {format}"] = calls(lambda f=format: apply_rewrites(program, REWRITES[f]))
            if format != "onnx":
                plan, counts[f"plan {format}"] = calls(lambda p=rewritten: planner.make_plan(p))
                assert len(plan.movements) <= 4 * times * depth
        tensors = {
            name: p.detach().numpy() for name, p in rewritten.with_dtype(torch.float32).graph_module.named_parameters()
        }
        counts["weights"] = calls(lambda: refillable(rewritten, tensors, {}))[1]
        return counts

    few, many = work(1), work(4)
    assert {step: f"{many[step]} of {few[step]}" for step in few if not 0 < many[step] < 5 * few[step]} == {}


@pytest.mark.slow
def test_a_plan_that_costs_more_is_given_up_early_and_no_choice_is_tried_twice(monkeypatch):
    program, _ = apply_rewrites(capture(transformer(3).eval(), [torch.randn(2, 5, 8)]), REWRITES["tf"])
    tried, mapped = [], []

    def lowered(program, layout, choices, registry, stock, below=None):
        tried.append(choices)
        try:
            plan = lower(program, layout, choices, registry, stock, below)
        except layout_search.TooCostly:
            whole = lower(program, layout, choices, registry, stock)
            assert whole.cost >= below
            raise
        assert below is None or plan.cost < below
        mapped.append(len(plan.values))
        return plan

    lower = planner.lower_program
    monkeypatch.setattr(planner, "lower_program", lowered)
    plan = planner.make_plan(program)
    assert plan.movements
    assert plan.cost == (0, sum(m.elements for m in plan.movements), pytest.approx(sum(m.cost for m in plan.movements)))
    assert len(tried) > 3
    assert all(choices not in tried[:i] for i, choices in enumerate(tried[:-1]))


def sliced(blocks):
    """Return a graph that halves its input's last axis, then of blocks that take thirds of the first."""
    x = onnx_ir.Value(name="x", shape=onnx_ir.Shape([3, 8]), type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT))
    numbers = {n: onnx_ir.Value(name=f"n{n}", const_value=onnx_ir.tensor([n])) for n in (-1, 0, 1, 2, 3, 4, 8)}
    nodes, y = [], x

    def add(operator, *inputs, like=None, **attributes):
        nodes.append(onnx_ir.node(operator, inputs, attributes))
        nodes[-1].outputs[0].shape = onnx_ir.Shape(like or [3, 8])
        return nodes[-1].outputs[0]

    def cut(value, begin, end, axis, like):
        return add("Slice", value, *(numbers[n] for n in (begin, end, axis)), like=like)

    second, first = cut(y, 4, 8, -1, [3, 4]), cut(y, 0, 4, -1, [3, 4])
    y = add("Concat", second, first, axis=-1)
    for _ in range(blocks):
        y = add("Relu", add("Relu", y))
        y = add("Concat", *(cut(y, n, n + 1, 0, [1, 8]) for n in range(3)), axis=0)
    graph = onnx_ir.Graph([x], [y], nodes=nodes, initializers=list(numbers.values()), opset_imports={"": 20}, name="g")
    return onnx_ir.Model(graph, ir_version=10)


def test_rules_of_the_onnx_optimizer_are_tried_at_operators_that_they_may_fit(monkeypatch):
    looked_at = 0

    def counted(self, *given):
        nonlocal looked_at
        looked_at += 1
        return match(self, *given)

    match = SimplePatternMatcher._match_node
    monkeypatch.setattr(SimplePatternMatcher, "_match_node", counted)
    own = (*onnx_writer._exact_no_ops(), *rewriter._DEFAULT_REWRITE_RULES)
    counts = []
    for blocks in (10, 40):
        as_is, fitted = sliced(blocks), sliced(blocks)
        rewriter.RewritePass(own)(as_is)
        looked_at = 0
        rewriter.RewritePass(tuple(map(onnx_writer._only_where_it_fits, own)))(fitted)
        counts.append(looked_at)
        operators = [node.op_type for node in fitted.graph]
        assert operators == [node.op_type for node in as_is.graph]
        assert operators.count("Split") == 1
        assert operators.count("Relu") == blocks
    assert 0 < counts[1] < 5 * counts[0]
