"""Programs that hold tokens, which keep operators with an effect in their order."""

import pytest
import torch
from equivalence import Call, assert_same, planned
from torch import nn
from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

from converter.capture.export import capture
from converter.capture.import_exported import from_exported


@torch.library.custom_op("tests::logged", mutates_args=())
def logged(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@logged.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("tests::logged_twice", mutates_args=())
def logged_twice(x: torch.Tensor) -> list[torch.Tensor]:
    return [x * 3, x[:, :2] * 5]


@logged_twice.register_fake
def _(x):
    return [torch.empty_like(x), torch.empty_like(x[:, :2])]


for ours in (logged, logged_twice):
    _register_effectful_op(ours._opoverload, _EffectType.ORDERED)


def printing(x):
    torch.ops.higher_order.print("{n} rows", n=3)
    return x.relu()


def solving(x):
    square = x[:, :5, :5] + 9 * torch.eye(5)
    return torch.linalg.inv(square), torch.linalg.solve(square, x)


CASES = {
    "printing": printing,
    "checks of linear algebra": solving,
    "one result": lambda x: logged(logged(x) + 1),
    "several results": lambda x: sum(part[0, 0, 0] for part in logged_twice(x)) + logged_twice(x)[1],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("table", [None, {}], ids=["decomposed", "whole"])
def test_tokens_are_dropped(case, table):
    module, x = Call(CASES[case]), torch.randn(2, 5, 7)
    program = from_exported(torch.export.export(module, (x,), strict=False).run_decompositions(table))
    results = module(x)
    expected = results if isinstance(results, tuple) else (results,)
    assert_same(program.run(x), expected, case, bound=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["printing", "checks of linear algebra"])
def test_what_is_called_for_its_effect_alone_is_no_part_of_a_plan(case):
    class Layer(nn.Module):
        def forward(self, x):
            return CASES[case](x)

    assert planned(capture(Layer(), [torch.randn(2, 5, 7)])).outputs
