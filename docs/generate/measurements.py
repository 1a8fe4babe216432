"""Write the pages of docs/ that show what benchmarks/ measured and recorded as JSON beside them.

python docs/generate/measurements.py
"""

import math
import statistics

from tables import DOCS, recorded, table

FORMATS = ("tf", "keras", "onnx")
ZOO = """# Architectures of torchvision and timm

`python benchmarks/zoo.py --record` measures, `python docs/generate/measurements.py` writes this page. Weights are
random, norm statistics are measured on random images, and the proofs use batches of 1, 2 and 4. Seconds are for one
conversion to all three formats with all proofs, on a machine with other work; the peak is that of the largest
process. Transposes and gathers are counted in the artifact, opened again, in the order tf, keras, onnx. Rows may be
from different days.
"""


def zoo() -> str:
    """Return the page."""
    rows = recorded("zoo")
    verified = sum(set(row["status"].values()) == {"verified"} for row in rows)
    peaks = [row["peak_mib"] for row in rows if row["peak_mib"]]
    summary = (
        f"{len(rows)} architectures were run; {verified} of them are verified in all three formats. Medians: "
        f"{statistics.median(row['seconds'] for row in rows):.0f} s, {statistics.median(peaks):.0f} MiB.\n"
    )
    columns = ["model", "input", "parameters", *FORMATS, "transposes", "gathers", "seconds", "peak MiB"]
    cells = [
        [
            row["name"],
            " x ".join(map(str, row["shape"])) or "-",
            f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] else "-",
            *(row["status"][f] for f in FORMATS),
            *(" / ".join(str(row[kind].get(f, "-")) for f in FORMATS) for kind in ("transposes", "gathers")),
            f"{row['seconds']:.0f}",
            row["peak_mib"],
        ]
        for row in rows
    ]
    parts = [ZOO, summary, table(columns, cells, ("parameters", "seconds", "peak MiB"))]
    remarks = [f"- {row['name']}: {remark}\n" for row in rows for remark in row["remarks"]]
    return "\n".join([*parts, *(["Not verified:\n", "".join(remarks)] if remarks else [])])


LITERT = """# LiteRT files of torchvision's and timm's architectures

`python benchmarks/litert.py --record` measures, `python docs/generate/measurements.py` writes this page. Each
architecture of [ZOO.md](ZOO.md) is converted for one image with all proofs, then quantized in four ways: calibrated on
8 random images, compared with PyTorch on 8 others. Weights are random, so the signal to noise of trained ones may
differ. Every file holds LiteRT's own operators only, or is refused. Rows may be from different days.
"""


def litert() -> str:
    """Return the page."""
    rows = recorded("litert")
    written = [row for row in rows if row.get("operators")]
    verified = sum(row.get("status") == "verified" for row in rows)
    kinds = list(dict.fromkeys(how for row in written for how in row["quantized"]))
    cells = [
        [
            row["name"],
            " x ".join(map(str, row.get("shape", []))) or "-",
            row.get("status") or ("refused" if "refused" in row else "failed"),
            *(row.get(kind, "-") for kind in ("operators", "transposes", "reshapes")),
            f"{row['bytes'] / 1e6:.1f}" if row.get("bytes") else "-",
            *(_decibels(row.get("quantized", {}).get(how, {})) for how in kinds),
        ]
        for row in rows
    ]
    numbers = ["operators", "TRANSPOSE", "RESHAPE", "MB", *(f"{how}, dB" for how in kinds)]
    remarks = [
        f"- {row['name']}: {remark}\n"
        for row in rows
        for remark in (row.get("failed") or row.get("refused"), *row.get("failures", ()))
        if remark
    ]
    summary = f"{verified} of {len(rows)} architectures are verified.\n"
    parts = [LITERT, summary, table(["model", "input", "floats", *numbers], cells, numbers)]
    return "\n".join([*parts, *(["Not verified:\n", "".join(remarks)] if remarks else [])])


def _decibels(quantized: dict) -> str:
    return f"{quantized['sqnr_db']:.1f}" if quantized.get("sqnr_db") is not None else "refused" if quantized else "-"


DETECTORS = """# Models of ultralytics

`python benchmarks/detectors.py --record` measures, `python docs/generate/measurements.py` writes this page. Weights are
random, norm statistics are measured on random images. A `.pt` is saved as training saves it, with a half-precision
`model` and `imgsz` 128, and converted with `--trust ultralytics` alone; a `.pt2` is exported with a dynamic batch. The
outputs are those that ultralytics' own exporter writes; rows "without NMS" have `end2end` set. Seconds are for one
conversion to all three formats with all proofs, on a machine with other work.
"""


def detectors() -> str:
    """Return the page."""
    rows = recorded("detectors")
    verified = sum(set(row["status"].values()) == {"verified"} for row in rows)
    summary = f"{len(rows)} files were converted; {verified} of them are verified in all three formats.\n"
    cells = [
        [
            row["name"],
            row["kind"],
            f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] else "-",
            ", ".join(row["outputs"] or ["-"]).replace("'", ""),
            *(row["status"][f] for f in FORMATS),
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    columns = ["model", "file", "parameters", "outputs", *FORMATS, "seconds"]
    remarks = [f"- {row['name']}, {row['kind']}: {remark}\n" for row in rows for remark in row["remarks"]]
    parts = [DETECTORS, summary, table(columns, cells, ("parameters", "seconds"))]
    return "\n".join([*parts, *(["Not verified:\n", "".join(remarks)] if remarks else [])])


MOVEMENT = """# Operators that touch activations without arithmetic

`python benchmarks/movement.py --record` counts them in the written artifact, opened again; `python
docs/generate/measurements.py` writes this page. Operators that only prepare a weight are not counted. The number of
moved elements is per image. [ZOO.md](ZOO.md) has the proofs.

"Needed" is the minimum for the architecture: 0, and 2 for each product of two matrices that both depend on the input.
In attention with several heads, q, k, v and the result are each moved once, because a product takes its batch first.
The last column has the reason of each movement, as in the conversion's report.
"""


def movement() -> str:
    """Return the page."""
    rows = recorded("movement")
    operators = list(rows[0]["operators"])
    numbers = ["needed", *operators, "elements moved"]
    cells = [
        [
            row["name"],
            row["format"],
            row["needed"],
            *(row["operators"][name] for name in operators),
            f"{row['elements']:,}",
            "; ".join(f"{count} x {reason}" for reason, count in row["reasons"].items()),
        ]
        for row in rows
    ]
    count = f"{len({row['name'] for row in rows})} architectures were counted.\n"
    return "\n".join([MOVEMENT, count, table(["model", "format", *numbers, "reasons"], cells, numbers)])


MODULES = """# Modules

The samples are those of PyTorch's own suite, `torch.testing._internal.common_modules.module_db` (PyTorch {torch}),
for every module that has a meaning in inference. Losses are left out, and `FractionalMaxPool`, which draws its
regions at random in eval mode too. A sample is right if it is the same function in float64, rewritten for `tf`,
`keras` and `onnx`, and gives the same numbers in float32 as a traced TensorFlow function and as a Keras model, on its
own inputs and on random ones. "Files" is one sample of each module written in all three formats, opened again and
compared, with its weights.

`python benchmarks/modules.py --record` measures, `python docs/generate/measurements.py` writes this page.

**{count} modules, samples: {total}.**
"""


def modules() -> str:
    """Return the page."""
    data = recorded("modules")
    rows = data["rows"]
    total = {status: sum(row[status] for row in rows) for status in STATUSES[:3]}
    shown = ", ".join(f"{count} {status}" for status, count in total.items() if count)
    cells = [
        [
            row["name"],
            sum(row[status] for status in STATUSES[:3]),
            row["right"],
            row["refused"] or "",
            row["wrong"] or "",
            row["files"],
        ]
        for row in rows
    ]
    columns = ["module", "samples", *STATUSES[:3], "files"]
    parts = [MODULES.format(torch=data["torch"], count=len(rows), total=shown)]
    parts.append(table(columns, cells, ("samples", *STATUSES[:3])))
    reasons = [f"- {row['name']}, {count}: {reason}\n" for row in rows for reason, count in row["reasons"].items()]
    return "\n".join([*parts, *(["## Reasons\n", "".join(reasons)] if reasons else [])])


STATUSES = ("right", "refused", "wrong", "failed")
OPERATORS = """# Operators: PyTorch's own sample inputs

`python benchmarks/operators.py {options} --record` measures, `python docs/generate/measurements.py` writes this page.
It takes {how_many} (float32, int64, int32, bool) of PyTorch {torch}'s `op_db`. Each is captured, planned and compared
with PyTorch in float64: within 1e-10 of the scale, whole numbers equal. Up to {artifacts} of each operator and type
are also run as a traced function and as a `.keras` file that Keras opened again, in float32. "Failed" is an error in
the converter. The end of the page lists what is left out, and by which rule.
"""


def operators() -> str:
    """Return the page."""
    data = recorded("operators")
    most, artifacts = data["most"], data["artifacts"]
    how_many = f"at most {most} samples of each type, evenly spread" if most else "all samples of each type"
    options = f"--most {most} --artifacts {artifacts}" if most else f"--artifacts {artifacts}"
    head = OPERATORS.format(options=options, how_many=how_many, torch=data["torch"], artifacts=artifacts)
    groups = []
    for group in data["groups"]:
        counts = [group[status] for status in STATUSES]
        bad = [count or "none" for count in counts[2:]]
        share = f"{group['right'] / max(sum(counts), 1):.1%}"
        groups.append([f"{group['name']}: {group['operators']}", sum(counts), *counts[:2], *bad, share])
    rows = [
        [row["name"], row["right"], row["of"], "; ".join(f"{reason} ({n})" for reason, n in row["reasons"].items())]
        for row in data["rows"]
    ]
    left_out = [[rule, ", ".join(names)] for rule, names in data["left_out"].items()]
    columns = ["operators", "samples", *STATUSES, "right of all"]
    return "\n".join(
        [
            head,
            table(columns, groups, columns[1:]),
            f"The mappings: {data['mapped']} ATen operators by {data['functions']} functions, {data['lines']:,} lines "
            "in `mappings/`.\n",
            table(["operator", "right", "of", "refused because"], rows, ("right", "of")),
            "## Left out\n",
            table(["rule", "operators"], left_out),
        ]
    )


SLOWER = 1.15  # times the naive lowering; below, it is noise
SYSTEMS = """# The systems of the source documents

`PYTHONPATH=tests/support:. python -m benchmarks.systems --record` measures ({machine}), `python
docs/generate/measurements.py` writes this page. Each row is one of our sample models (`sample_models/systems.py`)
that uses the operator between layers with weights, as the code of its paper does, at batch 2 in float32. The maps are
small, so times are mostly those of starting operators.

- **movement**: the largest difference of the movement alone, which has no weights, from PyTorch in float64, rounded.
  0 is bit for bit.
- **network**: the largest difference of the whole network from PyTorch in float64, in units of PyTorch's own rounding
  (its distance from float64 in float32; the limit is 16).
- **operators**: what may move elements in the network, and how often; depthwise convolutions, as they may be shifts.
- **allowed**: what the system asks for at most.
- **ms**, **naive ms**: time of the network, and of the same program without our recognitions: the fastest tenth of 40
  calls taken in turn. A row that is more than 15 % slower is timed twice more, and the median ratio of the three is
  used. The machine had other work: the ratio of a row's two times says more than either.
"""
A_SHIFT, SAMPLES = "pads, slices, a join; or a pad and 1 depthwise", "gathers"
# What may move elements, by the name of a system, or by its title where a spelling needs something else.
ALLOWED = {
    "Focus": "1 SpaceToDepth",
    "Focus: blocks of 2x3": "1 move",
    "Focus: of a sequence": "1 move",
    "Focus: of a volume": "1 move",
    "Focus: before groups of columns": "1 move",
    "Focus: before a group norm over columns": "1 move",
    "Focus: its inverse, assigned": "1 DepthToSpace",
    "TResNet stem": "1 SpaceToDepth",
    "Focus: of half the channels": "1 SpaceToDepth, a split, a join",
    "ESPCN": "1 DepthToSpace",
    "ESPCN: pixel_shuffle of a grouped convolution": "1 move",
    "patches": "1 move",
    "S2-MLP": A_SHIFT,
    "AS-MLP": A_SHIFT,
    "spatial shift": A_SHIFT,
    "TSM": A_SHIFT,
    "CycleMLP": A_SHIFT,
    "Grouped Shift": A_SHIFT,
    "4-connected shift": A_SHIFT,
    "Sparse Shift": A_SHIFT,
    "Active Shift": A_SHIFT,
    "Swin": "a roll; windows and heads",
    "Swin: PatchMerging": "1 move",
    "STN": SAMPLES,
    "Semantic Flow": SAMPLES,
    "AlignSeg": SAMPLES,
    "Deformable ConvNets v1": SAMPLES,
    "Deformable ConvNets v2": SAMPLES,
    "grouped convolution": "none",
    "grouped convolution: split deck of an input": "1 gather",
    "grouped convolution: parts, each before a ReLU, joined": "none, or the parts where faster",
    "grouped convolution: branches with norms": "none, or the parts where faster",
    "SeparableConv1D": "none",
    "SeparableConv2D": "a pad where SAME differs",
    "SAME": "none",
}


def systems() -> str:
    """Return the page, with the sections that are written by hand."""
    data = recorded("systems")
    rows = data["rows"]
    alone = [row for row in rows if row["movement"] is not None]
    rounded = {f"{row['system']}: {row['spelling']}" for row in alone if row["movement"]}
    ratios = {id(row): row["ms"] / row["naive_ms"] for row in rows if row["naive_ms"]}
    slower = [
        f"{row['system']}: {row['spelling']}, `{row['format']}` ({ratios[id(row)]:.2f})"
        for row in sorted(rows, key=lambda row: -ratios.get(id(row), 0))
        if ratios.get(id(row), 0) > SLOWER
    ]
    times = ratios.values()
    facts = [
        f"{len(rows)} rows; {sum(not row['movement'] for row in alone)} of {len(alone)} movements alone are exact",
        f"not exact: {'; '.join(sorted(rounded)) or 'none'}",
        f"largest difference of a network: {max(row['network'] for row in rows):.1f} times PyTorch's own rounding",
        f"time over naive time: median {statistics.median(times):.2f}, from {min(times):.2f} to {max(times):.2f}",
        f"more than {SLOWER} times the naive time: {'; '.join(slower) or 'none'}",
    ]
    columns = ["system", "spelling", "target", "movement", "network", "operators", "allowed", "ms", "naive ms"]
    _, section, by_hand = (DOCS / "SYSTEMS.md").read_text(encoding="utf-8").partition("\n## ")
    head = SYSTEMS.format(machine=data["machine"])
    listed = "".join(f"- {fact}\n" for fact in facts)
    measured = table(columns, map(_cells, rows), ("network", "ms", "naive ms"))
    before, _, rest = by_hand.partition(LATENCY)
    return "\n".join([head, listed, measured]) + section + before + _latency() + rest.partition(END_OF_LATENCY)[2]


LATENCY, END_OF_LATENCY = "<!-- latency -->", "<!-- end of latency -->"


def _latency() -> str:
    """Return the table of old and new times, between its marks."""
    data = recorded("latency")
    rows = [row for row in data["rows"] if "ratio" in row]
    ratios = [row["ratio"] for row in rows]
    slower = [f"{row['case']}, `{row['format']}` ({row['ratio']:.2f})" for row in rows if row["low"] > 1]
    faster = sum(row["high"] < 1 for row in rows)
    added = [f"{row['case']}, `{row['format']}`" for row in data["rows"] if "ratio" not in row]
    facts = [
        f"measured on {data['machine']}; {len(rows)} pairs, {faster} of them faster, {len(slower)} slower",
        f"new over old time: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}",
        f"slower, with the whole interval above 1: {'; '.join(slower) or 'none'}",
        *([f"could not be converted before: {'; '.join(added)}"] if added else []),
    ]
    cells = [
        [
            row["case"],
            row["input"],
            f"`{row['format']}`",
            f"{row['old_ms']:.2f}",
            f"{row['new_ms']:.2f}",
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
        ]
        for row in rows
    ]
    columns = ["system", "input", "target", "old ms", "new ms", "new / old"]
    parts = [
        LATENCY + "\n",
        "".join(f"- {fact}\n" for fact in facts),
        table(columns, cells, columns[3:]),
        END_OF_LATENCY,
    ]
    return "\n".join(parts)


def _cells(row: dict) -> list[object]:
    movement, naive = row["movement"], row["naive_ms"]
    return [
        row["system"],
        row["spelling"],
        f"`{row['format']}`",
        "with weights" if movement is None else f"{movement:.1e}" if movement else "0",
        f"{row['network']:.1f}",
        ", ".join(f"{name} {n}" for name, n in row["operators"].items()) or "none",
        ALLOWED.get(f"{row['system']}: {row['spelling']}") or ALLOWED[row["system"]],
        f"{row['ms']:.2f}",
        "cannot be lowered" if naive is None else f"{naive:.2f}",
    ]


BEGIN, END = "<!-- mutations -->", "<!-- end of mutations -->"


def verification() -> str:
    """Return the page: its own text, with the tables between the marks."""
    data = recorded("planted_faults")
    before, rest = (DOCS / "VERIFICATION.md").read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    parts = [
        data["summary"] + "\n",
        _table(data["places"]),
        "The faults of mappings and rewrites, and which proof saw them:\n",
        _table(data["faults"]),
    ]
    return before + BEGIN + "\n\n" + "\n".join(parts) + "\n" + END + after


PAIRS, END_OF_PAIRS = "<!-- pairs -->", "<!-- end of pairs -->"


def into() -> str:
    """Return the page: its own text, with the table between the marks."""
    before, rest = (DOCS / "INTO.md").read_text(encoding="utf-8").split(PAIRS)
    _, after = rest.split(END_OF_PAIRS)
    columns = ["pair", "PyTorch", "Keras", "result", "layers", "ambiguous", "x rounding", "seconds", "remark"]
    cells = [
        [
            row["name"],
            row["model"],
            row["builder"],
            row["result"],
            row["layers"],
            row["ambiguous"],
            None if row["rounding"] is None else f"{row['rounding']:.1f}",
            f"{row['seconds']:.0f}",
            row["remark"],
        ]
        for row in recorded("into")
    ]
    written = table(columns, cells, ("layers", "ambiguous", "x rounding", "seconds"))
    return before + PAIRS + "\n\n" + written + "\n" + END_OF_PAIRS + after


SYNCED, END_OF_SYNCED = "<!-- synced -->", "<!-- end of synced -->"


def weights() -> str:
    """Return the page: its own text, with the table between the marks."""
    before, rest = (DOCS / "WEIGHTS.md").read_text(encoding="utf-8").split(SYNCED)
    _, after = rest.split(END_OF_SYNCED)
    rows = recorded("weights")
    formats = ("keras", "tf", "onnx", "tflite")
    cells, remarks, whole = [], [], 0
    for name in dict.fromkeys(row["name"] for row in rows):
        by_format = {row["format"]: row for row in rows if row["name"] == name}
        synced = [row for row in by_format.values() if "bytes" in row]
        back = next((row["back"] for row in synced if row["back"]), None)
        cells.append(
            [
                name,
                *(_synced(by_format[f]) for f in formats),
                f"{max(row['share'] for row in synced):.2%}" if synced else None,
                f"{max(row['megabytes'] for row in synced):.1f}" if synced else None,
                f"{max(row['seconds'] for row in synced):.1f}" if synced else None,
                None if back is None else f"{back['changed']} of {back['trainable']}",
                None if back is None or back["roundings"] is None else f"{back['roundings']:.1f}",
                None if back is None else back["status"],
            ]
        )
        same = all(row.get("bytes") for row in by_format.values())
        whole += same and back is not None and back["status"] == "verified"
        remarks += [f"- {name}, {row['format']}: {row['refused']}\n" for row in by_format.values() if row["refused"]]
        if back is not None:
            remarks += [f"- {name}, pull: {failure}\n" for failure in back["failures"]]
    total = [row for row in rows if "bytes" in row]
    summary = (
        f"{len(cells)} models, {len(total)} artifacts: {sum(row['bytes'] for row in total)} have the bytes of the "
        f"conversion, {len(rows) - len(total)} are refused; {whole} models go there in all formats, and back. The "
        f"largest recipe takes {max(row['share'] for row in total):.2%} of its artifact. A `sync` took "
        f"{_spans(total)}.\n"
    )
    columns = ["model", *formats, "recipe", "MB", "seconds", "trained", "x rounding", "pull"]
    written = table(columns, cells, columns[1:10])
    parts = [SYNCED + "\n", summary, written, "".join(remarks), END_OF_SYNCED]
    return before + "\n".join(parts) + after


def _spans(rows: list[dict]) -> str:
    """Return how long a sync takes, from the quickest to the slowest, by the size of the artifact."""
    sizes = {"below 10 MB": (0, 10), "from 10 to 30 MB": (10, 30), "from 30 MB on": (30, math.inf)}
    parts = []
    for text, (least, most) in sizes.items():
        seconds = [row["seconds"] for row in rows if least <= row["megabytes"] < most]
        parts.append(f"{min(seconds):.1f} to {max(seconds):.1f} s {text}")
    return ", ".join(parts)


def _synced(row: dict) -> str:
    if "bytes" not in row:
        return "refused"
    return str(row["tensors"]) if row["bytes"] else f"{row['same']} of {row['tensors']}"


def _table(rows: list[dict[str, object]]) -> str:
    numbers = [column for column in rows[0] if column not in ("fault in", "fault", "planted in")]
    return table(list(rows[0]), [list(row.values()) for row in rows], numbers)


PAGES = {
    "ZOO.md": zoo,
    "LITERT.md": litert,
    "DETECTORS.md": detectors,
    "MOVEMENT.md": movement,
    "MODULES.md": modules,
    "OPERATORS.md": operators,
    "SYSTEMS.md": systems,
    "VERIFICATION.md": verification,
    "INTO.md": into,
    "WEIGHTS.md": weights,
}

if __name__ == "__main__":
    for name, document in PAGES.items():
        (DOCS / name).write_text(document(), encoding="utf-8")
