"""Match the inputs and outputs of an artifact from any tool to those of the model, and find their layouts.

Shapes and names decide where they can. Where they leave a choice, each option is tried, and the report names the one
that makes the artifact agree: an `Explanation`, which the user accepts or not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, permutations, product

import numpy as np

from converter.artifacts.runner import Runner, TensorSpec
from converter.errors import ConversionError, Note
from converter.plan.interface import TensorInterface, sizes_shown
from converter.report.results import Explanation, ExplanationKind, Proof
from converter.verification.explanations import OutputTransform, explains, orders, transforms
from converter.verification.io_names import cast, counted, fits, kind, pair_names, perfect_matching, plain_name, shown
from converter.verification.output_proofs import Outputs, compare_artifact
from converter.verification.reference import Reference

MOST_READINGS = 12  # readings of the inputs; each costs a run
MOST_PERMUTED = 4  # inputs whose order is tried


@dataclass(frozen=True)
class InputBinding:
    """One way to feed an artifact: for each of the model's inputs, the artifact's name and the axes' order.

    Attributes:
        open: what names and shapes leave open, if this reading is the one that agrees.
    """

    names: tuple[str, ...]
    orders: tuple[tuple[int, ...], ...]
    open: tuple[tuple[ExplanationKind, str, str], ...] = ()


@dataclass
class Match:
    """The result of a comparison.

    Attributes:
        proof: of the model's outputs.
        results: the artifact's outputs by the model's names, in PyTorch's layout, otherwise unchanged.
        reading: of the inputs.
        explanations: the differences without which it does not hold.
    """

    proof: Proof
    results: list[Outputs]
    reading: InputBinding
    explanations: list[Explanation] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


@dataclass
class Matching:
    """Compares an opened artifact with a reference.

    Args:
        inputs, outputs: the model's; for an artifact written by pt-convert, in its layouts.
        layouts_known: names and layouts are known, not guessed.
        accepted: the kinds of explanations that may make it agree.
    """

    runner: Runner
    inputs: Sequence[TensorInterface]
    outputs: Sequence[TensorInterface]
    reference: Reference
    layouts_known: bool = False
    accepted: Collection[ExplanationKind] = ()
    atol: float | None = None
    rtol: float | None = None
    _last: Match | None = field(default=None, init=False)

    def match(self) -> Match:
        """Return the match of the first reading of the inputs under which outputs agree, else of the first that runs.

        Raises:
            ConversionError: no reading runs.
        """
        failure: ConversionError | None = None
        first: Match | None = None
        for reading in self._readings():
            try:
                found = self._tried(reading, first)
            except ConversionError as error:
                failure = failure or error
                continue
            if found is not None:
                return found
            first = first or self._last
        if first is None:
            raise failure or ConversionError(
                "the artifact's inputs are not those of the model", code="PTC5008", fix="Rename the inputs on one side."
            )
        return first

    def _tried(self, reading: InputBinding, first: Match | None) -> Match | None:
        """Return the match under this reading if it agrees; after the first reading, try one round before all."""
        for rounds in (None,) if first is None else (1, None):
            found = self._compare(list(self._run(reading, rounds)), reading)
            if first is None:
                self._last = found
            if not agreed(found.proof) and not found.explanations:
                return None
        if first is not None and not found.proof.holds:  # keep the figures of the expected reading
            found.proof = replace(found.proof, outputs=first.proof.outputs)
        return found

    # -- inputs

    def _readings(self) -> Iterator[InputBinding]:
        specs = self.runner.inputs
        if len(specs) != len(self.inputs):
            raise ConversionError(
                f"the model has {counted(len(self.inputs), 'input')}, the artifact {len(specs)}: "
                f"{', '.join(i.name for i in self.inputs)} against {', '.join(s.name for s in specs)}",
                code="PTC5009",
                fix="compare models that take the same inputs",
            )
        ours = [i.name for i in self.inputs]
        theirs = [s.name for s in specs]
        baseline = pair_names(ours, theirs)
        by_name = {s.name: s for s in specs}
        assignments = [baseline]
        if not self.layouts_known and 1 < len(ours) <= MOST_PERMUTED:
            assignments += [p for p in permutations(baseline) if p != baseline]
        fitting = [
            names
            for names in assignments
            if all(self._fits(i, by_name[n]) for i, n in zip(self.inputs, names, strict=True))
        ]
        if not fitting:
            raise self._unfit(baseline, by_name)
        yield from islice(self._laid_out(fitting, by_name, baseline), MOST_READINGS)

    def _laid_out(
        self, assignments: Sequence[Sequence[str]], by_name: Mapping[str, TensorSpec], baseline: Sequence[str]
    ) -> Iterator[InputBinding]:
        for names in assignments:
            swapped: tuple[tuple[ExplanationKind, str, str], ...] = ()
            if assignments[0] == baseline != names:
                pairs = ", ".join(f"`{n}` is `{i.name}`" for i, n in zip(self.inputs, names, strict=True))
                swapped = (("input-order", "", f"its inputs are in another order: {pairs}"),)
            each = [self._orders(i, by_name[n]) for i, n in zip(self.inputs, names, strict=True)]
            for chosen in product(*each):
                guessed = tuple(
                    ("layout", i.name, f"the artifact takes `{i.name}` channels last, which its shape does not tell")
                    for i, order, known in zip(self.inputs, chosen, each, strict=True)
                    if order != known[0]
                )
                yield InputBinding(tuple(names), chosen, (*swapped, *guessed))  # type: ignore[arg-type]

    def _orders(self, interface: TensorInterface, spec: TensorSpec) -> list[tuple[int, ...]]:
        if self.layouts_known:
            return [interface.order]
        return [o for o in orders(len(interface.shape)) if fits([interface.shape[d] for d in o], spec.shape)]

    def _fits(self, interface: TensorInterface, spec: TensorSpec) -> bool:
        return bool(self._orders(interface, spec)) and kind(spec.dtype) in (kind(interface.dtype), "f")

    def _unfit(self, names: Sequence[str], by_name: Mapping[str, TensorSpec]) -> ConversionError:
        pairs = [(i, by_name[n]) for i, n in zip(self.inputs, names, strict=True)]
        listed = "; ".join(
            f"`{i.name}` is {str(i.dtype).removeprefix('torch.')} {shown(sizes_shown(i.shape))} in the model, "
            f"`{s.name}` is {s.dtype} {shown(s.shape)}"
            for i, s in pairs
        )
        return ConversionError(
            f"the artifact's inputs are of other shapes or types than the model's: {listed}",
            code="PTC5010",
            fix="give --input-shape with the sizes that the artifact takes, in PyTorch's layout",
        )

    def _run(self, reading: InputBinding, rounds: int | None) -> Iterator[Mapping[str, np.ndarray]]:
        for each in self.reference.rounds[:rounds]:
            yield self.runner.run(self.feed(reading, each.arrays))

    def feed(self, reading: InputBinding, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return `arrays`, by the model's names in PyTorch's layout, under the artifact's names and in its layout."""
        dtypes = {s.name: s.dtype for s in self.runner.inputs}
        return {
            theirs: cast(np.ascontiguousarray(arrays[i.name].transpose(order)), dtypes[theirs], theirs)
            for theirs, i, order in zip(reading.names, self.inputs, reading.orders, strict=True)
        }

    # -- outputs

    def _compare(self, given: Sequence[Mapping[str, np.ndarray]], reading: InputBinding) -> Match:
        theirs = [s.name for s in self.runner.outputs]
        names = self._expected_names(given)
        plain = [self._plain(o, [g[n] for g in given]) for o, n in zip(self.outputs, names, strict=False)]
        results = self._results(given, names, plain)
        proof = self._proof([o.name for o in self.outputs], results)
        ours = [o.name for o in self.outputs]
        notes = [] if self.layouts_known else self._notes(reading, plain, [n for n in theirs if n not in names])
        ways: Ways | None = (names, plain, [])
        if not agreed(proof):
            ways = self._explained(given, names, proof, plain) or self._reordered(given, theirs)
        if ways is None or len(names) < len(ours):
            return Match(proof, results, reading, [], notes)
        names, chosen, kinds = ways
        explanations = [Explanation(k, name, what, k in self.accepted) for k, name, what in (*reading.open, *kinds)]
        if not explanations:
            return Match(proof, results, reading, [], notes)
        if not all(e.accepted for e in explanations):
            return Match(_unaccepted(proof, explanations), results, reading, explanations, notes)
        explained = self._explained_proof(given, names, chosen, explanations)
        return Match(explained, self._results(given, names, chosen), reading, explanations, notes)

    def _notes(self, reading: InputBinding, plain: Sequence[OutputTransform], more: Sequence[str]) -> list[Note]:
        ins = [
            i.name for i, order in zip(self.inputs, reading.orders, strict=True) if order != tuple(range(len(order)))
        ]
        outs = [
            o.name for o, way in zip(self.outputs, plain, strict=False) if way.order != tuple(range(len(way.order)))
        ]
        notes = [Note(f"The artifact takes `{name}` channels last.", code="PTC5501") for name in ins]
        notes += [Note(f"The artifact returns `{name}` channels last.", code="PTC5502") for name in outs]
        if more:
            notes.append(Note(f"The artifact has outputs that the model lacks: {', '.join(more)}.", code="PTC5503"))
        return notes

    def _expected_names(self, given: Sequence[Mapping[str, np.ndarray]]) -> tuple[str, ...]:
        """Return the artifact's outputs in the model's order.

        TensorFlow sorts outputs by name, so where names do not match, shapes decide.
        """
        ours, theirs = [o.name for o in self.outputs], [s.name for s in self.runner.outputs]
        names = pair_names(ours, theirs)
        if (
            self.runner.format != "tf"
            or self.layouts_known
            or set(map(plain_name, ours)) & set(map(plain_name, theirs))
        ):
            return names
        shapes = {o.name: np.shape(self.reference.float64[0][o.name]) for o in self.outputs}
        fitting = {
            o: [n for n in theirs if any(tuple(s[d] for d in order) == given[0][n].shape for order in orders(len(s)))]
            for o, s in shapes.items()
        }
        if all(len(found) == 1 for found in fitting.values()) and len({f[0] for f in fitting.values()}) == len(ours):
            return tuple(fitting[o][0] for o in ours)
        return names

    def _plain(self, output: TensorInterface, arrays: Sequence[np.ndarray]) -> OutputTransform:
        """Read an output in the layout that its shapes imply, or in PyTorch's where they leave a choice."""
        if self.layouts_known:
            return OutputTransform(None, output.order)
        shapes = [np.shape(outputs[output.name]) for outputs in self.reference.float64[: len(arrays)]]
        for order in orders(len(output.shape)):
            if all(tuple(s[d] for d in order) == a.shape for s, a in zip(shapes, arrays, strict=True)):
                return OutputTransform(None, order)
        return OutputTransform(None, tuple(range(len(output.shape))))

    def _ways(
        self, output: TensorInterface, plain: OutputTransform, arrays: Sequence[np.ndarray]
    ) -> Iterator[OutputTransform]:
        """Yield all ways that fit the shapes, the simplest first."""
        shape = np.shape(self.reference.float64[0][output.name])
        layouts = [plain.order]
        if not self.layouts_known:
            layouts += [
                o for o in orders(len(shape)) if o != plain.order and tuple(shape[d] for d in o) == arrays[0].shape
            ]
        yield plain
        for order in layouts[1:]:
            yield OutputTransform("layout", order, "the artifact holds it channels last, which its shape does not tell")
        for way in transforms(shape, self._image_sizes()):
            yield OutputTransform(way.kind, layouts[0], way.description, way.model, way.artifact)

    def _image_sizes(self) -> list[tuple[int, int]]:
        shapes = [np.shape(self.reference.rounds[0].arrays[i.name]) for i in self.inputs]
        return [(s[2], s[3]) for s in shapes if len(s) == 4]

    def _way(self, output: TensorInterface, arrays: Sequence[np.ndarray]) -> OutputTransform | None:
        """Return the simplest way in which these arrays are this output, or None."""
        r = self.reference
        for way in self._ways(output, self._plain(output, arrays), arrays):
            if way.model is None and way.artifact is None:
                if agreed(self._proof([output.name], [{output.name: way.of_artifact(a)} for a in arrays])):
                    return way
            elif explains(
                way,
                output.name,
                r.float64[: len(arrays)],
                r.float32[: len(arrays)],
                arrays,
                atol=self.atol,
                rtol=self.rtol,
            ):
                return way
        return None

    def _explained(
        self,
        given: Sequence[Mapping[str, np.ndarray]],
        baseline: Sequence[str],
        proof: Proof,
        plain: Sequence[OutputTransform],
    ) -> Ways | None:
        """Explain each output by itself, under its own name."""
        if len(baseline) < len(self.outputs):
            return None
        agrees = {output.name: output.agrees for output in proof.outputs}
        chosen = []
        for output, name, way in zip(self.outputs, baseline, plain, strict=True):
            found = way if agrees[output.name] else self._way(output, [g[name] for g in given])
            if found is None:
                return None
            chosen.append(found)
        return tuple(baseline), chosen, _kinds(self.outputs, chosen)

    def _reordered(self, given: Sequence[Mapping[str, np.ndarray]], theirs: Sequence[str]) -> Ways | None:
        """Explain each output under another's name: find a perfect matching of those that agree."""
        if len(theirs) < len(self.outputs) or len(theirs) == 1:
            return None
        edges = {
            (o.name, n): way
            for o in self.outputs
            for n in theirs
            if (way := self._way(o, [g[n] for g in given])) is not None
        }
        names = perfect_matching([o.name for o in self.outputs], theirs, edges)
        if names is None:
            return None
        chosen = [edges[o.name, n] for o, n in zip(self.outputs, names, strict=True)]
        pairs = ", ".join(f"`{n}` is `{o.name}`" for o, n in zip(self.outputs, names, strict=True))
        kinds: list[tuple[ExplanationKind, str, str]] = [
            ("output-order", "", f"its outputs are in another order: {pairs}")
        ]
        return tuple(names), chosen, [*kinds, *_kinds(self.outputs, chosen)]

    def _results(
        self, given: Sequence[Mapping[str, np.ndarray]], names: Iterable[str], ways: Sequence[OutputTransform]
    ) -> list[Outputs]:
        pairs = list(zip(self.outputs, names, ways, strict=False))
        return [{o.name: OutputTransform(None, way.order).of_artifact(g[n]) for o, n, way in pairs} for g in given]

    def _proof(self, names: Sequence[str], results: Sequence[Outputs]) -> Proof:
        """Compare these outputs of the model, in as many rounds as there are results."""
        float64, float32 = (
            [{name: one[name] for name in names} for one in rounds[: len(results)]]
            for rounds in (self.reference.float64, self.reference.float32)
        )
        return compare_artifact(
            float64, float32, results, atol=self.atol, rtol=self.rtol,
            constant=self.reference.constant, perturbed_runs=self.reference.perturbed_runs_in(self.runner),
        )  # fmt: skip

    def _explained_proof(
        self,
        given: Sequence[Mapping[str, np.ndarray]],
        names: Sequence[str],
        ways: Sequence[OutputTransform],
        explanations: Sequence[Explanation],
    ) -> Proof:
        pairs = list(zip(self.outputs, names, ways, strict=True))
        r, count = self.reference, len(given)
        with np.errstate(all="ignore"):
            proof = compare_artifact(
                [{o.name: way.of_model(np.asarray(one[o.name])) for o, _, way in pairs} for one in r.float64[:count]],
                [{o.name: way.of_model(np.asarray(one[o.name])) for o, _, way in pairs} for one in r.float32[:count]],
                [{o.name: way.of_artifact(g[n]) for o, n, way in pairs} for g in given],
                atol=self.atol,
                rtol=self.rtol,
                constant=r.constant,
            )
        after = ", ".join(dict.fromkeys(e.kind for e in explanations))
        return replace(proof, summary=f"{proof.summary}; after {after}, as accepted")


Ways = tuple[tuple[str, ...], list[OutputTransform], list[tuple[ExplanationKind, str, str]]]


def _kinds(
    outputs: Sequence[TensorInterface], ways: Sequence[OutputTransform]
) -> list[tuple[ExplanationKind, str, str]]:
    return [
        (w.kind, o.name, f"output `{o.name}`: {w.description}") for o, w in zip(outputs, ways, strict=True) if w.kind
    ]


def _unaccepted(proof: Proof, explanations: Sequence[Explanation]) -> Proof:
    """Return a proof that fails because the artifact agrees only after explanations that nobody accepted."""
    needed = [e for e in explanations if not e.accepted]
    kinds = list(dict.fromkeys(e.kind for e in needed))
    sentences = tuple(e.description for e in needed)
    flags = " ".join(f"--accept {kind}" for kind in kinds)
    fix = f"if that is meant, {flags} accepts it"
    return Proof("artifact", False, f"agrees only after {', '.join(kinds)}", proof.outputs, (*sentences, fix))


def agreed(proof: Proof) -> bool:
    return proof.holds or proof.proves_nothing
