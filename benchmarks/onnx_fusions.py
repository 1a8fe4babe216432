"""Search for fusions of ONNX Runtime that change results, in the graphs that pt-convert writes.

    python benchmarks/onnx_fusions.py [--length 2|3] [--count N] [--first N] [--without REWRITE ...] [--state FILE]

Chains of two or three operators are converted to ONNX, many side by side in one file, and run at ONNX Runtime's default
level of optimization and at level 0. Of pairs every one is tried, of triples random ones. A chain whose results differ
by more than rounding is shortened while they still do, and printed once for each sequence of operators.

`--without negative_zero_padding` leaves out a rewrite that avoids a wrong fusion: the search must find that one then.
docs/VERIFICATION.md says what was found.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from converter.artifacts import onnx_writer  # noqa: E402
from converter.artifacts.onnx_rnn_translations import leave_whole  # noqa: E402
from converter.capture.export import capture  # noqa: E402
from converter.errors import ConversionError  # noqa: E402
from converter.rewrites.pipelines import REWRITES  # noqa: E402
from converter.verification.checked_rewrite import rewrite  # noqa: E402

SHAPES = ((2, 4, 6, 5), (2, 4, 6), (3, 4))
TOLERANCE = 1e-4  # of the largest value: more than what another order of additions does
SIDE_BY_SIDE = 48  # chains in a file
DEFAULT = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
PLAIN = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
Random = np.random.Generator


class Step(nn.Module):
    """A function that may read tensors of its own."""

    def __init__(self, function: Callable[..., Tensor], *tensors: Tensor):
        super().__init__()
        self.function, self.names = function, [f"t{i}" for i in range(len(tensors))]
        for name, tensor in zip(self.names, tensors, strict=True):
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, name) for name in self.names))


def normal(rng: Random, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


Operator = Callable[[Random, tuple[int, ...]], nn.Module]


def plain(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda rng, shape: Step(function)


def with_tensor(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator whose other operand is a number, a vector or a tensor, sometimes of zeros or ones."""

    def make(rng: Random, shape: tuple[int, ...]) -> nn.Module:
        sizes = [(), (1,), shape[-1:], (shape[1],) + (1,) * (len(shape) - 2), shape[1:]]
        tensor = normal(rng, *sizes[rng.integers(len(sizes))])
        if rng.random() < 0.4:
            tensor = torch.full_like(tensor, float(rng.choice([0.0, 1.0, -1.0, 2.0])))
        return Step(function, tensor)

    return make


def with_number(function: Callable[[Tensor, float], Tensor], *numbers: float) -> Operator:
    def make(rng: Random, shape: tuple[int, ...]) -> nn.Module:
        number = float(rng.choice(numbers))
        return Step(lambda x: function(x, number))

    return make


def pad(mode: str, *values: float) -> Operator:
    def make(rng: Random, shape: tuple[int, ...]) -> nn.Module:
        axes = int(rng.integers(1, max(2, len(shape) - 1))) if mode == "constant" else len(shape) - 2
        widths = [int(n) for n in rng.integers(-1 if rng.random() < 0.2 and mode == "constant" else 0, 3, 2 * axes)]
        value = float(rng.choice(values)) if values else None
        return Step(lambda x: F.pad(x, widths, mode, value))

    return make


def pool(kind: str) -> Operator:
    def make(rng: Random, shape: tuple[int, ...]) -> nn.Module:
        rank = len(shape) - 2
        options: dict[str, Any] = {"stride": int(rng.integers(1, 3)), "ceil_mode": bool(rng.integers(2))}
        options["padding"] = int(rng.integers(2))
        if kind == "Max":
            options["dilation"] = int(rng.choice([1, 1, 2]))
        else:
            options["count_include_pad"] = bool(rng.integers(2))
        return getattr(nn, f"{kind}Pool{rank}d")(int(rng.integers(2, 4)), **options)

    return make


def conv(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    rank, channels = len(shape) - 2, shape[1]
    groups = channels if rng.random() < 0.3 else 1
    mode = str(rng.choice(["zeros", "zeros", "reflect"]))
    return getattr(nn, f"Conv{rank}d")(
        channels, channels * int(rng.integers(1, 3)), int(rng.integers(1, 4)), groups=groups, padding_mode=mode,
        stride=int(rng.integers(1, 3)), padding=int(rng.integers(2)), bias=bool(rng.integers(2)),
    )  # fmt: skip


def transposed(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    make = getattr(nn, f"ConvTranspose{len(shape) - 2}d")
    return make(shape[1], shape[1], int(rng.integers(2, 4)), stride=int(rng.integers(1, 3)), padding=1)


def norm(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    made = getattr(nn, f"BatchNorm{max(1, len(shape) - 2)}d")(shape[1])
    with torch.no_grad():
        made.running_mean.copy_(normal(rng, shape[1]))
        made.running_var.copy_(normal(rng, shape[1]).abs() + 0.1)
        made.weight.copy_(normal(rng, shape[1]))
    return made


def layer_norm(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    axes = int(rng.integers(1, len(shape)))
    made = nn.LayerNorm(shape[-axes:], eps=float(rng.choice([1e-5, 1e-3])))
    with torch.no_grad():
        made.weight.copy_(normal(rng, *shape[-axes:]))
        made.bias.copy_(normal(rng, *shape[-axes:]))
    return made


def along(function: Callable[[Tensor, int], Tensor]) -> Operator:
    def make(rng: Random, shape: tuple[int, ...]) -> nn.Module:
        axis = int(rng.integers(1, len(shape)))
        return Step(lambda x: function(x, axis))

    return make


def reduced(function: Callable[..., Tensor]) -> Operator:
    def make(rng: Random, shape: tuple[int, ...]) -> nn.Module:
        axes = sorted(int(n) for n in rng.choice(np.arange(1, len(shape)), int(rng.integers(1, len(shape))), False))
        keep = bool(rng.integers(2))
        return Step(lambda x: function(x, axes, keep))

    return make


def permuted(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    order = [0, *(int(n) for n in rng.permutation(np.arange(1, len(shape))))]
    return Step(lambda x: x.permute(order))


def merged(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    at = int(rng.integers(1, len(shape) - 1)) if len(shape) > 2 else 1
    return Step(lambda x: x.flatten(at, at + 1) if x.ndim > 2 else x.unsqueeze(2))


def sliced(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    axis, step = int(rng.integers(1, len(shape))), int(rng.choice([1, 2]))
    place = (slice(None),) * axis + (slice(int(rng.integers(2)), None if rng.random() < 0.5 else -1, step),)
    return Step(lambda x: x[place])


def linear(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    return nn.Linear(shape[-1], int(rng.integers(2, 6)), bias=bool(rng.integers(2)))


def resized(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    modes = ["nearest", "bilinear", "bicubic", "nearest-exact"] if len(shape) == 4 else ["nearest", "linear"]
    mode, factor = str(rng.choice(modes)), float(rng.choice([2.0, 0.5, 1.5]))
    corners = bool(rng.integers(2)) if "linear" in mode or mode == "bicubic" else None
    return nn.Upsample(scale_factor=factor, mode=mode, align_corners=corners)


def attention(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    weights = [normal(rng, shape[-1], shape[-1]) for _ in range(3)]
    return Step(lambda x, q, k, v: F.scaled_dot_product_attention(x @ q, x @ k, x @ v), *weights)


OPERATORS: dict[str, Operator] = {
    **{f.__name__: plain(f) for f in (
        torch.relu, torch.sigmoid, torch.tanh, torch.neg, torch.abs, torch.erf, torch.exp, torch.floor, torch.round,
        torch.sign, torch.square, torch.reciprocal, F.softplus, F.hardsigmoid, F.hardswish, F.leaky_relu, F.elu,
        F.selu, F.silu, F.mish, F.relu6, F.gelu, F.softsign,
    )},
    "gelu_tanh": plain(lambda x: F.gelu(x, approximate="tanh")),
    "sqrt": plain(lambda x: x.abs().sqrt()),
    "log": plain(lambda x: (x.abs() + 0.1).log()),
    "hardtanh": plain(lambda x: x.clamp(-0.5, 0.75)),
    "at_least": with_number(torch.clamp_min, -0.5, 0.0, 0.5),
    "at_most": with_number(torch.clamp_max, -0.5, 0.0, 0.5),
    "add": with_tensor(torch.add), "sub": with_tensor(torch.sub), "from": with_tensor(lambda x, t: t - x),
    "mul": with_tensor(torch.mul), "div": with_tensor(lambda x, t: x / (t.abs() + 0.5)),
    "over": with_tensor(lambda x, t: t / (x.abs() + 0.5)), "max": with_tensor(torch.maximum),
    "min": with_tensor(torch.minimum), "pow": with_number(lambda x, n: x.abs().pow(n), 0.5, 2.0, 3.0),
    "power": with_number(torch.pow, 2.0, 3.0), "prelu": with_tensor(lambda x, t: torch.where(x > 0, x, t * x)),
    "times_sigmoid": plain(lambda x: x * torch.sigmoid(1.702 * x)), "plus_itself": plain(lambda x: x + torch.relu(x)),
    "times_itself": plain(lambda x: x * torch.tanh(x)),
    "gelu_by_hand": plain(lambda x: x * 0.5 * (1 + torch.erf(x / 1.4142135))),
    "constant_pad": pad("constant", 0.0, 0.0, 1.5, -1.0), "zero_pad": pad("constant", 0.0), "reflect": pad("reflect"),
    "replicate": pad("replicate"), "max_pool": pool("Max"), "avg_pool": pool("Avg"), "conv": conv,
    "conv_transposed": transposed, "batch_norm": norm, "layer_norm": layer_norm,
    "rms_norm": lambda rng, shape: Step(lambda x, t: F.rms_norm(x, (shape[-1],), t), normal(rng, shape[-1])),
    "instance_norm": lambda rng, shape: Step(lambda x: F.instance_norm(x)),
    "group_norm": lambda rng, shape: nn.GroupNorm(2, shape[1]),
    "softmax": along(torch.softmax), "log_softmax": along(torch.log_softmax), "cumsum": along(torch.cumsum),
    "flip": along(lambda x, d: x.flip(d)), "roll": along(lambda x, d: x.roll(1, d)),
    "sort": along(lambda x, d: x.sort(d).values), "argmax": along(lambda x, d: x.argmax(d, keepdim=True).float()),
    "twice": along(lambda x, d: torch.cat([x, x], d)),
    "halves": along(lambda x, d: torch.cat(x.split([1, x.shape[d] - 1], d)[::-1], d)),
    "one": along(lambda x, d: x.select(d, 0)), "picked": along(lambda x, d: x.index_select(d, torch.tensor([1, 0]))),
    "unsqueeze": along(lambda x, d: x.unsqueeze(d)), "normalize": along(lambda x, d: F.normalize(x, dim=d)),
    "mean": reduced(torch.mean), "sum": reduced(torch.sum), "amax": reduced(torch.amax), "amin": reduced(torch.amin),
    "norm": reduced(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "variance": reduced(lambda x, axes, keep: x.var(axes, unbiased=False, keepdim=keep)),
    "standardized": reduced(
        lambda x, axes, _: (x - x.mean(axes, True)) / (x.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()
    ),
    "global_pool": plain(lambda x: x.mean((2, 3), keepdim=True)), "permute": permuted, "flatten": merged,
    "slice": sliced, "linear": linear, "matmul": plain(lambda x: x @ x.transpose(-1, -2)), "resize": resized,
    "attention": attention, "where": plain(lambda x: torch.where(x > 0.5, x, -x)),
    "masked": plain(lambda x: x.masked_fill(x < -1, -5.0)), "compared": plain(lambda x: (x > 0).float()),
    "unequal": plain(lambda x: (~(x > 0.25)).float()), "through_int": plain(lambda x: x.int().float()),
    "through_bool": plain(lambda x: x.bool().float()), "through_double": plain(lambda x: x.double().float()),
    "through_half": plain(lambda x: x.half().float()),
    "expand": plain(lambda x: x.unsqueeze(1).expand(-1, 3, *x.shape[1:])),
    "pixel_shuffle": plain(lambda x: F.pixel_shuffle(x, 2)),
    "pixel_unshuffle": plain(lambda x: F.pixel_unshuffle(x[..., :4, :4], 2)),
}  # fmt: skip


@dataclass(frozen=True)
class Chain:
    names: tuple[str, ...]
    steps: tuple[nn.Module, ...]
    shape: tuple[int, ...]

    def module(self) -> nn.Module:
        return nn.Sequential(*self.steps).eval()

    def shorter(self) -> Iterator[Chain]:
        """Yield the chains without the last or the first operator, which must take the input as it comes."""
        yield Chain(self.names[:-1], self.steps[:-1], self.shape)
        yield Chain(self.names[1:], self.steps[1:], tuple(self.steps[0](torch.zeros(self.shape)).shape))


class Side(nn.Module):
    """Chains side by side, each with an input of its own."""

    def __init__(self, chains: Sequence[Chain]):
        super().__init__()
        self.chains = nn.ModuleList(chain.module() for chain in chains)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(chain(x) for chain, x in zip(self.chains, inputs, strict=True))


@torch.no_grad()
def draw(names: Sequence[str], seed: Sequence[int]) -> Chain | None:
    """Return a chain of these operators on the first shape that they take, or None."""
    for shape in SHAPES:
        rng = np.random.default_rng(seed)
        torch.manual_seed(int(rng.integers(2**31)))
        x = torch.randn(shape)
        steps = []
        try:
            for name in names:
                steps.append(OPERATORS[name](rng, tuple(x.shape)).eval())
                x = steps[-1](x)
        except (RuntimeError, IndexError, ValueError, AttributeError, AssertionError, NotImplementedError):
            continue  # operators that do not fit this shape
        if x.numel() and x.ndim > 1:
            return Chain(tuple(names), tuple(steps), shape)
    return None


def run(path: Path, level: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(zip([i.name for i in session.get_inputs()], arrays, strict=True))))


def write(chains: Sequence[Chain], without: Sequence[str], path: Path) -> None:
    """Convert chains to one file, by all rewrites for ONNX but some."""
    examples = [torch.randn(chain.shape) for chain in chains]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = capture(Side(chains), examples)
        rewrites = [r for r in REWRITES["onnx"] if r.__name__ not in without]
        module = rewrite(program, rewrites, examples)[0].with_dtype(torch.float32).graph_module
        onnx_writer.export(leave_whole(module), examples, program.inputs, program.outputs, None).save(path, {})


def differences(chains: Sequence[Chain], without: Sequence[str]) -> list[str | None]:
    """Return for each chain how the default level differs from level 0 on inputs of three kinds, or None."""
    found: list[str | None] = [None] * len(chains)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "chains.onnx")
        write(chains, without, path)
        for scale, offset in ((1.0, 0.0), (1.0, -3.0), (30.0, 0.0)):
            arrays = [(scale * rng.standard_normal(c.shape) + offset).astype(np.float32) for c in chains]
            results = (run(path, level, arrays) for level in (PLAIN, DEFAULT))
            for number, (expected, actual) in enumerate(zip(*results, strict=True)):
                found[number] = found[number] or difference(expected, actual)
    return found


def difference(expected: np.ndarray, actual: np.ndarray) -> str | None:
    if expected.shape != actual.shape:
        return f"shape {list(actual.shape)} for {list(expected.shape)}"
    finite = np.isfinite(expected) & np.isfinite(actual)
    if not np.array_equal(expected[~finite], actual[~finite], equal_nan=True):
        return "other NaN or infinities"
    wide, found = expected[finite].astype(np.float64), actual[finite].astype(np.float64)
    scale, error = float(np.abs(wide).max(initial=0.0)), float(np.abs(found - wide).max(initial=0.0))
    return f"off by {error:.2g} of {scale:.2g}" if error > TOLERANCE * scale else None


def compare(chains: Sequence[Chain], without: Sequence[str]) -> Iterator[tuple[Chain, str]]:
    """Yield the chains that differ; those that cannot be converted together are halved, and left out alone."""
    try:
        found = differences(chains, without)
    except Exception as error:  # of a conversion, or of ONNX Runtime, whose fused operators may be invalid
        if len(chains) > 1:
            for half in (chains[: len(chains) // 2], chains[len(chains) // 2 :]):
                yield from compare(half, without)
        elif not isinstance(error, ConversionError):
            yield chains[0], f"fails: {str(error).splitlines()[0][:200]}"
        return
    yield from ((chain, told) for chain, told in zip(chains, found, strict=True) if told)


def shortest(chain: Chain, told: str, without: Sequence[str]) -> tuple[Chain, str]:
    """Return the shortest part of a chain that still differs."""
    while len(chain.names) > 1:
        for part in chain.shorter():
            if found := next(iter(compare([part], without)), None):
                chain, told = found
                break
        else:
            break
    return chain, told


def differing(chains: Sequence[Chain], without: Sequence[str] = ()) -> Iterator[tuple[Chain, str]]:
    """Yield the shortest parts of chains that differ, and how."""
    for chain, told in compare(chains, without) if chains else ():
        yield shortest(chain, told, without)


def sequences(
    length: int, count: int, first: int, names: Sequence[str] = tuple(OPERATORS)
) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Yield the names of operators and a seed for each chain: all pairs in turn, random triples."""
    for number in range(first, first + count):
        if length == 2:
            turn, pair = divmod(number, len(names) ** 2)
            yield (names[pair // len(names)], names[pair % len(names)]), (turn, pair)
        else:
            rng = np.random.default_rng((length, number))
            yield tuple(names[i] for i in rng.integers(len(names), size=length)), (length, number)


@click.command()
@click.option("--length", type=click.IntRange(2, 4), default=2, show_default=True)
@click.option("--count", type=int, help="Chains to draw; by default every pair once, or 2,000.")
@click.option("--first", default=0, show_default=True, help="The number of the first chain.")
@click.option("--only", multiple=True, type=click.Choice(list(OPERATORS)), help="Chain these operators alone.")
@click.option("--without", multiple=True, help="Leave out this rewrite.")
@click.option("--state", type=click.Path(path_type=Path), help="Append a line of JSON for each piece and each find.")
def main(
    length: int, count: int | None, first: int, only: tuple[str, ...], without: tuple[str, ...], state: Path | None
) -> None:
    torch.set_num_threads(1)
    if unknown := set(without) - {r.__name__ for r in REWRITES["onnx"]}:
        raise click.BadParameter(f"no such rewrite for ONNX: {', '.join(sorted(unknown))}")
    names = only or tuple(OPERATORS)
    count = count or (len(names) ** 2 if length == 2 else 2000)

    def tell(line: dict[str, Any]) -> None:
        if state:
            with state.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    drawn, seen = 0, set()
    for start in range(first, first + count, SIDE_BY_SIDE):
        end = min(start + SIDE_BY_SIDE, first + count)
        chains = [
            chain
            for sequence, seed in sequences(length, end - start, start, names)
            if (chain := draw(sequence, seed)) is not None
        ]
        drawn += len(chains)
        for found, told in differing(chains, without):
            if found.names not in seen:
                seen.add(found.names)
                click.echo(f"{' -> '.join(found.names)} on {list(found.shape)}: {told} {list(found.steps)}")
                tell({"chain": found.names, "difference": told, "steps": str(found.steps)})
        tell({"length": length, "first": start, "end": end, "chains": len(chains)})
    click.echo(f"{drawn} chains of {count}, {len(seen)} kinds differ; onnxruntime {onnxruntime.__version__}")


if __name__ == "__main__":
    main()
