"""A layout algebra: logical dimensions and physical axes, both made of the same atoms.

A value has a logical shape (PyTorch's view of it) and a physical one (the array that Keras holds). Both are runs of
atoms; an atom is a factor of some dimension. Permuting, viewing, flattening and splitting rearrange or factor only
the logical side: no data moves. Data moves only when a consumer asks for a physical order of atoms that the array does
not have, and then once, whatever chain of views came before.

    x: (B, C, H, W) held channels last          dims  B | C | H | W         axes  B | H | W | C
    view(B, C, h, 2, w, 2)                      dims  B | C | h | i | w | j    axes  B | h i | w j | C
    permute, view(B, 4C, h, w)                  dims  B | C i j | h | w     axes  B | h i | w j | C
    a convolution takes channels in any order   axes  B | h | w | i j C     one move, which is space_to_depth

A size is an integer or, if the batch is dynamic, a sympy expression in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise

import numpy as np

from converter.ir.sizes import Size, per_example, product, quotient

Run = tuple[int, ...]
Runs = tuple[Run, ...]


FEWEST_CHANNELS = 16  # 224x224x3 to blocks of 4: 0.40 ms against 0.11 for a transpose; 56x56x96: 0.13 against 0.16


class NeedsMerge(Exception):
    """A reshape cuts across atoms (6x4 as 8x3): they must first become one atom, adjacent and in order."""

    def __init__(self, dims: tuple[int, ...]):
        super().__init__(f"dimensions {dims} must each become one atom")
        self.dims = dims


@dataclass(frozen=True)
class Move:
    """The change from one physical arrangement to another: reshape, transpose, reshape.

    Attributes:
        split: sizes before the transpose.
        order: the transpose, or None if only the shape changes.
        merge: sizes after it.
        given: the array's own shape before.
    """

    split: tuple[Size, ...]
    order: tuple[int, ...] | None
    merge: tuple[Size, ...]
    given: tuple[Size, ...] = ()

    @property
    def named(self) -> tuple[str, int] | None:
        """Return the operator that makes this move of a channels-last image, and its block size, or None."""
        return self._packing[:2] if self._packing else None

    @property
    def packed(self) -> tuple[Size, ...]:
        """Return the shape of the image that the named operator packs into, or unpacks."""
        return self._packing[2] if self._packing else ()

    @cached_property
    def _packing(self) -> tuple[str, int, tuple[Size, ...]] | None:
        """Match a move with an operator; return its name, block size, and the shape of the packed image.

        SpaceToDepth is (B h) i w (j C) -> (B h) w i (j C) from B, h i, w j, C, with i = j; DepthToSpace its inverse.
        The packed image may be held in other axes: rows and columns as one, the places in a block apart. That takes one
        more reshape, which the operators outweigh only for several channels: TensorFlow's copy in one thread.
        """
        if self.order != (0, 2, 1, 3):
            return None
        for name, wide in (("SpaceToDepth", self.given), ("DepthToSpace", self.merge)):
            block = self.split[1] if name == "SpaceToDepth" else self.split[2]
            if len(wide) != 4 or not isinstance(block, int):
                continue
            batch, *sizes, channels = wide
            height, width = (quotient(size, block) for size in sizes)
            if height is None or width is None:
                continue
            between = (block, width) if name == "SpaceToDepth" else (width, block)
            packed = (batch, height, width, block * block * channels)
            if self.split != (batch * height, *between, block * channels):
                continue
            held = self.merge if name == "SpaceToDepth" else self.given
            elsewhere = held[-1] == packed[-1] or held[:3] == packed[:3]
            if held == packed or (elsewhere and isinstance(channels, int) and channels >= FEWEST_CHANNELS):
                return name, block, packed
        return None

    @property
    def kind(self) -> str:
        """Return "Reshape", "Transpose", or the name of the operator that makes this move."""
        return "Reshape" if self.order is None else self.named[0] if self.named else "Transpose"

    @property
    def cost(self) -> float:
        """Count elements per example: a little more for a move of many small blocks, a little less for a named move."""
        if self.order is None:
            return 0.0
        count = per_example(self.elements)
        return count * (0.9 if self.named else 1 + 0.01 * len(self.split))

    @property
    def elements(self) -> Size:
        """Return how many elements move (0 if only the shape changes)."""
        return product(self.split) if self.order is not None else 0


@dataclass(frozen=True)
class Layout:
    """Logical dimensions and physical axes as runs of atoms, each run major to minor; () has size 1."""

    dims: Runs
    axes: Runs
    size: Mapping[int, Size]

    @staticmethod
    def of(shape: Sequence[Size], order: Sequence[int] | None = None) -> Layout:
        """Make the layout of a value of logical `shape` with its dimensions held in `order` (default: as given)."""
        dims = tuple((d,) if n != 1 else () for d, n in enumerate(shape))
        order = range(len(shape)) if order is None else order
        return Layout(dims, tuple(dims[d] for d in order), {d: n for d, n in enumerate(shape) if n != 1})

    # -- the logical side: nothing moves

    @cached_property
    def shape(self) -> tuple[Size, ...]:
        return tuple(self.extent(run) for run in self.dims)

    @cached_property
    def physical_shape(self) -> tuple[Size, ...]:
        return tuple(self.extent(run) for run in self.axes)

    @property
    def atoms(self) -> Run:
        """Return all atoms in physical order."""
        return tuple(chain(*self.axes))

    def __str__(self) -> str:
        """Write each axis as its dimensions: "0 | 2 | 3 | 1"; 1.0 and 1.1 are the factors of dimension 1."""
        names = {
            atom: str(d) if len(run) == 1 else f"{d}.{i}"
            for d, run in enumerate(self.dims)
            for i, atom in enumerate(run)
        }
        return " | ".join(" ".join(names[a] for a in axis) or "-" for axis in self.axes)

    def extent(self, run: Run) -> Size:
        return product(self.size[atom] for atom in run)

    def permute(self, order: Sequence[int]) -> Layout:
        return Layout(tuple(self.dims[d] for d in order), self.axes, self.size)

    def reshape(self, shape: Sequence[Size]) -> Layout:
        """View as `shape` (no -1).

        Raises:
            NeedsMerge: the view cuts across atoms.
            ValueError: the number of elements differs.
        """
        left = [(atom, d) for d, run in enumerate(self.dims) for atom in run]
        layout, dims = self, []
        for wanted in reversed(shape):
            run: list[int] = []
            touched: list[int] = []
            while (rest := quotient(wanted, layout.extent(tuple(run)))) != 1:
                if not left:
                    raise ValueError(f"cannot view {self.shape} as {tuple(shape)}")
                atom, dim = left.pop()
                touched.append(dim)
                if rest is None:
                    raise NeedsMerge(tuple(sorted({*touched, *(d for _, d in left[-1:])})))
                if quotient(rest, layout.size[atom]) is None:  # the boundary falls inside this atom
                    major = quotient(layout.size[atom], rest)
                    if major is None:
                        raise NeedsMerge(tuple(sorted({*touched, *(d for _, d in left[-1:])})))
                    layout, (outer, atom) = layout.factor(atom, major)
                    left.append((outer, dim))
                run.insert(0, atom)
            dims.append(tuple(run))
        if left:
            raise ValueError(f"cannot view {self.shape} as {tuple(shape)}")
        return Layout(tuple(reversed(dims)), layout.axes, layout.size)

    def factor(self, atom: int, major: Size) -> tuple[Layout, tuple[int, int]]:
        """Split `atom` into a major one of that size and a minor one; return the layout and both atoms."""
        minor = quotient(self.size[atom], major)
        if minor is None:
            raise ValueError(f"{major} does not divide {self.size[atom]}")
        outer = max(self.size) + 1
        parts = (outer, outer + 1)

        def split(runs: Runs) -> Runs:
            return tuple(tuple(chain(*(parts if a == atom else (a,) for a in run))) for run in runs)

        size = {a: n for a, n in self.size.items() if a != atom} | {parts[0]: major, parts[1]: minor}
        return Layout(split(self.dims), split(self.axes), size), parts

    def renamed(self, names: Mapping[int, int]) -> Layout:
        def rename(runs: Runs) -> Runs:
            return tuple(tuple(names[a] for a in run) for run in runs)

        return Layout(rename(self.dims), rename(self.axes), {names[a]: n for a, n in self.size.items()})

    # -- the physical side: data may move

    def to(self, axes: Runs) -> tuple[Layout, Move]:
        """Bring the array into `axes`. Atoms that stay neighbors travel as one block."""
        want = tuple(chain(*axes))
        blocks = self._blocks(set(pairwise(want)))
        moved = self._moved(blocks, axes)
        if moved.named is None and sum(not isinstance(self.extent(tuple(block)), int) for block in blocks) > 1:
            before, after = ({pair for run in runs for pair in pairwise(run)} for runs in (self.axes, axes))
            moved = self._moved(self._blocks(before & after), axes)  # a reshape can find one dynamic size, not two
        return Layout(self.dims, axes, self.size), moved

    def _moved(self, blocks: Sequence[Sequence[int]], axes: Runs) -> Move:
        want = tuple(chain(*axes))
        position = {block[0]: i for i, block in enumerate(blocks)}
        order = tuple(position[atom] for atom in want if atom in position)
        moves = order != tuple(range(len(order)))
        split = tuple(self.extent(tuple(block)) for block in blocks)
        merge = tuple(self.extent(run) for run in axes)
        return Move(split, order if moves else None, merge, self.physical_shape)

    def _blocks(self, neighbors: set[tuple[int, int]]) -> list[list[int]]:
        """Group the atoms in physical order, keeping those that are `neighbors` together."""
        blocks: list[list[int]] = []
        for atom in self.atoms:
            if blocks and (blocks[-1][-1], atom) in neighbors:
                blocks[-1].append(atom)
            else:
                blocks.append([atom])
        return blocks

    def index(self, logical: Run, physical: Run) -> np.ndarray:
        """Return the position in the run `logical` for each position of the run `physical` (the same atoms)."""
        sizes = [int(self.size[a]) for a in logical]
        positions = np.arange(int(np.prod(sizes, dtype=np.int64))).reshape(sizes)
        return positions.transpose([logical.index(a) for a in physical]).ravel()

    # -- what operators ask for

    def in_order(self, dims: Sequence[int]) -> Runs:
        """Return one axis for each of `dims`, in that order."""
        return tuple(self.dims[d] for d in dims)

    def dim_last(self, dim: int) -> Runs:
        """Return axes with the atoms of `dim` last, in their current order; the rest stays as it is."""
        run = tuple(a for a in self.atoms if a in self.dims[dim])
        rest = tuple(tuple(a for a in axis if a not in run) for axis in self.axes)
        return (*(axis for axis in rest if axis), run)

    def channels_last(self, channel: int = 1) -> Runs:
        """Return one axis per dimension, in order, with the channels' atoms last, in their current order."""
        return (*(run for d, run in enumerate(self.dims) if d != channel), self.dim_last(channel)[-1])

    def dim_on_one_axis(self, dim: int) -> tuple[Runs, int]:
        """Return axes with the atoms of `dim` in place as one axis of their own, in logical order, and its position."""
        run = self.dims[dim]
        held = [a for a in self.atoms if a not in run]
        first = next((i for i, a in enumerate(self.atoms) if a in run), len(self.atoms))
        before = sum(1 for a in self.atoms[:first] if a not in run)
        axes: list[Run] = []
        for axis in self.axes:  # keep the other axes, split where `dim` is
            kept = tuple(a for a in axis if a not in run)
            seen = sum(len(a) for a in axes)
            if seen < before < seen + len(kept):
                cut = before - seen
                axes += [kept[:cut], kept[cut:]]
            elif kept:
                axes.append(kept)
        if sum(len(a) for a in axes) != len(held):
            raise AssertionError("atoms lost")
        position, seen = 0, 0
        while seen < before:
            seen += len(axes[position])
            position += 1
        axes.insert(position, run)
        return tuple(axes), position

    def dim_gathered(self, dim: int) -> tuple[Runs, int]:
        """Return axes with the atoms of `dim` as one axis of their own, in their current order, and its position."""
        run = tuple(a for a in self.atoms if a in self.dims[dim])
        dims = (*self.dims[:dim], run, *self.dims[dim + 1 :])
        return Layout(dims, self.axes, self.size).dim_on_one_axis(dim)

    def resize_dim(self, dim: int, size: Size) -> tuple[Layout, int]:
        """Give `dim`, an axis of its own, another size; return the layout and that axis."""
        axis = self.axes.index(self.dims[dim])
        fresh = max(self.size, default=-1) + 1
        run = (fresh,) if size != 1 else ()
        sizes = {a: n for a, n in self.size.items() if a not in self.dims[dim]} | dict.fromkeys(run, size)
        dims = (*self.dims[:dim], run, *self.dims[dim + 1 :])
        return Layout(dims, (*self.axes[:axis], run, *self.axes[axis + 1 :]), sizes), axis

    def insert_axis(self, dim: int, size: Size) -> tuple[Layout, int]:
        """Give `dim`, of size 1, an axis of its own and that size; return the layout and the axis to insert."""
        fresh = max(self.size, default=-1) + 1
        dims = (*self.dims[:dim], (fresh,), *self.dims[dim + 1 :])
        ones = [i for i, axis in enumerate(self.axes) if not axis]
        without = [d for d, run in enumerate(self.dims) if not run]
        if len(ones) == len(without):  # `dim` has one
            at = ones[without.index(dim)]
            return Layout(dims, (*self.axes[:at], (fresh,), *self.axes[at + 1 :]), {**self.size, fresh: size}), at
        behind = next((a for run in self.dims[dim + 1 :] for a in run), None)
        axes = tuple(axis for axis in self.axes if axis)
        at = next((i for i, axis in enumerate(axes) if behind in axis), len(axes))
        return Layout(dims, (*axes[:at], (fresh,), *axes[at:]), {**self.size, fresh: size}), at

    def without_ones(self) -> Layout:
        """Return the layout without atoms of size 1, as everywhere outside of an operator."""
        if all(n != 1 for n in self.size.values()):
            return self

        def drop(runs: Runs) -> Runs:
            return tuple(tuple(a for a in run if self.size[a] != 1) for run in runs)

        return Layout(drop(self.dims), drop(self.axes), {a: n for a, n in self.size.items() if n != 1})

    def space_to_depth(self, block: int) -> Layout:
        """Return the layout of a channels-last image after `space_to_depth`, channels as (row, column, channel)."""
        batch, channels, *_ = self.dims
        i = max(self.size) + 1
        height, width = (self.shape[d] for d in (2, 3))
        rows, columns = quotient(height, block), quotient(width, block)
        if rows is None or columns is None:
            raise ValueError(f"{block} does not divide {height} x {width}")
        size = {a: self.size[a] for a in (*batch, *channels)} | {i: block, i + 1: block}
        h, w = (() if n == 1 else (a,) for a, n in ((i + 2, rows), (i + 3, columns)))
        size |= dict(zip((*h, *w), [n for n in (rows, columns) if n != 1], strict=True))
        return Layout(
            (batch, (i, i + 1, *channels), h, w), (batch, h, w, (i, i + 1, *self.axes[-1])), size
        ).without_ones()

    def axes_within(self, dims: Iterable[int]) -> Layout:
        """Cut each axis where it mixes atoms of `dims` with others (at most a reshape)."""
        inside = {a for d in dims for a in self.dims[d]}
        axes: list[Run] = []
        for axis in self.axes:
            piece: list[int] = []
            for atom in axis:
                if piece and (piece[-1] in inside) != (atom in inside):
                    axes.append(tuple(piece))
                    piece = []
                piece.append(atom)
            if piece:
                axes.append(tuple(piece))
        return Layout(self.dims, tuple(axes), self.size)


def refine(layouts: Sequence[Layout], ignore: int | None = None) -> list[Layout]:
    """Give values that broadcast against each other common atoms under common names.

    Shapes are aligned at their last dimension, as in PyTorch. Dimension `ignore` (a join's) keeps one atom of its
    own in each value, under one name for all.

    Raises:
        NeedsMerge: two values factor a dimension in ways that have no common refinement.
    """
    rank = max(len(layout.dims) for layout in layouts)
    refined = [Layout(((),) * (rank - len(layout.dims)) + layout.dims, layout.axes, layout.size) for layout in layouts]
    if not refined:
        return []
    names: list[dict[int, int]] = [{} for _ in refined]
    fresh = 0
    for d in range(rank):
        if d == ignore:
            for layout, name in zip(refined, names, strict=True):
                if len(layout.dims[d]) > 1:
                    raise NeedsMerge((d,))
                name.update(dict.fromkeys(layout.dims[d], fresh))
            fresh += 1
            continue
        while True:
            minor = [
                (i, next(a for a in reversed(layout.dims[d]) if a not in names[i]))
                for i, layout in enumerate(refined)
                if any(a not in names[i] for a in layout.dims[d])
            ]
            if not minor:
                break
            known = [refined[i].size[a] for i, a in minor if isinstance(refined[i].size[a], int)]
            least = min(known) if known else min((refined[i].size[a] for i, a in minor), key=lambda n: len(str(n)))
            for i, atom in minor:
                major = quotient(refined[i].size[atom], least)
                if major is None:
                    raise NeedsMerge((d,))
                if major != 1:
                    refined[i], (_, atom) = refined[i].factor(atom, major)
                names[i][atom] = fresh
            fresh += 1
    return [layout.renamed(name) for layout, name in zip(refined, names, strict=True)]


def joint_order(orders: Sequence[Run]) -> Run:
    """Merge orders into one that keeps the first order intact and follows the others where they add atoms."""
    joined = list(orders[0])
    for order in orders[1:]:
        for i, atom in enumerate(order):
            if atom in joined:
                continue
            before = [a for a in order[:i] if a in joined]
            joined.insert(joined.index(before[-1]) + 1 if before else 0, atom)
    return tuple(joined)


def cut_axes(order: Run, layouts: Sequence[Layout]) -> Runs:
    """Group `order` into the fewest axes for every layout to broadcast along: each has all atoms of an axis or none."""
    axes: list[Run] = []
    together = {(a, b) for layout in layouts for axis in layout.axes for a, b in pairwise(axis)}
    for atom in order:
        same = axes and all((axes[-1][-1] in layout.size) == (atom in layout.size) for layout in layouts)
        if same and (axes[-1][-1], atom) in together:
            axes[-1] = (*axes[-1], atom)
        else:
            axes.append((atom,))
    return tuple(axes)


def channels_last_result(layout: Layout, shape: Sequence[Size], channels: int | None = None) -> Layout:
    """Return the layout of a spatial operator's result, of logical `shape`, for a channels-last input `layout`.

    The batch keeps its atoms, spatial axes get new ones. The channels are new too (`channels` None), or the old ones,
    each expanded to `channels` neighbors.
    """
    size = {a: layout.size[a] for a in layout.dims[0]}
    fresh = max(layout.size, default=-1) + 1
    dims: list[Run] = [layout.dims[0]]
    for n in shape[1:]:
        dims.append((fresh,) if n != 1 else ())
        size |= {fresh: n} if n != 1 else {}
        fresh += 1
    axis = dims[1]
    if channels is not None:
        kept = layout.dims[1]
        minor = (fresh,) if channels != 1 else ()
        size |= {a: layout.size[a] for a in kept} | dict.fromkeys(minor, channels)
        dims[1], axis = (*kept, *minor), (*layout.axes[-1], *minor)
    used = {a for run in dims for a in run}
    return Layout(tuple(dims), (dims[0], *dims[2:], axis), {a: n for a, n in size.items() if a in used})
