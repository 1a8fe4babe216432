"""Networks drawn at random: PyTorch's own modules with random geometry, residuals, concatenations and splits.

Sizes are few, so that axes are equal on purpose and a layout that is guessed from sizes is a wrong one. A network is
drawn while it runs: what PyTorch refuses is drawn anew, so that every network that comes out runs.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sample_models.calibration import calibrate

BATCH = 3
MOST = 60_000  # elements of a value
SIZES = (4, 4, 4, 6, 8)
CHANNELS = (2, 4, 4, 4, 6, 8)
Draw = random.Random
Layer = Callable[..., Tensor]


@dataclass(frozen=True)
class Function:
    """A call that is not a module, and how it is shown."""

    shown: str
    call: Layer

    def __call__(self, *values: Tensor) -> Tensor:
        return self.call(*values)

    def __repr__(self) -> str:
        return self.shown


class Network(nn.Module):
    """Steps, each on values by their positions; the input is value 0. Returns the values in `results`."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape
        self.steps: list[tuple[Layer, tuple[int, ...]]] = []
        self.layers = nn.ModuleList()
        self.results: tuple[int, ...] = ()

    def add(self, layer: Layer, at: tuple[int, ...]) -> None:
        self.steps.append((layer, at))
        if isinstance(layer, nn.Module):
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = [x]
        for layer, at in self.steps:
            values.append(layer(*(values[i] for i in at)))
        results = tuple(values[i] for i in self.results)
        return results if len(results) > 1 else results[0]

    def __repr__(self) -> str:
        lines = [f"{i + 1} = {layer}{list(at)}" for i, (layer, at) in enumerate(self.steps)]
        return "\n".join([f"0: {self.shape}", *lines, f"results {list(self.results)}"])


def network(seed: int) -> Network:
    """The network of a seed, in eval mode, with weights and statistics of which every one matters."""
    rng = Draw(seed)
    rank = rng.choice([2, 3, 3, 4, 4, 4, 4, 4, 5])
    size = rng.choice(SIZES)
    spatial = [size if rng.random() < 0.7 else rng.choice(SIZES) for _ in range(rank - 2)]
    made = Network((BATCH, size if rng.random() < 0.7 else rng.choice(CHANNELS), *spatial))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        x = torch.randn(made.shape)
        values = [x]
        wanted = rng.randint(3, 12)
        for _ in range(20 * wanted):
            if len(made.steps) == wanted:
                break
            drawn = _step(rng, values)
            if drawn is not None:
                made.add(*drawn[:2])
                values.append(drawn[2])
        made.results = _results(rng, made, values)
        calibrate(made, x)
    return made.eval()


def _step(rng: Draw, values: list[Tensor]) -> tuple[Layer, tuple[int, ...], Tensor] | None:
    """A layer, the values it takes, and what it gives; None where PyTorch refuses it or nothing suits."""
    at = len(values) - 1 if rng.random() < 0.75 else rng.randrange(len(values))
    x = values[at]
    if rng.random() < 0.2:
        joined = _join(rng, values, at)
        if joined is None:
            return None
        layer, places = joined
    else:
        makers = [maker for ranks, weight, maker in LAYERS if x.dim() in ranks for _ in range(weight)]
        made = rng.choice(makers)(rng, x)
        if made is None:
            return None
        layer, places = made, (at,)
    if isinstance(layer, nn.Module):
        layer.eval()
    try:
        result = layer(*(values[i] for i in places))
    except (RuntimeError, ValueError, AssertionError, IndexError, NotImplementedError):
        return None  # PyTorch's own word that there is no such layer for this input
    small = 0 < result.numel() <= MOST and 2 <= result.dim() <= 6 and len(result) == BATCH
    varies = small and result.isfinite().all() and result.abs().max() < 1e4 and result.std() > 1e-3
    varies = varies and (result - result[:1]).abs().max() > 1e-3  # with the input, not only in itself
    return (layer, places, result) if varies else None


def _join(rng: Draw, values: list[Tensor], at: int) -> tuple[Layer, tuple[int, ...]] | None:
    x = values[at]
    same = [i for i, v in enumerate(values) if v.shape == x.shape and i != at]
    spread = [i for i, v in enumerate(values) if v.dim() == x.dim() and i != at and _broadcasts(v, x)]
    dim = rng.randrange(1, x.dim())
    beside = [
        i for i, v in enumerate(values)
        if v.dim() == x.dim() and all(n == m or d == dim for d, (n, m) in enumerate(zip(v.shape, x.shape, strict=True)))
    ]  # fmt: skip
    kind = rng.choice(["add", "add", "cat", "cat", "mul", "gate", "stack", "sub", "where"])
    match kind:
        case "cat" if beside:
            return Function(f"cat(dim={dim})", lambda *v: torch.cat(v, dim)), (
                at,
                *rng.choices(beside, k=rng.choice([1, 1, 2])),
            )
        case "stack" if same:
            return Function(f"stack(dim={dim})", lambda *v: torch.stack(v, dim)), (at, rng.choice(same))
        case "gate" if spread:
            return Function("gate", lambda a, b: a * torch.sigmoid(b)), (at, rng.choice(spread))
        case "where" if same:
            return Function("where", lambda a, b: torch.where(a > b, a, b)), (at, rng.choice(same))
        case "add" | "mul" | "sub" if spread:
            return Function(kind, getattr(torch, kind)), (at, rng.choice(spread))
    return None


def _broadcasts(v: Tensor, x: Tensor) -> bool:
    return all(n == m or 1 in (n, m) for n, m in zip(v.shape, x.shape, strict=True))


def _results(rng: Draw, made: Network, values: list[Tensor]) -> tuple[int, ...]:
    last = len(values) - 1
    used = {i for _, at in made.steps for i in at}
    loose = [i for i in range(1, last) if i not in used]
    return (*rng.sample(loose, min(len(loose), rng.choice([0, 0, 1, 2]))), last)


# -- layers, each drawn for the value that it takes


def _kernels(rng: Draw, dims: int, most: int = 4) -> int | tuple[int, ...]:
    if rng.random() < 0.6:
        return rng.randint(1, most)
    return tuple(rng.randint(1, most) for _ in range(dims))


def _each(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * dims


def _groups(rng: Draw, channels_in: int, channels_out: int) -> int:
    possible = [n for n in range(1, channels_in + 1) if channels_in % n == channels_out % n == 0]
    return rng.choice([1, 1, rng.choice(possible), possible[-1]])


def _convolution(rng: Draw, x: Tensor) -> nn.Module:
    dims, channels = x.dim() - 2, x.shape[1]
    kernel, out = _kernels(rng, dims), rng.choice([*CHANNELS, channels, 2 * channels])
    same = rng.random() < 0.15
    padding: str | tuple[int, ...] = tuple(rng.randint(0, k) for k in _each(kernel, dims))
    if rng.random() < 0.4:
        padding = tuple(k // 2 for k in _each(kernel, dims))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return kind(
        channels, out, kernel,  # type: ignore[arg-type]
        stride=1 if same else rng.choice([1, 1, 2, 3, _kernels(rng, dims, 2)]),
        padding="same" if same else padding,
        dilation=rng.choice([1, 1, 1, 2, _kernels(rng, dims, 3)]),
        groups=_groups(rng, channels, out),
        bias=rng.random() < 0.7,
        padding_mode=rng.choice(["zeros"] * 4 + ["reflect", "replicate", "circular"]),
    )  # fmt: skip


def _transposed_convolution(rng: Draw, x: Tensor) -> nn.Module:
    dims, channels = x.dim() - 2, x.shape[1]
    kernel, out = _kernels(rng, dims), rng.choice([*CHANNELS, channels])
    stride = rng.choice([1, 2, 2, 3, _kernels(rng, dims, 3)])
    return (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1](
        channels, out, kernel, stride=stride,  # type: ignore[arg-type]
        padding=tuple(rng.randint(0, k // 2) for k in _each(kernel, dims)),
        output_padding=tuple(rng.randint(0, s - 1) for s in _each(stride, dims)),
        dilation=rng.choice([1, 1, 1, 2]),
        groups=_groups(rng, channels, out),
        bias=rng.random() < 0.7,
    )  # fmt: skip


def _max_pool(rng: Draw, x: Tensor) -> nn.Module:
    dims = x.dim() - 2
    kernel = _kernels(rng, dims)
    return (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](
        kernel,
        stride=rng.choice([None, 1, 2, _kernels(rng, dims, 3)]),
        padding=tuple(rng.randint(0, k // 2) for k in _each(kernel, dims)),
        dilation=rng.choice([1, 1, 2]),
        ceil_mode=rng.random() < 0.4,
    )


def _average_pool(rng: Draw, x: Tensor) -> nn.Module:
    dims = x.dim() - 2
    kernel = _kernels(rng, dims)
    more = {"divisor_override": rng.choice([None, None, 5])} if dims > 1 else {}
    return (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1](
        kernel,  # type: ignore[arg-type]
        stride=rng.choice([None, 1, 2, _kernels(rng, dims, 3)]),
        padding=tuple(rng.randint(0, k // 2) for k in _each(kernel, dims)),
        ceil_mode=rng.random() < 0.4,
        count_include_pad=rng.random() < 0.5,
        **more,
    )


def _adaptive_pool(rng: Draw, x: Tensor) -> nn.Module:
    dims = x.dim() - 2
    size = tuple(rng.randint(1, 6) for _ in range(dims))
    kind = rng.choice(["Avg", "Max"])
    pool: nn.Module = getattr(nn, f"Adaptive{kind}Pool{dims}d")(size)
    return pool


def _power_pool(rng: Draw, x: Tensor) -> nn.Module:
    dims = x.dim() - 2
    return (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)[dims - 1](2, rng.randint(1, 3), ceil_mode=rng.random() < 0.3)


def _norm(rng: Draw, x: Tensor) -> nn.Module:
    channels, dims = x.shape[1], x.dim() - 2
    affine, eps = rng.random() < 0.8, rng.choice([1e-5, 1e-3])
    groups = [n for n in range(1, channels + 1) if channels % n == 0]
    kinds = [
        lambda: getattr(nn, f"BatchNorm{max(dims, 1)}d")(channels, eps=eps, affine=affine),
        lambda: nn.GroupNorm(rng.choice(groups), channels, eps=eps, affine=affine),
        lambda: getattr(nn, f"InstanceNorm{dims}d")(channels, affine=affine, track_running_stats=rng.random() < 0.3),
        lambda: nn.LocalResponseNorm(rng.randint(1, 5)),
    ]
    made: nn.Module = rng.choice(kinds[:2] if dims not in (1, 2, 3) else kinds)()
    return made


def _layer_norm(rng: Draw, x: Tensor) -> nn.Module:
    shape = list(x.shape[rng.randrange(1, x.dim()) :])
    if rng.random() < 0.2:
        return nn.RMSNorm(shape, elementwise_affine=rng.random() < 0.8)
    return nn.LayerNorm(shape, elementwise_affine=rng.random() < 0.8)


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, lambda: nn.LeakyReLU(0.1), nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Softsign, nn.LogSigmoid,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Hardtanh, lambda: nn.Threshold(0.1, -0.5), nn.Identity, nn.Dropout,
)  # fmt: skip


def _activation(rng: Draw, x: Tensor) -> nn.Module:
    kind = rng.randrange(len(ACTIVATIONS) + 4)
    if kind < len(ACTIVATIONS):
        return ACTIVATIONS[kind]()
    return (
        nn.PReLU(rng.choice([1, x.shape[1]])),
        nn.Softmax(rng.randrange(1, x.dim())),
        nn.LogSoftmax(rng.randrange(1, x.dim())),
        nn.GLU(rng.choice([d for d in range(1, x.dim()) if x.shape[d] % 2 == 0] or [1])),
    )[kind - len(ACTIVATIONS)]


def _linear(rng: Draw, x: Tensor) -> nn.Module:
    out = rng.choice(CHANNELS)
    if x.dim() > 2 and rng.random() < 0.5:  # over several axes
        first = rng.randrange(1, x.dim() - 1)
        flat = nn.Flatten(first)
        return nn.Sequential(flat, nn.Linear(flat(x).shape[-1], out, bias=rng.random() < 0.8))
    return nn.Linear(x.shape[-1], out, bias=rng.random() < 0.8)


class Attention(nn.Module):
    """Self-attention with its residual, on tokens of the value's last axis."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


class Heads(nn.Module):
    """Attention written out with one projection for all, its heads cut by views."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


def _attention(rng: Draw, x: Tensor) -> nn.Module:
    width = x.shape[2]
    heads = rng.choice([n for n in (1, 2, 4) if width % n == 0])
    kind = rng.randrange(3)
    if kind == 0:
        return Attention(width, heads, rng.random() < 0.7)
    if kind == 1:
        return Heads(width, heads, rng.random() < 0.4)
    return nn.TransformerEncoderLayer(
        width, heads, rng.choice(SIZES), batch_first=True, norm_first=rng.random() < 0.5,
        activation=rng.choice(["relu", "gelu"]), bias=rng.random() < 0.8,
    )  # fmt: skip


class Recurrent(nn.Module):
    """A recurrent layer's sequence; `sequence_first` has it run over the value's first axis but one, transposed."""

    def __init__(self, layer: nn.Module, sequence_first: bool, last_only: bool):
        super().__init__()
        self.layer, self.sequence_first, self.last_only = layer, sequence_first, last_only

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.transpose(0, 1) if self.sequence_first else x)[0]
        y = y.transpose(0, 1) if self.sequence_first else y
        return y[:, -1] if self.last_only else y


def _recurrent(rng: Draw, x: Tensor) -> nn.Module:
    sequence_first = rng.random() < 0.3
    kind = rng.choice([nn.LSTM, nn.GRU, nn.RNN])
    more = {"nonlinearity": rng.choice(["tanh", "relu"])} if kind is nn.RNN else {}
    layer = kind(
        x.shape[2], rng.choice(CHANNELS), num_layers=rng.choice([1, 1, 2]), bias=rng.random() < 0.8,
        bidirectional=rng.random() < 0.4, batch_first=not sequence_first, **more,
    )  # fmt: skip
    return Recurrent(layer, sequence_first, rng.random() < 0.3)


def _upsampling(rng: Draw, x: Tensor) -> nn.Module:
    dims = x.dim() - 2
    mode = rng.choice(
        [
            "nearest",
            "nearest",
            "nearest-exact",
            ("linear", "bilinear", "trilinear")[dims - 1],
            *["bicubic"] * (dims == 2),
        ]
    )
    corners = {} if mode.startswith("nearest") else {"align_corners": rng.random() < 0.5}
    if rng.random() < 0.3:
        return nn.Upsample(size=tuple(rng.randint(2, 9) for _ in range(dims)), mode=mode, **corners)
    return nn.Upsample(scale_factor=rng.choice([2, 2, 3, 1.5, 0.5]), mode=mode, **corners)


def _padding(rng: Draw, x: Tensor) -> Layer:
    dims = x.dim() - 2
    mode = rng.choice(["constant", "constant", "reflect", "replicate", "circular"])
    low = -1 if mode == "constant" else 0
    widths = [rng.randint(low, 3) for _ in range(2 * dims)]
    more = {"value": rng.choice([0.0, 0.0, 0.7])} if mode == "constant" else {}
    return Function(f"pad({widths}, {mode}, {more})", lambda v: F.pad(v, widths, mode=mode, **more))


def _shuffle(rng: Draw, x: Tensor) -> Layer:
    channels = x.shape[1]
    factor = rng.choice([2, 2, 3])
    kind = rng.choice(["PixelShuffle", "PixelUnshuffle", "ChannelShuffle", "unfold"])
    if kind == "ChannelShuffle":
        return nn.ChannelShuffle(rng.choice([n for n in range(1, channels + 1) if channels % n == 0]))
    if kind == "unfold":
        return nn.Unfold(
            rng.randint(1, 3), dilation=rng.choice([1, 2]), padding=rng.randint(0, 1), stride=rng.randint(1, 2)
        )
    made: nn.Module = getattr(nn, kind)(factor)
    return made


def _view(rng: Draw, x: Tensor) -> Layer | None:
    dims = list(range(1, x.dim()))
    match rng.choice(["permute", "permute", "transpose", "flatten", "unflatten", "regroup", "unsqueeze", "squeeze"]):
        case "permute":
            order = [0, *rng.sample(dims, len(dims))]
            return Function(f"permute({order})", lambda v: v.permute(order))
        case "transpose":
            a, b = rng.choice(dims), rng.choice(dims) - x.dim()
            return Function(f"transpose({a}, {b})", lambda v: v.transpose(a, b))
        case "flatten" if len(dims) > 1:
            first = rng.choice(dims[:-1])
            last = rng.randint(first + 1, dims[-1])
            return nn.Flatten(first, last)
        case "unflatten":
            dim = rng.choice(dims)
            factor = rng.choice([n for n in (1, 2, 3, 4) if x.shape[dim] % n == 0])
            return nn.Unflatten(dim, rng.choice([(factor, -1), (-1, factor)]))
        case "regroup" if len(dims) > 1:
            dim = rng.choice(dims[:-1])
            whole = x.shape[dim] * x.shape[dim + 1]
            factor = rng.choice([n for n in range(1, whole + 1) if whole % n == 0])
            shape = [x.shape[d] for d in range(1, dim)], [x.shape[d] for d in range(dim + 2, x.dim())]
            return Function(
                f"regroup({dim}, {factor})",
                lambda v: v.reshape(v.shape[0], *shape[0], factor, whole // factor, *shape[1]),
            )
        case "unsqueeze" if x.dim() < 5:
            dim = rng.choice([*dims, x.dim()])
            return Function(f"unsqueeze({dim})", lambda v: v.unsqueeze(dim))
        case "squeeze" if 1 in x.shape[1:] and x.dim() > 2:
            dim = rng.choice([d for d in dims if x.shape[d] == 1])
            return Function(f"squeeze({dim})", lambda v: v.squeeze(dim))
    return None


def _cut(rng: Draw, x: Tensor) -> Layer | None:
    dim = rng.randrange(1, x.dim())
    size = x.shape[dim]
    match rng.choice(["split", "chunk", "slice", "slice", "flip", "roll", "select"]):
        case "split" if size > 1:
            part = rng.randint(1, size - 1)
            at = rng.randrange(-(-size // part))
            return Function(f"split({part}, {dim})[{at}]", lambda v: v.split(part, dim)[at])
        case "chunk" if size > 1:
            at = rng.randrange(2)
            return Function(f"chunk(2, {dim})[{at}]", lambda v: v.chunk(2, dim)[at])
        case "slice":
            start, step = rng.randint(-size, size - 1), rng.randint(1, 3)
            index = (slice(None),) * dim + (slice(start, None, step),)
            return Function(f"slice({dim}, {start}::{step})", lambda v: v[index])
        case "flip":
            return Function(f"flip({dim})", lambda v: v.flip(dim))
        case "roll":
            by = rng.randint(-3, 3)
            return Function(f"roll({by}, {dim})", lambda v: v.roll(by, dim))
        case "select" if x.dim() > 2:
            at = rng.randint(-size, size - 1)
            return Function(f"select({dim}, {at})", lambda v: v.select(dim, at))
    return None


def _reduction(rng: Draw, x: Tensor) -> Layer:
    dims = rng.sample(range(1, x.dim()), rng.randint(1, x.dim() - 1))
    keep = rng.random() < 0.7
    name = rng.choice(["mean", "mean", "amax", "amin", "sum", "logsumexp"])
    return Function(f"{name}({dims}, keepdim={keep})", lambda v: getattr(torch, name)(v, dims, keepdim=keep))


class Scaled(nn.Module):
    """A bare parameter that is multiplied, another that is added."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.scale, self.shift = nn.Parameter(1 + 0.3 * torch.randn(shape)), nn.Parameter(0.3 * torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def _parameters(rng: Draw, x: Tensor) -> nn.Module:
    shape = [n if rng.random() < 0.5 else 1 for n in x.shape[1:]]
    return Scaled(tuple(shape[rng.randrange(len(shape)) :]))


LAYERS: tuple[tuple[tuple[int, ...], int, Callable[[Draw, Tensor], Layer | None]], ...] = (
    ((3, 4), 8, _convolution),
    ((5,), 4, _convolution),
    ((3, 4), 3, _transposed_convolution),
    ((5,), 1, _transposed_convolution),
    ((3, 4, 5), 2, _max_pool),
    ((3, 4, 5), 2, _average_pool),
    ((3, 4, 5), 1, _adaptive_pool),
    ((3, 4), 1, _power_pool),
    ((2, 3, 4, 5), 3, _norm),
    ((2, 3, 4, 5, 6), 2, _layer_norm),
    ((2, 3, 4, 5, 6), 4, _activation),
    ((2, 3, 4, 5, 6), 2, _linear),
    ((3,), 3, _attention),
    ((3,), 3, _recurrent),
    ((3, 4, 5), 2, _upsampling),
    ((3, 4, 5), 2, _padding),
    ((4,), 4, _shuffle),
    ((3, 4, 5, 6), 4, _view),
    ((2, 3, 4, 5, 6), 2, _cut),
    ((3, 4, 5, 6), 2, _reduction),
    ((2, 3, 4, 5, 6), 1, _parameters),
)
