"""Which of the three proofs catches which faults: plants them all, runs the proofs, and counts.

    python benchmarks/planted_faults.py [ARCHITECTURE ...] [--place PLACE ...] [--record] [--sites N] [--state FILE]

--record puts the tables into docs/planted_faults.json, from which docs/generate/measurements.py writes
docs/VERIFICATION.md. Fails if a fault is missed by all proofs, or if a proof fails on what is right.
"""

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support"), str(ROOT / "tests/verification")]
for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "TF_CPP_MIN_LOG_LEVEL": "3"}.items():
    os.environ.setdefault(name, value)

if TYPE_CHECKING:
    from mutations.proving import Mutant

PLACES = {
    "mapping": "a mapping (Keras file written with it)",
    "mapping, SavedModel": "a mapping (SavedModel written with it)",
    "mapping, LiteRT": "a mapping (LiteRT file written with it)",
    "rewrite": "a rewrite (for ONNX)",
    "rewrite, PyTorch": "a rewrite (PyTorch module written with it)",
    "Keras file": "the Keras file",
    "SavedModel": "the SavedModel",
    "LiteRT file": "the LiteRT file",
    "ONNX file": "the ONNX file",
    "PyTorch module": "the PyTorch module",
}


def plant(name: str, place: str, sites: int) -> Iterator["Mutant"]:
    """Every mutant of an architecture at one of `PLACES`."""
    from mutations.proving import PLACES as ARTIFACTS
    from mutations.proving import PROGRAMS, Bench, Runners, artifact_mutants, program_mutants

    with Runners() as runners:
        bench = Bench(name, runners, batch=1 if "LiteRT" in place else None)
        if place in PROGRAMS:
            yield from program_mutants(bench, place, sites, with_artifact=place != "rewrite")
        else:
            yield from artifact_mutants(bench, {v: f for f, v in ARTIFACTS.items()}[place], sites)


def table(mutants: Sequence["Mutant"]) -> list[dict[str, Any]]:
    rows = []
    for place, description in [*PLACES.items(), ("", "**all**")]:
        here = [m for m in mutants if place in ("", m.place)]
        faults = [m for m in here if not m.equivalent]
        caught = Counter(proof for m in faults if m.refused is None for proof, by in m.caught.items() if by)
        asked = Counter(proof for m in faults if m.refused is None for proof, by in m.caught.items() if by is not None)
        cells = [
            f"{caught[proof]} of {asked[proof]}" if asked[proof] else "not asked"
            for proof in ("function", "artifact", "weights")
        ]
        rows.append(
            {
                "fault in": description,
                "planted": len(here),
                "without effect": len(here) - len(faults),
                **dict(zip(("caught by 1", "by 2", "by 3"), cells, strict=True)),
                "refused to run": sum(m.refused is not None for m in faults),
                "missed by all": sum(m.missed for m in faults),
            }
        )
    return rows


def table_of_faults(mutants: Sequence["Mutant"]) -> list[dict[str, Any]]:
    """Of mappings and rewrites: the kinds of faults, and in how many places each proof caught them."""
    rows = []
    program = [m for m in mutants if m.place.startswith(("mapping", "rewrite"))]
    for fault in sorted({m.fault for m in program}, key=str.lower):
        faults = [m for m in program if m.fault == fault and not m.equivalent]
        if faults:
            rows.append(
                {
                    "fault": fault,
                    "planted in": ", ".join(sorted({m.architecture for m in faults}, key=str.lower)),
                    "faults": len(faults),
                    "caught by 1": sum(bool(m.caught["function"]) for m in faults),
                    "asked of 2": sum(m.caught["artifact"] is not None for m in faults),
                    "caught by 2": sum(bool(m.caught["artifact"]) for m in faults),
                }
            )
    return rows


def summary(mutants: Sequence["Mutant"], seconds: float) -> str:
    faults = [m for m in mutants if not m.equivalent]
    caught = sum(any(m.caught.values()) for m in faults)
    kinds = {m.fault for m in faults if m.place.startswith(("mapping", "rewrite"))}
    weakest = min(
        (m.change for m in faults if m.place.startswith(("mapping", "rewrite")) and m.change > 0), default=0.0
    )
    return (
        f"{caught} of {len(faults)} faults caught in {len({m.architecture for m in mutants})} architectures; "
        f"{len(kinds)} kinds in mappings and rewrites, {len({m.fault for m in faults} - kinds)} more in artifacts. "
        f"The faintest of the former changes an output by {weakest:.0e} of its scale. "
        f"{len(mutants) - len(faults)} more changed nothing and are not faults. ({seconds / 60:.0f} minutes)"
    )


@click.command()
@click.argument("names", nargs=-1)
@click.option("--place", "places", multiple=True, type=click.Choice(list(PLACES)), help="All by default.")
@click.option("--sites", default=1, show_default=True, help="Places for each kind of fault in each architecture.")
@click.option("--record", "recording", is_flag=True, help="Put the tables into docs/planted_faults.json.")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="JSON lines, one for each architecture and place: what stands in it is not done again.",
)
@click.option("--until", type=click.DateTime(["%H:%M"]), help="Start nothing after this hour.")
def main(
    names: tuple[str, ...],
    places: tuple[str, ...],
    sites: int,
    recording: bool,
    state: Path | None,
    until: datetime | None,
) -> None:
    """Plant faults in small networks and see which proofs catch them."""
    from mutations.edges import EDGES
    from mutations.proving import Mutant
    from mutations.sequences import ARCHITECTURES

    logging.getLogger("torch.__trace").propagate = False
    done = recorded(state) if state else {}
    for name, place in product(names or (*EDGES, *ARCHITECTURES), places or PLACES):
        if (name, place) in done:
            continue
        if until and datetime.now().time() >= until.time():
            break
        started = time.perf_counter()
        mutants = []
        for mutant in plant(name, place, sites):
            mutants.append(mutant)
            if mutant.missed:
                click.echo(f"missed: {mutant}", err=True)
        line = {
            "name": name,
            "place": place,
            "seconds": time.perf_counter() - started,
            "mutants": [asdict(m) for m in mutants],
        }
        if state:
            with state.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=str) + "\n")
        done[name, place] = json.loads(json.dumps(line, default=str))
        click.echo(f"{name}, {place}: {len(mutants)} planted, {line['seconds']:.0f} s", err=True)
    if not done:
        return
    mutants = [Mutant(**mutant) for line in done.values() for mutant in line["mutants"]]
    text = summary(mutants, sum(line["seconds"] for line in done.values()))
    click.echo(text)
    if recording:
        sys.path.append(str(ROOT / "docs/generate"))
        from tables import record

        record("planted_faults", {"summary": text, "places": table(mutants), "faults": table_of_faults(mutants)})
    sys.exit(any(m.missed for m in mutants))


def recorded(state: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the lines of the file by architecture and place, the last of each."""
    lines = state.read_text(encoding="utf-8").splitlines() if state.exists() else []
    return {(line["name"], line["place"]): line for line in map(json.loads, lines)}


if __name__ == "__main__":
    main()
