"""Loads thousands of damaged checkpoints of every format: each must load, or be refused with an error of ours.

    python tests/fuzz/fuzz_checkpoints.py --cases 10000 --seed 0

Case N of a seed is always the same file. It is loaded by a worker process with limits of time and memory; a traceback,
a signal or a missed limit is a fault, whose file is kept in the folder of `--keep`.
"""

import argparse
import collections
import contextlib
import importlib.util
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from damaged_checkpoints import Folder, damaged

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20.0  # of one case
MEMORY = 4 << 30  # bytes that a worker may take beyond its imports
CASES_OF_A_WORKER = 500


NET = """from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
"""


def good_checkpoints(folder: Path) -> dict[str, Folder]:
    """Small checkpoints of every format: their files by name."""
    import safetensors.torch
    import torch
    from torch import nn

    torch.manual_seed(0)
    (folder / "net.py").write_text(NET)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    state = net.state_dict()
    training = {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}, "args": argparse.Namespace(a=[1, (2, "x")])}
    path = folder / "model"
    found: dict[str, Folder] = {}

    def keep(name: str, save: Callable[[], Any]) -> None:
        save()
        found[name] = {"model": path.read_bytes()}
        path.unlink()

    keep("module", lambda: torch.save(net, path))
    keep("module, before 1.6", lambda: torch.save(net, path, _use_new_zipfile_serialization=False))
    keep("state dict", lambda: torch.save(state, path))
    keep("state dict, before 1.6", lambda: torch.save(state, path, _use_new_zipfile_serialization=False))
    keep("training checkpoint", lambda: torch.save(training, path))
    keep("safetensors", lambda: safetensors.torch.save_file(state, path))
    batch = {"input": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=batch)
    with path.open("wb") as file:
        torch.export.save(program, file)
    found["pt2"] = {"model": path.read_bytes()}
    keep("TorchScript, scripted", lambda: torch.jit.save(torch.jit.script(net), path))
    keep("TorchScript, traced", lambda: torch.jit.save(torch.jit.trace(net, torch.randn(1, 3, 8, 8)), path))
    keep("TorchScript, frozen", lambda: torch.jit.save(torch.jit.freeze(torch.jit.script(net)), path))
    found["sharded"] = sharded(state, path)
    with contextlib.suppress(ImportError):
        found["Hugging Face"] = hugging_face(folder / "bert")
    return found


def sharded(state: dict[str, Any], path: Path) -> Folder:
    import safetensors.torch
    import torch

    first = dict(list(state.items())[:3])
    rest = {key: value for key, value in state.items() if key not in first}
    torch.save(rest, path)
    table = {**dict.fromkeys(first, "a.safetensors"), **dict.fromkeys(rest, "b.bin")}
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": table}).encode()
    return {
        "model.safetensors.index.json": index,
        "a.safetensors": safetensors.torch.save(first),
        "b.bin": path.read_bytes(),
    }


def import_torchvision() -> None:
    """With stand-ins for what a build for CUDA wants; transformers imports it."""
    sys.path.insert(0, str(ROOT / "tests/support"))
    from torchvision_for_tests import load_torchvision

    load_torchvision()


def hugging_face(folder: Path) -> Folder:
    import_torchvision()
    import transformers

    options = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, **options)
    transformers.BertModel(config).save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def write_case(files: Folder, folder: Path) -> Path:
    """Writes a case, and returns what is to be loaded."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / "model" if "model" in files else folder


def worker() -> None:
    """Loads the paths that come on standard input, and answers each with a line of JSON."""
    sys.path.insert(0, str(ROOT))
    import torch

    from converter.checkpoint.load import load
    from converter.errors import ConversionError

    if importlib.util.find_spec("transformers"):
        import_torchvision()
        import transformers.models.bert.modeling_bert  # noqa: F401  not within the limit of memory

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        try:
            path, factory = line.rstrip("\n").split("\t")
            load(path, factory=factory or None)
            answer = {"end": "loaded"}
        except ConversionError as error:
            answer = {"end": "refused", "what": error.what.splitlines()[0][:200]}
        except BaseException as error:
            answer = {
                "end": "traceback",
                "what": f"{type(error).__name__}: {error}"[:500],
                "trace": traceback.format_exc(),
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Worker:
    """A process that loads checkpoints, begun again once it ended."""

    def __init__(self, errors: Path):
        self.errors = errors
        self.process: subprocess.Popen | None = None
        self.loaded = 0
        self.slowest = 0.0

    def load(self, path: Path, factory: str) -> dict[str, str]:
        if self.process is None or self.loaded >= CASES_OF_A_WORKER:
            self._begin()
        process = self.process
        assert process is not None
        assert process.stdin is not None
        self.loaded += 1
        begun = time.perf_counter()
        process.stdin.write(f"{path}\t{factory}\n")
        process.stdin.flush()
        answer = self._answer(SECONDS)
        self.slowest = max(self.slowest, time.perf_counter() - begun)
        if answer is None:
            running = process.poll() is None
            self.end()
            if running:
                return {"end": "hang", "what": f"no answer in {SECONDS} s"}
            return {
                "end": "crash",
                "what": signal.Signals(-process.returncode).name if process.returncode < 0 else "exit",
            }
        result: dict[str, str] = json.loads(answer)
        return result

    def _begin(self) -> None:
        self.end()
        command = [sys.executable, __file__, "--worker"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_SHOW_CPP_STACKTRACES": "0"}
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        self.loaded = 0
        if self._answer(300) is None:
            raise SystemExit(f"the worker does not begin: see {self.errors}")

    def _answer(self, seconds: float) -> str | None:
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return (self.process.stdout.readline() or None) if ready else None

    def end(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Found:
    """What became of the cases.

    Attributes:
        ends: by format and end, how many.
        bad: what was neither loaded nor refused.
        slowest: seconds of the slowest case.
    """

    ends: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    bad: list[dict[str, Any]] = field(default_factory=list)
    slowest: float = 0.0


def fuzz(cases: int, seed: int, *, start: int = 0, only: str = "", keep: Path | None = None) -> Found:
    """Loads `cases` damaged checkpoints."""
    found = Found()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good = {kind: files for kind, files in good_checkpoints(folder).items() if only in kind}
        worker = Worker(folder / "errors.log")
        try:
            for number in range(start, start + cases):
                draw = random.Random(f"{seed} {number}")
                kind = sorted(good)[number % len(good)]
                files = damaged(good[kind], draw)
                path = write_case(files, folder / "case")
                result = worker.load(path, "" if kind == "Hugging Face" else f"{folder}/net.py:build")
                found.ends[kind][result["end"]] += 1
                if result["end"] not in ("loaded", "refused"):
                    found.bad.append({"case": number, "kind": kind, **result})
                    if keep is not None:
                        shutil.copytree(folder / "case", keep / f"{seed}-{number}", dirs_exist_ok=True)
        finally:
            found.slowest = worker.slowest
            worker.end()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", default="", help="formats whose names hold this")
    parser.add_argument("--keep", type=Path, help="folder for the files of what ended badly")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker()
        return
    begun = time.perf_counter()
    found = fuzz(arguments.cases, arguments.seed, start=arguments.start, only=arguments.only, keep=arguments.keep)
    for kind, ends in sorted(found.ends.items()):
        told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        print(f"{kind:28}{sum(ends.values()):7} cases: {told}")
    seconds = time.perf_counter() - begun
    print(f"{arguments.cases} cases of seed {arguments.seed} in {seconds:.0f} s, the slowest {found.slowest:.1f} s")
    for bad in found.bad:
        print(f"BAD case {bad['case']} ({bad['kind']}): {bad['end']}: {bad.get('what')}\n{bad.get('trace', '')}")
    sys.exit(1 if found.bad else 0)


if __name__ == "__main__":
    main()
