"""Every tensor of a checkpoint found in an artifact by content: each row is a way in which tools store weights, or a
fault that must not be taken for one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import converter
from converter.verification.array_arrangement import arranged
from converter.verification.weight_search import WeightSearch, weights_proof

RNG = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


SOURCES = {
    "conv.weight": drawn(6, 5, 3, 2),
    "conv.bias": drawn(6),
    "norm.weight": np.abs(drawn(6)),
    "norm.bias": drawn(6),
    "norm.running_mean": drawn(6),
    "norm.running_var": np.abs(drawn(6)) + np.float32(0.5),
    "norm.num_batches_tracked": np.array(7),
    "head.weight": drawn(4, 30),
    "rnn.bias_ih": drawn(20),
    "rnn.bias_hh": drawn(20),
    "qkv.weight": drawn(12, 8),
    "index": np.arange(9),
}
SCALE = SOURCES["norm.weight"] / np.sqrt(SOURCES["norm.running_var"] + np.float32(1e-5))
SHIFT = (SOURCES["conv.bias"] - SOURCES["norm.running_mean"]) * SCALE + SOURCES["norm.bias"]
NORM = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")


def without(*names: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in SOURCES.items() if name not in names}


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    return without(name) | {"theirs": change(SOURCES[name].copy())}


def put(where: tuple, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[where] = value
        return array

    return change


FOLDED = {"kernel": SOURCES["conv.weight"] * SCALE[:, None, None, None], "shift": SHIFT}
JOINED = np.stack([SOURCES["rnn.bias_ih"][::-1], SOURCES["rnn.bias_hh"]])

FOUND = {
    "as it is": (SOURCES, {"conv.weight": ("unchanged", "conv.weight", "")}),
    "kernel transposed": (
        changed("conv.weight", lambda w: w.transpose(2, 3, 1, 0)),
        {"conv.weight": ("permuted", "theirs", "transposed (2, 3, 1, 0)")},
    ),
    "kernel flattened": (
        changed("conv.weight", lambda w: w.transpose(2, 3, 1, 0).reshape(-1, 6)),
        {"conv.weight": ("permuted", "theirs", "transposed (2, 3, 1, 0), reshaped")},
    ),
    "input channels reordered": (
        changed("conv.weight", lambda w: w[:, [3, 1, 0, 2, 4]].transpose(2, 3, 1, 0)),
        {"conv.weight": ("permuted", "theirs", "transposed (2, 3, 1, 0), dimension 1 reordered")},
    ),
    "channels of both sides reordered": (
        changed("conv.weight", lambda w: w[[5, 0, 1, 2, 4, 3]][:, [3, 1, 0, 2, 4]]),
        {"conv.weight": ("permuted", "theirs", "dimension 0, 1 reordered")},
    ),
    "columns of a Linear in channels-last order": (
        changed("head.weight", lambda w: w.reshape(4, 5, 3, 2).transpose(2, 3, 1, 0).reshape(30, 4)),
        {"head.weight": ("permuted", "theirs", "transposed (1, 0), dimension 1 reordered")},
    ),
    "in double precision": (changed("head.weight", np.float64), {"head.weight": ("unchanged", "theirs", "")}),
    "batch norm folded": (
        without("conv.weight", "conv.bias", *NORM) | FOLDED,
        {
            "conv.weight": ("folded", "kernel", "batch norm `norm` folded in"),
            "conv.bias": ("folded", "shift", "batch norm `norm` folded in"),
            "norm.running_var": ("folded", "kernel", "into `conv.weight`"),
            "norm.bias": ("folded", "shift", "into `conv.weight`"),
        },
    ),
    "batch norm folded and transposed": (
        without("conv.weight", "conv.bias", *NORM)
        | {"kernel": FOLDED["kernel"].transpose(2, 3, 1, 0), "shift": SHIFT},
        {"conv.weight": ("folded", "kernel", "batch norm `norm` folded in")},
    ),
    "batch norm folded and channels reordered": (
        without("conv.weight", "conv.bias", *NORM)
        | {"kernel": FOLDED["kernel"][::-1].transpose(2, 3, 1, 0), "shift": SHIFT[::-1]},
        {"conv.weight": ("folded", "kernel", "batch norm `norm` folded in")},
    ),
    "batch norm as scale and shift": (
        without(*NORM) | {"scale": SCALE, "offset": SOURCES["norm.bias"] - SOURCES["norm.running_mean"] * SCALE},
        {"norm.weight": ("folded", "scale", "batch norm as a scale and a shift")},
    ),
    "two biases added": (
        without("rnn.bias_ih", "rnn.bias_hh") | {"sum": SOURCES["rnn.bias_ih"] + SOURCES["rnn.bias_hh"]},
        {"rnn.bias_ih": ("derived", "sum", "added to `rnn.bias_hh`")},
    ),
    "two biases stacked": (
        without("rnn.bias_ih", "rnn.bias_hh") | {"both": JOINED},
        {"rnn.bias_ih": ("derived", "both", "part 1 of 2 along axis 0, dimension 0 reordered, reshaped")},
    ),
    "cut into three": (
        without("qkv.weight") | dict(zip("qkv", np.split(SOURCES["qkv.weight"], 3), strict=True)),
        {"qkv.weight": ("derived", "q, k, v", "cut into 3 along dimension 0")},
    ),
}  # fmt: skip
NOT_FOUND = {
    "one value": (changed("head.weight", put((2, 7), 9.0)), "head.weight", "changed", "theirs"),
    "one value of a transposed kernel": (
        changed("conv.weight", lambda w: put((0, 0, 0, 0), 9.0)(w.transpose(2, 3, 1, 0).copy())),
        "conv.weight", "changed", "theirs",
    ),
    "all values by 1e-3": (changed("conv.weight", lambda w: w * np.float32(1.001)), "conv.weight", "changed", "theirs"),
    "the last bit of one value": (
        changed("conv.weight", lambda w: put((1, 1, 1, 1), np.nextafter(w[1, 1, 1, 1], np.float32(9)))(w)),
        "conv.weight", "changed", "theirs",
    ),
    "in half precision": (changed("head.weight", np.float16), "head.weight", "changed", "theirs"),
    "values shuffled": (
        changed("head.weight", lambda w: np.random.default_rng(1).permutation(w.reshape(-1)).reshape(w.shape)),
        "head.weight", "changed", "theirs",
    ),
    "another tensor of its size": (changed("conv.weight", lambda w: drawn(*w.shape)), "conv.weight", "missing", ""),
    "nothing of its size": (without("conv.weight"), "conv.weight", "missing", ""),
    "a bias of two": (without("rnn.bias_ih"), "rnn.bias_ih", "missing", ""),
    "folded with another epsilon": (
        without("conv.weight", "conv.bias", *NORM)
        | {"shift": SHIFT, "kernel": SOURCES["conv.weight"] * (SCALE * np.float32(1.01))[:, None, None, None]},
        "conv.weight", "missing", "",
    ),
    "two tensors under each other's names": (
        SOURCES | {"rnn.bias_ih": SOURCES["rnn.bias_hh"], "rnn.bias_hh": SOURCES["rnn.bias_ih"]},
        "rnn.bias_ih", "changed", "rnn.bias_hh",
    ),
}  # fmt: skip


def search(held: dict[str, np.ndarray]):
    found = WeightSearch(SOURCES, held)
    matches = found.run()
    return {match.tensor: match for match in matches}, weights_proof(matches), found


@pytest.mark.parametrize("row", FOUND)
def test_tensor_is_found_and_how_is_said(row: str):
    held, expected = FOUND[row]
    matches, proof, found = search(held)
    assert proof.holds, proof.failures
    assert {name: (matches[name].found, matches[name].name, matches[name].how) for name in expected} == expected
    assert set(matches) == set(SOURCES)
    assert not found.unexplained()


@pytest.mark.parametrize("row", NOT_FOUND)
def test_tensor_that_is_changed_or_missing_is_named(row: str):
    held, tensor, expected, nearest = NOT_FOUND[row]
    matches, proof, _ = search(held)
    assert not proof.holds
    assert (matches[tensor].found, matches[tensor].name) == (expected, nearest), matches[tensor]
    assert any(failure.startswith(f"{tensor} ") for failure in proof.failures)


def test_change_is_measured():
    matches, _, _ = search(changed("head.weight", put((2, 7), float(SOURCES["head.weight"][2, 7]) + 0.25)))
    assert matches["head.weight"].how.startswith("1 of 120 values differ, by up to 0.25")


def test_norms_of_many_equal_convolutions_are_each_folded_into_their_own():
    """Parameters before buffers, as `named_parameters` and `named_buffers` give them."""
    module = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))))
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.1)
    sources = {name: tensor.detach().numpy() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    held = {}
    for number in range(0, 24, 2):
        conv, norm = module[number], module[number + 1]
        fused = nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
        held |= {f"{number}.kernel": fused.weight.detach().numpy(), f"{number}.shift": fused.bias.detach().numpy()}
    matches = WeightSearch(sources, held).run()
    assert weights_proof(matches).holds, weights_proof(matches).failures
    assert all(m.name.partition(".")[0] == m.tensor.partition(".")[0] for m in matches if m.tensor.endswith("0.weight"))


def test_zero_bias_that_a_tool_left_out_is_no_fault():
    matches = WeightSearch({"a.weight": drawn(3, 4), "a.bias": np.zeros(3, np.float32)}, {"w": drawn(9)}).run()
    assert [match.found for match in matches] == ["missing", "not needed"]


def test_what_comes_from_no_tensor_is_told():
    _, proof, found = search(SOURCES | {"extra": drawn(7, 7)})
    assert proof.holds
    assert found.unexplained() == ["extra"]


def test_equal_contents_are_told_apart_by_name():
    ones = {f"norm{i}.weight": np.ones(8, np.float32) for i in range(3)}
    matches = WeightSearch(ones, {f"norm{i}/gamma": np.ones(8, np.float32) for i in (2, 0, 1)}).run()
    assert [match.name for match in matches] == ["norm0/gamma", "norm1/gamma", "norm2/gamma"]


@pytest.mark.parametrize("seed", range(20))
def test_random_arrangements_are_recovered(seed: int):
    rng = np.random.default_rng(seed)
    source = rng.standard_normal((4, 3, 2, 5)).astype(np.float32)
    target = source.transpose(rng.permutation(4))
    for axis in range(4):
        if rng.random() < 0.5:
            target = target.take(rng.permutation(target.shape[axis]), axis)
    if rng.random() < 0.3:
        target = target.reshape(-1, target.shape[-1])
    assert arranged(source, np.ascontiguousarray(target)) is not None
    target = target.copy()
    target.reshape(-1)[rng.integers(target.size)] += 1e-3
    assert arranged(source, target) is None


@pytest.mark.slow
def test_state_dict_needs_no_architecture_and_nothing_is_run(tmp_path, monkeypatch):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 3, 2)).eval()
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    torch.onnx.export(module, (torch.rand(1, 3, 6, 5),), tmp_path / "net.onnx", dynamo=True, verbose=False)
    monkeypatch.setattr("converter.artifacts.runner.Runner.run", lambda *_: pytest.fail("it was run"))
    report = converter.verify(tmp_path / "weights.pt", tmp_path / "net.onnx", weights=True)
    assert report.status == "verified"
    assert [match.tensor for match in report.weights] == list(module.state_dict())
