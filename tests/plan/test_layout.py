"""The layout algebra against NumPy: an array and its layout are the same value, whatever was asked of them."""

import math
import os
from collections.abc import Sequence

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.ir.sizes import product, quotient
from converter.plan.layout import Layout, Move, NeedsMerge, channels_last_result, cut_axes, joint_order, refine


def examples(count: int) -> int:
    """How many to draw: more where the environment asks for it, EXAMPLES=20 for a thorough run."""
    return count * int(os.environ.get("EXAMPLES", "1"))


BATCH = sympy.Symbol("batch", integer=True, positive=True)
SIZES = st.sampled_from([1, 2, 2, 3, 4, 6])  # equal ones on purpose: what is guessed from sizes goes wrong
LAST = (0, 2, 3, 1)


def of_batch(sizes: Sequence, batch: int) -> tuple[int, ...]:
    return tuple(int(sympy.sympify(n).subs(BATCH, batch)) for n in sizes)


def hold(x: np.ndarray, layout: Layout, batch: int = 2) -> np.ndarray:
    """The array that `layout` says holds `x`."""
    logical = [a for run in layout.dims for a in run]
    factored = x.reshape(of_batch([layout.size[a] for a in logical], batch))
    return factored.transpose([logical.index(a) for a in layout.atoms]).reshape(of_batch(layout.physical_shape, batch))


def read(array: np.ndarray, layout: Layout, batch: int = 2) -> np.ndarray:
    """The value that `array` holds."""
    logical = [a for run in layout.dims for a in run]
    assert array.shape == of_batch(layout.physical_shape, batch)
    factored = array.reshape(of_batch([layout.size[a] for a in layout.atoms], batch))
    return factored.transpose([layout.atoms.index(a) for a in logical]).reshape(of_batch(layout.shape, batch))


def carry_out(move: Move, array: np.ndarray, batch: int = 2) -> np.ndarray:
    if move.order is not None:
        array = array.reshape(of_batch(move.split, batch)).transpose(move.order)
    return array.reshape(of_batch(move.merge, batch))


@st.composite
def shapes(draw, smallest: int = 1, largest: int = 5):
    """A shape, its batch a symbol or a number."""
    rest = draw(st.lists(SIZES, min_size=smallest - 1, max_size=largest - 1))
    return (draw(st.sampled_from([BATCH, 2, 3, 4])), *rest)


@st.composite
def chains(draw):
    """(shape, order in which it is held, views): each view a permutation or a shape."""
    shape = draw(shapes())
    order = draw(st.permutations(range(len(shape))))
    views: list[tuple[str, tuple]] = []
    now = list(shape)
    for _ in range(draw(st.integers(1, 7))):
        i = draw(st.integers(0, len(now) - 1))
        kind = draw(st.sampled_from(["permute", "merge", "split", "one", "across"]))
        if kind == "permute":
            permutation = draw(st.permutations(range(len(now))))
            now = [now[d] for d in permutation]
            views.append(("permute", tuple(permutation)))
            continue
        if kind == "merge" and i + 1 < len(now):
            now = [*now[:i], now[i] * now[i + 1], *now[i + 2 :]]
        elif kind == "split":
            factor = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6, BATCH) if quotient(now[i], n) is not None]))
            parts = (factor, quotient(now[i], factor))
            now = [*now[:i], *(parts if draw(st.booleans()) else parts[::-1]), *now[i + 1 :]]
        elif kind == "one":
            now = [n for n in now if n != 1] if draw(st.booleans()) else [*now[:i], 1, *now[i:]]
        elif kind == "across":  # 6 x 4 as 4 x 6
            now = [*now[:i], *now[i : i + 2][::-1], *now[i + 2 :]]
        if now:
            views.append(("reshape", tuple(now)))
        else:
            now = [1]
            views.append(("reshape", (1,)))
    return shape, order, views


def after(chain) -> tuple[np.ndarray, np.ndarray, Layout]:
    """The value, its array and its layout behind a chain; where a view cuts across atoms, they are fused."""
    shape, order, views = chain
    x = np.arange(math.prod(of_batch(shape, 2))).reshape(of_batch(shape, 2))
    layout = Layout.of(shape, order)
    array = hold(x, layout)
    for name, argument in views:
        if name == "permute":
            layout, x = layout.permute(argument), x.transpose(argument)
            continue
        while (cut := cut_by(layout, argument)) is not None:
            fewer, array = fused(layout, array, cut)
            assert len(fewer.atoms) < len(layout.atoms) or len(fewer.dims) < len(layout.dims), "no way on"
            layout = fewer
        layout, x = layout.reshape(argument), x.reshape(of_batch(argument, 2))
    return x, array, layout


def cut_by(layout: Layout, shape) -> tuple[int, ...] | None:
    try:
        layout.reshape(shape)
    except NeedsMerge as cut:
        return cut.dims
    return None


def fused(layout: Layout, array: np.ndarray, dims: tuple[int, ...]) -> tuple[Layout, np.ndarray]:
    """The dimensions from the first to the last of `dims` as one, of one atom."""
    first, last = dims[0], dims[-1]
    run = tuple(a for d in range(first, last + 1) for a in layout.dims[d])
    joined = Layout((*layout.dims[:first], run, *layout.dims[last + 1 :]), layout.axes, layout.size)
    joined, move = joined.to(joined.dim_on_one_axis(first)[0])
    whole = max(layout.size) + 1

    def renamed(runs):
        return tuple((whole,) if r == run else r for r in runs)

    size = {a: n for a, n in layout.size.items() if a not in run} | {whole: layout.extent(run)}
    return Layout(renamed(joined.dims), renamed(joined.axes), size), carry_out(move, array)


@pytest.mark.slow
@settings(max_examples=examples(600), deadline=None)
@given(chains())
def test_any_chain_of_views_reads_as_numpy_does(chain):
    x, array, layout = after(chain)
    assert of_batch(layout.shape, 2) == x.shape
    np.testing.assert_array_equal(read(array, layout), x)


@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None)
@given(chains(), st.data())
def test_any_request_keeps_the_value(chain, data):
    x, array, layout = after(chain)
    dim = data.draw(st.integers(0, x.ndim - 1))
    order = data.draw(st.permutations(range(x.ndim)))
    for axes in (
        layout.in_order(order),
        layout.dim_last(dim),
        layout.channels_last(dim),
        layout.dim_on_one_axis(dim)[0],
        layout.dim_gathered(dim)[0],
        layout.axes_within(order[: data.draw(st.integers(0, x.ndim))]).axes,
    ):
        moved, move = layout.to(axes)
        assert moved.axes == axes
        np.testing.assert_array_equal(read(carry_out(move, array), moved), x)


@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None)
@given(chains(), st.data())
def test_requests_are_what_they_say(chain, data):
    x, _, layout = after(chain)
    dim = data.draw(st.integers(0, x.ndim - 1))
    some = data.draw(st.sets(st.integers(0, x.ndim - 1)))
    run = layout.dims[dim]
    as_they_lie = tuple(a for a in layout.atoms if a in run)

    assert layout.dim_last(dim)[-1] == as_they_lie
    others = tuple(r for d, r in enumerate(layout.dims) if d != dim)
    assert layout.channels_last(dim) == (*others, as_they_lie)

    axes, position = layout.dim_on_one_axis(dim)
    assert axes[position] == run
    axes, position = layout.dim_gathered(dim)
    assert axes[position] == as_they_lie
    assert without(axes, run) == without(layout.axes, run), "the others stay as they lie"

    within = layout.axes_within(some)
    inside = {a for d in some for a in layout.dims[d]}
    assert all(len({a in inside for a in axis}) == 1 for axis in within.axes)
    assert layout.to(within.axes)[1].order is None, "a reshape at most"


def without(axes, run) -> tuple[int, ...]:
    return tuple(a for axis in axes for a in axis if a not in run)


@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None)
@given(chains(), st.data())
def test_a_move_is_the_smallest(chain, data):
    """Neighbors that stay neighbors travel as one block, and nothing moves where the order is that asked for."""
    x, _, layout = after(chain)
    wanted = layout.in_order(data.draw(st.permutations(range(x.ndim))))
    _, move = layout.to(wanted)
    flat = tuple(a for run in wanted for a in run)
    assert (move.order is None) == (flat == layout.atoms)
    assert (move.elements == 0) == (move.order is None)
    if move.order is not None:
        assert all(b != a + 1 for a, b in zip(move.order, move.order[1:], strict=False))
        assert move.elements == product(layout.shape)


@pytest.mark.slow
@settings(max_examples=examples(200), deadline=None)
@given(chains(), st.data())
def test_index_says_which_logical_position_each_physical_one_holds(chain, data):
    x, array, layout = after(chain)
    dims = [d for d, n in enumerate(layout.shape) if isinstance(n, int)]
    if not dims:
        return
    dim = data.draw(st.sampled_from(dims))
    moved, move = layout.to(layout.channels_last(dim))
    expected = np.moveaxis(x, dim, -1)[..., layout.index(layout.dims[dim], moved.axes[-1])]
    np.testing.assert_array_equal(carry_out(move, array), expected)


@st.composite
def broadcast(draw):
    """Layouts of shapes that broadcast, dimensions factored and held in any way, and a value for each."""
    full = draw(st.lists(st.sampled_from([2, 2, 4, 6]), min_size=1, max_size=4))
    values = []
    for _ in range(draw(st.integers(1, 3))):
        own = [1 if draw(st.integers(0, 3)) == 0 else n for n in full[draw(st.integers(0, len(full) - 1)) :]]
        parts = [draw(st.sampled_from([(n // f, f) for f in (1, 2, 3) if n % f == 0])) for n in own]
        factored = Layout.of([n for part in parts for n in part], draw(st.permutations(range(2 * len(own)))))
        x = np.arange(math.prod(own)).reshape(own)
        values.append((x, factored.reshape(own)))
    return values


@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None)
@given(broadcast())
def test_refined_layouts_share_their_atoms_and_keep_their_values(values):
    layouts = [layout for _, layout in values]
    try:
        refined = refine(layouts)
    except NeedsMerge as cut:
        rank = max(len(layout.dims) for layout in layouts)
        runs = [layout.dims[cut.dims[0] - rank] for layout in layouts if cut.dims[0] - rank >= -len(layout.dims)]
        assert len([run for run in runs if len(run) > 1]) > 1, "a dimension of one atom fits any other"
        return
    for (x, layout), now in zip(values, refined, strict=True):
        aligned = np.broadcast_to(x, x.shape).reshape((1,) * (len(now.dims) - x.ndim) + x.shape)
        np.testing.assert_array_equal(read(hold(x, layout), now), aligned)
    for runs in zip(*(layout.dims for layout in refined), strict=True):
        assert len({run for run in runs if run}) <= 1
    sizes = [item for layout in refined for item in layout.size.items()]
    assert len(dict(sizes)) == len(set(sizes)), "one size to a name"


ORDERS = st.lists(
    st.permutations(range(6)).flatmap(lambda p: st.integers(0, 6).map(lambda n: tuple(p[:n]))), min_size=1
)


@given(ORDERS)
def test_joint_order_keeps_the_first_and_has_every_atom_once(orders):
    joint = joint_order(orders)
    assert sorted(joint) == sorted({a for order in orders for a in order})
    assert tuple(a for a in joint if a in orders[0]) == orders[0]


@pytest.mark.parametrize(
    "orders, expected",
    [
        pytest.param([(0, 2), (0, 1, 2)], (0, 1, 2), id="a new atom between two"),
        pytest.param([(0, 2), (1, 0, 2)], (1, 0, 2), id="a new atom before all"),
        pytest.param([(0, 2), (2, 1)], (0, 2, 1), id="a new atom behind all"),
        pytest.param([(), (1, 0)], (1, 0), id="an operand without atoms"),
        pytest.param([(0, 1), (1, 0)], (0, 1), id="operands that disagree follow the first"),
    ],
)
def test_joint_order(orders, expected):
    assert joint_order(orders) == expected


def test_axes_are_cut_where_an_operand_has_only_a_part_of_them():
    image = Layout.of((5, 6, 7), (0, 1, 2)).reshape((5, 42))
    flat = Layout(image.dims, ((0,), (1, 2)), image.size)
    row = Layout(((), (2,)), ((2,),), {2: 7})
    assert cut_axes((0, 1, 2), [flat]) == ((0,), (1, 2))
    assert cut_axes((0, 1, 2), [flat, row]) == ((0,), (1,), (2,))


# -- layouts that idioms are known to have


def pixel_unshuffle(v: Layout) -> Layout:
    b, c, h, w = v.shape
    factored = v.reshape((b, c, h // 2, 2, w // 2, 2))
    return factored.permute((0, 1, 3, 5, 2, 4)).reshape((b, c * 4, h // 2, w // 2))


def channel_shuffle(v: Layout) -> Layout:
    b, c, h, w = v.shape
    return v.reshape((b, 3, c // 3, h, w)).permute((0, 2, 1, 3, 4)).reshape((b, c, h, w))


@pytest.mark.parametrize(
    "idiom, order",
    [
        pytest.param(pixel_unshuffle, (0, 2, 1, 3), id="pixel unshuffle is space_to_depth's one transpose"),
        pytest.param(channel_shuffle, None, id="channel shuffle moves nothing"),
        pytest.param(lambda v: v.permute((0, 2, 3, 1)).permute((0, 3, 1, 2)), None, id="there and back moves nothing"),
    ],
)
def test_convolution_takes_channels_in_any_order(idiom, order):
    layout = idiom(Layout.of((BATCH, 6, 4, 8), LAST))
    assert layout.to(layout.channels_last())[1].order == order


@pytest.mark.parametrize(
    "layout, wanted",
    [
        pytest.param(
            Layout.of((BATCH, 6, 4, 8), LAST).reshape((BATCH, 192)), lambda v: v.dim_last(1), id="flatten before linear"
        ),
        pytest.param(
            Layout.of((BATCH, 6, 4, 8), LAST).reshape((BATCH, 6, 32)).permute((0, 2, 1)),
            lambda v: v.dims,
            id="image to tokens",
        ),
        pytest.param(
            Layout.of((BATCH, 6, 1, 8), LAST).permute((0, 2, 3, 1)).reshape((BATCH, 8, 6)),
            lambda v: v.dims,
            id="a row of one",
        ),
    ],
)
def test_moves_nothing(layout, wanted):
    assert layout.to(wanted(layout))[1].order is None


@pytest.mark.parametrize("block", [2, 3])
@pytest.mark.parametrize("shape", [(2, 5, 6, 12), (2, 1, 6, 6), (2, 3, 6, 18)], ids=str)
def test_space_to_depth_orders_its_channels_by_row_column_channel(block, shape):
    x = np.arange(math.prod(shape)).reshape(shape)
    b, c, h, w = shape
    expected = x.reshape(b, c, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4)
    expected = expected.reshape(b, block * block * c, h // block, w // block)
    layout = Layout.of(shape, LAST)
    moved, _ = layout.to(layout.channels_last())
    made = moved.space_to_depth(block)
    assert made.shape == expected.shape
    np.testing.assert_array_equal(read(expected.transpose(LAST), made), expected)


def test_space_to_depth_of_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match="2 does not divide"):
        Layout.of((2, 3, 5, 4), LAST).space_to_depth(2)


@pytest.mark.parametrize("multiplier", [None, 1, 3])
def test_spatial_result_keeps_the_order_of_channels_only_where_they_are_kept(multiplier):
    layout = channel_shuffle(Layout.of((BATCH, 6, 4, 8), LAST))
    layout, _ = layout.to(layout.channels_last())
    channels = 7 if multiplier is None else 6 * multiplier
    result = channels_last_result(layout, (BATCH, channels, 1, 5), multiplier)
    assert result.shape == (BATCH, channels, 1, 5)
    assert result.physical_shape == (BATCH, 1, 5, channels)
    in_order = np.array_equal(result.index(result.dims[1], result.axes[-1]), np.arange(channels))
    assert in_order == (multiplier is None)


@pytest.mark.parametrize(
    "shape, wanted",
    [((6, 4), (8, 3)), ((BATCH, 6), (6, BATCH)), ((BATCH, 4), (2 * BATCH + 1, 2))],
    ids=["6 x 4 as 8 x 3", "batch x 6 as 6 x batch", "batch x 4 as something unrelated"],
)
def test_view_across_atoms_or_of_another_size_is_refused(shape, wanted):
    with pytest.raises((NeedsMerge, ValueError)):
        Layout.of(shape).reshape(wanted)


@pytest.mark.slow
@settings(max_examples=examples(100), deadline=None)
@given(chains(), st.sampled_from([(5,), (2, 3, 5)]))
def test_view_of_another_number_of_elements_is_refused(chain, shape):
    _, _, layout = after(chain)
    with pytest.raises((NeedsMerge, ValueError)):
        layout.reshape((*layout.shape, *shape))
