"""PyTorch's own samples of its modules against what they become: right, refused or wrong.

    python benchmarks/modules.py [NAME ...] [--record] [--state FILE] [--no-files]

Every sample is compared in memory; one of each module is also written to files of every format, which are opened again
(`--no-files` leaves that out). With `--state` an interrupted run goes on where it stood. `--record` puts the
counts into docs/modules.json, from which docs/generate/measurements.py writes docs/MODULES.md. What is in scope and how
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


def summary(name: str, outcomes: dict[str, Outcome]) -> dict:
    """The row of docs/modules.json."""
    samples = [outcome for key, outcome in outcomes.items() if key != "files"]
    counts = Counter(outcome.status for outcome in samples)
    files = outcomes.get("files")
    reasons = Counter(f"{outcome.status}: {outcome.reason}" for outcome in outcomes.values() if outcome.reason)
    return {
        "name": name,
        "right": counts["right"],
        "refused": counts["refused"],
        "wrong": counts["wrong"] + counts["failed"],
        "files": files.status if files else "",
        "reasons": reasons,
    }


@click.command()
@click.argument("names", nargs=-1)
@click.option("--record", "recording", is_flag=True, help="put the counts into docs/modules.json")
@click.option("--state", type=click.Path(path_type=Path), help="outcomes so far, one a line; not measured again")
@click.option("--files/--no-files", default=True, help="write one sample of each module to files, too")
def main(names: tuple[str, ...], recording: bool, state: Path | None, files: bool) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/support"), str(ROOT / "docs/generate")]
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
    if recording:
        import torch
        from tables import record, recorded

        rows = {row["name"]: row for row in recorded("modules")["rows"]}
        rows |= {name: summary(name, outcomes) for name, outcomes in results.items()}
        torch_version = torch.__version__.partition("+")[0]
        record("modules", {"torch": torch_version, "rows": [rows[name] for name in MODULES if name in rows]})
    counts = Counter(outcome.status for outcomes in results.values() for outcome in outcomes.values())
    click.echo(", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status]))
    sys.exit(bool(counts["wrong"] + counts["failed"]))


if __name__ == "__main__":
    main()
