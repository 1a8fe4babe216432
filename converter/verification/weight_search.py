"""Find every tensor of a checkpoint in an artifact from any tool by its content, without running anything.

A tensor may be there unchanged or permuted, as a part of another or joined with others, summed (the two biases of a
recurrent layer), or with a batch norm folded into it. A tensor that is not found is "changed" if the artifact has a
nearly equal one, else "missing".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import combinations, permutations

import numpy as np

from ..report.results import Proof, WeightMatch
from .array_arrangement import FOLDED_ROUNDING, Arrangement, arranged, comparable, digest

STATISTICS = ("running_mean", "running_var")
USUAL_EPSILONS = (1e-5, 1e-3, 1e-6, 1e-4)
PIECES = (2, 3, 4, 6, 8)
SMALLEST_PIECE = 4  # elements: fewer match by chance
ALIKE = 0.9  # cosine from which a tensor counts as changed, not as missing
UNEXPLAINED = 16  # elements: smaller arrays of an artifact are not reported

FOUND = ("unchanged", "permuted", "derived", "folded", "not needed")


@dataclass
class WeightSearch:
    """A search for one checkpoint's tensors among an artifact's arrays.

    Args:
        sources: every tensor of the checkpoint.
        held: every array of the artifact.
        epsilons: of the batch norms whose modules are known, by path.
    """

    sources: Mapping[str, np.ndarray]
    held: Mapping[str, np.ndarray]
    epsilons: Mapping[str, float] = field(default_factory=dict)
    matches: dict[str, WeightMatch] = field(default_factory=dict, init=False)
    used: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._ours = {name: comparable(array) for name, array in self.sources.items()}
        self._theirs = {name: comparable(array) for name, array in self.held.items() if array.dtype.kind in "fiubV"}
        self._by_digest: dict[tuple[int, int], list[str]] = defaultdict(list)
        self._by_size: dict[int, list[str]] = defaultdict(list)
        for name in sorted(self._theirs, key=lambda name: (name.startswith("_"), name)):
            self._by_digest[digest(self._theirs[name])].append(name)
            self._by_size[self._theirs[name].size].append(name)

    def run(self) -> tuple[WeightMatch, ...]:
        """Return a match for each tensor, in the checkpoint's order."""
        for name in self.sources:
            if name.endswith("num_batches_tracked"):
                self._note(name, "not needed", "", "it counts batches in training")
        for step in (self._whole, self._empty, self._folds, self._parts, self._joined, self._sums):
            step()
        for name in self._left():
            self.matches[name] = self._nearest(name)
        return tuple(self.matches[name] for name in self.sources)

    def unexplained(self) -> list[str]:
        """Return the artifact's arrays that hold nothing of the checkpoint."""
        contents = {digest(self._theirs[name]) for name in self.used}
        return [
            name
            for name, array in self._theirs.items()
            if array.size > UNEXPLAINED and self.held[name].dtype.kind == "f" and digest(array) not in contents
        ]

    # -- steps

    def _left(self) -> list[str]:
        return [name for name in self.sources if name not in self.matches]

    def _whole(self) -> None:
        for name in self._left():
            if found := self._at(self._ours[name], name):
                target, arrangement = found
                self._note(name, "unchanged" if arrangement.is_straight else "permuted", target, str(arrangement))
                if target in self.sources and target != name and name in self.held:
                    self._note(name, "changed", target, f"its values are under the name `{target}` instead")

    def _at(self, array: np.ndarray, name: str) -> tuple[str, Arrangement] | None:
        """Return where these values are; of several places, an unused one with the most similar name."""
        places = self._by_digest.get(digest(array), [])
        for place in sorted(places, key=lambda p: (p in self.used, -SequenceMatcher(None, p, name).ratio())):
            if arrangement := arranged(array, self._theirs[place]):
                return place, arrangement
        return None

    def _empty(self) -> None:
        for name in self._left():
            array = self.sources[name]
            if not array.size:
                self._note(name, "not needed", "", "it has no elements")
            elif name.endswith("bias") and not array.any():
                self._note(name, "not needed", "", "all zeros")

    def _parts(self) -> None:
        """Match tensors of the checkpoint that the artifact splits into pieces."""
        for name in self._left():
            array = self._ours[name]
            for axis, count in _cuts(array):
                found = [self._at(piece, name) for piece in np.split(array, count, axis)]
                if all(found):
                    places = [place for place, _ in found if place]  # type: ignore[misc]
                    self._note(name, "derived", ", ".join(places), f"cut into {count} along dimension {axis}")
                    break

    def _joined(self) -> None:
        """Match tensors of the checkpoint that the artifact joins in one array."""
        wanted: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name in self._left():
            wanted[digest(self._ours[name])].append(name)
        for place, array in self._theirs.items():
            if place in self.used or not wanted:
                continue
            for where, piece in _pieces(array, {size for size, _ in wanted}):
                for name in wanted.get(digest(piece), []):
                    if name not in self.matches and (arrangement := arranged(self._ours[name], piece)):
                        self._note(name, "derived", place, ", ".join(filter(None, (where, str(arrangement)))))

    def _sums(self) -> None:
        """Match two tensors of one module that were added: the biases of a recurrent layer."""
        by_module: dict[str, list[str]] = defaultdict(list)
        for name in self._left():
            by_module[name.rpartition(".")[0]].append(name)
        for names in by_module.values():
            for one, other in combinations(names, 2):
                a, b = self._ours[one], self._ours[other]
                if a.shape == b.shape and one not in self.matches and other not in self.matches:
                    total = a.astype(np.float64) + b
                    if place := self._near(total, FOLDED_ROUNDING * (np.abs(a) + np.abs(b))):
                        self._note(one, "derived", place, f"added to `{other}`")
                        self._note(other, "derived", place, f"added to `{one}`")

    def _folds(self) -> None:
        norms = [name.removesuffix(".running_var") for name in self.sources if name.endswith(".running_var")]
        for norm in norms:
            own = [f"{norm}.{part}" for part in ("weight", "bias", *STATISTICS) if f"{norm}.{part}" in self.sources]
            if f"{norm}.running_mean" in own and any(name not in self.matches for name in own):
                self._fold(norm, own)

    def _fold(self, norm: str, own: Sequence[str]) -> None:
        """Match a batch norm folded into a kernel and bias, or reduced to s and beta - mean s.

        batch_norm(conv(x, W, b)) = conv(x, W s, (b - mean) s + beta), s = gamma / sqrt(var + eps)
        """
        read = {name.rpartition(".")[2]: self._ours[name].astype(np.float64) for name in own}
        for epsilon in [self.epsilons[norm]] if norm in self.epsilons else USUAL_EPSILONS:
            scale = read.get("weight", 1.0) / np.sqrt(read["running_var"] + epsilon)
            offset = read.get("bias", np.zeros_like(scale))
            for weight in (*self._producers(norm, len(scale)), None):
                bias = bias_of(weight) if weight else ""
                shift = self._ours[bias].astype(np.float64) if bias in self.sources else np.zeros_like(scale)
                moved = (shift - read["running_mean"]) * scale + offset
                rounding = (np.abs(shift) + np.abs(read["running_mean"])) * np.abs(scale) + np.abs(offset)
                kernel = scale if weight is None else _scaled(self._ours[weight], scale)
                place = self._near(kernel, FOLDED_ROUNDING * np.abs(kernel))
                beside = self._near(moved, FOLDED_ROUNDING * rounding)
                if place is None or beside is None:
                    continue
                what = f"batch norm `{norm}` folded in" if weight else "batch norm as a scale and a shift"
                if weight:
                    self._note(weight, "folded", place, what)
                    if bias in self.sources:
                        self._note(bias, "folded", beside, what)
                for name in own:
                    into = beside if name.endswith(("bias", "running_mean")) else place
                    self._note(name, "folded", into, f"into `{weight}`" if weight else what)
                return

    def _producers(self, norm: str, channels: int) -> list[str]:
        """Return kernels that this norm may follow, the nearest before it first."""
        names = list(self.sources)
        at = min(names.index(name) for name in names if name.rpartition(".")[0] == norm)
        fitting = [
            name
            for name in names
            if self.sources[name].ndim >= 2
            and channels in self.sources[name].shape[:2]
            and self.sources.get(bias_of(name), self.sources[f"{norm}.running_var"]).shape == (channels,)
            and name not in self.matches
        ]
        return sorted(fitting, key=lambda name: (names.index(name) > at, abs(names.index(name) - at)))[:6]

    def _near(self, array: np.ndarray, rounding: np.ndarray) -> str | None:
        """Return where these values are within their rounding, or None."""
        total, allowed = float(array.sum()), float(rounding.sum())
        for place in self._by_size.get(array.size, []):
            if place in self.used and array.size > 1 and self._whole_match(place):
                continue
            target = self._theirs[place].astype(np.float64)
            if abs(float(target.sum()) - total) <= 2 * allowed + 1e-300 and arranged(array, target, rounding):
                return place
        return None

    def _whole_match(self, place: str) -> bool:
        return any(m.name == place and m.found in ("unchanged", "permuted") for m in self.matches.values())

    # -- tensors that were not found

    def _nearest(self, name: str) -> WeightMatch:
        array = self._ours[name]
        candidates = [place for place in self._by_size.get(array.size, []) if place not in self.used]
        if not candidates:
            return self._match(name, "missing", "", "the artifact has no other tensor of its size")
        best = max(((*_likeness(array, self._theirs[place]), place) for place in candidates), key=lambda one: one[:1])
        likeness, count, error, place = best
        if likeness >= ALIKE:
            self.used.add(place)
            scale = float(np.abs(array).max(initial=0.0))
            if not count:
                return self._match(
                    name, "changed", place, "it has the same values in an order that no transposition gives"
                )
            what = f"{count:,} of {array.size:,} values differ, by up to {error:.3g}"
            return self._match(name, "changed", place, what + (f" ({error / scale:.1e} of its scale)" if scale else ""))
        spread = float(np.abs(np.sort(array, axis=None) - np.sort(self._theirs[place], axis=None)).max())
        return self._match(
            name,
            "missing",
            "",
            f"the nearest of its size is `{place}`, whose values, sorted, differ by up to {spread:.3g}",
        )

    def _note(self, name: str, found: str, place: str, how: str) -> None:
        self.used.update(place.split(", ") if place else ())
        self.matches[name] = self._match(name, found, place, how)

    def _match(self, name: str, found: str, place: str, how: str) -> WeightMatch:
        return WeightMatch(name, tuple(self.sources[name].shape), found, place, how)  # type: ignore[arg-type]


def bias_of(weight: str) -> str:
    """Return the name of the bias beside a weight."""
    return f"{weight.rpartition('.')[0]}.bias".lstrip(".")


def _scaled(kernel: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Scale each output channel by its factor: dimension 0, or 1 for a transposed convolution."""
    axis = 0 if kernel.shape[0] == len(scale) else 1
    return np.asarray(kernel.astype(np.float64) * scale.reshape([-1 if a == axis else 1 for a in range(kernel.ndim)]))


def _cuts(array: np.ndarray) -> Iterator[tuple[int, int]]:
    for axis, size in enumerate(array.shape):
        for count in PIECES:
            if size % count == 0 and array.size >= count * SMALLEST_PIECE:
                yield axis, count


def _pieces(array: np.ndarray, sizes: Collection[int], depth: int = 2) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the pieces of an array that have one of these sizes: split along an axis, and once more along another."""
    for axis, count in _cuts(array):
        if depth == 1 and array.size // count not in sizes:
            continue
        for number, piece in enumerate(np.split(array, count, axis)):
            where = f"part {number + 1} of {count} along axis {axis}"
            if piece.size in sizes:
                yield where, piece
            elif depth > 1 and any(piece.size > size for size in sizes):
                yield from ((f"{where}, {inner}", cut) for inner, cut in _pieces(piece, sizes, depth - 1))


def _likeness(source: np.ndarray, target: np.ndarray) -> tuple[float, int, float]:
    """Return the cosine of the best transposition, how many of its elements differ, and by how much at most.

    If most values are the same in any order, their share replaces the cosine.
    """
    best = (-1.0, source.size, float("inf"))
    for order in permutations(range(source.ndim)) if source.ndim <= 5 else [tuple(range(source.ndim))]:
        turned = source.transpose(order)
        if turned.shape != target.shape and order != tuple(range(source.ndim)):
            continue
        shaped = target.reshape(turned.shape)
        with np.errstate(all="ignore"):
            norms = float(np.linalg.norm(turned)) * float(np.linalg.norm(shaped))
            cosine = float(np.sum(turned.astype(np.float64) * shaped)) / norms if norms else 0.0
            errors = np.abs(turned - shaped)
        best = max(best, (cosine, int((errors != 0).sum()), float(errors.max(initial=0.0))))
    ours, theirs = np.sort(source, axis=None), np.sort(target, axis=None)
    left = source.size - int(np.isin(ours, theirs).sum())
    share = 1 - left / max(source.size, 1)
    if share > best[0] or not left:
        best = (share, left, float(np.abs(ours - theirs).max(initial=0.0)))
    return best


def weights_proof(matches: Sequence[WeightMatch]) -> Proof:
    """Return a proof that every tensor was found, with the number found in each way."""
    counts = {kind: sum(match.found == kind for match in matches) for kind in (*FOUND, "changed", "missing")}
    words = {
        "unchanged": "as they are", "permuted": "permuted", "derived": "joined, cut or added", "folded": "folded",
        "not needed": "not needed", "changed": "changed", "missing": "missing",
    }  # fmt: skip
    told = ", ".join(f"{count} {words[kind]}" for kind, count in counts.items() if count)
    wrong = [match for match in matches if match.found not in FOUND]
    failures = tuple(
        f"{m.tensor} {list(m.shape)}: {m.found}"
        + (f", found as {m.name}" if m.name else "")
        + (f": {m.how}" if m.how else "")
        for m in wrong
    )
    return Proof("weights", not wrong, f"{len(matches)} tensors: {told}", failures=failures)
