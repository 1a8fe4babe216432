"""Batches: the work list, the journal, workers that die, two batches at once, a cluster that loses a worker."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch

import cli
from converter.batch.check import check_many
from converter.batch.cluster import DaskWorkers
from converter.batch.executors import GIB, Finished, LocalProcesses, Step, Task, code_beside
from converter.batch.jobs import Job, checked, from_lines, from_manifest, from_places, shard, work_list
from converter.batch.journal import LEASE, Journal, _alive
from converter.batch.run import _Batch, convert_many
from converter.errors import UsageError
from converter.options import InspectOptions, options_of

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
ROOT = Path(__file__).resolve().parents[2]


def checkpoints(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.stem)
    return files


# -- the work list


@pytest.mark.parametrize(
    "place, names",
    [
        ("zoo", ["a", "deep/a", "deep/er/b"]),
        ("zoo/*.pt", ["a"]),
        ("zoo/**/*.pt", ["a", "deep/a", "deep/er/b"]),
        ("zoo/deep/*/b.*", ["er/b"]),
        ("zoo/deep/a.pt", ["a"]),
    ],
)
def test_names_tell_equal_files_of_different_folders_apart(tmp_path, monkeypatch, place, names):
    checkpoints(tmp_path / "zoo", "a.pt", "deep/a.pt", "deep/er/b.pt", "deep/notes.txt")
    monkeypatch.chdir(tmp_path)
    assert [job.name for job in from_places([place], ["tf"], {})] == names


def model_folder(folder: Path, *names: str) -> Path:
    checkpoints(folder, *names)
    return folder


@pytest.mark.parametrize(
    "place, names",
    [
        ("zoo/bert-v1.5", ["bert-v1.5"]),
        ("zoo/bert-v1.5/", ["bert-v1.5"]),
        ("zoo", ["a", "bert-v1.5", "deep/parts", "plain/model"]),
        ("zoo/*", ["a", "bert-v1.5"]),
        ("zoo/**", ["bert-v1.5", "deep/parts"]),
        ("zoo/**/*", ["a", "bert-v1.5", "deep/parts", "plain/model"]),
        ("zoo/*/*.safetensors", ["bert-v1.5/model", "plain/model"]),
        ("zoo/plain", ["model"]),
        ("zoo/deep/parts/model.safetensors.index.json", ["model.safetensors.index"]),
    ],
)
def test_a_folder_that_is_a_model_is_one_checkpoint(tmp_path, monkeypatch, place, names):
    model_folder(tmp_path / "zoo/bert-v1.5", "config.json", "model.safetensors", "training_args.bin", "old/net.pt")
    model_folder(tmp_path / "zoo/deep/parts", "pytorch_model.bin.index.json", "pytorch_model-1.bin", "model-2.bin")
    model_folder(tmp_path / "zoo/plain", "model.safetensors")
    checkpoints(tmp_path / "zoo", "a.pt")
    (tmp_path / "zoo/deep/parts/model.safetensors.index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert [job.name for job in from_places([place], ["tf"], {})] == names


def test_folders_of_models_are_named_as_lines_and_manifests_name_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bert = model_folder(tmp_path / "zoo/bert.1", "config.json", "model.safetensors")
    (tmp_path / "models.toml").write_text(
        '[[models]]\npath = "zoo/bert.1"\n[[models]]\npath = "zoo/bert.1"\nname = "renamed"\n'
    )
    jobs = from_manifest(tmp_path / "models.toml", ["tf"], {})
    assert [(job.name, job.path) for job in jobs] == [("zoo/bert.1", bert), ("renamed", bert)]
    (job,) = from_lines(['{"path": "zoo/bert.1"}'], ["tf"], {})
    assert job == Job("zoo/bert.1", Path("zoo/bert.1"), ("tf",))
    monkeypatch.chdir(bert)
    (here,) = from_lines(['{"path": "."}'], ["tf"], {})
    assert here.name == "bert.1"


def test_a_manifest_says_for_each_model_what_the_command_line_does_not(tmp_path):
    checkpoints(tmp_path, "runs/1/best.pt", "runs/2/best.pt", "other.pth")
    manifest = tmp_path / "models.toml"
    manifest.write_text(
        """
        [defaults]
        to = ["tf", "onnx"]
        input-shape = "1,3,32,32"
        [[models]]
        path = "runs/*/best.pt"
        model = "nets.py:build"
        [[models]]
        path = "other.pth"
        name = "renamed/net"
        to = "keras"
        seed = 7
        input-shape = ["a=1,3", "b=1,4"]
        trust = ["nets.py", "package"]
        """
    )
    first, second, third = from_manifest(manifest, ["keras"], {"seed": 1, "layout": "nchw"})
    assert (first.name, second.name, third.name) == ("1/best", "2/best", "renamed/net")
    assert first.to == ("tf", "onnx")
    assert third.to == ("keras",)
    assert first.options == {
        "seed": 1, "layout": "nchw", "input_shapes": ["1,3,32,32"], "factory": str(tmp_path / "nets.py:build"),
    }  # fmt: skip
    assert third.options == {
        "seed": 7,
        "layout": "nchw",
        "input_shapes": ["a=1,3", "b=1,4"],
        "trust": [str(tmp_path / "nets.py"), "package"],
    }
    assert third.outputs(Path("out")) == {"keras": Path("out/renamed/net.keras")}


@pytest.mark.parametrize(
    "text, says",
    [
        ("models = 3", "no models"),
        ('[[models]]\npath = "a.pt"\nshape = 3', "Unknown option: shape"),
        ('[[models]]\npath = "a.pt"\nseed = true', "True is not a valid value for seed"),
        ('[[models]]\nname = "a"', "The entry has no path"),
        ('[[models]]\npath = "a.pt"\nname = "../a"', "is not a valid name"),
        ('[[models]]\npath = "*.nothing"', "No checkpoint"),
        ("[[models]\n", "cannot be read"),
        ('[options]\n[[models]]\npath = "a.pt"', "has options"),
    ],
)
def test_a_manifest_that_cannot_be_says_where(tmp_path, text, says):
    manifest = tmp_path / "models.toml"
    manifest.write_text(text)
    with pytest.raises(UsageError, match=says) as refusal:
        from_manifest(manifest, ["tf"], {})
    assert refusal.value.where is not None


def test_lines_of_json_are_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints(tmp_path, "a.pt", "b/c.pt")
    jobs = from_lines(['{"path": "a.pt"}\n', "\n", '{"path": "b/c.pt", "to": ["onnx"]}'], ["tf"], {"seed": 3})
    assert jobs == [
        Job("a", Path("a.pt"), ("tf",), {"seed": 3}),
        Job("b/c", Path("b/c.pt"), ("onnx",), {"seed": 3}),
    ]
    with pytest.raises(UsageError, match="not valid JSON") as refusal:
        from_lines(["{"], ["tf"], {})
    assert refusal.value.where == "line 1"


def test_two_models_of_one_name_are_refused_before_anything_is_done(tmp_path):
    a, b = checkpoints(tmp_path, "net.pt", "net.pth")
    with pytest.raises(UsageError, match=r"net\.pt .*net\.pth would both be written as net"):
        work_list([str(a), str(b)], ["tf"], {})
    assert len(work_list([str(a), str(a)], ["tf"], {})) == 1
    with pytest.raises(UsageError, match="No format"):
        work_list([str(a)], [], {})
    with pytest.raises(UsageError, match="Unknown format: coreml"):
        checked([Job("a", a, ("coreml",))])


def test_a_name_that_is_no_text_is_refused_before_anything_is_done(tmp_path):
    checkpoints(tmp_path, "net.pt")[0].rename(tmp_path / os.fsdecode(b"caf\xe9.pt"))
    with pytest.raises(UsageError, match="not UTF-8") as refused:
        work_list([str(tmp_path)], ["tf"], {})
    assert "Rename" in refused.value.fix


def test_shards_are_a_partition():
    jobs = [Job(f"net{i}", Path(f"net{i}.pt"), ("tf",)) for i in range(200)]
    parts = [shard(jobs, part, 8) for part in range(1, 9)]
    assert sorted(job.name for part in parts for job in part) == sorted(job.name for job in jobs)
    assert all(len(part) > 10 for part in parts)


# -- the journal


@pytest.fixture
def job(tmp_path):
    (file,) = checkpoints(tmp_path, "net.pt")
    return Job("net", file, ("keras",), {"seed": 1})


def ended(journal: Journal, job: Job, folder: Path, state="verified", exit_status=0):
    claim, _ = journal.claim(job, journal.fingerprint(job), retry_failed=True)
    assert claim == "begin"
    (artifact,) = job.outputs(folder).values()
    artifact.write_text("written")
    return journal.end(job, state, exit_status, "", [artifact], 1.5)


def test_what_is_done_is_not_done_again_unless_something_changed(tmp_path, job):
    def claim(one: Job = job, **options) -> str:
        with Journal(tmp_path / "journal") as again:
            return again.claim(one, again.fingerprint(one), retry_failed=options.get("retry_failed", False))[0]

    with Journal(tmp_path / "journal") as journal:
        ended(journal, job, tmp_path)
    assert claim() == "done"
    assert claim(retry_failed=True) == "done"
    assert claim(Job("net", job.path, ("keras",), {"seed": 1, "trace": True})) == "done"  # the artifact is the same
    assert claim(Job("net", job.path, ("keras",), {"seed": 2})) == "begin"  # and given back, as it never ends
    with Journal(tmp_path / "journal") as journal:
        ended(journal, job, tmp_path)
    (tmp_path / "net.keras").unlink()
    assert claim() == "begin"
    with Journal(tmp_path / "journal") as journal:
        ended(journal, job, tmp_path)
    job.path.write_text("other weights")
    assert claim() == "begin"


def test_a_claim_ends_with_its_process_even_if_nobody_waits_for_that(tmp_path, job):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with Journal(tmp_path / "journal") as other:
        other._owner = f"{socket.gethostname()} {_alive(process.pid)} killed"
        assert other.claim(job, "x", retry_failed=False)[0] == "begin"
        with Journal(tmp_path / "journal") as journal:
            assert journal.claim(job, "x", retry_failed=False)[0] == "elsewhere"
            process.kill()
            while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
            assert journal.claim(job, "x", retry_failed=False)[0] == "begin"
    process.wait()


def test_what_failed_is_done_again_only_if_asked_for(tmp_path, job):
    with Journal(tmp_path / "journal") as journal:
        ended(journal, job, tmp_path, "disagrees", 3)
    with Journal(tmp_path / "journal") as journal:
        fingerprint = journal.fingerprint(job)
        claim, entry = journal.claim(job, fingerprint, retry_failed=False)
        assert claim == "done"
        assert (entry.state, entry.exit_status, entry.already_done, entry.attempts) == ("disagrees", 3, True, 1)
        assert journal.claim(job, fingerprint, retry_failed=True)[0] == "begin"
        assert journal.end(job, "verified", 0, "", [], 1.0).attempts == 2


def test_the_content_of_files_that_options_name_counts(tmp_path, job):
    (tmp_path / "nets.py").write_text("one = 1")
    with_factory = Job("net", job.path, ("keras",), {"factory": f"{tmp_path}/nets.py:build"})
    with Journal(tmp_path / "journal") as journal:
        before = journal.fingerprint(with_factory)
        assert journal.fingerprint(with_factory) == before
        (tmp_path / "nets.py").write_text("one = 2  # longer")
        assert journal.fingerprint(with_factory) != before


def test_the_content_of_a_folder_of_images_counts(tmp_path, job):
    images = tmp_path / "images" / "cats"
    images.mkdir(parents=True)
    (images / "one.png").write_text("one")
    compared = Job("net", job.path, ("keras",), {"inputs": str(tmp_path / "images")})

    def fingerprint() -> str:
        with Journal(tmp_path / "journal") as journal:
            return journal.fingerprint(compared)

    before = fingerprint()
    assert fingerprint() == before
    (images / "one.png").rename(images / "two.png")
    renamed = fingerprint()
    (images / "two.png").write_text("another")
    assert len({before, renamed, fingerprint()}) == 3


def _weights_change(folder: Path) -> None:
    (folder / "b.safetensors").write_text("others")


def _a_shard_is_renamed(folder: Path) -> None:
    (folder / "b.safetensors").rename(folder / "c.safetensors")


def _a_shard_is_added(folder: Path) -> None:
    (folder / "c.bin").write_text("more")


def _the_index_changes(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "a.safetensors"}}')


def _the_config_changes(folder: Path) -> None:
    (folder / "config.json").write_text('{"layers": 3}')


def _its_code_changes(folder: Path) -> None:
    (folder / "modeling_net.py").write_text("three = 3")


CHANGES = (
    _weights_change, _a_shard_is_renamed, _a_shard_is_added, _the_index_changes, _the_config_changes, _its_code_changes,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("given", ["net", "net/model.safetensors.index.json"])
def test_the_content_of_a_model_of_several_files_counts(tmp_path, change, given):
    folder = model_folder(tmp_path / "net", "a.safetensors", "b.safetensors", "config.json", "modeling_net.py", "notes")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    job = Job("net", tmp_path / given, ("keras",))

    def fingerprint() -> str:
        with Journal(tmp_path / "journal") as journal:
            return journal.fingerprint(job)

    before = fingerprint()
    (folder / "notes").write_text("what does not matter")
    assert fingerprint() == before
    change(folder)
    of_the_folder = change in (_the_config_changes, _its_code_changes)
    assert (fingerprint() == before) == (of_the_folder and given != "net")


def test_a_claim_holds_while_its_batch_lives(tmp_path, job):
    holder = (
        "import sys; sys.path[:0] = [sys.argv[3]]\n"
        "from pathlib import Path\nfrom converter.batch.journal import Journal\nfrom converter.batch.jobs import Job\n"
        "folder = Path(sys.argv[1])\njournal = Journal(folder / 'journal')\n"
        "job = Job('net', Path(sys.argv[2]), ('keras',), {'seed': 1})\n"
        "print(journal.claim(job, journal.fingerprint(job), retry_failed=False)[0], flush=True)\n"
        "input()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path), str(job.path), str(ROOT)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout.readline() == "begin\n"
    with Journal(tmp_path / "journal") as journal:
        fingerprint = journal.fingerprint(job)
        assert journal.claim(job, fingerprint, retry_failed=False) == ("elsewhere", None)
        other.kill()
        other.wait()
        assert journal.claim(job, fingerprint, retry_failed=False)[0] == "begin"


def test_a_claim_of_another_machine_holds_as_long_as_its_lease(tmp_path, job):
    with Journal(tmp_path / "journal") as journal:
        journal.claim(job, fingerprint := journal.fingerprint(job), retry_failed=False)
        journal._database.execute("update models set owner = 'elsewhere 1 2 3'")
        assert journal.claim(job, fingerprint, retry_failed=False)[0] == "elsewhere"
        journal._database.execute("update models set renewed = ?", (time.time() - LEASE - 1,))
        assert journal.claim(job, fingerprint, retry_failed=False)[0] == "begin"


# -- workers


@pytest.fixture
def pool(request):
    settings = {"seconds": 30, "memory": GIB // 2, **getattr(request, "param", {})}
    executor = LocalProcesses(2, command=FAKE, **settings)
    yield executor
    executor.close()


def task(folder: Path, name: str) -> Task:
    (file,) = checkpoints(folder, f"{name}.pt")
    return Task(name, str(file), {"keras": str(folder / f"{name}.keras")}, str(folder / f"{name}.log"), {})


def outcomes(executor: LocalProcesses, tasks: list[Task]) -> dict:
    for each in tasks:
        executor.submit(each)
    found = {}
    while len(found) < len(tasks):
        event = executor.next_event(30)
        assert event is not None
        if isinstance(event, Finished):
            found[event.name] = event.outcome
        else:
            assert isinstance(event, Step)
    return found


def processes(folder: Path, *names: str) -> list[str]:
    return [(folder / f"{name}.log.processes").read_text() for name in names]


def test_a_crash_takes_one_model(tmp_path, pool):
    found = outcomes(pool, [task(tmp_path, name) for name in ("crash", "a", "b", "c")])
    assert {name: outcome["exit_status"] for name, outcome in found.items()} == {"crash": 1, "a": 0, "b": 0, "c": 0}
    assert "SIGSEGV" in found["crash"]["what"]


@pytest.mark.slow
@pytest.mark.parametrize("pool", [{"seconds": 2}], indirect=True)
def test_a_hang_takes_one_model(tmp_path, pool):
    found = outcomes(pool, [task(tmp_path, name) for name in ("hang", "a", "b")])
    assert "longer than 2 s" in found["hang"]["what"]
    assert found["a"]["exit_status"] == found["b"]["exit_status"] == 0


def test_too_much_memory_takes_one_model(tmp_path, pool):
    found = outcomes(pool, [task(tmp_path, name) for name in ("huge", "a", "b")])
    assert "0.5 GiB are allowed" in found["huge"]["what"]
    assert found["a"]["exit_status"] == found["b"]["exit_status"] == 0


def test_a_worker_that_keeps_memory_is_replaced_and_others_serve_on(tmp_path):
    executor = LocalProcesses(1, command=FAKE, seconds=30, memory=GIB // 2)
    try:
        outcomes(executor, [task(tmp_path, name) for name in ("a", "b", "grows", "c")])
    finally:
        executor.close()
    a, b, grows, c = processes(tmp_path, "a", "b", "grows", "c")
    assert a == b == grows != c


def test_code_beside_a_checkpoint_gets_a_worker_of_its_own(tmp_path):
    executor = LocalProcesses(1, command=FAKE, seconds=30, memory=GIB // 2)
    folders = [tmp_path / name for name in ("plain", "with_code")]
    tasks = [task(folder, name) for folder in folders for name in ("a", "b")]
    (folders[1] / "nets.py").write_text("")
    assert [code_beside(each) for each in tasks] == [(), (), (folders[1],), (folders[1],)]
    try:
        for each in tasks:
            outcomes(executor, [each])
    finally:
        executor.close()
    (a, b), (c, d) = (processes(folder, "a", "b") for folder in folders)
    assert a == b != c == d


def test_closing_ends_workers_at_once(tmp_path):
    executor = LocalProcesses(2, command=FAKE, seconds=600, memory=GIB)
    for name in ("hang1", "hang2"):
        executor.submit(task(tmp_path, name))
    while not all((tmp_path / f"hang{i}.log.processes").exists() for i in (1, 2)):
        assert isinstance(executor.next_event(30), Step)
    started = time.perf_counter()
    executor.close()
    assert time.perf_counter() - started < 5
    for numbers in processes(tmp_path, "hang1", "hang2"):
        assert not psutil.pid_exists(int(numbers))


# -- batches


class Watcher:
    def __init__(self):
        self.ended_names = []

    def begin(self, total, slots):
        self.total = total

    def step(self, slot, name, step):
        assert step == "capture"

    def ended(self, entry, slot):
        self.ended_names.append(entry.name)


def batch(folder: Path, files: list[Path], **options) -> list:
    jobs = from_places([str(file) for file in files], ["keras"], {})
    executor = LocalProcesses(2, command=FAKE, seconds=30, memory=GIB // 2)
    watcher = Watcher()
    try:
        with Journal(folder / "journal.sqlite") as journal:
            settings = {"retry_failed": False, "fail_fast": False, **options}
            running = _Batch(jobs, folder, journal, executor, watcher, **settings)
            running.run()
            report = running.report(time.perf_counter())
    finally:
        executor.close()
    assert sorted(watcher.ended_names) == sorted(entry.name for entry in report.entries)
    return report


def test_a_batch_tells_of_every_model_in_its_state(tmp_path):
    files = checkpoints(tmp_path, "a.pt", "crash.pt", "wrong.pt", "b.pt")
    report = batch(tmp_path / "out", [*files])
    assert report.counts == {"verified": 2, "quantized": 0, "not verified": 0, "disagrees": 1, "failed": 1}
    assert report.exit_status == 3
    assert [entry.reason for entry in report.entries][2] == "keras: boxes differ"
    assert not report.left
    again = batch(tmp_path / "out", files)
    assert [entry.already_done for entry in again.entries] == [True] * 4
    assert again.counts == report.counts
    retried = batch(tmp_path / "out", files, retry_failed=True)
    assert [entry.attempts for entry in retried.entries] == [1, 2, 2, 1]


def test_the_summary_has_the_models_of_all_batches_into_a_folder(tmp_path, monkeypatch):
    @contextmanager
    def fake_workers(*_):
        executor = LocalProcesses(1, command=FAKE, seconds=30, memory=GIB)
        yield executor
        executor.close()

    monkeypatch.setattr("converter.batch.run.open_executor", fake_workers)
    out = tmp_path / "out"
    for names in (("a.pt", "wrong.pt"), ("b.pt", "gone.pt")):
        lines = [Job(Path(name).stem, tmp_path / name, ("keras",)) for name in names]
        checkpoints(tmp_path, *(name for name in names if name != "gone.pt"))
        report = convert_many(lines, output=out)
    assert [entry.name for entry in report.entries] == ["b", "gone"]
    summary = json.loads((out / "summary.json").read_text())
    found = {entry["name"]: (entry["state"], entry["already_done"]) for entry in summary["entries"]}
    assert found == {
        "b": ("verified", False), "gone": ("failed", False), "a": ("verified", True), "wrong": ("disagrees", True),
    }  # fmt: skip
    assert summary["counts"]["verified"] == 2
    assert (report.exit_status, summary["exit_status"]) == (4, 3)
    (out / "a.keras").unlink()
    convert_many([Job("b", tmp_path / "b.pt", ("keras",))], output=out)
    summary = json.loads((out / "summary.json").read_text())
    assert sorted(entry["name"] for entry in summary["entries"]) == ["b", "gone", "wrong"]


@pytest.mark.slow
def test_two_batches_at_once_share_the_work(tmp_path):
    files = checkpoints(tmp_path, *(f"slow{i}.pt" for i in range(12)))
    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(lambda _: batch(tmp_path / "out", files), range(2)))
    begun = [entry.name for report in reports for entry in report.entries if not entry.already_done]
    assert sorted(begun) == sorted(file.stem for file in files)  # each once
    assert all(report.elsewhere for report in reports)
    assert all(Path(entry.log).name == f"{entry.name}.log" for report in reports for entry in report.entries)


@pytest.mark.slow
def test_a_batch_that_fails_fast_begins_no_more(tmp_path):
    files = checkpoints(tmp_path, "crash.pt", *(f"slow{i}.pt" for i in range(20)))
    report = batch(tmp_path / "out", files, fail_fast=True)
    assert report.counts["failed"] == 1
    assert len(report.left) >= 10


def test_a_checkpoint_that_is_not_there_is_one_of_those_that_failed(tmp_path):
    jobs = [Job("gone", tmp_path / "gone.pt", ("keras",)), Job("dir", tmp_path, ("keras",))]
    with Journal(tmp_path / "journal") as journal:
        executor = LocalProcesses(1, command=FAKE, seconds=30, memory=GIB)
        running = _Batch(jobs, tmp_path / "out", journal, executor, None, False, False)
        running.run()
        executor.close()
        report = running.report(time.perf_counter())
    assert [(entry.name, entry.state, entry.exit_status) for entry in report.entries] == [
        ("gone", "failed", 4), ("dir", "failed", 4),
    ]  # fmt: skip


def asked_of(files: list[Path], monkeypatch, **options):
    @contextmanager
    def fake_workers(*_):
        executor = LocalProcesses(2, command=FAKE, seconds=30, memory=GIB)
        yield executor
        executor.close()

    monkeypatch.setattr("converter.batch.check.open_executor", fake_workers)
    return check_many([str(file) for file in files], to=["tf", "onnx"], **options)


def test_many_models_are_asked_whether_they_convert_and_nothing_is_written(tmp_path, monkeypatch):
    files = checkpoints(tmp_path, "a.pt", "odd.pt", "crash.pt", "b.pt")
    watcher = Watcher()
    report = asked_of(files, monkeypatch, watcher=watcher)
    assert [(entry.name, entry.state, entry.exit_status) for entry in report.entries] == [
        ("a", "converts", 0), ("odd", "failed", 1), ("crash", "failed", 1), ("b", "converts", 0),
    ]  # fmt: skip
    assert report.counts == {"converts": 2, "failed": 2}
    assert report.exit_status == 1
    assert report.entries[1].reason == "onnx: no mapping for aten.odd"
    assert [entry.codes for entry in report.entries[:3]] == [(), ("PTC3001",), ("PTC6007",)]
    assert [check["format"] for check in report.to_dict()["entries"][0]["checks"]] == ["tf", "onnx"]
    assert "SIGSEGV" in report.entries[2].reason
    assert sorted(watcher.ended_names) == ["a", "b", "crash", "odd"]
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_a_check_within_a_batch_takes_every_option_of_inspect_as_inspect_does():
    of_batch = {option.name: option for option in cli.batch.params}
    for name, *_ in options_of(InspectOptions):
        (option,) = (option for option in cli.inspect.params if option.name == name)
        held = of_batch[name]
        assert (held.opts, held.secondary_opts) == (option.opts, option.secondary_opts)
        assert (held.default, held.multiple, held.type.name) == (option.default, option.multiple, option.type.name)


@pytest.mark.slow
def test_asking_fast_begins_no_more_after_the_first_that_does_not_convert(tmp_path, monkeypatch):
    files = checkpoints(tmp_path, "odd.pt", *(f"slow{i}.pt" for i in range(9)))
    report = asked_of(files, monkeypatch, fail_fast=True)
    assert report.counts["failed"] == 1
    assert len(report.left) >= 7
    assert len(report.left) + len(report.entries) == 10


@pytest.mark.slow
def test_a_lost_worker_of_a_cluster_costs_its_model_only_which_is_tried_elsewhere(tmp_path):
    distributed = pytest.importorskip("distributed")
    files = checkpoints(tmp_path, *(f"slow{i}.pt" for i in range(8)))
    jobs = from_places([str(file) for file in files], ["keras"], {})
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, scheduler_port=0
    ) as cluster:
        executor = DaskWorkers(cluster.scheduler_address, seconds=60, memory=GIB // 2, command=FAKE)
        assert executor.slots == 2
        pids = list(executor._client.run(os.getpid).values())

        class Killer(Watcher):
            def ended(self, entry, slot):
                super().ended(entry, slot)
                if len(self.ended_names) == 2:
                    os.kill(pids[0], signal.SIGKILL)

        try:
            with Journal(tmp_path / "journal") as journal:
                running = _Batch(jobs, tmp_path / "out", journal, executor, Killer(), False, False)
                running.run()
                report = running.report(time.perf_counter())
        finally:
            executor.close()
    assert [entry.state for entry in report.entries] == ["verified"] * 8


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_said(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("converter.batch.cluster._PATIENCE", 1)
    (file,) = checkpoints(tmp_path, "a.pt")
    with pytest.raises(UsageError, match="does not answer"):
        convert_many(file, to="keras", output=tmp_path / "out", scheduler="tcp://127.0.0.1:9")


NETS = """
from torch import nn

def net(channels=4):
    return nn.Sequential(
        nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten(), nn.Linear(channels * 36, 5)
    )
"""


def in_shards(state: dict[str, torch.Tensor], folder: Path) -> None:
    folder.mkdir()
    parts = {"model-1.safetensors": list(state)[:3], "model-2.safetensors": list(state)[3:]}
    for file, keys in parts.items():
        safetensors.torch.save_file({key: state[key].contiguous() for key in keys}, folder / file)
    table = {key: file for file, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


@pytest.mark.slow
def test_a_killed_batch_goes_on_where_it_was(tmp_path, calibrate):
    """Real conversions: two architectures, a folder of shards, one that fails, SIGKILL in between."""
    (tmp_path / "nets.py").write_text(NETS)
    scope: dict = {}
    exec(NETS, scope)
    for number in range(6):
        torch.manual_seed(number)
        model = calibrate(scope["net"](6 if number == 5 else 4), torch.randn(8, 3, 8, 8))
        if number == 3:
            in_shards(model.state_dict(), tmp_path / "net3")
        else:
            torch.save(model.state_dict(), tmp_path / f"net{number}.pt")
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    (tmp_path / "models.toml").write_text(
        '[defaults]\nto = "tf"\nmodel = "nets.py:net"\ninput-shape = "1,3,8,8"\n'
        '[[models]]\npath = "net[0-4]*"\n[[models]]\npath = "bad.pt"\n'
        '[[models]]\npath = "net5.pt"\nmodel-args = { channels = 6 }\n'
    )
    command = [sys.executable, "-m", "converter", "batch", "models.toml", "-o", "out", "-j", "1", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "out/net1_saved_model").exists():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    report = json.loads(done.stdout)
    assert report.pop("command") == "python -m converter batch models.toml -o out -j 1 --json"
    assert report == json.loads((tmp_path / "out/summary.json").read_text())
    assert report["counts"] == {"verified": 6, "quantized": 0, "not verified": 0, "disagrees": 0, "failed": 1}
    states = {entry["name"]: entry for entry in report["entries"]}
    assert states["net0"]["already_done"]
    assert (states["net3"]["state"], states["net3"]["path"]) == ("verified", "net3")
    assert not states["net4"]["already_done"]
    assert Counter(entry["attempts"] for entry in report["entries"])[1] >= 6  # at most the one under way began twice
    assert "no PyTorch checkpoint" in states["bad"]["reason"] or "not a PyTorch checkpoint" in states["bad"]["reason"]
    log = (tmp_path / "out/logs/net4.log").read_text()
    assert "capture" in log
    proofs = json.loads((tmp_path / "out/reports/net4.json").read_text())["artifacts"][0]["proofs"]
    assert [proof["holds"] for proof in proofs] == [True] * 3


ODD = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return torch.nonzero(self.linear(x))
"""


@pytest.mark.slow
def test_will_they_convert_is_answered_by_the_options_of_each_and_writes_nothing(tmp_path):
    """Real workers: a folder of shards, an operator without a mapping, an opset that is none, no checkpoint."""
    (tmp_path / "nets.py").write_text(NETS + ODD)
    scope: dict = {}
    exec(NETS + ODD, scope)
    in_shards(scope["net"]().state_dict(), tmp_path / "shards.1")
    torch.save(scope["Odd"]().state_dict(), tmp_path / "odd.pt")
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    lines = [
        {"path": "shards.1", "model": "nets.py:net", "input-shape": "1,3,8,8", "seed": 3, "atol": 1e-3},
        {"path": "odd.pt", "model": "nets.py:Odd", "input-shape": "1,4"},
        {"path": "shards.1", "model": "nets.py:net", "input-shape": "1,3,8,8", "name": "old", "opset": 9999},
        {"path": "bad.pt"},
        {"path": "gone.pt"},
    ]
    before = sorted(tmp_path.rglob("*"))
    asked = subprocess.run(
        [sys.executable, "-m", "converter", "batch", "-", "--check", "--to", "keras", "--to", "onnx", "--json", "-j1"],
        input="".join(json.dumps(line) + "\n" for line in lines), cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}, check=False,
    )  # fmt: skip
    report = json.loads(asked.stdout)
    assert asked.returncode == report["exit_status"] == 4, asked.stderr
    found = {entry["name"]: entry for entry in report["entries"]}
    assert {name: entry["exit_status"] for name, entry in found.items()} == {
        "shards.1": 0, "odd": 1, "old": 1, "bad": 4, "gone": 4,
    }  # fmt: skip
    assert [check["failure"] for check in found["shards.1"]["checks"]] == [None, None]
    assert "nonzero" in found["odd"]["reason"]
    assert found["old"]["checks"][0]["failure"] is None
    assert found["old"]["reason"].startswith("onnx: ")
    assert "does not exist" in found["gone"]["reason"]
    assert "[1/5] converts shards.1" in asked.stderr
    assert sorted(tmp_path.rglob("*")) == before
