"""Proofs 1 and 2: the same function in float64, the same artifact within PyTorch's own rounding.

Every function takes outputs in PyTorch's order of dimensions, one mapping by name for each round of inputs. Each round
is judged separately; a proof holds if every output agrees in every round and varies with the input.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import Note
from ..report.results import Accuracy, OutputComparison, Proof, ProofName
from .metrics import Figures, figures, plain, real
from .perturbation import MORE_RUNS, RUNS
from .tolerance import Classes, small_slices
from .vacuity import judge_variation, why_overflown

Outputs = Mapping[str, np.ndarray]
# Takes the numbers of a round and of runs; returns PyTorch's results on its inputs with other roundings.
PerturbedRuns = Callable[[int, int], Sequence[Outputs]]

FUNCTION_BOUND = 1e-10  # of the output's scale
ROUNDING_FACTOR = 16
# Of the scale: the most that is allowed to a network that amplifies rounding. Float32 has no digit left there. A larger
# difference after perturbing PyTorch's last bit is not rounding but a decision, such as an argmax between equals.
FUNCTION_BOUND_AT_MOST = 1e-6
CLOSE = 1e-2  # of the scale: a difference that a user may accept
NEAR = 4  # times the bound: more runs may show that rounding does that too
RESOLUTION = 1e-3  # relative: what a comparison of outputs must be able to see
SET_ASIDE_SHARE = 0.01  # of an output's integers


def compare_function(
    reference: Sequence[Outputs],
    actual: Sequence[Outputs],
    *,
    relative_bound: float = FUNCTION_BOUND,
    constant: Collection[str] = (),
    perturbed_runs: PerturbedRuns | None = None,
) -> Proof:
    """Compare two float64 computations; integers and booleans must be equal.

    Args:
        relative_bound: the largest allowed error, over the scale of an element's class (`tolerance.Classes`).
        constant: outputs that do not depend on any input's values in the graph, so need not vary.
        perturbed_runs: returns PyTorch's float64 results with other roundings, for a round whose error is larger but
            below 1e-6 of the output's largest scale in any round: in one it may be nothing but rounding, as of a norm
            of constant rows. 16 times their difference is then allowed, but at most 1e-6.
    """

    def allowance(expected: np.ndarray, classes: Classes, own: np.ndarray | None, largest: float) -> np.ndarray:
        return function_bound(classes, own, relative_bound, largest)

    outputs = _compare(reference, actual, None, allowance, constant, perturbed_runs, hopeless=FUNCTION_BOUND_AT_MOST)
    multiples = [output.multiple_of_rounding for output in outputs if output.multiple_of_rounding is not None]
    if multiples:  # each figure is that of the place which is nearest to its bound
        worst = max((o.share_of_bound * o.bound / o.scale for o in outputs if o.scale > 0), default=0.0)
        limit = f", {max(multiples):.1f}x PyTorch's own rounding there (limit {ROUNDING_FACTOR}x)"
    else:
        worst = max((output.share_of_bound for output in outputs), default=0.0) * relative_bound
        limit = f" (limit {relative_bound:.0e})"
    agreed = f"max error {worst:.1e} of the scale in float64{limit}"
    return _proof("function", outputs, agreed, len(reference))


def function_bound(
    classes: Classes,
    own_rounding: np.ndarray | None = None,
    relative_bound: float = FUNCTION_BOUND,
    largest: float = 0.0,
) -> np.ndarray:
    """Return the allowed float64 error of each element, where PyTorch's perturbed results differ by `own_rounding`.

    Args:
        largest: the output's scale in other rounds.
    """
    bound = relative_bound * classes.scales()
    if own_rounding is None:
        return bound
    at_most = FUNCTION_BOUND_AT_MOST * max(classes.scale, largest)
    return np.maximum(bound, np.minimum(ROUNDING_FACTOR * own_rounding, at_most))


def compare_artifact(
    reference: Sequence[Outputs],
    torch_float32: Sequence[Outputs],
    actual: Sequence[Outputs],
    *,
    atol: float | None = None,
    rtol: float | None = None,
    constant: Collection[str] = (),
    perturbed_runs: PerturbedRuns | None = None,
) -> Proof:
    """Compare an artifact's outputs with PyTorch's in float64, by PyTorch's own float32 error on the same inputs.

    The allowed error is 16 x PyTorch's own on the element and its like (`tolerance.rounding_units`), or atol + rtol x
    |reference| if either is given. Integers must be equal except where PyTorch's float32 and float64 differ, which is
    counted and at most 1 %.

    Args:
        perturbed_runs: called where the bound is exceeded: a single float32 result can happen to be more exact than
            PyTorch's rounding usually is. PyTorch's own error is then the largest of all its results.
    """

    def allowance(expected: np.ndarray, classes: Classes, own: np.ndarray | None, largest: float) -> np.ndarray:
        if atol is not None or rtol is not None:
            return np.asarray((atol or 0.0) + (rtol or 0.0) * np.abs(expected))
        if own is None:
            raise ValueError("there is no float32 result of PyTorch")
        return ROUNDING_FACTOR * own

    outputs = _compare(reference, actual, torch_float32, allowance, constant, perturbed_runs)
    multiples = [output.multiple_of_rounding for output in outputs if output.multiple_of_rounding is not None]
    if atol is not None or rtol is not None:
        agreed = f"within the given tolerances (atol {atol or 0:g}, rtol {rtol or 0:g})"
    elif multiples:
        largest = max(output.max_abs for output in outputs)
        agreed = f"max error {largest:.1e}, {max(multiples):.1f}x float32 rounding (limit {ROUNDING_FACTOR}x)"
    else:
        agreed = "equal"
    proof = _proof("artifact", outputs, agreed, len(reference))
    close = [o for o in outputs if not o.agrees and o.max_abs <= CLOSE * o.scale]
    if close and len(close) == sum(not output.agrees for output in outputs):
        worst = max(output.max_abs for output in close)
        hint = (
            f"errors of {worst:.1e} are as large as those of float16 weights, or of a wrong weight; only if they are "
            f"meant, pass --atol {_rounded_up(worst):.1e}"
        )
        proof = replace(proof, failures=(hint, *proof.failures))
    return proof


def _rounded_up(number: float) -> float:
    """Round a number up to two digits."""
    unit = 10.0 ** (np.floor(np.log10(number)) - 1) if number > 0 else 1.0
    return float(np.ceil(number / unit * (1 + 1e-9)) * unit)


def accuracy(reference: np.ndarray, actual: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Compare predictions: two arrays of [samples, classes] (the largest is predicted) and [samples] labels."""
    before, after = reference.argmax(1), actual.argmax(1)
    return Accuracy(
        samples=len(labels),
        source=float(np.mean(before == labels)),
        artifact=float(np.mean(after == labels)),
        same_predictions=int(np.sum(before == after)),
    )


def _compare(
    reference: Sequence[Outputs],
    actual: Sequence[Outputs],
    torch_float32: Sequence[Outputs] | None,
    allowance: Callable[[np.ndarray, Classes, np.ndarray | None, float], np.ndarray],
    constant: Collection[str],
    perturbed_runs: PerturbedRuns | None = None,
    hopeless: float = np.inf,
) -> tuple[OutputComparison, ...]:
    """Compare all outputs.

    Args:
        allowance: the allowed error of each element, by the output's largest scale in any round among others.
        hopeless: `perturbed_runs` is not called if an error exceeds that scale times this.
    """
    if not reference or len(reference) != len(actual) or len(reference) != len(torch_float32 or reference):
        raise ValueError("every round needs a reference and an actual result, and there must be one round")
    names = list(dict.fromkeys(name for outputs in reference for name in outputs))
    compared = []
    for name in names:
        if any(name not in outputs for outputs in (*reference, *actual)):
            compared.append(_incomparable(name, "the artifact has no such output"))
            continue
        arrays = [plain(outputs[name]) for outputs in reference]
        arrays = [real(array) if array.dtype.kind == "c" else array for array in arrays]
        small = small_slices(arrays) if torch_float32 and arrays[0].dtype.kind == "f" else {}
        given = [[outputs[name]] for outputs in torch_float32] if torch_float32 else [[] for _ in reference]

        def judged(number: int, own: list[np.ndarray], largest: float, name: str = name, small: Any = small) -> Figures:
            def allowed(expected: np.ndarray, classes: Classes, units: np.ndarray | None) -> np.ndarray:
                return allowance(expected, classes, units, largest)

            return figures(number, reference[number][name], actual[number][name], own, allowed, small)

        found = [judged(number, own, 0.0) for number, own in enumerate(given)]
        largest = float(np.nanmax([0.0, *(one.scale for one in found)]))
        for number, own in enumerate(given):
            alike = reference[number][name].shape == actual[number][name].shape
            for runs, most in ((RUNS, np.inf), (MORE_RUNS, NEAR)):
                one = found[number]
                if (
                    one.faults
                    and perturbed_runs is not None
                    and alike
                    and one.ratio <= most
                    and not one.similarity.max_abs > hopeless * largest
                ):
                    others = [results[name] for results in perturbed_runs(number, runs)]
                    found[number] = judged(number, [*own, *others], largest)
        compared.append(_combine(name, found, [outputs[name] for outputs in reference], name in constant))
    unknown = dict.fromkeys(name for outputs in actual for name in outputs if name not in names)
    return (*compared, *(_incomparable(name, "PyTorch has no such output") for name in unknown))


def _combine(name: str, found: Sequence[Figures], reference: Sequence[np.ndarray], constant: bool) -> OutputComparison:
    worst = max(found, key=lambda one: one.ratio)
    alike = [one.similarity for one in found]
    elements = sum(one.elements for one in alike)
    classes = [one.classes for one in found]
    rows, of_five = sum(one.rows for one in classes), sum(one.of_five for one in classes)
    set_aside = sum(one.set_aside for one in found)
    notes = [fault for one in found for fault in one.faults]
    unproven, of_variation = None, None
    if constant:
        notes.append("it is a constant: it does not depend on the inputs")
    else:
        unproven, of_variation = judge_variation(reference, [one.allowed for one in found])
        unproven = unproven or why_overflown(
            [np.zeros(1, bool) if one.overflows is None else one.overflows for one in found]
        )
    exact = np.asarray(reference[0]).dtype.kind in "iub"
    if exact and set_aside > SET_ASIDE_SHARE * elements:
        unproven = (
            f"PyTorch's float32 and float64 differ in {set_aside} of {elements} values, more than {SET_ASIDE_SHARE:.0%}"
        )
    elif set_aside:
        notes.append(
            f"{set_aside} of {elements} values are not compared, because PyTorch's float32 and float64 differ there"
        )
    if unproven:
        notes.append(unproven)
    multiples = [one.multiple for one in found if one.multiple is not None]
    return OutputComparison(
        name=name,
        agrees=all(not one.faults for one in found),
        max_abs=max(one.max_abs for one in alike),
        max_rel=max(one.max_rel for one in alike),
        mean_abs=sum(one.sum_abs for one in alike) / elements if elements else 0.0,
        cosine=min(one.cosine for one in alike),
        sqnr_db=min(one.sqnr_db for one in alike),
        scale=worst.scale,
        bound=worst.bound,
        torch_rounding=worst.torch_rounding,
        multiple_of_rounding=max(multiples, default=None),
        top1_agreement=sum(one.same_best for one in classes) / rows if rows else None,
        top5_agreement=sum(one.best_five for one in classes) / of_five if of_five else None,
        set_aside=set_aside,
        notes=tuple(notes),
        proves_nothing=unproven is not None,
        share_of_bound=worst.ratio,
        resolution=_resolution([one.resolutions for one in found], of_variation),
    )


def _resolution(rounds: Sequence[Mapping[int, np.ndarray]], of_variation: float | None) -> float | None:
    """Return the least relative difference that would be seen in some round, of the slice where that is largest.

    Of a nearly constant output it is that of what varies.
    """
    coarsest = [] if of_variation is None else [of_variation]
    for axis in {axis for one in rounds for axis in one}:
        held = [one[axis] for one in rounds if axis in one]
        if len({len(one) for one in held}) > 1:  # a dynamic size
            held = [one.min(keepdims=True, initial=np.inf) for one in held]
        finest = np.min(held, axis=0)
        coarsest += [float(finest[np.isfinite(finest)].max())] if np.isfinite(finest).any() else []
    return max(coarsest, default=None)


def vacuous(proof: Proof, reason: str) -> Proof:
    """Return a proof that holds as one that proves nothing, for this reason."""
    outputs = tuple(
        replace(o, proves_nothing=True, notes=(*o.notes, f"proves nothing: {reason}")) for o in proof.outputs
    )
    return replace(proof, holds=False, summary=f"proves nothing: {reason}", outputs=outputs, failures=(reason,))


def resolution_note(proof: Proof) -> list[Note]:
    """Return a note on outputs in which a difference of more than 0.1 % would not be seen."""
    coarse = [o for o in proof.outputs if o.resolution is not None and o.resolution > RESOLUTION]
    if not coarse:
        return []
    named = ", ".join(f"`{o.name}` below {o.resolution:.1%}" for o in coarse)
    text = f"Rounding hides small differences: the comparison of outputs would not see those of {named}."
    return [Note(text, code="PTC5506")]


def _proof(name: ProofName, outputs: tuple[OutputComparison, ...], agreed: str, rounds: int) -> Proof:
    holds = bool(outputs) and all(output.agrees and not output.proves_nothing for output in outputs)
    different = [output for output in outputs if not output.agrees]
    silent = [output for output in outputs if output.agrees and output.proves_nothing]
    if different:
        summary = _named(different, "differ", len(outputs))
    elif silent:
        summary = _named(silent, "prove", len(outputs), " nothing")
    elif not outputs:
        summary = "the model has no outputs to compare"
    else:
        summary = f"{agreed}, {rounds} input set{'s' * (rounds != 1)}"
    failures = tuple(f"{output.name}: {note}" for output in (*different, *silent) for note in output.notes)
    return Proof(name, holds, summary, outputs, failures or (() if holds else (summary,)))


def _named(outputs: Sequence[OutputComparison], verb: str, of: int, behind: str = "") -> str:
    """Return "2 of 5 outputs differ: `boxes`, `scores`"."""
    names = ", ".join(f"`{output.name}`" for output in outputs[:3])
    more = f" and {len(outputs) - 3} more" if len(outputs) > 3 else ""
    count = f"{len(outputs)} of {of} output{'s' * (of != 1)} {verb}{'s' * (len(outputs) == 1)}{behind}"
    return f"{count}: {names}{more}"


def _incomparable(name: str, note: str) -> OutputComparison:
    nan = float("nan")
    return OutputComparison(name, False, nan, nan, nan, nan, nan, nan, nan, notes=(note,))
