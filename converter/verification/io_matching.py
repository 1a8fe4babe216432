"""Match the inputs and outputs of an artifact from any tool to those of the model, and find their layouts.

Shapes and names decide where they can. Where they leave a choice, each option is tried, and the report names the one
that makes the artifact agree: an `Explanation`, which the user accepts or not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from converter.artifacts.local_model import LocalModel
from converter.artifacts.runner import Runner
from converter.errors import ConversionError, Note
from converter.options import AcceptedKind
from converter.plan.interface import TensorInterface
from converter.report.results import Explanation, ExplanationKind, Proof
from converter.verification.explanations import OutputTransform, explains, orders, possible_transforms
from converter.verification.input_bindings import InputBinding, input_bindings
from converter.verification.io_names import cast, pair_names, perfect_matching, plain_name
from converter.verification.output_proofs import Outputs, compare_artifact
from converter.verification.reference import Reference


@dataclass
class Match:
    """The result of a comparison.

    Attributes:
        proof: of the model's outputs.
        results: the artifact's outputs by the model's names, in PyTorch's layout, otherwise unchanged.
        binding: of the inputs.
        explanations: the differences without which it does not hold.
        names, transforms: which of the artifact's outputs is each of the model's, and how it is read.
    """

    proof: Proof
    results: list[Outputs]
    binding: InputBinding
    explanations: list[Explanation]
    notes: list[Note]
    names: Sequence[str]
    transforms: Sequence[OutputTransform]


@dataclass
class Matching:
    """Compares an opened artifact with a reference.

    Args:
        inputs, outputs: the model's; for an artifact written by pt-convert, in its layouts.
        layouts_known: names and layouts are known, not guessed.
        accepted: the kinds of explanations that may make it agree.
    """

    runner: Runner | LocalModel
    inputs: Sequence[TensorInterface]
    outputs: Sequence[TensorInterface]
    reference: Reference
    layouts_known: bool = False
    accepted: Collection[AcceptedKind] = ()
    atol: float | None = None
    rtol: float | None = None
    _last: Match | None = field(default=None, init=False)

    def match(self) -> Match:
        """Return the match of the first binding of the inputs under which outputs agree, else of the first that runs.

        Raises:
            ConversionError: no binding runs.
        """
        failure: ConversionError | None = None
        first: Match | None = None
        for binding in input_bindings(self.inputs, self.runner.inputs, self.layouts_known):
            try:
                found = self._tried(binding, first)
            except ConversionError as error:
                failure = failure or error
                continue
            if found is not None:
                return found
            first = first or self._last
        if first is None:
            raise failure or ConversionError(
                "The artifact's inputs do not match the model's.", code="PTC5008", fix="Rename the inputs on one side."
            )
        return first

    def _tried(self, binding: InputBinding, first: Match | None) -> Match | None:
        """Return the match under this binding if it agrees; after the first binding, try one round before all."""
        for rounds in (None,) if first is None else (1, None):
            found = self._compare(list(self._run(binding, rounds)), binding)
            if first is None:
                self._last = found
            if not agreed(found.proof) and not found.explanations:
                return None
        if first is not None and not found.proof.holds:  # keep the figures of the expected binding
            found.proof = replace(found.proof, outputs=first.proof.outputs)
        return found

    def feed(self, binding: InputBinding, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return `arrays`, by the model's names in PyTorch's layout, under the artifact's names and in its layout."""
        dtypes = {s.name: s.dtype for s in self.runner.inputs}
        return {
            theirs: cast(np.ascontiguousarray(arrays[i.name].transpose(order)), dtypes[theirs], theirs)
            for theirs, i, order in zip(binding.names, self.inputs, binding.orders, strict=True)
        }

    def run(self, match: Match, arrays: Mapping[str, np.ndarray]) -> Outputs:
        """Return the artifact's results on other inputs, read as in a match."""
        given = self.runner.run(self.feed(match.binding, arrays))
        return self._results([given], match.names, match.transforms)[0]

    def _run(self, binding: InputBinding, rounds: int | None) -> Iterator[Mapping[str, np.ndarray]]:
        for each in self.reference.rounds[:rounds]:
            yield self.runner.run(self.feed(binding, each.arrays))

    # -- outputs

    def _compare(self, given: Sequence[Mapping[str, np.ndarray]], binding: InputBinding) -> Match:
        theirs = [s.name for s in self.runner.outputs]
        names = self._expected_names(given)
        plain = [self._plain(o, [g[n] for g in given]) for o, n in zip(self.outputs, names, strict=False)]
        results = self._results(given, names, plain)
        proof = self._proof([o.name for o in self.outputs], results)
        ours = [o.name for o in self.outputs]
        notes = [] if self.layouts_known else self._notes(binding, plain, [n for n in theirs if n not in names])
        transforms: Explained | None = (names, plain, [])
        if not agreed(proof):
            transforms = self._explained(given, names, proof, plain) or self._reordered(given, theirs)
        if transforms is None or len(names) < len(ours):
            return Match(proof, results, binding, [], notes, names, plain)
        names, chosen, kinds = transforms
        explanations = [Explanation(k, name, what, k in self.accepted) for k, name, what in (*binding.open, *kinds)]
        if not explanations:
            return Match(proof, results, binding, [], notes, names, plain)
        if not all(e.accepted for e in explanations):
            return Match(_unaccepted(proof, explanations), results, binding, explanations, notes, names, plain)
        explained = self._explained_proof(given, names, chosen, explanations)
        return Match(explained, self._results(given, names, chosen), binding, explanations, notes, names, chosen)

    def _notes(self, binding: InputBinding, plain: Sequence[OutputTransform], more: Sequence[str]) -> list[Note]:
        taken = zip(self.inputs, binding.orders, strict=True)
        given = zip(self.outputs, [transform.order for transform in plain], strict=False)
        ins, outs = ([i.name for i, order in held if list(order) != sorted(order)] for held in (taken, given))
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

    def _transforms(
        self, output: TensorInterface, plain: OutputTransform, arrays: Sequence[np.ndarray]
    ) -> Iterator[OutputTransform]:
        """Yield all transforms that fit the shapes, the simplest first."""
        shape = np.shape(self.reference.float64[0][output.name])
        yield plain
        others = [] if self.layouts_known else [o for o in orders(len(shape)) if o != plain.order]
        for order in others:
            if tuple(shape[d] for d in order) == arrays[0].shape:
                yield OutputTransform(
                    "layout", order, "the artifact holds it channels last, which its shape does not show"
                )
        for transform in possible_transforms(shape, self._image_sizes()):
            yield replace(transform, order=plain.order)

    def _image_sizes(self) -> list[tuple[int, int]]:
        shapes = [np.shape(self.reference.rounds[0].arrays[i.name]) for i in self.inputs]
        return [(s[2], s[3]) for s in shapes if len(s) == 4]

    def _find_transform(self, output: TensorInterface, arrays: Sequence[np.ndarray]) -> OutputTransform | None:
        """Return the simplest transform by which these arrays are this output, or None."""
        r = self.reference
        for transform in self._transforms(output, self._plain(output, arrays), arrays):
            if transform.model is None and transform.artifact is None:
                if agreed(self._proof([output.name], [{output.name: transform.of_artifact(a)} for a in arrays])):
                    return transform
            elif explains(
                transform,
                output.name,
                r.float64[: len(arrays)],
                r.float32[: len(arrays)],
                arrays,
                atol=self.atol,
                rtol=self.rtol,
            ):
                return transform
        return None

    def _explained(
        self,
        given: Sequence[Mapping[str, np.ndarray]],
        baseline: Sequence[str],
        proof: Proof,
        plain: Sequence[OutputTransform],
    ) -> Explained | None:
        """Explain each output by itself, under its own name."""
        if len(baseline) < len(self.outputs):
            return None
        agrees = {output.name: output.agrees for output in proof.outputs}
        chosen = []
        for output, name, transform in zip(self.outputs, baseline, plain, strict=True):
            found = transform if agrees[output.name] else self._find_transform(output, [g[name] for g in given])
            if found is None:
                return None
            chosen.append(found)
        return tuple(baseline), chosen, _kinds(self.outputs, chosen)

    def _reordered(self, given: Sequence[Mapping[str, np.ndarray]], theirs: Sequence[str]) -> Explained | None:
        """Explain each output under another's name: find a perfect matching of those that agree."""
        if len(theirs) < len(self.outputs) or len(theirs) == 1:
            return None
        edges = {
            (o.name, n): transform
            for o in self.outputs
            for n in theirs
            if (transform := self._find_transform(o, [g[n] for g in given])) is not None
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
        self, given: Sequence[Mapping[str, np.ndarray]], names: Iterable[str], transforms: Sequence[OutputTransform]
    ) -> list[Outputs]:
        pairs = list(zip(self.outputs, names, transforms, strict=False))
        return [{o.name: t.without_explanation().of_artifact(g[n]) for o, n, t in pairs} for g in given]

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
        transforms: Sequence[OutputTransform],
        explanations: Sequence[Explanation],
    ) -> Proof:
        pairs = list(zip(self.outputs, names, transforms, strict=True))
        r, count = self.reference, len(given)
        with np.errstate(all="ignore"):
            proof = compare_artifact(
                [{o.name: t.of_model(np.asarray(one[o.name])) for o, _, t in pairs} for one in r.float64[:count]],
                [{o.name: t.of_model(np.asarray(one[o.name])) for o, _, t in pairs} for one in r.float32[:count]],
                [{o.name: t.of_artifact(g[n]) for o, n, t in pairs} for g in given],
                atol=self.atol,
                rtol=self.rtol,
                constant=r.constant,
            )
        after = ", ".join(dict.fromkeys(e.kind for e in explanations))
        return replace(proof, summary=f"{proof.summary}; after {after}, as accepted")


Explained = tuple[tuple[str, ...], list[OutputTransform], list[tuple[ExplanationKind, str, str]]]


def _kinds(
    outputs: Sequence[TensorInterface], transforms: Sequence[OutputTransform]
) -> list[tuple[ExplanationKind, str, str]]:
    return [
        (t.kind, o.name, f"output `{o.name}`: {t.description}")
        for o, t in zip(outputs, transforms, strict=True)
        if t.kind
    ]


def _unaccepted(proof: Proof, explanations: Sequence[Explanation]) -> Proof:
    """Return a proof that fails because the artifact agrees only after explanations that nobody accepted."""
    needed = [e for e in explanations if not e.accepted]
    kinds = list(dict.fromkeys(e.kind for e in needed))
    sentences = tuple(e.description for e in needed)
    flags = " ".join(f"--accept {kind}" for kind in kinds)
    fix = f"to accept this, pass {flags}"
    return Proof("artifact", False, f"agrees only after {', '.join(kinds)}", proof.outputs, (*sentences, fix))


def agreed(proof: Proof) -> bool:
    return proof.holds or proof.proves_nothing
