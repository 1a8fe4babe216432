"""The commands, against a conversion that is made up: statuses, messages, what goes where."""

import json
import os
import resource
import shlex
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
import converter
from converter.artifacts.runner import Runner
from converter.batch.results import BatchReport
from converter.errors import CheckpointError, Note, UnsupportedOperatorsError, UsageError
from converter.options import ConvertOptions, InspectOptions, VerifyOptions
from converter.report.failures import UnsupportedOperator
from converter.report.results import (
    Accuracy,
    ArtifactReport,
    ConversionReport,
    LayerRow,
    ModelSummary,
    Movement,
    OutputComparison,
    Proof,
    Rewrite,
    TensorFacts,
    VerificationReport,
    status_of,
)

ROOT = Path(__file__).resolve().parents[2]

COMPARED = OutputComparison("logits", True, 2e-7, 1e-6, 1e-8, 1.0, 130.0, 4.2, 3e-6, 2e-7, 1.0, 1.0)
DIFFERENT = OutputComparison("boxes", False, 0.5, 1.0, 0.1, 0.8, 7.0, 1.0, 3e-6, 2e-7, 2.5e6)
DEAD = OutputComparison("mask", True, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, proves_nothing=True)
FUNCTION = Proof("function", True, "max error 3.1e-15 of the scale in float64 (limit 1e-10), 4 input sets")
ARTIFACT = Proof("artifact", True, "max error 4.1e-05, 1.0x float32 rounding (limit 16x), 4 input sets", (COMPARED,))
DIFFERS = Proof(
    "artifact", False, "1 of 1 output differs: `boxes`", (DIFFERENT,), ("boxes: round 2: off",), "model.9.m[0]"
)
SILENT = Proof("artifact", False, "1 of 1 output proves nothing: `mask`", (DEAD,), ("mask: proves nothing: dead",))

PROOFS = {"good": (FUNCTION, ARTIFACT), "bad": (FUNCTION, DIFFERS), "dead": (FUNCTION, SILENT)}


def convert(model, *, to, output=None, progress=None, **keywords):
    """Do what the checkpoint's name says."""
    options = ConvertOptions.of(**keywords)
    CALLS.append(locals() | keywords | {"preprocessing": options.boundary.preprocessing})
    name = model.stem
    with (progress or nullcontext)("capture"):
        if name == "hostile":
            raise CheckpointError(
                "The file asks for os.system.",
                code="PTC1001",
                where=str(model),
                fix="--trust os, if you trust whoever made it",
            )
        if name == "unsupported":
            raise UnsupportedOperatorsError(
                "2 operators have no mapping.",
                [("aten.fft.default", 2, "body.mix", "net.py:12")],
                code="PTC3001",
                fix="--mappings",
            )
        if name == "taken":
            raise UsageError("taken.onnx is in the way.", code="PTC6001", fix="--force")
        if name == "broken":
            raise KeyError("aten")
        if name == "exits":
            sys.exit(0)
        if name == "interrupted":
            raise KeyboardInterrupt
    proofs = PROOFS[name.rstrip("123456789")] if options.write.verify else ()
    status = status_of(proofs)
    artifact = ArtifactReport(
        format=to[0],
        path=None if status == "disagrees" else output or Path(f"{name}_saved_model"),
        inputs=(TensorFacts("image", ("batch", 16, 16, 1), "float32", "channels_last"),),
        outputs=(TensorFacts("logits", ("batch", 10), "float32", "pytorch"),),
        proofs=proofs,
        operators={"SpaceToDepth": 1, "Conv2D": 7},
        movements=(Movement("Transpose", "head[0]", "a view of [channels]", 1200),),
        status=status,
        seconds=2.5,
        accuracy=Accuracy(360, 0.9944, 0.9944, 360),
    )
    rewrite = Rewrite("Focus -> SpaceToDepth", "stem.conv", "input channels permuted")
    notes = (Note("exported with [a fixed] size", "PTC6502"),)
    return ConversionReport(
        str(model), "0f", "pickled module", 61234, "dynamic", (rewrite,), notes, (artifact,), {"capture": 2.5}
    )


CALLS: list[dict] = []


def verify(model, artifact, *, progress=None, **keywords):
    options = VerifyOptions.of(**keywords)
    CALLS.append(locals() | keywords | {"preprocessing": options.boundary.preprocessing})
    proofs = PROOFS[artifact.stem][1:]
    return VerificationReport(str(model), str(artifact), proofs, (Note("no stamp", "PTC6507"),), status_of(proofs))


def inspect(model, *, check=(), plan=False, explain=(), graph=None, progress=None, **keywords):
    InspectOptions.of(**keywords)
    CALLS.append(locals() | keywords)
    rows = (
        LayerRow("", "Net", (1, 3, 8, 8), (1, 10), 0, ""),
        LayerRow("stem", "Focus", (1, 3, 8, 8), (1, 12, 4, 4), 0, "SpaceToDepth"),
        LayerRow("stem.conv", "Conv2d", (1, 12, 4, 4), None, 1234, "Conv2D"),
    )
    unsupported = (UnsupportedOperator("aten.fft.default", 2, "mix", "net.py:12"),) if model.stem == "odd" else ()
    return ModelSummary(str(model), rows, unsupported, ())


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command in an empty folder."""
    for function in (convert, verify, inspect):
        monkeypatch.setattr(converter, function.__name__, function, raising=False)
    monkeypatch.setattr("converter.pipeline.preflight.check_call", lambda *_: None)  # there are no files
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    CALLS.clear()
    return lambda *arguments: CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "arguments, status",
    [
        pytest.param("good.pt --to tf", 0, id="done"),
        pytest.param("good.pt --to tf --no-verify", 0, id="no proof was asked for"),
        pytest.param("bad.pt --to tf", 3, id="differs"),
        pytest.param("dead.pt --to tf", 3, id="proves nothing"),
        pytest.param("hostile.pt --to tf", 4, id="refused"),
        pytest.param("unsupported.pt --to tf", 1, id="operators without a mapping"),
        pytest.param("broken.pt --to tf", 1, id="a fault of ours"),
        pytest.param("exits.pt --to tf", 1, id="the model's code ends the program as if all were well"),
        pytest.param("interrupted.pt --to tf", 130, id="interrupted"),
        pytest.param("taken.pt --to tf", 2, id="a path that is taken"),
        pytest.param("good.pt", 2, id="no format"),
        pytest.param("good.pt --to coreml", 2, id="an unknown format"),
        pytest.param("--to tf", 2, id="no model"),
        pytest.param("good.pt --to tf --model-args 3", 2, id="arguments that are no object"),
        pytest.param("good.pt --to tf --model-args {", 2, id="arguments that are no JSON"),
        pytest.param("good.pt --to tf --atol -1", 2, id="a negative tolerance"),
        pytest.param("good.pt --to tf --fixed-batch 0", 2, id="no batch"),
        pytest.param("good.pt --to keras -o net.onnx", 2, id="a name of another format"),
        pytest.param("good.pt --to tf --report /dev/null/report.json", 1, id="a report that cannot be written"),
        pytest.param("good.pt bad.pt hostile.pt broken.pt --to tf", 3, id="several: 3 before all"),
        pytest.param("good.pt broken.pt hostile.pt taken.pt --to tf", 4, id="several: 4 before 1"),
        pytest.param("good.pt taken.pt broken.pt --to tf", 1, id="several: 1 before 2"),
        pytest.param("good1.pt good2.pt --to tf", 0, id="several: all well"),
        pytest.param("verify good.pt good.onnx", 0, id="verify: agrees"),
        pytest.param("verify good.pt bad.onnx", 3, id="verify: differs"),
        pytest.param("verify good.pt dead.onnx", 3, id="verify: proves nothing"),
        pytest.param("verify good.pt", 2, id="verify: nothing to compare"),
        pytest.param("inspect good.pt", 0, id="inspect"),
        pytest.param("", 2, id="nothing asked"),
        pytest.param("--help", 0, id="help"),
        pytest.param("-v verify good.pt good.onnx", 0, id="a flag before the command"),
    ],
)
def test_exit_status(run, arguments, status):
    result = run(*arguments.split())
    assert result.exit_code == status, result.stderr
    assert "Traceback" not in result.output or "-v" in arguments


@pytest.mark.parametrize("order", ["bad.pt hostile.pt", "hostile.pt bad.pt"])
def test_the_worst_status_does_not_depend_on_the_order(run, order):
    assert run(*order.split(), "--to", "tf").exit_code == 3


def test_the_result_tells_what_was_written_rewritten_and_proven(run):
    result = run("good.pt", "--to", "tf")
    assert result.stdout == ""
    for part in (
        "good_saved_model", "verified", "61,234 parameters", "dynamic batch",
        "image float32 [batch, 16, 16, 1] channels last", "logits float32 [batch, 10] PyTorch layout",
        "Focus -> SpaceToDepth", "stem.conv input channels permuted",
        "✓ max error 3.1e-15 of the scale", "✓ max error 4.1e-05, 1.0x float32 rounding", "top-1 100 % the same",
        "99.4 % before, 99.4 % after; all of 360 predictions the same",
        "head[0] Transpose of 1,200 elements: a view of [channels]", "exported with [a fixed] size", "✓ capture",
    ):  # fmt: skip
        assert part in result.stderr


def test_what_differs_is_named_and_nothing_claimed(run):
    result = run("bad.pt", "--to", "tf")
    for part in ("disagrees", "nothing written", "✗ 1 of 1 output differs: `boxes`", "round 2: off", "model.9.m[0]"):
        assert part in result.stderr
    assert "verified" not in result.stderr


@pytest.mark.parametrize(
    "arguments", ["dead.pt --to tf", "good.pt --to tf --no-verify", "dead.pt --to tf -q"], ids=["dead", "none", "quiet"]
)
def test_what_is_not_proven_is_said_to_be_so(run, arguments):
    assert "not verified" in run(*arguments.split()).stderr


def test_an_error_says_what_where_and_the_fix(run):
    stderr = run("hostile.pt", "--to", "tf").stderr
    assert "error[PTC1001]: The file asks for os.system." in stderr
    assert "where: hostile.pt" in stderr
    assert "fix: --trust os" in stderr


def test_operators_without_a_mapping_are_listed(run):
    stderr = run("unsupported.pt", "--to", "tf").stderr
    for part in ("aten.fft.default", "body.mix", "net.py:12"):
        assert part in stderr


def test_a_fault_of_ours_is_one_line_and_a_traceback_only_if_asked_for(run):
    stderr = run("broken.pt", "--to", "tf").stderr
    assert "error[PTC9004]: KeyError: 'aten'" in stderr
    assert "Please report" in stderr
    assert 'raise KeyError("aten")' in run("broken.pt", "--to", "tf", "-v").stderr


def test_quiet_prints_nothing_when_all_is_well(run):
    assert run("good1.pt", "good2.pt", "--to", "tf", "-q").output == ""


def test_several_models_go_on_after_a_failure_and_end_with_a_table(run):
    result = run("hostile.pt", "good.pt", "--to", "tf")
    table = result.stderr.rsplit("written", 1)[1]
    assert [line.split()[:2] for line in table.splitlines() if ".pt " in line] == [
        ["hostile.pt", "failed"],
        ["good.pt", "verified"],
    ]


@pytest.mark.parametrize("models", ["good.pt", "good.pt hostile.pt bad.pt"])
def test_json_is_all_there_is_on_standard_output(run, tmp_path, models):
    result = run(*models.split(), "--to", "tf", "--json", "--report", "report.json")
    read = json.loads(result.stdout)
    assert read["schema"] == 1
    assert [model["source"] for model in read["models"]] == models.split()
    assert json.loads((tmp_path / "report.json").read_text()) == read


def test_json_of_verify_and_inspect(run):
    assert json.loads(run("verify", "good.pt", "good.onnx", "--json").stdout)["status"] == "verified"
    assert json.loads(run("inspect", "good.pt", "--json").stdout)["rows"][1]["becomes"] == "SpaceToDepth"


def test_a_page_has_the_error_of_each_layer_and_the_terminal_only_if_asked(run):
    stderr = run("good.pt", "--to", "tf", "--report", "page.html").stderr
    assert CALLS[-1]["trace"] is True
    assert "Output of each module" not in stderr
    run("good.pt", "--to", "tf", "--report", "report.json")
    assert CALLS[-1]["trace"] is False


def test_pages_of_a_batch_have_the_error_of_each_layer_too(run, tmp_path, monkeypatch):
    seen = []

    def convert_many(jobs, **options):
        seen.extend(jobs)
        return BatchReport((), (), (), 0.0)

    monkeypatch.setattr("converter.batch.run.convert_many", convert_many)
    (tmp_path / "net.pt").touch()
    for file in ("page.html", "report.json"):
        assert run("batch", "net.pt", "--to", "tf", "-o", "out", "--report", file).exit_code == 0
    assert [job.options for job in seen] == [{"trace": True}, {}]


@pytest.mark.parametrize("wanted", ["--report=page.html", "--junit=results.xml", "--summary"])
def test_a_dry_run_has_no_results_to_write(run, tmp_path, wanted):
    (tmp_path / "net.pt").touch()
    result = run("batch", "net.pt", "--to", "tf", "-o", "out", "--dry-run", wanted)
    assert result.exit_code == 2
    assert "--dry-run has no results" in result.stderr


def test_inspect_shows_the_tree(run):
    stderr = run("inspect", "odd.pt").stderr
    for part in (
        "└ stem", "  └ conv", "Focus", "3×8×8 → 12×4×4", "1,234", "SpaceToDepth",
        "Operators without a mapping", "aten.fft.default",
    ):  # fmt: skip
        assert part in stderr


def test_options_reach_the_conversion(run):
    line = (
        "good.pt --to tf --to keras --to tf -o out --model net.py:build --input-shape x=1,3,8,8 --input-shape 1,2 "
        "--outputs layer3 --outputs layer4 --submodule backbone --input-name x=image --output-name layer4=features "
        "--image-size 4,H --freeze-control-flow --strict --drop-keys head.* --drop-keys aux.fc "
        "--trust ultralytics --layout nchw --fixed-batch 2 --keep-batchnorm --exact-shifts --opset 18 --keep-failed "
        "--atol 0.1 --rtol 0.2 --seed 7 --inputs in.npz --force"
    )
    assert run(*line.split(), "--model-args", '{"classes": 10}').exit_code == 0
    (call,) = CALLS
    assert call["to"] == ("tf", "keras")
    assert call["output"] == Path("out")
    assert call["factory_args"] == {"classes": 10}
    assert call["drop_keys"] == ("head.*", "aux.fc")
    assert call["input_shapes"] == ("x=1,3,8,8", "1,2")
    assert (call["outputs"], call["submodule"]) == (("layer3", "layer4"), "backbone")
    assert (call["input_names"], call["output_names"]) == (("x=image",), ("layer4=features",))
    assert (call["image_size"], call["freeze_control_flow"], call["strict"]) == ("4,H", True, True)
    assert (call["factory"], call["trust"], call["layout"]) == ("net.py:build", ("ultralytics",), "nchw")
    assert (call["fixed_batch"], call["opset"], call["seed"]) == (2, 18, 7)
    assert (call["atol"], call["rtol"], call["inputs"]) == (0.1, 0.2, Path("in.npz"))
    assert call["keep_batchnorm"]
    assert call["exact_shifts"]
    assert call["keep_failed"]
    assert call["force"]
    assert call["verify"]


@pytest.mark.parametrize(
    "given, kept",
    [
        pytest.param("--to onnx", "", id="nothing"),
        pytest.param("--to onnx --input-shape 1,3,8,8 --outputs a --seed 3 --opset 18", "", id="what the stamp holds"),
        pytest.param("--to onnx --trust a --trust=b", "--trust a --trust b", id="trust"),
        pytest.param("--to onnx --trust-all", "--trust-all", id="trust of everything"),
        pytest.param(
            "--model net.py:f --to onnx --model-args '{\"classes\": 10}' --drop-keys 'head.*'",
            "--model net.py:f --model-args '{\"classes\": 10}' --drop-keys 'head.*'",
            id="a state dict",
        ),
        pytest.param(
            "--to onnx --inputs 'my images' --preprocessing 'mean=1 std=2' --atol 0.1 --trace -v --keep-failed --force",
            "--preprocessing 'mean=1 std=2' --inputs 'my images' --atol 0.1",
            id="own inputs",
        ),
        pytest.param("--to onnx --accept aliased-shift", "--accept aliased-shift", id="a known difference"),
    ],
)
def test_a_success_ends_with_the_call_that_verifies_it_again(run, given, kept):
    said = run("good.pt", "-o", "good.onnx", *shlex.split(given)).stderr
    (line,) = [line for line in said.splitlines() if line.startswith("To verify again: ")]
    call = shlex.split(line.removeprefix("To verify again: "))
    assert call[1:4] == ["verify", "good.pt", "good.onnx"]
    assert sorted(call[4:]) == sorted(shlex.split(kept))
    assert run(*call[1:]).exit_code == 0
    converted, verified = CALLS
    for name in ("trust", "factory", "factory_args", "drop_keys", "inputs", "preprocessing", "atol", "accept"):
        assert converted[name] == verified[name]


@pytest.mark.parametrize("line", ["bad.pt --to tf", "dead.pt --to tf", "broken.pt --to tf", "good.pt --to tf -q"])
def test_what_is_not_verified_has_no_such_call(run, line):
    assert "To verify again" not in run(*line.split()).output


def test_several_models_of_one_format_go_into_the_folder(run):
    run("good1.pt", "good2.pt", "--to", "onnx", "-o", "out")
    assert [call["output"] for call in CALLS] == [Path("out/good1.onnx"), Path("out/good2.onnx")]


def test_models_of_one_name_are_refused_before_the_first_is_converted(run):
    result = run("a/good.pt", "b/good.pt", "--to", "tf")
    assert result.exit_code == 2
    assert "both be written to good_saved_model" in result.stderr
    assert not CALLS


def test_a_model_named_twice_is_converted_once(run):
    run("good.pt", "good.pt", "--to", "tf")
    assert len(CALLS) == 1


@pytest.mark.parametrize("name", ["verify", "inspect", "convert"])
def test_a_checkpoint_named_like_a_command_gets_a_hint(run, tmp_path, name):
    (tmp_path / name).touch()
    result = run(name, "--to", "tf")
    assert result.exit_code == 2
    assert f"write ./{name}" in result.stderr
    run(f"./{name}", "--to", "tf")
    assert CALLS[0]["model"] == Path(name)


@pytest.mark.parametrize("command", cli.main.commands.values(), ids=cli.main.commands)
def test_every_option_is_documented(command):
    assert command.help
    assert all(option.help for option in command.params if option.param_type_name == "option")


def test_help_shows_the_options_of_the_main_job(run):
    assert {"--to", "--trust", "--input-shape"} <= set(run("--help").output.replace(",", " ").split())


@pytest.mark.parametrize("set_by_user, seen", [("ACTIVE", "ACTIVE"), (None, "PASSIVE")], ids=["kept", "set"])
def test_threads_wait_passively_unless_the_user_says_otherwise(run, monkeypatch, set_by_user, seen):
    if set_by_user is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    run("good.pt", "--to", "tf")
    assert os.environ["OMP_WAIT_POLICY"] == seen


# As real processes


def process(*arguments, cwd, code=None, **environment):
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "converter"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([*command, *arguments], cwd=cwd, capture_output=True, text=True, env=environment)


def cpu_seconds(call):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert call().returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_help_answers_at_once(tmp_path):
    python = min(cpu_seconds(lambda: process(cwd=tmp_path, code="pass")) for _ in range(3))
    assert min(cpu_seconds(lambda: process("--help", cwd=tmp_path)) for _ in range(3)) - python < 0.4


def test_a_users_own_modules_do_not_shadow_the_command(tmp_path):
    for name in ("cli.py", "mappings.py", "click.py", "rich.py"):
        (tmp_path / name).write_text("raise SystemExit('shadowed')")
    result = process("--help", cwd=tmp_path)
    assert "--trust PACKAGE" in result.stdout, result.stderr


def test_the_command_does_not_shadow_a_users_own_cli(tmp_path):
    code = "import sys; sys.argv = ['convert', '--help']; import converter.__main__ as m\ntry: m.main()\nfinally: "
    assert process(cwd=tmp_path, code=code + "assert 'cli' not in sys.modules").returncode == 0


@pytest.mark.parametrize(
    "before, given, seen",
    [("", {}, "PASSIVE"), ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ("sys.modules['torch'] = sys; ", {}, "None")],
    ids=["torch is still to come", "the user's own", "torch has read it already"],
)
def test_threads_of_a_python_program_wait_passively_where_that_can_still_be_set(
    tmp_path, monkeypatch, before, given, seen
):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = f"import os, sys; {before}import converter; print(os.environ.get('OMP_WAIT_POLICY'))"
    assert process(cwd=tmp_path, code=code, **given).stdout == f"{seen}\n"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="where the system does not show environments")
@pytest.mark.parametrize("given, seen", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_the_process_that_opens_artifacts_wait_passively(monkeypatch, given, seen):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    with Runner("onnx") as runner:
        while not (environment := Path(f"/proc/{runner.pid}/environ").read_bytes()):
            time.sleep(0.01)  # the process is not quite there
    assert f"OMP_WAIT_POLICY={seen}".encode() in environment.split(b"\0")


NOISY = """
import os, subprocess, sys, warnings
import cli, converter
from converter.pipeline import preflight
from test_cli import convert

def noisy(model, **arguments):
    print("python out"); print("python err", file=sys.stderr); warnings.warn("a warning")
    sys.stdout.flush()
    os.write(1, b"descriptor out"); os.write(2, b"descriptor err")
    subprocess.run(["echo", "child out"])
    return convert(model, **arguments)

converter.convert, preflight.check_call = noisy, lambda *_: None
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("verbose", [False, True], ids=["quiet", "verbose"])
def test_what_libraries_print_stays_off_standard_output_and_is_seen_only_if_asked_for(tmp_path, verbose):
    arguments = ["good.pt", "--to", "tf", "--json", *(["-v"] if verbose else [])]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/console")])
    result = process(*arguments, cwd=tmp_path, code=NOISY, PYTHONPATH=paths)
    assert json.loads(result.stdout)["models"][0]["status"] == "verified"
    assert "✓ capture" in result.stderr
    for noise in ("python out", "python err", "a warning", "descriptor out", "descriptor err", "child out"):
        assert (noise in result.stderr) is verbose, noise


def test_trusting_all_warns_and_is_passed_on(run):
    from click import Context

    received = []
    command = cli.convert
    with Context(command, info_name="convert") as context:
        command.parse_args(context, ["m.pt", "--to", "onnx", "--trust", "own", "--trust-all"])
        received.append(context.params["trust"])
    assert received == [("own", "all")]
    result = run("m.pt", "--to", "onnx", "--trust-all")
    assert "WARNING: --trust-all lets the checkpoint run any code" in result.stderr
