"""A user's own mappings, from a file: in force for one conversion, alone, and blamed for what they raise."""

import hashlib
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from equivalence import assert_plan_is_exact, captured, planned, run_in_float64
from torch import nn

import converter
import mappings
from converter.artifacts.runtime.stamp import read_stamp
from converter.errors import ConversionError, UnsupportedOperatorsError, UsageError
from converter.lowering.planner import make_plan
from converter.lowering.user_lowerings import load_mappings, with_built_in
from converter.options import ArtifactOptions
from converter.pipeline.build import build
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import LoadedModel

SEQUENCE = (2, 3, 11)


@torch.library.custom_op("tests_of_mappings::snake", mutates_args=())
def snake(x: torch.Tensor, rate: float) -> torch.Tensor:
    return x + torch.sin(rate * x) ** 2 / rate


@snake.register_fake
def _(x: torch.Tensor, rate: float) -> torch.Tensor:
    return torch.empty_like(x)


SNAKE = torch.ops.tests_of_mappings.snake.default
HEAD = "import torch\nfrom keras import ops\nfrom converter.registry import maps, translates\n"
AS = "@maps(torch.ops.tests_of_mappings.snake.default)\ndef snake(plan, x, rate):\n    "
RIGHT = HEAD + AS + "return plan.elementwise(lambda a: a + ops.square(ops.sin(rate * a)) / rate, x)\n"
TRANSLATED = RIGHT + textwrap.dedent("""
    @translates(torch.ops.tests_of_mappings.snake.default)
    def snake_in_onnx(x, rate: float):
        from onnxscript import opset18 as onnx
        wave = onnx.Sin(onnx.Mul(x, rate))
        return onnx.Add(x, onnx.Div(onnx.Mul(wave, wave), rate))
    """)


class Snake(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Conv1d(3, 4, 5), nn.Conv1d(4, 2, 3)

    def forward(self, x):
        return self.after(snake(self.before(x), 0.5))


def written(folder: Path, text: str, name: str = "my_ops.py") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(text)
    return file


def plan_snake(file: Path):
    return assert_plan_is_exact(captured(Snake(), SEQUENCE), [SEQUENCE], added=load_mappings(file))


def is_built_in(target) -> bool:
    return any(key == target or key == str(target) for key in mappings.load().records)


def test_a_mapping_is_in_force_for_its_conversion_only(tmp_path):
    for _ in range(2):
        assert not plan_snake(written(tmp_path, RIGHT)).movements
        assert not is_built_in(SNAKE)
    with pytest.raises(UnsupportedOperatorsError) as refused:
        make_plan(captured(Snake(), SEQUENCE))
    assert "--mappings" in str(refused.value.fix)


@pytest.mark.slow
def test_an_operator_is_written_out_in_others_for_its_conversion_only(tmp_path):
    as_others = HEAD.replace("maps", "decomposes") + textwrap.dedent("""
        @decomposes(torch.ops.tests_of_mappings.snake.default)
        def snake(node, x, rate):
            return x + torch.sin(rate * x) ** 2 / rate
        """)
    for _ in range(2):
        assert not plan_snake(written(tmp_path, as_others)).movements
        assert not is_built_in(SNAKE)
    with pytest.raises(UnsupportedOperatorsError):
        make_plan(captured(Snake(), SEQUENCE))


def test_conversions_that_alternate_or_run_in_threads_see_their_own_mappings_only(tmp_path):
    """Two files map one operator, differently."""
    files = [written(tmp_path / str(i), RIGHT.replace("a + ", f"a + {i} * "), f"ops_{i}.py") for i in range(2)]
    added = [load_mappings(file) for file in files]
    programs = [captured(lambda x: snake(x, 0.5), SEQUENCE) for _ in files]
    x = torch.randn(SEQUENCE, dtype=torch.float64)

    def result(i: int):
        plan = planned(programs[i], added=added[i])
        assert plan.registry[SNAKE].owners == {"lowering": str(files[i])}
        ((array,),) = run_in_float64(plan, [x])
        return array

    expected = [x, snake(x, 0.5)]
    with ThreadPoolExecutor(2) as pool:
        for results in (map(result, (0, 1, 0, 1)), pool.map(result, (0, 1))):
            for i, array in enumerate(results):
                np.testing.assert_allclose(array, expected[i % 2], rtol=1e-12)
    assert not is_built_in(SNAKE)


@pytest.mark.parametrize(
    "text, error, says",
    [
        pytest.param("x = 1\n", UsageError, "does not register a mapping", id="a file without one"),
        pytest.param("import no_such_module\n", ConversionError, "no_such_module", id="an import that fails"),
        pytest.param("def f(:\n", ConversionError, "SyntaxError", id="no Python"),
        pytest.param(
            HEAD + "@maps(torch.ops.aten.relu.default)\ndef relu(plan, x): ...\n",
            ConversionError,
            "aten.relu.default is already mapped",
            id="an operator that has a mapping",
        ),
        pytest.param(HEAD + "maps(torch.ops.no_such.operator.default)", ConversionError, "no_such", id="no operator"),
        pytest.param(HEAD + "maps('relu')(print)", ConversionError, "'relu' is not the name", id="a malformed name"),
        pytest.param(HEAD + "maps('aten::relu')(print)", ConversionError, "already mapped", id="a name that is mapped"),
    ],
)
def test_file_is_refused(tmp_path, text, error, says):
    before = dict(mappings.load().records)
    with pytest.raises(error, match=says):
        load_mappings(written(tmp_path, text))
    assert before == mappings.load().records


def test_two_files_may_not_map_one_operator(tmp_path):
    files = [written(tmp_path, RIGHT, f"snake_{i}.py") for i in range(2)]
    with pytest.raises(
        ConversionError, match=r"snake_1\.py cannot be added: .*snake.default is already mapped by snake"
    ):
        load_mappings(files)


def test_operators_may_be_named_and_those_that_this_pytorch_lacks_are_recorded(tmp_path):
    names = '"tests_of_mappings::snake", "tests_of_mappings::no_such", "no_library::no_such.overload"'
    text = RIGHT.replace("torch.ops.tests_of_mappings.snake.default", names, 1)
    text += "import converter.registry\nABSENT = converter.registry.ABSENT\n"
    plan = plan_snake(written(tmp_path, text, "named_ops.py"))
    assert plan.registry.absent - mappings.load().absent == {
        "tests_of_mappings::no_such",
        "no_library::no_such.overload",
    }
    assert plan.registry.absent == sys.modules["named_ops"].ABSENT
    assert not is_built_in("tests_of_mappings::no_such")


def test_an_operator_is_mapped_by_name_before_its_library_is_there(tmp_path):
    text = RIGHT.replace("torch.ops.tests_of_mappings.snake.default", '"tests_of_mappings::late_snake"', 1)
    added = load_mappings(written(tmp_path, text))
    assert added.absent == {"tests_of_mappings::late_snake"}
    late = torch.library.custom_op(
        "tests_of_mappings::late_snake",
        lambda x, rate: x.sin(),
        mutates_args=(),
        schema="(Tensor x, float rate) -> Tensor",
    )
    assert with_built_in(added)[late._opoverload].owners


def test_second_try_after_a_failed_one_registers_what_modules_beside_the_file_do(tmp_path):
    written(tmp_path, RIGHT, "tried_twice.py")
    file = written(tmp_path, "import tried_twice\nimport no_such_module\n")
    for _ in range(2):
        with pytest.raises(ConversionError, match="no_such_module"):
            load_mappings(file)
    written(tmp_path, "import tried_twice\n")
    plan_snake(file)


def test_file_that_is_not_there():
    with pytest.raises(UsageError, match="does not exist"):
        load_mappings("nowhere.py")


@pytest.mark.parametrize(
    "body, says",
    [
        pytest.param("return plan.nothing(x)", "failed: AttributeError", id="planning"),
        pytest.param("return 3", "returns int, not a Value", id="the result"),
        pytest.param(
            "return plan.elementwise(lambda a: ops.reshape(a, (77, 5)), x)", "failed: InvalidArgument", id="running"
        ),
    ],
)
def test_what_a_mapping_raises_is_said_to_be_its_own(tmp_path, body, says):
    file = written(tmp_path, HEAD + AS + body + "\n")
    with pytest.raises(ConversionError, match=f"The mapping of .*snake.* in .*{says}|{says}"):
        plan_snake(file)


def test_a_wrong_mapping_is_found_by_the_proof(tmp_path):
    file = written(tmp_path, RIGHT.replace("ops.sin", "ops.cos"))
    with pytest.raises(AssertionError):
        plan_snake(file)


def test_files_of_the_users_own_named_like_ours(tmp_path):
    """`mappings.py` and a `converter.py` beside it; what lies beside the file can be imported."""
    folder = tmp_path / "theirs"
    written(folder, "raise RuntimeError('imported in place of ours')", "converter.py")
    written(folder, "rate = 2", "beside_my_mappings.py")
    file = written(folder, "import beside_my_mappings\n" + RIGHT, "mappings.py")
    assert SNAKE in load_mappings(file).records
    assert converter.__file__ != str(folder / "converter.py")


def source_of(module: nn.Module, file: Path) -> LoadedModel:
    program, added = captured(module, SEQUENCE), load_mappings(file)
    return LoadedModel(
        "snake", None, "module", module, program, [torch.randn(2, 3, 11)], set(), 0, [], (), mappings=added
    )


def test_onnx_without_a_translation_is_refused_by_name(tmp_path):
    source = source_of(Snake(), written(tmp_path, RIGHT))
    with pytest.raises(UnsupportedOperatorsError) as refused:
        build(source, "onnx", ArtifactOptions(), Clock(None))
    assert [row[:2] for row in refused.value.operators] == [(str(SNAKE), 1)]
    assert "@converter.registry.translates" in str(refused.value.fix)


@pytest.mark.slow
def test_onnx_with_a_translation(tmp_path):
    source = source_of(Snake(), written(tmp_path, TRANSLATED))
    build(source, "onnx", ArtifactOptions(), Clock(None)).write(tmp_path / "snake.onnx")
    assert (tmp_path / "snake.onnx").stat().st_size
    assert not mappings.load().having("translation")


@pytest.mark.slow
def test_artifact_is_verified_without_the_mappings(tmp_path):
    model, file = Snake().eval(), written(tmp_path, RIGHT)
    path = tmp_path / "snake.keras"
    report = converter.convert(model, to=["keras"], output=path, input_shapes=["1,3,11"], mappings=[file])
    assert report.status == "verified"
    again = converter.verify(model, path)
    assert again.status == "verified"
    assert any(note.code == "PTC6506" for note in again.notes)
    assert f"{SNAKE}: mapped by {file}." in map(str, report.notes)
    assert isinstance(keras.saving.load_model(path), keras.Model)
    rows = converter.inspect(model, input_shapes=["1,3,11"], mappings=[file]).rows
    assert rows[0].becomes == "snake"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a package that brings mappings; its module is `text`."""

    def install(name: str, text: str) -> Path:
        module = name.replace("-", "_")
        info = tmp_path / "installed" / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[pt_convert.mappings]\nsnake = {module}\n")
        monkeypatch.syspath_prepend(info.parent)
        monkeypatch.delitem(sys.modules, module, raising=False)
        return written(info.parent, text, f"{module}.py")

    return install


@pytest.mark.slow
def test_a_packages_mappings_are_in_force_and_in_the_stamp(tmp_path, package):
    file = package("snake-for-keras", RIGHT)
    model, path = Snake().eval(), tmp_path / "snake.keras"
    report = converter.convert(model, to="keras", output=path, input_shapes=["1,3,11"])
    assert report.status == "verified"
    assert f"{SNAKE}: mapped by the package snake-for-keras." in map(str, report.notes)
    stamp = read_stamp(path)
    assert stamp is not None
    assert stamp["options"]["mappings"] == [hashlib.sha256(file.read_bytes()).hexdigest()]
    again = converter.verify(model, path)
    assert [(proof.name, proof.holds) for proof in again.proofs] == [("artifact", True), ("weights", True)]
    assert not is_built_in(SNAKE)


@pytest.mark.slow
def test_a_package_is_used_from_a_folder_that_imports_pt_convert(package, repository: Path):
    """The current directory, which such a package may not come from, is where the built-in mappings come from."""
    folder = package(
        "snake-here", RIGHT.replace("torch.ops.tests_of_mappings.snake.default", "'no_library::snake'")
    ).parent
    code = "import converter.lowering.user_lowerings as u; added = u.load_mappings(); print(added.absent, added.broken)"
    environment = os.environ | {"PYTHONPATH": f"{repository}:{folder}"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True, text=True)
    assert ran.stdout == "frozenset({'no_library::snake'}) []\n", ran.stderr


def test_a_package_in_the_current_directory_is_not_installed(package, monkeypatch):
    monkeypatch.chdir(package("planted-snake", RIGHT).parent)
    assert not load_mappings().records
    assert "planted_snake" not in sys.modules


def test_what_a_packages_mapping_raises_names_the_package(package):
    package("failing-snake", HEAD + AS + "return plan.nothing(x)\n")
    with pytest.raises(ConversionError, match=r"The mapping of .*snake\.default in the package failing-snake failed"):
        assert_plan_is_exact(captured(Snake(), SEQUENCE), [SEQUENCE], added=load_mappings())


@pytest.mark.parametrize(
    "text, says",
    [
        pytest.param("import no_such_module\n", "ModuleNotFoundError", id="an import that fails"),
        pytest.param("x = 1\n", "does not register a mapping", id="a module without one"),
        pytest.param(HEAD + "maps('aten::relu')(print)", "already mapped", id="an operator that has a mapping"),
    ],
)
def test_a_broken_package_is_named_and_stops_only_models_that_need_it(tmp_path, package, text, says):
    package("broken-snake", text)
    path = tmp_path / "relu.keras"
    report = converter.convert(nn.ReLU(), to="keras", output=path, input_shapes=["1,3,11"], verify=False)
    (note,) = [note.text for note in report.notes if "broken-snake" in note.text]
    assert says in note
    with pytest.raises(UnsupportedOperatorsError) as refused:
        converter.convert(Snake().eval(), to="keras", output=path, input_shapes=["1,3,11"], force=True)
    assert "Update or uninstall the package broken-snake" in str(refused.value.fix)
    assert says in str(refused.value.fix)


def test_a_file_and_what_it_imports_may_be_called_like_modules_of_pt_convert(tmp_path):
    written(tmp_path, "NAME = 'of the user'\n", "cli.py")
    file = written(tmp_path, "import cli\nassert cli.NAME == 'of the user'\n" + RIGHT, "mappings.py")
    assert SNAKE in load_mappings(file).records
