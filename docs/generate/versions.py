"""Write docs/VERSIONS.md from docs/versions.json, which `nox` fills.

python docs/generate/versions.py
"""

import json
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from converter.compat.patches import PATCHES  # noqa: E402

PAGE = ROOT / "docs/VERSIONS.md"
RESULTS = ROOT / "docs/versions.json"
HEAD = """# Tested versions

`nox` makes an environment for each set of versions (`noxfile.py`), runs `pytest -m "quick or versions"` and the
README's main job in it, and records the results in `versions.json`; `python docs/generate/versions.py` writes this
page from them. The pinned set on Python 3.11 is what continuous integration runs all tests with. `wheel` is the wheel
in an empty environment: the commands, the API, all formats, and what works without TensorFlow
(`tests/support/check_wheel.py`); `sdist` the same tests of an unpacked sdist. The lowest versions are resolved for
Python 3.11, the lowest one.
"""

PATCHED = """
## What is patched

While it works, pt-convert gives some names of these packages other values. Where a newer version has no such name, the
report says what is lost, with code PTC2513.
"""


def document() -> str:
    """Return the page: one table of what ran, one of the versions that were installed, one of patches."""
    records = sorted(json.loads(RESULTS.read_text()), key=lambda record: (record["set"], record["python"]))
    ran = [
        [_named(r), r["date"], r["commit"], _tests(r.get("tests"), r.get("reason")), _job(r.get("main_job"))]
        for r in records
    ]
    names = list(dict.fromkeys(name for record in records for name in record["versions"]))
    installed = [[_named(r), *(r["versions"].get(name, "") for name in names)] for r in records]
    return "\n".join(
        [
            HEAD,
            tabulate(ran, ["environment", "date", "commit", "quick tests", "main job"], "github"),
            "",
            tabulate(installed, ["environment", *names], "github", disable_numparse=True),
            PATCHED,
            tabulate(
                [[f"{patch.package} {patch.versions}", f"`{patch}`", patch.effect, patch.lost] for patch in PATCHES],
                ["tested with", "replaces", "effect", "lost without it"],
                "github",
            ),
            "",
        ]
    )


def _named(record: dict[str, Any]) -> str:
    return f"Python {record['python']}, {record['set']}"


def _tests(counts: dict[str, int] | None, reason: str | None) -> str:
    if counts is None:
        return ""
    bad = counts["failures"] + counts["errors"]
    passed = counts["tests"] - bad - counts["skipped"]
    parts = [f"{passed} passed", *([f"{bad} failed"] if bad else [])]
    told = ", ".join([*parts, *([f"{counts['skipped']} skipped"] if counts["skipped"] else [])])
    return f"{told}: {reason}" if reason else told


def _job(statuses: dict[str, str] | None) -> str:
    if statuses is None:
        return ""
    if set(statuses.values()) == {"verified"}:
        return f"verified: {', '.join(statuses)}"
    return ", ".join(f"{format}: {status}" for format, status in statuses.items()) or "failed"


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
