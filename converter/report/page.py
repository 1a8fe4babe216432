"""Write a report as one HTML file that loads nothing: verdict, proofs, layers, weights, and how to repeat it.

It is made from a report's JSON, so that a page can be made later too. A report can hold names from strangers: each text
is escaped for terminals and for HTML, and cut.
"""

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader

from converter.errors import UsageError, escaped
from converter.report.failures import REPORTS, Report, write_text
from converter.report.graph import Drawing, draw, in_stages
from converter.report.opening import opened

LONGEST = 500  # characters of one text
MOST_ROWS = 3000  # of one table
MOST_POINTS = 800  # of one plot
COVERAGE = ("PTC5505",)  # codes of notes on what the inputs did not exercise

FORMATS = {
    "tf": "SavedModel", "keras": "Keras file", "onnx": "ONNX", "tflite": "LiteRT file", "torch": "PyTorch module",
}  # fmt: skip
PROOFS = {"function": "Same function", "artifact": "Same artifact", "weights": "Same weights"}
RESTS_ON = {
    "function": "The converted graph runs in float64 against PyTorch in float64.",
    "artifact": "The file was opened from disk by a fresh process and compared with PyTorch.",
    "weights": "Every tensor of the artifact was compared with the tensors of the checkpoint that it is made of.",
}
# What each kind of rewrite replaces, and what stands there instead, by the beginning of its name. Of the stages between
# ">", each reads all of the one before.
DRAWINGS = {
    "Focus": (
        "slice, slice, slice, slice > concat > conv",
        "space_to_depth > conv with permuted weights",
    ),
    "slices -> views": ("image > slice, slice, slice, slice > concat", "image > view > permute > view"),
    "parts -> SpaceToDepth": ("image > parts, parts > concat", "image > space_to_depth"),
    "parts -> DepthToSpace": ("image > parts, parts > concat", "image > depth_to_space"),
    "parts -> views": ("image > parts, parts > concat", "image > view > permute > view"),
    "views -> SpaceToDepth": ("view > permute > view", "space_to_depth"),
    "views -> DepthToSpace": ("view > permute > view", "depth_to_space"),
    "SpaceToDepth -> pixel_unshuffle": ("view > permute > view", "pixel_unshuffle"),
    "DepthToSpace -> pixel_shuffle": ("view > permute > view", "pixel_shuffle"),
    "SpaceToDepth in a convolution": ("space_to_depth > conv", "conv with a larger kernel and stride"),
    "SpaceToDepth in another order": ("space_to_depth > reorder channels", "view > permute > view"),
    "channel order folded": ("reorder channels > conv", "conv with permuted weights"),
    "channels permuted": ("weights, order > gather", "weights in that order"),
    "BatchNorm folded": ("conv > batch norm", "conv with scaled weights"),
    "BatchNorm as factor and term": ("batch norm", "multiply > add"),
    "a batch norm without running statistics": ("batch norm", "mean and variance > normalize"),
    "factor folded": ("multiply > conv", "conv with scaled weights"),
    "difference folded": ("subtract > conv", "conv with shifted bias"),
    "depthwise + pointwise": ("depthwise conv > 1x1 conv", "separable conv"),
    "depthwise bias folded": ("depthwise conv with bias > 1x1 conv", "depthwise conv > 1x1 conv with added bias"),
    "grouped convolution": ("split > conv, conv > concat", "grouped conv"),
    "3-D groups split": ("grouped 3-D conv", "2-D convs by plane > add"),
    "padding merged": ("pad > conv", "padded conv"),
    "zeros before a pool": ("pad with 0 > pool", "pad with -0 > pool"),
    "adaptive pool": ("adaptive pool", "pools of fixed sizes"),
    "windows of a pool": ("pool", "pool with the same windows in ONNX"),
    "constant computed": ("constant, constant > operators", "one constant"),
    "constant offsets": ("constant, image > deformable conv", "image > slices > conv"),
    "spatial shift": ("pad > roll > crop", "slices up to their border"),
    "shift as a depthwise": ("slices > concat", "depthwise conv"),
    "projections and attention": ("linear, linear, linear > attention > linear", "MultiHeadAttention"),
    "attention written out": ("attention", "matmul > softmax > matmul"),
    "moves merged": ("permute > linear > permute", "linear"),
    "einsum": ("einsum", "permute > matmul"),
    "Linear -> MatMul": ("linear", "matmul > add"),
    "Linear tied to an embedding": ("weight > embedding, linear", "one layer for both"),
    "Dropout dropped": ("layer > dropout > layer", "layer > layer"),
    "identity dropped": ("layer > identity > layer", "layer > layer"),
    "index through the batch": ("arange, index > gather", "index > gather in each example"),
    "a clamp of integers": ("hardtanh", "clamp"),
    "bounds of one type": ("clamp from 0.5 to 1", "clamp from 0.5 to 1.0"),
    "small values keep": ("expm1, log1p", "forms that keep small digits"),
}
MOVES = ("slice", "slices", "concat", "reorder channels", "permute", "gather", "parts", "roll", "crop", "split")


def render(content: Mapping[str, Any], links: Mapping[str, str] | None = None) -> str:
    """Return a report as HTML.

    Args:
        content: what `to_dict()` of a report returns, or a report file holds.
        links: addresses of the models' own pages, by name, for a report of a batch.

    Raises:
        UsageError: the content is not a report.
    """
    try:
        if not isinstance(content, Mapping) or not content.keys() & {
            "models",
            "entries",
            "artifacts",
            "proofs",
            "error",
        }:
            raise ValueError("it has neither models nor proofs")
        models = [_model(one) for one in content.get("models", [content] if "entries" not in content else [])]
        page = _environment().get_template("page.html.jinja")
        return page.render(content=content, models=models, links=links or {}, verdict=_verdict(content, models))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"This is not a report of pt-convert: {error}.",
            code="PTC6092",
            fix="Give a file that --report wrote, or the summary.json of a batch.",
        ) from error


def summary(content: Mapping[str, Any]) -> str:
    """Return the result of one model as a part of a page, for notebooks."""
    return _environment().get_template("summary.html.jinja").render(model=_model(content))


@dataclass(frozen=True)
class WrittenPage(Report):
    """A page that was written."""

    path: str


def write_page(report: Path, page: Path | None = None) -> WrittenPage:
    """Write a page of a report file; of a batch's summary, the pages of its models too.

    Args:
        page: by default the report's name with .html.

    Raises:
        UsageError: the file is not a report.
        OutputError: the page cannot be written.
    """
    page = report.with_suffix(".html") if page is None else page
    if page.suffix.lower() != ".html":
        raise UsageError(
            "A page's name ends in .html.", code="PTC6094", where=str(page), fix=f"Name it {page.with_suffix('.html')}."
        )
    content = read_report(report)
    write_with_models(page, content, report.parent / REPORTS)
    return WrittenPage(str(page))


def write_with_models(page: Path, content: Any, reports: Path | None) -> None:
    """Write the page of a report, and of a batch's models, whose reports are in that folder, or raise OutputError."""
    text = render(content)  # what is not a report is refused before anything is written
    if reports is not None and "entries" in content:
        text = render(content, write_pages(content["entries"], reports, page))
    write_text(page, text)


def write_pages(entries: Sequence[Mapping[str, Any]], reports: Path, index: Path) -> dict[str, str]:
    """Write the page of each model of a batch beside its JSON report; return their addresses, by name.

    Args:
        entries: of the batch's report.
        reports: the folder with the models' reports.
        index: the page of the batch, from which the addresses lead.

    Raises:
        OutputError: a page cannot be written.
    """
    links = {}
    for name in [str(entry["name"]) for entry in entries if "name" in entry]:
        report = reports / f"{name}.json"
        if report.is_file() and report.resolve().is_relative_to(reports.resolve()):
            page = report.with_name(f"{report.name.removesuffix('.json')}.html")
            write_text(page, render(read_report(report)))
            links[name] = quote(os.path.relpath(page.resolve(), index.resolve().parent))
    return links


def read_report(file: Path) -> Any:
    """Return what a file of JSON holds, or raise UsageError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"The report cannot be read: {error}.",
            code="PTC6093",
            where=str(file),
            fix="Give a file that --report wrote, or the summary.json of a batch.",
        ) from error


@cache
def _environment() -> Environment:
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    script = (folder / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "script": script,
        "script_digest": digest,
        "style": (folder / "page.css").read_text(),
        "formats": FORMATS,
        "proofs": PROOFS,
        "rests_on": RESTS_ON,
        "most_rows": MOST_ROWS,
        "coverage": COVERAGE,
        "opened": opened,
        "drawing": _drawing,
        "bar": _bar,
        "plot": _plot,
    }
    environment.filters |= {"shape": _shape, "small": _small, "seconds": _seconds, "share": _share, "bytes": _bytes}
    return environment


def _shown(value: Any) -> Any:
    """Return what is shown of a value: no control characters, no endless names."""
    if value is None:
        return ""
    if not isinstance(value, str) or hasattr(value, "__html__"):  # a part of the page
        return value
    text = value if len(value) <= LONGEST else f"{value[:LONGEST]}... [{len(value):,} characters]"
    return escaped(text)


def _model(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's report with its artifacts in one form, be it of `convert`, `verify` or `into`."""
    if "error" in one or "artifacts" in one:
        return {"artifacts": [], **one}
    artifact = {"format": "", "path": one.get("artifact"), "seconds": sum(one.get("timings", {}).values())}
    kept = ("proofs", "status", "accuracy", "trace", "quantization", "weights", "explanations", "pairs")
    return {**one, "artifacts": [artifact | {key: one[key] for key in kept if key in one}]}


def _verdict(content: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> str:
    states = [str(one.get("status", "failed")) for one in models]
    states += [str(entry["state"]) for entry in content.get("entries", ())]
    order = ("failed", "disagrees", "not verified", "quantized", "converts", "verified")
    return next((state for state in order if state in states), "failed")


def _drawing(name: str) -> tuple[list[tuple[str, Drawing]], str]:
    """Return what stands before and after a rewrite as drawings, and in words; nothing for an unknown rewrite."""
    shown = next((both for start, both in DRAWINGS.items() if name.startswith(start)), ())
    drawn = []
    for label, text in zip(("before", "after"), shown, strict=False):
        stages = [stage.split(", ") for stage in text.split(" > ")]
        boxes, edges = in_stages(stages, dict.fromkeys(MOVES, "moves"))
        drawn.append((label, draw(boxes, edges, across=True, x=56)))
    return drawn, "; ".join(f"{label}: {text}" for (label, _), text in zip(drawn, shown, strict=True))


def _bar(share: float | None) -> float:
    """Return the length of a bar in percent: seven powers of ten up to the limit at 80, and two above it."""
    if share is None or not math.isfinite(share):
        return 100.0
    return 0.0 if share <= 0 else round(min(100.0, max(1.0, 80 + 80 / 7 * math.log10(share))), 1)


def _plot(trace: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the points of a plot of each value's relative error along the graph, and the decades of its scale.

    Of neighbors that would cover each other, the largest is kept.
    """
    found = []
    for number, row in enumerate(trace):
        if row.get("error") is None and not row["diverges"]:
            continue
        expected = row["expected"]
        scale = max(abs(expected[end] or 0) for end in ("least", "greatest")) or 1.0
        error = math.inf if row.get("error") is None else row["error"] / scale
        found.append((number, error, row))
    if not found:
        return None
    size = math.ceil(len(found) / MOST_POINTS)
    groups = [found[start : start + size] for start in range(0, len(found), size)]
    kept = [max(group, key=lambda one: (one[2]["diverges"], one[1])) for group in groups]
    logs = [math.log10(error) for _, error, _ in kept if 0 < error < math.inf]
    low, high = math.floor(min(logs, default=-17)), math.ceil(max(logs, default=-15))
    high = max(high, low + 2)
    first = next((row for row in trace if row["diverges"]), None)
    points = []
    for number, error, row in kept:
        at = low if error <= 0 else high if error == math.inf else math.log10(error)
        x, y = 700 * number / max(1, len(trace) - 1), 160 * (high - at) / (high - low)
        points.append({"x": round(x, 1), "y": round(y, 1), "error": error, "row": row, "first": row is first})
    step = max(1, (high - low) // 5)
    ticks = [(power, round(160 * (high - power) / (high - low), 1)) for power in range(low, high + 1, step)]
    return {"points": points, "ticks": ticks, "first": first}


def _shape(shape: Sequence[Any] | None) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape or ()) + "]"


def _small(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.1e}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def _share(value: float) -> str:
    return "100 %" if value == 1 else f"{min(100 * value, 99.9):.1f} %"  # 99.96 % is not 100 %


def _bytes(value: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= unit:
            return f"{value / unit:.{2 if name == 'GiB' else 0}f} {name}"
    return f"{value:.0f} B"
