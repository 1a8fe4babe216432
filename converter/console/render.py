"""Render progress and reports for the terminal, all of it on standard error."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..errors import Note
from ..report.failures import UnsupportedOperator
from ..report.opening import opened
from ..report.results import (
    Accuracy,
    Answer,
    ArtifactReport,
    FormatCheck,
    LayerPair,
    LayerRow,
    OutputComparison,
    PlanRow,
    Quantization,
    Rewrite,
    Shape,
    Statistics,
    TensorFacts,
    TraceRow,
    WeightMatch,
)

FORMATS = {
    "tf": "SavedModel", "keras": "Keras file", "onnx": "ONNX", "tflite": "LiteRT file", "torch": "PyTorch module",
}  # fmt: skip
PROOFS = {"function": "1 same function", "artifact": "2 same artifact", "weights": "3 same weights"}
LAYOUTS = {"channels_last": "channels last", "pytorch": "PyTorch layout"}
COLOURS = {
    "verified": "green", "quantized": "cyan", "not verified": "yellow", "disagrees": "red", "failed": "red",
    "converts": "green",
}  # fmt: skip
MOST_LINES = 6


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _heading(text: str | Text) -> Text:
    heading = Text("\n")
    return heading.append(text, "bold") if isinstance(text, str) else heading.append_text(text)


def _artifact_title(artifact: ArtifactReport) -> Text:
    written = Text(str(artifact.path), "bold") if artifact.path else Text("nothing written", "bold red")
    return Text.assemble(
        (FORMATS.get(artifact.format, artifact.format), "bold"),
        "  ",
        written,
        "  ",
        (artifact.verdict, COLOURS[artifact.status]),
        (f"  {_seconds(artifact.seconds)}", "dim"),
    )


def _add_tensors(grid: Table, inputs: Sequence[TensorFacts], outputs: Sequence[TensorFacts]) -> None:
    for label, tensors in (("input", inputs), ("output", outputs)):
        for number, tensor in enumerate(tensors):
            facts = f" {tensor.dtype} {_shape(tensor.shape)} {LAYOUTS[tensor.layout]}"
            grid.add_row(
                "" if number else label + "s" * (len(tensors) > 1), Text.assemble((tensor.name, "cyan"), facts)
            )


def _tree(rows: Sequence[LayerRow]) -> Table:
    """Render the modules as a tree, each with the last part of its path."""
    tree = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("module", "type", "per sample", "parameters", "becomes"):
        tree.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for row, (guides, name) in zip(rows, _branches([row.path for row in rows]), strict=True):
        parameters = f"{row.parameters:,}" if row.parameters else ""
        shapes = " → ".join(_sample(shape) for shape in (row.shape_in, row.shape_out) if shape is not None)
        kind = Text.assemble(row.type, " " if row.type and row.convolution else "", (row.convolution, "dim"))
        tree.add_row(Text.assemble((guides, "dim"), name), kind, *map(Text, (shapes, parameters, row.becomes)))
    return tree


def _branches(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Return guides and name of each path; its parent is the nearest earlier path that is a prefix."""
    parents: list[int | None] = []
    for number, path in enumerate(paths):
        parent = number - 1 if number else None
        while parent is not None and paths[parent] and not path.startswith(f"{paths[parent]}."):
            parent = parents[parent]
        parents.append(parent)
    last = {parent: number for number, parent in enumerate(parents)}
    branches = []
    for number, path in enumerate(paths):
        guides, at = "", number
        while (parent := parents[at]) is not None:
            bars = ("└ ", "├ ") if at == number else ("  ", "│ ")
            guides, at = bars[last[parent] != at] + guides, parent
        above = parents[number]
        name = path.removeprefix(f"{paths[above]}.") if above is not None else path or "(model)"
        branches.append((guides, name))
    return branches


def _sample(shape: Shape) -> str:
    return "×".join("?" if size is None else str(size) for size in shape[1:]) or "1"


def _rewrites(rewrites: Sequence[Rewrite]) -> Table:
    grid = _grid()
    for rewrite in rewrites:
        grid.add_row(rewrite.name, _at(rewrite.module, rewrite.description))
    return grid


def _at(module: str, what: str) -> Text:
    return Text.assemble((module, "cyan"), " " if module else "", what)


def _checks(checks: Sequence[FormatCheck]) -> RenderableType:
    grid = _grid()
    for check in checks:
        if check.failure is None:
            grid.add_row(check.format, Text("yes", COLOURS["verified"]))
            for note in check.notes:
                grid.add_row("", f"{note} [{note.code}]")
            continue
        lines = [f"{check.failure.what} [{check.failure.code}]", check.failure.where, check.failure.fix]
        grid.add_row(check.format, Text("no: " + "\n".join(line for line in lines if line), COLOURS["failed"]))
    return grid


def _operators(operators: Sequence[UnsupportedOperator]) -> Table:
    table = _table("operator", "count", "modules", "source")
    for one in operators:
        source = one.source_line.removeprefix(f"{Path.cwd()}{os.sep}")
        table.add_row(Text(one.operator), str(one.count), Text(one.modules), Text(source))
    return table


def _notes(notes: Sequence[Note]) -> list[RenderableType]:
    return [_heading("Notes"), *(Text(f"- {note} [{note.code}]") for note in notes)] if notes else []


def _next(artifacts: Sequence[ArtifactReport]) -> list[RenderableType]:
    """Return how the artifacts that were put in place are opened."""
    calls = [Text(call) for one in artifacts if (call := opened(one.format, one.path, one.status))]
    return [_heading("Open it with" if len(calls) == 1 else "Open them with"), *calls] if calls else []


def _figures(output: OutputComparison, all_of_them: bool) -> str:
    figures = [f"max error {output.max_abs:.1e}"]
    if output.multiple_of_rounding is not None:
        multiple = output.multiple_of_rounding
        figures.append(f"{multiple:{'.1f' if multiple < 1000 else '.1e'}}x float32 rounding")
    if output.top1_agreement is not None:
        figures.append(f"top-1 {_percent(output.top1_agreement)} the same")
    if output.top5_agreement is not None and (all_of_them or output.top5_agreement < 1):
        figures.append(f"top-5 {_percent(output.top5_agreement)}")
    if all_of_them:
        figures.append(
            f"relative {output.max_rel:.1e}, mean {output.mean_abs:.1e}, cosine {output.cosine:.9f}, "
            f"SQNR {output.sqnr_db:.0f} dB; in the worst round scale {output.scale:.3g}, {output.bound:.1e} allowed"
        )
    return ", ".join(figures)


def _accuracy(accuracy: Accuracy) -> str:
    same = "all" if accuracy.same_predictions == accuracy.samples else f"{accuracy.same_predictions}"
    return (
        f"{_percent(accuracy.source)} before, {_percent(accuracy.artifact)} after; "
        f"{same} of {accuracy.samples} predictions the same"
    )


def _quantization(one: Quantization) -> Iterator[tuple[str, str]]:
    """Yield a label and a text for each fact."""
    on = f", calibrated on {one.calibrated_on} samples" if one.calibrated_on else ""
    yield "quantized", f"{one.how}{on}; {one.weights}"
    for output in one.outputs:
        same = "" if output.top1_agreement is None else f", top-1 {_percent(output.top1_agreement)} the same"
        error = f"max error {output.max_abs:.2g} of {output.largest:.3g}"
        yield "", f"{output.name}: {output.sqnr_db:.1f} dB, {error}{same}, on {one.compared_on}"
        if (lost := output.lost) is not None:
            where = f"{output.name}{lost.place}, at most {lost.largest:.3g}"
            fix = "--keep-float MODULE leaves what joins them in floats"
            yield "lost", f"{where}: {lost.sqnr_db:.1f} dB, beside far larger values; {fix}"
    for kept in one.in_floats:
        yield "in floats", kept
    for number, layer in enumerate(one.layers):
        before = "exact inputs" if layer.before_db is None else f"{layer.before_db:.1f} dB before"
        where = layer.module or "the model itself"
        yield "" if number else "loses most", f"{where}: {layer.operator} {layer.sqnr_db:.1f} dB, {before}"
    for number, failure in enumerate(one.failures):
        yield "" if number else "too far off", failure


def _percent(share: float) -> str:
    # 99.96 % is not 100 %.
    return "100 %" if share == 1 else f"{min(share * 100, 99.9):.1f} %"


def _shape(shape: Shape) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _counted(operators: Mapping[str, int]) -> str:
    return ", ".join(
        f"{count} {name}" for name, count in sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    )


def _more(count: int) -> Text:
    return Text(f"  and {count} more, shown with -v", "dim")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _divergence(row: TraceRow) -> list[str]:
    folded = f", with {', '.join(row.folded)} folded in" if row.folded else ""
    off = f", off by {row.error:.1e}" if row.error is not None else ""
    lines = [f"{row.operator}{folded}{off}", f"PyTorch   {_statistics(row.expected)}"]
    actual = _statistics(row.actual) if row.actual else "no value of its size"
    return [*lines, f"artifact  {actual}" + (f"  {row.name}" if row.name else "")]


def _statistics(one: Statistics) -> str:
    return (
        f"{_shape(one.shape)} mean {one.mean:.4g}, std {one.deviation:.4g}, from {one.least:.4g} to {one.greatest:.4g}"
    )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _trace(rows: Sequence[TraceRow]) -> Table:
    table = _table("module", "operator", "PyTorch", "converted", "error")
    for row in rows:
        actual = _statistics(row.actual) if row.actual else "part of another"
        error = "" if row.error is None else f"{row.error:.1e}"
        mark = Text.assemble(("✗ ", "red") if row.diverges else ("✓ ", "green"), error)
        table.add_row(Text(row.module or "(model)"), row.operator, _statistics(row.expected), actual, mark)
    return table


def _weights(matches: Sequence[WeightMatch]) -> Table:
    table = _table("tensor", "shape", "found", "as", "how")
    for match in matches:
        style = "red" if match.found in ("changed", "missing") else ""
        table.add_row(match.tensor, _shape(match.shape), Text(match.found, style), match.name, match.how)
    return table


def _pairs(pairs: Sequence[LayerPair]) -> Table:
    table = _table("layer of the Keras model", "type", "PyTorch", "remarks")
    for pair in pairs:
        remarks = [pair.note] if pair.note else []
        if pair.others:
            remarks.append(f"not {', '.join(pair.others)}: {pair.decided}")
        table.add_row(pair.layer, pair.type, pair.module, "; ".join(remarks))
    return table


def _answers(answers: Sequence[Answer]) -> Table:
    grid = _grid()
    for answer in answers:
        for number, line in enumerate(answer.lines):
            grid.add_row("" if number else answer.topic, Text(line) if number else _at(answer.module, line))
    return grid


def _plan(rows: Sequence[PlanRow]) -> RenderableType:
    table = _table("value", "operator", "shape", "axes", "moves")
    for row in rows:
        shape = f"[{', '.join(map(str, row.shape))}]" if row.shape else ""
        table.add_row(row.value, row.operator, Text(shape), row.axes, Text("; ".join(row.moves), "yellow"))
    return table
