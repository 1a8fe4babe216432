"""Convert a small network to one format and print the result as JSON: the script `python -P trial.py tf`."""

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(format: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output; only the answer may go there
    sys.path.append(str(ROOT))  # where converter is not installed but run from its repository
    from converter.artifacts.paths import SUFFIXES
    from converter.report.failures import failure_of

    answer: dict[str, object] = {}
    try:
        from torch import nn

        import converter

        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
        with tempfile.TemporaryDirectory() as folder:
            report = converter.convert(
                network, to=[format], output=Path(folder) / f"net{SUFFIXES[format]}", input_shapes=["1,1,4,4"]
            )
        answer = {"status": report.status}
    except Exception as error:
        failure = failure_of(error, format)
        answer = {"reason": failure.what, "fix": failure.fix}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
