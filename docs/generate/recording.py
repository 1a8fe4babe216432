"""Write docs/recording.svg: a conversion of the sample model to ONNX as the terminal shows it.

python docs/generate/recording.py
"""

import re
import sys
import tempfile
from contextlib import chdir
from html import unescape
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/recording.svg"
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from rich.text import Text  # noqa: E402

import converter  # noqa: E402  # found by the line above where this is run as a script
from converter.console.terminal import Terminal  # noqa: E402

COMMAND = "convert digits_focus.pt --to onnx --trust sample_models --input-shape 1,1,16,16"
WIDTH = 110


def document() -> str:
    """Return the recording of a real run, without fonts of a network."""
    terminal = Terminal(file=StringIO())
    terminal.console.width, terminal.console.record = WIDTH, True
    terminal.console.print(Text(f"$ {COMMAND}", "bold"))
    samples = ROOT / "sample_models"
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("digits_focus.pt").symlink_to(samples / "digits_focus.pt")
        Path("sample_models").symlink_to(samples)
        with terminal.quiet_libraries():
            report = converter.convert(
                "digits_focus.pt", to="onnx", trust=["sample_models"], input_shapes="1,1,16,16",
                progress=terminal.progress,
            )  # fmt: skip
    if not report.verified:
        raise SystemExit(f"the artifact is {report.status}")
    terminal.show_conversion(report)
    drawn = terminal.console.export_svg(title="pt-convert", unique_id="recording")
    drawn = re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")
    label = f"The terminal after {COMMAND}: the rewrites, the three proofs, verified"
    drawn = drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return re.sub(r"[ \t]+\n", "\n", drawn)


def lines(svg: str) -> list[str]:
    """Return the texts of a recording, a line each."""
    rows: dict[str, str] = {}
    for y, text in re.findall(r'<text class="recording-r\d+" x="[^"]*" y="([^"]*)"[^>]*>(.*?)</text>', svg):
        rows[y] = rows.get(y, "") + unescape(text).replace("\xa0", " ")
    return [row.rstrip() for row in rows.values()]


if __name__ == "__main__":
    PAGE.write_text(document())
