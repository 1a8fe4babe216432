"""Symbolic sizes: what divides them, and the one form of those that are rounded."""

import itertools

import pytest
import sympy
from torch.utils._sympy.functions import (
    BitwiseFn_bitwise_and,
    BitwiseFn_bitwise_or,
    CeilToInt,
    FloatTrueDiv,
    FloorDiv,
    IntTrueDiv,
    Max,
    Min,
    Mod,
    PythonMod,
    RShift,
    ToFloat,
)

from converter.ir.sizes import canonical, quotient

H, W = sympy.symbols("H W", positive=True, integer=True)


@pytest.mark.parametrize(
    "size, divisor, expected",
    [
        (W + 1, 4, None),
        (4 * W + 4, 4, W + 1),
        (4 * W + 2, 4, None),
        (12 * H * W, 4 * W, 3 * H),
        (W, 2, None),
        (FloorDiv(W + 3, 4) * 8, 8, FloorDiv(W + 3, 4)),
        (FloorDiv(W + 3, 4) * 8, FloorDiv(W + 3, 4), 8),
        (12, 5, None),
        (0, 0, 1),
    ],
)
def test_a_quotient_is_whole_for_all_sizes_or_none(size, divisor, expected):
    assert quotient(size, divisor) == expected


SPELLINGS = {
    "the next multiple": [
        W + Mod(4 - Mod(W, 4), 4),
        W + PythonMod(-W, 4),
        4 * CeilToInt(IntTrueDiv(W, 4)),
        4 * FloorDiv(W + 3, 4),
        -4 * FloorDiv(-W, 4),
        4 * CeilToInt(FloatTrueDiv(ToFloat(W), sympy.Float(4.0))),
        BitwiseFn_bitwise_and(W + 3, sympy.Integer(-4)),
        4 * RShift(BitwiseFn_bitwise_or(W - 1, sympy.Integer(3)) + 1, sympy.Integer(2)),
        Max(W, 4 * FloorDiv(W + 3, 4)),
        W + Max(0, Min(Mod(4 - Mod(W, 4), 4), 3)),
    ],
    "halved twice": [FloorDiv(FloorDiv(W, 2), 2), FloorDiv(W, 4), FloorDiv(2 * FloorDiv(W, 2), 4)],
    "a stride of 2 of the next multiple": [
        FloorDiv(W + PythonMod(-W, 8) - 1, 2) + 1,
        4 * FloorDiv(W + 7, 8),
        FloorDiv(W + Mod(8 - Mod(W, 8), 8), 2),
    ],
    "half of what halving leaves": [FloorDiv(W - 2 * FloorDiv(W, 2), 2), sympy.Integer(0) * W],
    "part of a product": [
        FloorDiv(W * (H + PythonMod(-H, 4)), H + PythonMod(-H, 4)) + Mod(W, 1),
        FloorDiv(FloorDiv(4 * W, 2), 2),
    ],
}


@pytest.mark.parametrize("meaning", SPELLINGS)
def test_sizes_that_are_equal_have_one_form(meaning):
    forms = [canonical(sympy.sympify(spelling)) for spelling in SPELLINGS[meaning]]
    assert len(set(forms)) == 1, forms


@pytest.mark.slow
def test_the_form_has_the_values_of_the_size():
    inner = [W, W + 3, 3 * W - 2, FloorDiv(W + 1, 2), PythonMod(-W, 6), 5 - W, FloorDiv(5 * W, 3) + H]
    for size, divisor in itertools.product(inner, (2, 3, 8)):
        for outer in (FloorDiv(size, divisor), PythonMod(size, divisor), 2 * FloorDiv(FloorDiv(size, divisor), 2)):
            form = canonical(outer)
            for number in range(1, 26):
                values = {W: number, H: 2 * number + 1}
                assert form.subs(values) == outer.subs(values), (outer, form, number)
