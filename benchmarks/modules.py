"""PyTorch's own samples of its modules against what they become: a table of right, refused and wrong.

    python benchmarks/modules.py [NAME ...] [--write docs/MODULES.md] [--state FILE] [--no-files]

Every sample is compared in memory; one of each module is also written to files of every format, which are opened again
(`--no-files` leaves that out). With `--state` an interrupted run goes on where it stood. What is in scope and how
samples are compared stands in tests/support/module_conformance.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from module_conformance import Outcome

ROOT = Path(__file__).resolve().parents[1]
STATUSES = ("right", "refused", "wrong", "failed")
HEADER = """# Modules

Every module of PyTorch's own suite of samples, `torch.testing._internal.common_modules.module_db` (PyTorch {version}),
that has a meaning in inference; losses are left out, and `FractionalMaxPool`, which draws its regions at random in eval
mode too. A sample is right if it is the same function in float64, rewritten for `tf`, `keras` and `onnx`, and gives the
same numbers in float32 as a traced TensorFlow function and as a Keras model, on its own inputs and on random ones.
"Files" is one sample of each module written in all three formats, opened again, and compared, its weights too.

`python benchmarks/modules.py --write docs/MODULES.md` writes this file.

**{total}**

| module | samples | right | refused | wrong | files |
|---|---|---|---|---|---|
"""


def table(results: dict[str, dict[str, Outcome]]) -> str:
    import torch

    rows, reasons = [], []
    total: Counter[str] = Counter()
    for name, outcomes in results.items():
        files = outcomes.get("files")
        counts = Counter(outcome.status for key, outcome in outcomes.items() if key != "files")
        total += counts
        wrong = counts["wrong"] + counts["failed"]
        shown = files.status if files else ""
        rows.append(
            f"| {name} | {counts.total()} | {counts['right']} | {counts['refused'] or ''} | {wrong or ''} | {shown} |"
        )
        found = Counter(f"{outcome.status}: {outcome.reason}" for outcome in outcomes.values() if outcome.reason)
        reasons += [f"- {name}, {count}: {reason}" for reason, count in found.items()]
    summary = ", ".join(f"{total[status]} {status}" for status in STATUSES if total[status])
    text = HEADER.format(version=torch.__version__.partition("+")[0], total=f"{len(rows)} modules, samples: {summary}.")
    text += "\n".join(rows) + "\n"
    return text + ("\n## Reasons\n\n" + "\n".join(reasons) + "\n" if reasons else "")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--write", type=click.Path(path_type=Path), help="the table's file")
@click.option("--state", type=click.Path(path_type=Path), help="outcomes so far, one a line; not measured again")
@click.option("--files/--no-files", default=True, help="write one sample of each module to files, too")
def main(names: tuple[str, ...], write: Path | None, state: Path | None, files: bool) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]
    from module_conformance import MODULES, Outcome, check, most_telling, samples

    known: dict[tuple[str, str], Outcome] = {}
    if state and state.exists():
        for line in state.read_text().splitlines():
            name, key, outcome = json.loads(line)
            known[name, key] = Outcome(**outcome)
    unknown = sorted(set(names) - MODULES.keys())
    if unknown:
        raise click.BadParameter(f"no such module: {', '.join(unknown)}")
    results: dict[str, dict[str, Outcome]] = {}
    for name in names or MODULES:
        calls = samples(name)
        tasks = {str(i): call for i, call in enumerate(calls)}
        if files:
            tasks["files"] = most_telling(calls)
        results[name] = {}
        for key, call in tasks.items():
            if (name, key) not in known:
                known[name, key] = check(call, files=key == "files")
                if state:
                    with state.open("a") as file:
                        file.write(json.dumps([name, key, asdict(known[name, key])]) + "\n")
            results[name][key] = known[name, key]
            if known[name, key].reason:
                click.echo(f"{name} {key}: {known[name, key].status}: {known[name, key].reason}")
    if write:
        write.parent.mkdir(exist_ok=True)
        write.write_text(table(results))
    counts = Counter(outcome.status for outcomes in results.values() for outcome in outcomes.values())
    click.echo(", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status]))
    sys.exit(bool(counts["wrong"] + counts["failed"]))


if __name__ == "__main__":
    main()
