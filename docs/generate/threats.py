"""The threats that tests try out, most of them in tests/hostile/, as the table in SECURITY.md.

    python docs/generate/threats.py [--write SECURITY.md]

A test of an attack is marked `@pytest.mark.threat("what the attacker does", "what happens")`.
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- threats: begin, written by docs/generate/threats.py -->", "<!-- threats: end -->"


def threats() -> Iterator[tuple[str, str, str]]:
    """Yield threat, result and test of each marked test, in the order of the files."""
    tests = ROOT / "tests"
    for file in sorted(tests.rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        for node in ast.parse(text).body if "mark.threat" in text else ():
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.threat":
                    threat, result = (ast.literal_eval(argument) for argument in mark.args)
                    yield threat, result, f"`{file.relative_to(tests)}::{node.name}`"


def table() -> str:
    rows = [("threat", "what happens", "test in `tests/`"), ("---", "---", "---"), *threats()]
    return "\n".join([BEGIN, *(f"| {' | '.join(row)} |" for row in rows), END])


def written_into(text: str) -> str:
    """Return a page with its table replaced."""
    before, _, rest = text.partition(BEGIN)
    return before + table() + rest.partition(END)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the page whose table to replace")
    page = parser.parse_args().write
    if page is None:
        print(table())
    else:
        page.write_text(written_into(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
