"""The three proofs: each row is a fault that must not pass, or a fact that must not be taken for a fault."""

import math
import re

import numpy as np
import pytest

from converter.capture.random_inputs import InputSpec, draw, rounds
from converter.errors import UsageError
from converter.report.results import status_of
from converter.verification.output_proofs import accuracy, compare_artifact, compare_function
from converter.verification.user_inputs import batches, load_given
from converter.verification.weight_proof import Expected, compare_weights

IMAGE = InputSpec("image", ("batch", 3, 9, 8))
TOKENS = InputSpec("tokens", ("batch", "length"), "int64", 5, 40)
MASK = InputSpec("mask", ("batch", "length"), "bool")


def outputs(seed=0, shape=(5, 7)):
    """Three rounds of one output: batch 1, 4 and 2, with values of order 1."""
    rng = np.random.default_rng(seed)
    return [{"y": rng.standard_normal((batch, *shape))} for batch in (1, 4, 2)]


def float32(results):
    return [{name: array.astype(np.float32) for name, array in one.items()} for one in results]


def changed(results, change, number=1):
    """Apply `change` to output y of one round."""
    copy = [{name: array.copy() for name, array in one.items()} for one in results]
    copy[number]["y"] = change(copy[number]["y"])
    return copy


def put(value, where=(0, 0, 0)):
    def change(array):
        array[where] = value
        return array

    return change


# Inputs


@pytest.mark.parametrize("kind", ["normal", "uniform", "large", "impulse", "spread"])
def test_drawn_inputs_have_the_shapes_asked_for_and_are_never_constant(kind):
    arrays = draw([IMAGE, TOKENS, MASK], 4, 0, {"length": 6}, kind)
    assert {name: array.shape for name, array in arrays.items()} == {
        "image": (4, 3, 9, 8),
        "tokens": (4, 6),
        "mask": (4, 6),
    }
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "image": "float32",
        "tokens": "int64",
        "mask": "bool",
    }
    assert all(np.ptp(array.astype(float)) > 0 for array in arrays.values())
    assert arrays["tokens"].min() >= 5
    assert arrays["tokens"].max() < 40


@pytest.mark.parametrize("seed", range(20))
def test_two_booleans_are_never_the_same(seed):
    assert np.ptp(draw([InputSpec("mask", (2,), "bool")], 1, seed)["mask"].astype(int)) == 1


def test_same_seed_same_inputs_and_another_seed_others():
    first, again, other = (draw([IMAGE], 2, seed)["image"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_uniform_samples_differ_in_brightness_so_that_pooling_does_not_make_them_alike():
    image = draw([InputSpec("image", ("n", 3, 64, 64))], 8, 0, kind="uniform")["image"]
    assert image.min() >= 0
    assert image.max() < 1
    assert np.ptp(image.mean((1, 2, 3))) > 0.1


def test_rounds_have_batch_one_and_more():
    assert [one.arrays["image"].shape[0] for one in rounds([IMAGE], 0)] == [1, 3, 1, 1, 2, 2]
    assert [one.arrays["image"].shape[0] for one in rounds([IMAGE], 0, many=9)] == [1, 3, 1, 1, 2, 9, 2]


def test_rounds_take_the_sizes_of_dynamic_dimensions_in_turn():
    drawn = list(rounds([TOKENS], 0, [{"length": 5}, {"length": 9}]))
    assert [one.arrays["tokens"].shape[1] for one in drawn] == [5, 9, 5, 9, 5, 9]
    assert drawn[1].description == "normal, batch 3, length 9"


def test_an_impulse_is_large_in_all_channels_of_one_position_and_elsewhere_for_another_sample():
    image = np.abs(draw([InputSpec("image", ("n", 64, 9, 8))], 4, 0, kind="impulse")["image"]).mean(1)
    peaks = [np.argwhere(sample > 2.0).tolist() for sample in image]
    assert [len(peak) for peak in peaks] == [1, 1, 1, 1]
    assert len({tuple(peak[0]) for peak in peaks}) > 1
    assert np.abs(draw([InputSpec("row", ("n", 6))], 1, 0, kind="impulse")["row"]).max() > 0.25


def test_a_spread_reaches_magnitudes_far_apart():
    deviations = draw([InputSpec("row", ("n", 400))], 40, 0, kind="spread")["row"].std(1)
    assert deviations.min() < 0.5
    assert deviations.max() > 16


def test_rounds_keep_a_fixed_batch_and_differ():
    drawn = [one.arrays["image"] for one in rounds([InputSpec("image", (3, 2, 5, 6))], 0)]
    assert {array.shape for array in drawn} == {(3, 2, 5, 6)}
    assert not np.array_equal(drawn[0], drawn[1])


def test_rounds_take_a_scalar_input():
    assert {one.arrays["scale"].shape for one in rounds([InputSpec("scale", ())], 0)} == {()}


@pytest.mark.parametrize("shape", [("batch", "length"), ("batch", None)], ids=["symbol without size", "unnamed"])
def test_a_dynamic_dimension_without_size_is_a_clear_error(shape):
    with pytest.raises(UsageError, match="Dimension 1 of input 'tokens' has an unknown size"):
        draw([InputSpec("tokens", shape)], 1, 0)


def test_a_batch_symbol_is_the_batch_wherever_it_stands():
    assert draw([InputSpec("pairs", ("n", "n", 2))], 3, 0)["pairs"].shape == (3, 3, 2)


def pictures(*shape):
    return {"image": np.ones(shape)}


IDS, IDS8 = InputSpec("ids", ("n", 4), "int64"), InputSpec("ids", ("n", 4), "int8")
ROWS, TABLE = InputSpec("x", ("n", 3)), InputSpec("table", (5, 2))
TWO = pictures(2, 3, 9, 8)

UNFIT = {
    "unknown names": ({"a": np.ones((2, 3)), "b": np.ones(2)}, [IMAGE], "are 'image'; arrays were given for 'a', 'b'"),
    "channels last": (pictures(2, 9, 8, 3), [IMAGE], r"\[2, 9, 8, 3\], .* takes \[batch, 3, 9, 8\]"),
    "no batch": (pictures(3, 9, 8), [IMAGE], r"shape \[3, 9, 8\]"),
    "no samples": (pictures(0, 3, 9, 8), [IMAGE], r"shape \[0, 3, 9, 8\]"),
    "a symbol of two sizes": ({"tokens": np.ones((2, 4), int), "mask": np.ones((2, 5), bool)}, [TOKENS, MASK], "mask"),
    "floats for integers": ({"ids": np.full((2, 4), 0.5)}, [IDS], "float64, which int64 cannot hold"),
    "integers that wrap": ({"ids": np.full((2, 4), 300)}, [IDS8], "values outside int8"),
    "pickled object": ({"image": np.array([{}])}, [IMAGE], "cannot be read"),
    "labels of another number": ({**TWO, "labels": np.ones(3, int)}, [IMAGE], "labels .* int64, for 2 samples"),
    "labels that are floats": ({**TWO, "labels": np.ones(2)}, [IMAGE], "labels have shape .* float64"),
    "fixed input twice over beside a dynamic one": (
        {"x": np.ones((4, 3)), "table": np.ones((10, 2))},
        [ROWS, TABLE],
        "'table'",
    ),
}


@pytest.mark.parametrize("saved, specs, message", UNFIT.values(), ids=UNFIT)
def test_unfit_arrays_are_refused(tmp_path, saved, specs, message):
    np.savez(tmp_path / "inputs.npz", **saved)
    with pytest.raises(UsageError, match=message):
        load_given(tmp_path / "inputs.npz", specs)


@pytest.mark.parametrize(
    "content", [None, b"", b"PK\x03\x04 truncated", b"text"], ids=["missing", "empty", "cut", "text"]
)
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "inputs.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        load_given(path, [IMAGE])


def test_a_single_npy_is_the_only_input(tmp_path):
    np.save(tmp_path / "photographs.npy", np.full((2, 3, 9, 8), 0.5))
    arrays, labels = load_given(tmp_path / "photographs.npy", [IMAGE])
    assert labels is None
    np.testing.assert_array_equal(arrays["image"], np.full((2, 3, 9, 8), 0.5, np.float32))
    with pytest.raises(UsageError, match="are 'image', 'tokens'; arrays were given for 'photographs'"):
        load_given(tmp_path / "photographs.npy", [IMAGE, TOKENS])


def test_arrays_are_taken_from_memory_too():
    arrays, labels = load_given({"image": np.ones((2, 3, 9, 8)), "labels": np.array([1, 0])}, [IMAGE])
    assert arrays["image"].dtype == np.float32
    np.testing.assert_array_equal(labels, [1, 0])


def test_the_only_input_may_have_any_name_and_labels_are_set_apart(tmp_path):
    images = np.random.default_rng(0).random((5, 3, 9, 8))
    np.savez(tmp_path / "digits.npz", pictures=images, labels=np.arange(5))
    arrays, labels = load_given(tmp_path / "digits.npz", [IMAGE])
    np.testing.assert_array_equal(arrays["image"], images.astype(np.float32))
    np.testing.assert_array_equal(labels, np.arange(5))


def test_given_arrays_are_cut_without_losing_a_sample():
    x = np.arange(70.0).reshape(70, 1)
    cut = list(batches({"x": x}, [InputSpec("x", ("n", 1))], largest=32))
    assert [len(one.arrays["x"]) for one in cut] == [32, 32, 6]
    np.testing.assert_array_equal(np.concatenate([one.arrays["x"] for one in cut]), x)


def test_a_fixed_batch_is_filled_or_refused():
    x, spec = np.arange(6.0).reshape(6, 1), [InputSpec("x", (3, 1))]
    np.testing.assert_array_equal(np.concatenate([one.arrays["x"] for one in batches({"x": x}, spec)]), x)
    with pytest.raises(UsageError, match="5 samples do not fill batches of 3"):
        list(batches({"x": x[:5]}, spec))


def test_inputs_with_different_numbers_of_samples_are_refused():
    specs = [InputSpec("x", ("n", 1)), InputSpec("y", ("n", 1))]
    with pytest.raises(UsageError, match="different numbers of samples"):
        list(batches({"x": np.ones((4, 1)), "y": np.ones((5, 1))}, specs))


# Proof 1

WRONG_FUNCTIONS = {
    "batch norm's epsilon": lambda y: y * (1 + 1e-7),
    "one element just outside the bound": lambda y: put(y[0, 0, 0] + 1e-9)(y),
    "a float32 kernel": lambda y: y.astype(np.float32).astype(np.float64),
    "samples swapped": lambda y: y[::-1],
    "channels reordered": lambda y: y[..., ::-1],
    "layout left channels last": lambda y: y.swapaxes(1, 2),
    "a NaN": put(np.nan),
    "an infinity": put(-np.inf),
    "another dtype kind": lambda y: y.astype(np.int64),
    "batch cut": lambda y: y[:2],
}


@pytest.mark.parametrize("change", WRONG_FUNCTIONS.values(), ids=WRONG_FUNCTIONS)
def test_another_function_does_not_pass(change):
    proof = compare_function(outputs(), changed(outputs(), change))
    assert not proof.holds
    assert status_of([proof]) == "disagrees"
    assert proof.failures[0].startswith("y: round 2")


def test_the_same_function_passes_with_its_figures():
    proof = compare_function(outputs(), changed(outputs(), lambda y: y * (1 + 1e-15)))
    assert proof.holds
    assert proof.name == "function"
    (output,) = proof.outputs
    assert 0 < output.max_abs < 1e-14
    assert output.sqnr_db > 200
    assert output.cosine == pytest.approx(1)
    assert proof.failures == ()


def test_a_fault_in_any_round_counts():
    for number in range(3):
        assert not compare_function(outputs(), changed(outputs(), lambda y: y + 1e-6, number)).holds


def test_values_in_another_order_are_said_to_be_so():
    proof = compare_function(outputs(), changed(outputs(), lambda y: y[..., ::-1]))
    assert any("in another order" in failure for failure in proof.failures)


@pytest.mark.parametrize(
    "actual, message",
    [
        ([{"z": one["y"]} for one in outputs()], "no such output"),
        ([{**one, "z": one["y"]} for one in outputs()], "z: PyTorch has no such output"),
        ([{**one} if number != 1 else {} for number, one in enumerate(outputs())], "y: the artifact has no such"),
    ],
    ids=["renamed", "one too many", "missing in one round"],
)
def test_names_of_outputs_must_match(actual, message):
    proof = compare_function(outputs(), actual)
    assert not proof.holds
    assert any(message in failure for failure in proof.failures)


@pytest.mark.parametrize("actual", [[], outputs()[:2]], ids=["nothing", "a round missing"])
def test_rounds_left_out_are_an_error(actual):
    with pytest.raises(ValueError, match="every round"):
        compare_function(outputs() if actual else [], actual)


def test_a_model_without_outputs_proves_nothing():
    assert not compare_function([{}], [{}]).holds


def test_complex_outputs_compare_their_imaginary_part():
    reference = [{"y": one["y"] + 1j * one["y"][..., ::-1]} for one in outputs()]
    assert compare_function(reference, changed(reference, lambda y: y.copy())).holds
    assert not compare_function(reference, changed(reference, np.conj)).holds
    rounded = [{"y": one["y"].astype(np.complex64)} for one in reference]
    assert compare_artifact(reference, rounded, rounded).holds
    assert not compare_artifact(reference, rounded, changed(rounded, np.conj)).holds


# Proof 2

WRONG_ARTIFACTS = {
    "gelu by tanh": lambda y: y + 4.7e-4,
    "17 times PyTorch's rounding": lambda y: put(y[0, 0, 0] + 3e-5)(y),
    "channels reordered": lambda y: y[..., ::-1],
    "a NaN that PyTorch has not": put(np.nan),
    "an infinity of the other sign": put(np.inf, (1, 0, 0)),
    "an infinity lost": put(3.4e38, (1, 0, 0)),
    "half precision": lambda y: y.astype(np.float16),
}


@pytest.mark.parametrize("change", WRONG_ARTIFACTS.values(), ids=WRONG_ARTIFACTS)
def test_another_artifact_does_not_pass(change):
    reference = changed(outputs(), put(-np.inf, (1, 0, 0)))
    assert compare_artifact(reference, float32(reference), float32(reference)).holds
    actual = changed(float32(reference), change)
    assert not compare_artifact(reference, float32(reference), actual).holds


def test_an_artifact_may_round_as_much_as_pytorch_times_sixteen():
    reference = outputs()
    own = [{"y": one["y"] + 1e-5} for one in reference]
    for factor, holds in ((15.5, True), (16.5, False)):
        actual = [{"y": one["y"] + factor * 1e-5} for one in reference]
        proof = compare_artifact(reference, float32(own), float32(actual))
        assert proof.holds is holds
        assert proof.outputs[0].multiple_of_rounding == pytest.approx(factor, rel=0.05)


def test_where_pytorch_does_not_round_four_ulp_of_the_scale_are_the_unit():
    reference = [{"y": np.round(one["y"] * 8) / 8} for one in outputs()]
    actual = changed(float32(reference), lambda y: put(y[0, 0, 0] + np.float32(2e-6))(y))
    proof = compare_artifact(reference, float32(reference), actual)
    assert proof.holds
    assert proof.outputs[0].torch_rounding == 0
    assert proof.outputs[0].multiple_of_rounding > 1


@pytest.mark.parametrize(
    "tolerances, holds",
    [({"atol": 0.02}, True), ({"atol": 0.005}, False), ({"rtol": 0.0}, False), ({"atol": 0.005, "rtol": 0.02}, False)],
    ids=["wide enough", "too narrow", "relative only, none", "relative does not help small values"],
)
def test_tolerances_override_the_bound(tolerances, holds):
    reference = outputs()
    actual = [{"y": one["y"] + 0.01} for one in float32(reference)]
    assert compare_artifact(reference, float32(reference), actual, **tolerances).holds is holds


def test_a_tolerance_wider_than_the_output_varies_is_no_proof():
    reference = outputs()
    proof = compare_artifact(reference, float32(reference), float32(reference), atol=5.0)
    assert not proof.holds
    assert proof.proves_nothing


def indices(size=400):
    rng = np.random.default_rng(1)
    return [{"y": rng.integers(0, 50, (batch, size))} for batch in (1, 4, 2)]


def test_integers_must_be_equal():
    reference = indices()
    assert compare_artifact(reference, reference, reference).holds
    proof = compare_artifact(reference, reference, changed(reference, put(51, (3, 7))))
    assert not proof.holds
    assert "first at [3, 7]: 51" in proof.failures[0]


def test_integers_may_be_of_another_width():
    assert compare_artifact(indices(), indices(), [{"y": one["y"].astype(np.int32)} for one in indices()]).holds


@pytest.mark.parametrize("differing, holds", [(10, True), (40, False)], ids=["below 1 %", "above 1 %"])
def test_integers_that_pytorch_itself_rounds_are_set_aside(differing, holds):
    reference = indices()
    own = changed(reference, put(51, (0, slice(differing))))
    proof = compare_artifact(reference, own, changed(reference, put(52, (0, slice(differing)))))
    assert proof.holds is holds
    assert proof.outputs[0].set_aside == differing
    assert proof.proves_nothing is not holds


def test_overflow_of_pytorchs_own_float32_is_set_aside_but_a_nan_there_is_not():
    reference = changed(outputs(), put(1e39))
    own = changed(float32(outputs()), put(np.inf))
    assert compare_artifact(reference, own, own).holds
    assert not compare_artifact(reference, own, changed(own, put(np.nan))).holds


@pytest.mark.parametrize("share", ["all", "a channel", "most"])
@pytest.mark.parametrize("gives", [np.inf, np.nan])
def test_values_that_overflow_in_pytorchs_own_float32_prove_nothing(share, gives):
    where = {"all": np.s_[:], "a channel": np.s_[:, 2], "most": np.s_[:, 1:, 1:]}[share]
    rng = np.random.default_rng(0)
    reference, own = [], []
    for batch in (1, 4, 2):
        wide = rng.standard_normal((batch, 3, 5))
        wide[where] *= 1e39
        reference.append({"y": wide})
        own.append(float32([{"y": wide}])[0])
        own[-1]["y"][where] = gives
    actual = [{"y": np.where(np.isfinite(one["y"]), one["y"], np.float32(7))} for one in own]
    proof = compare_artifact(reference, own, actual)
    assert proof.outputs[0].agrees
    assert proof.outputs[0].set_aside > 0
    assert proof.holds is (share == "most")
    assert any("overflows" in failure for failure in proof.failures) is (share != "most")


def test_the_summary_shows_the_figure_that_was_judged():
    """Not the error of one round over the scale of another."""
    reference = [
        {"y": array * scale} for array, scale in zip((one["y"] for one in outputs()), (1e3, 1, 1), strict=True)
    ]
    actual = changed(reference, lambda y: y + 0.25e-10 * np.abs(y).max(), 0)
    proof = compare_function(reference, actual)
    assert proof.holds
    assert "max error 2.5e-11 of the scale in float64 (limit 1e-10)" in proof.summary
    assert proof.outputs[0].share_of_bound == pytest.approx(0.25, rel=1e-3)


def test_top_one_agreement_is_a_share_of_all_rows():
    reference = [{"y": np.eye(6)[:batch] + 0.1} for batch in (1, 4, 2)]
    actual = [{"y": np.roll(one["y"], 1, 1) if len(one["y"]) == 1 else one["y"]} for one in reference]
    assert compare_artifact(reference, reference, actual).outputs[0].top1_agreement == pytest.approx(6 / 7)


# Outputs that prove nothing


def with_batches(make):
    rng = np.random.default_rng(2)
    return [{"y": np.asarray(make(batch, rng), np.float64)} for batch in (1, 4, 2, 1)]


SILENT = {
    "all zero": lambda n, rng: np.zeros((n, 6)),
    "dead behind a bias": lambda n, rng: np.tile(np.arange(6.0), (n, 1)),
    "all but dead": lambda n, rng: 1.0 + 1e-10 * rng.standard_normal((n, 6)),
    "varies by rounding only": lambda n, rng: np.arange(6.0) + 1e-11 * rng.standard_normal((n, 6)),
    "a grid of its own shape": lambda n, rng: np.arange(12.0).reshape(6, 2),
    "all NaN": lambda n, rng: np.full((n, 6), np.nan),
    "no elements": lambda n, rng: np.zeros((n, 0)),
    "saturated softmax": lambda n, rng: np.tile([1.0, 0, 0], (n, 1)),
}


def test_an_output_that_varies_by_little_proves_nothing_in_float32_alone():
    reference = with_batches(lambda n, rng: 1.0 + 1e-5 * rng.standard_normal((n, 6)))
    assert compare_function(reference, reference).holds
    assert compare_artifact(reference, float32(reference), float32(reference)).proves_nothing


@pytest.mark.parametrize("make", SILENT.values(), ids=SILENT)
def test_an_output_that_does_not_vary_proves_nothing(make):
    reference = with_batches(make)
    for proof in (
        compare_function(reference, reference),
        compare_artifact(reference, float32(reference), float32(reference)),
    ):
        assert not proof.holds
        assert proof.proves_nothing
        assert status_of([proof]) == "not verified"
        assert "proves nothing: `y`" in proof.summary or "proves nothing" in proof.failures[0]


ALIVE = {
    "only in one of the rounds": lambda n, rng: np.tile(np.eye(4)[n // 4], (n, 1)),
    "one channel alive among constants": lambda n, rng: np.hstack([np.ones((n, 5)), rng.random((n, 1))]),
    "infinities that move": lambda n, rng: np.where(rng.random((n, 40)) < 0.5, -np.inf, 0.0),
    "tiny values": lambda n, rng: 1e-9 * rng.standard_normal((n, 6)),
    "a small offset on a large grid": lambda n, rng: 640.0 * np.arange(6) + rng.standard_normal((n, 6)),
    "one number a sample": lambda n, rng: rng.standard_normal(n),
}


@pytest.mark.parametrize("make", ALIVE.values(), ids=ALIVE)
def test_an_output_that_varies_is_not_taken_for_dead(make):
    reference = with_batches(make)
    assert compare_function(reference, reference).holds
    assert compare_artifact(reference, float32(reference), float32(reference)).holds


def test_a_fixed_batch_is_compared_over_rounds_not_over_samples():
    frozen = [{"y": np.random.default_rng(0).standard_normal((3, 6))} for _ in range(4)]
    assert compare_function(frozen, frozen).proves_nothing


def test_a_constant_by_the_graph_is_compared_and_said_to_be_constant():
    reference = with_batches(SILENT["a grid of its own shape"])
    proof = compare_function(reference, reference, constant={"y"})
    assert proof.holds
    assert any("constant" in note for note in proof.outputs[0].notes)
    assert not compare_function(reference, changed(reference, lambda y: y + 1e-6), constant={"y"}).holds


def test_a_dead_output_is_not_hidden_by_a_live_one():
    reference = [{**one, "dead": np.zeros((len(one["y"]), 3))} for one in outputs()]
    proof = compare_function(reference, reference)
    assert not proof.holds
    assert proof.summary.startswith("1 of 2 outputs proves nothing: `dead`")


def test_a_disagreement_outweighs_a_dead_output():
    reference = [{**one, "dead": np.zeros((len(one["y"]), 3))} for one in outputs()]
    assert status_of([compare_function(reference, changed(reference, lambda y: -y))]) == "disagrees"


def test_accuracy_counts_predictions_one_by_one():
    before = np.eye(3)[[0, 1, 2, 0]]
    result = accuracy(before, np.eye(3)[[0, 1, 2, 1]], np.array([0, 1, 1, 0]))
    assert (result.samples, result.source, result.artifact, result.same_predictions) == (4, 0.75, 0.5, 3)


# Proof 3

KERNEL = np.random.default_rng(0).standard_normal((3, 5, 2, 4)).astype(np.float32)
FOLDED = KERNEL.astype(np.float64) * np.linspace(0.5, 2, 4)


def weights(**changes):
    """A permuted kernel, a folded one, a table of integers stored as floats, and one source that is not needed."""
    arguments = {
        "expected": {
            "stem": Expected(KERNEL, ("stem.weight",), True),
            "conv": Expected(FOLDED, ("conv.weight", "bn.weight"), False),
            "index": Expected(np.arange(6), ("index",), True),
        },
        "actual": {"stem": KERNEL, "conv": FOLDED.astype(np.float32), "index": np.arange(6, dtype=np.float32)},
        "source_names": {"stem.weight", "conv.weight", "bn.weight", "index", "bn.num_batches_tracked"},
        "unused": {"bn.num_batches_tracked": "training only"},
    }
    return arguments | changes


def with_tensor(name, array):
    return {"actual": weights()["actual"] | {name: array}}


WRONG_WEIGHTS = {
    "one bit": (with_tensor("stem", np.where(np.arange(4) == 2, np.nextafter(KERNEL, 9), KERNEL)), "stem .from stem"),
    "channels reordered": (with_tensor("stem", KERNEL[:, :, ::-1]), "values differ from the source"),
    "minus zero": (with_tensor("index", np.array([-0.0, 1, 2, 3, 4, 5], np.float32)), "index"),
    "transposed": (with_tensor("stem", KERNEL.swapaxes(0, 1)), "the shape is"),
    "folded with another epsilon": (with_tensor("conv", (FOLDED * 1.00001).astype(np.float32)), "ulp of its scale"),
    "folded into a NaN": (with_tensor("conv", np.full_like(KERNEL, np.nan)), "NaN"),
    "floats for integers that lose": (
        {
            "expected": weights()["expected"] | {"index": Expected(np.array([2**24 + 1]), ("index",), True)},
            "actual": weights()["actual"] | {"index": np.array([2**24 + 1], np.float32)},
        },
        "cannot hold",
    ),
    "integers for floats": (with_tensor("stem", KERNEL.astype(np.int32)), "the dtype is int32"),
    "tensor missing": ({"actual": {name: weights()["actual"][name] for name in ("stem", "conv")}}, "index: not in"),
    "tensor of unknown origin": (with_tensor("extra", KERNEL), "extra: nothing in the checkpoint explains"),
    "source lost": ({"source_names": weights()["source_names"] | {"head.bias"}}, "head.bias: .* missing from"),
    "used but said not to be": ({"unused": weights()["unused"] | {"index": "a mask"}}, "index: used, but"),
    "a source that is not there": ({"unused": weights()["unused"] | {"ghost": "?"}}, "ghost: .* no such tensor"),
}


@pytest.mark.parametrize("changes, message", WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_wrong_weights_do_not_pass(changes, message):
    proof = compare_weights(**weights(**changes))
    assert not proof.holds
    assert status_of([proof]) == "disagrees"
    assert any(re.search(message, failure) for failure in proof.failures), proof.failures


def test_right_weights_pass_and_say_how():
    proof = compare_weights(**weights())
    assert proof.holds
    assert "2 of 3 tensors identical; 1 folded, within 0." in proof.summary
    assert "training only" in proof.summary


def test_a_constant_may_be_what_its_own_steps_of_float32_give_and_no_other():
    steps = (FOLDED * (1 + 1e-4)).astype(np.float32)
    folded = {"conv": Expected(FOLDED, ("conv.weight",), False, rounded=steps)}
    for array, holds in ((FOLDED, True), (steps, True), (FOLDED * (1 + 5e-5), False)):
        assert compare_weights(folded, {"conv": array.astype(np.float32)}, {"conv.weight"}, {}).holds is holds


def test_a_nan_that_is_in_the_source_is_equal():
    array = np.array([1.0, math.nan, -math.inf], np.float32)
    for exact in (True, False):
        assert compare_weights({"w": Expected(array, ("w",), exact)}, {"w": array}, {"w"}, {}).holds


def test_a_model_without_weights_passes_and_says_so():
    assert compare_weights({}, {}, set(), {}).summary == "the model has no weights"


def test_a_graph_that_is_not_the_one_built_does_not_pass_whatever_the_weights_say():
    for as_written, holds in ((None, True), (True, True), (False, False)):
        assert compare_weights(**weights(graph_as_written=as_written)).holds is holds


# Tolerances are local

RNG = np.random.default_rng(5)


def everywhere(outputs, change):
    return [{name: change(y) for name, y in one.items()} for one in outputs]


LOGITS = [{"y": RNG.normal(size=(6, 40))} for _ in range(3)]
HIDDEN = np.arange(40) % 3 == 0
BOXES = [
    {"y": np.concatenate([900 * np.exp(RNG.normal(size=(2, 50, 4))), RNG.uniform(size=(2, 50, 9))], -1)} for _ in "ab"
]
MIXED = {
    "a fill": everywhere(LOGITS, lambda y: np.where(HIDDEN, -1e9, y)),
    "a fill that float32 does not hold": everywhere(LOGITS, lambda y: np.where(HIDDEN, -1e12, y)),
    "a fill near the values": everywhere(LOGITS, lambda y: np.where(HIDDEN, -100.0, y)),
    "two fills": everywhere(LOGITS, lambda y: np.where(HIDDEN, np.where(y > 0, 1e9, -1e4), y)),
    "a mask that is added": everywhere(LOGITS, lambda y: y - 1e9 * HIDDEN),
    "boxes beside scores": BOXES,
    "boxes as channels": everywhere(BOXES, lambda y: y.swapaxes(1, 2)),
    "boxes in the first axis": everywhere(BOXES, lambda y: y[0].T),
    "boxes in the third axis of five": everywhere(BOXES, lambda y: y.reshape(2, 5, 2, 5, 13).transpose(0, 1, 4, 2, 3)),
    "boxes beside scores, one row after another": everywhere([*BOXES, *BOXES], lambda y: y.reshape(2, -1)),
    "boxes beside scores of a few samples": [{"y": BOXES[0]["y"][0, start:stop]} for start, stop in ((0, 1), (1, 5))]
    + [{"y": BOXES[1]["y"][0, start : start + 1]} for start in range(4)],
}


@pytest.mark.parametrize("row", MIXED)
def test_large_values_widen_no_tolerance_of_small_ones(row):
    reference = MIXED[row]

    def smallest(error):
        return everywhere(reference, lambda y: np.where(np.abs(y) < 1, y * (1 + error), y))

    assert compare_artifact(reference, float32(reference), float32(reference)).holds
    assert compare_artifact(reference, float32(reference), float32(smallest(1e-6))).holds
    assert not compare_artifact(reference, float32(reference), float32(smallest(1e-4))).holds
    assert compare_function(reference, smallest(1e-14)).holds
    assert not compare_function(reference, smallest(1e-5 if "boxes" in row else 1e-9)).holds


def test_far_fill_is_held_to_its_last_bits():
    reference = MIXED["a fill"]
    other = everywhere(reference, lambda y: np.where(y == -1e9, -1.000001e9, y))
    assert not compare_artifact(reference, float32(reference), float32(other)).holds


def test_value_that_a_limit_cut_off_may_miss_it_by_rounding():
    limit = 6.0
    wide = [{"y": one["y"] * 5} for one in LOGITS]
    reference = everywhere(wide, lambda y: y.clip(0, limit))
    own = [{"y": (one["y"] + 2e-6 * RNG.normal(size=one["y"].shape)).clip(0, limit).astype(np.float32)} for one in wide]
    missed = everywhere(reference, lambda y: np.where(y == limit, limit - 1e-5, np.where(y == 0, 1e-5, y)))
    assert compare_artifact(reference, own, float32(missed)).holds


def test_small_difference_of_large_values_keeps_their_rounding():
    """As x - x.mean() of values that are almost alike: few results are small, and none is exact."""
    reference = everywhere(LOGITS, lambda y: np.where(HIDDEN, y * 1e-6, y))
    noise = [{"y": (one["y"] + 1e-7 * RNG.normal(size=one["y"].shape)).astype(np.float32)} for one in reference]
    other = [{"y": (one["y"] + 2e-7 * RNG.normal(size=one["y"].shape)).astype(np.float32)} for one in reference]
    assert compare_artifact(reference, noise, other).holds


def test_output_without_dimensions_is_compared():
    reference = [{"y": np.array(2.5)}, {"y": np.array(-0.25)}]
    assert compare_artifact(reference, float32(reference), float32(reference)).holds
    assert not compare_artifact(reference, float32(reference), float32(everywhere(reference, lambda y: y + 1e-4))).holds


def test_output_with_a_fixed_mask_shows_faults():
    proof = compare_artifact(MIXED["a fill"], float32(MIXED["a fill"]), float32(MIXED["a fill"]))
    assert not proof.proves_nothing
    constant = [{"y": np.where(HIDDEN, -1e9, LOGITS[0]["y"])}] * 2
    assert compare_artifact(constant, float32(constant), float32(constant)).proves_nothing


# What once was a false alarm or a false note


def test_rounding_beyond_the_bound_is_not_taken_for_another_order():
    proof = compare_function(outputs(), changed(outputs(), lambda y: y * (1 + 3e-10)))
    assert not proof.holds
    assert not any("another order" in failure for failure in proof.failures)


def test_pytorchs_rounding_is_measured_again_where_its_first_result_was_lucky():
    reference = outputs()
    actual = [{"y": one["y"] + 1e-4} for one in reference]
    asked = []

    def again(number, runs):
        asked.append(number)
        return [{"y": reference[number]["y"] + error} for error in (1e-7, 1e-5)]

    lucky = float32(reference)
    assert not compare_artifact(reference, lucky, actual).holds
    proof = compare_artifact(reference, lucky, actual, perturbed_runs=again)
    assert proof.holds
    assert proof.outputs[0].multiple_of_rounding == pytest.approx(10, rel=0.05)
    assert asked == [0, 1, 2]
    assert not compare_artifact(
        reference, lucky, [{"y": one["y"] + 1e-3} for one in reference], perturbed_runs=again
    ).holds


def test_pytorch_is_not_run_again_where_nothing_exceeds_the_bound():
    assert compare_artifact(outputs(), float32(outputs()), float32(outputs()), perturbed_runs=pytest.fail).holds


def test_a_choice_between_equals_that_another_rounding_of_pytorch_makes_otherwise_is_set_aside():
    reference = indices()
    actual = changed(reference, put(51, (3, 7)))
    again = {1: changed(reference, put(7, (3, 7)))[1]}
    assert not compare_artifact(reference, reference, actual).holds
    assert compare_artifact(reference, reference, actual, perturbed_runs=lambda number, runs: [again[number]]).holds


@pytest.mark.parametrize(
    "error, moved, holds",
    [
        (1e-9, 1e-10, True),
        (1e-9, 5e-11, False),
        (2e-6, 1.0, False),
        (np.nan, 1.0, False),
    ],
    ids=["within PyTorch's own", "more than 16 times PyTorch's own", "more than any rounding", "a NaN"],
)
def test_float64_that_amplifies_rounding_is_measured_by_pytorchs_own(error, moved, holds):
    reference = [{"y": np.linspace(-1, 1, 7)}, {"y": np.linspace(-1, 1, 7)[::-1]}]
    actual = changed(reference, lambda y: y + error)
    assert not compare_function(reference, actual).holds
    proof = compare_function(
        reference, actual, perturbed_runs=lambda number, runs: [{"y": reference[number]["y"] + moved}]
    )
    assert proof.holds is holds
    assert ("10.0x PyTorch's own rounding there (limit 16x)" in proof.summary) is holds


@pytest.mark.parametrize(
    "error, moved, holds",
    [(4e-15, 1e-15, True), (4e-15, 1e-16, False), (1e-5, 1.0, False)],
    ids=["as PyTorch's own", "more than 16 times PyTorch's own", "not rounding"],
)
def test_a_round_of_nothing_but_rounding_is_measured_by_pytorchs_own(error, moved, holds):
    """A norm of constant rows, say, gives 4e-15 in one order of additions and 0 in another."""
    reference = [{"y": np.linspace(-1, 1, 7)}, {"y": np.linspace(-4e-15, 3e-15, 7)}]
    actual = changed(reference, lambda y: y + error, 1)
    proof = compare_function(
        reference, actual, perturbed_runs=lambda number, runs: [{"y": reference[number]["y"] + moved}]
    )
    assert proof.holds is holds


@pytest.mark.parametrize("error", [1e-11, 1e-5], ids=["within the bound", "beyond what rounding explains"])
def test_pytorch_is_not_run_in_float64_again_where_that_decides_nothing(error):
    compare_function(outputs(), changed(outputs(), lambda y: y + error), perturbed_runs=pytest.fail)


def test_no_more_choices_are_set_aside_than_the_artifact_makes_otherwise():
    reference = indices()
    actual = changed(reference, put(51, (3, 7)))
    everywhere = [{"y": one["y"] + 1} for one in reference]
    (output,) = compare_artifact(
        reference, reference, actual, perturbed_runs=lambda number, runs: [everywhere[number]]
    ).outputs
    assert output.agrees
    assert output.set_aside == 1


def test_bfloat16_may_round_to_the_next_one_and_no_further():
    import ml_dtypes

    reference = [{"y": one["y"].astype(ml_dtypes.bfloat16)} for one in outputs()]
    nearby = [{"y": (one["y"].astype(np.float32) * 1.006).astype(ml_dtypes.bfloat16)} for one in reference]
    wrong = [{"y": (one["y"].astype(np.float32) * 1.6).astype(ml_dtypes.bfloat16)} for one in reference]
    assert compare_artifact(reference, reference, nearby).holds
    assert not compare_artifact(reference, reference, wrong).holds


def test_bytes_are_compared_as_the_integers_they_are():
    reference = [{"y": one["y"].astype(np.uint8)} for one in indices()]
    assert compare_artifact(reference, reference, indices()).holds
    assert not compare_artifact(reference, reference, changed(indices(), put(255, (0, 0)))).holds


def test_top_five_agreement_is_the_share_of_pytorchs_best_five():
    reference = [{"y": np.tile(np.arange(8.0), (batch, 1))} for batch in (1, 4, 2)]
    actual = [{"y": one["y"][:, [3, 1, 2, 0, 4, 5, 6, 7]]} for one in reference]
    output = compare_artifact(reference, reference, actual).outputs[0]
    assert output.top1_agreement == 1
    assert output.top5_agreement == pytest.approx(0.8)
    assert compare_artifact(outputs(), float32(outputs()), float32(outputs())).outputs[0].top5_agreement is None
