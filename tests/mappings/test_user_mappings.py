"""A user's own mappings, from a file: in force for one conversion, alone, and blamed for what they raise."""

import textwrap
from pathlib import Path

import keras
import pytest
import torch
from equivalence import assert_plan_is_exact, captured
from torch import nn

import converter
from converter.errors import ConversionError, UnsupportedOperatorsError, UsageError
from converter.lowering.planner import make_plan
from converter.lowering.user_lowerings import user_mappings
from converter.options import ArtifactOptions
from converter.pipeline.build import build
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import LoadedModel
from converter.plan.registry import ABSENT, DECOMPOSITIONS, MAPPINGS, OWNERS, TRANSLATIONS

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


def test_a_mapping_is_in_force_for_its_conversion_only(tmp_path):
    program = captured(Snake(), SEQUENCE)
    for _ in range(2):
        with user_mappings(written(tmp_path, RIGHT)):
            plan = assert_plan_is_exact(program, [SEQUENCE])
            assert not plan.movements
        assert SNAKE not in MAPPINGS
        assert SNAKE not in OWNERS
    with pytest.raises(UnsupportedOperatorsError) as refused:
        make_plan(program)
    assert "--mappings" in str(refused.value.fix)


def test_an_operator_is_written_out_in_others_for_its_conversion_only(tmp_path):
    as_others = HEAD.replace("maps", "decomposes") + textwrap.dedent("""
        @decomposes(torch.ops.tests_of_mappings.snake.default)
        def snake(node, x, rate):
            return x + torch.sin(rate * x) ** 2 / rate
        """)
    for _ in range(2):
        with user_mappings(written(tmp_path, as_others)):
            assert not assert_plan_is_exact(captured(Snake(), SEQUENCE), [SEQUENCE]).movements
        assert SNAKE not in DECOMPOSITIONS
    with pytest.raises(UnsupportedOperatorsError):
        make_plan(captured(Snake(), SEQUENCE))


@pytest.mark.parametrize(
    "text, error, says",
    [
        pytest.param("x = 1\n", UsageError, "registers no mapping", id="a file without one"),
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
    before = dict(MAPPINGS)
    with pytest.raises(error, match=says), user_mappings(written(tmp_path, text)):
        pass
    assert before == MAPPINGS


def test_operators_may_be_named_and_those_that_this_pytorch_lacks_are_recorded(tmp_path):
    names = '"tests_of_mappings::snake", "tests_of_mappings::no_such", "no_library::no_such.overload"'
    text = RIGHT.replace("torch.ops.tests_of_mappings.snake.default", names, 1)
    with user_mappings(written(tmp_path, text)):
        assert_plan_is_exact(captured(Snake(), SEQUENCE), [SEQUENCE])
        assert {"tests_of_mappings::no_such", "no_library::no_such.overload"} <= ABSENT
    assert SNAKE not in MAPPINGS
    assert "tests_of_mappings::no_such" not in ABSENT


def test_second_try_after_a_failed_one_registers_what_modules_beside_the_file_do(tmp_path):
    written(tmp_path, RIGHT, "tried_twice.py")
    file = written(tmp_path, "import tried_twice\nimport no_such_module\n")
    for _ in range(2):
        with pytest.raises(ConversionError, match="no_such_module"), user_mappings(file):
            pass
    written(tmp_path, "import tried_twice\n")
    with user_mappings(file):
        assert_plan_is_exact(captured(Snake(), SEQUENCE), [SEQUENCE])


def test_file_that_is_not_there():
    with pytest.raises(UsageError, match="there is no file"), user_mappings("nowhere.py"):
        pass


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
    with user_mappings(file), pytest.raises(ConversionError, match=f"the mapping of .*snake.* in .*{says}|{says}"):
        assert_plan_is_exact(captured(Snake(), SEQUENCE), [SEQUENCE])


def test_a_wrong_mapping_is_found_by_the_proof(tmp_path):
    file = written(tmp_path, RIGHT.replace("ops.sin", "ops.cos"))
    with user_mappings(file), pytest.raises(AssertionError):
        assert_plan_is_exact(captured(Snake(), SEQUENCE), [SEQUENCE])


def test_files_of_the_users_own_named_like_ours(tmp_path):
    """`mappings.py` and a `converter.py` beside it; what lies beside the file can be imported."""
    folder = tmp_path / "theirs"
    written(folder, "raise RuntimeError('imported in place of ours')", "converter.py")
    written(folder, "rate = 2", "beside_my_mappings.py")
    file = written(folder, "import beside_my_mappings\n" + RIGHT, "mappings.py")
    with user_mappings(file):
        assert SNAKE in MAPPINGS
    assert converter.__file__ != str(folder / "converter.py")


def source_of(module: nn.Module) -> LoadedModel:
    program = captured(module, SEQUENCE)
    return LoadedModel("snake", None, "module", module, program, [torch.randn(2, 3, 11)], set(), 0, [], ())


def test_onnx_without_a_translation_is_refused_by_name(tmp_path):
    source = source_of(Snake())
    with user_mappings(written(tmp_path, RIGHT)), pytest.raises(UnsupportedOperatorsError) as refused:
        build(source, "onnx", ArtifactOptions(), Clock(None))
    assert [row[:2] for row in refused.value.operators] == [(str(SNAKE), 1)]
    assert "@converter.registry.translates" in str(refused.value.fix)


def test_onnx_with_a_translation(tmp_path):
    source = source_of(Snake())
    with user_mappings(written(tmp_path, TRANSLATED)):
        build(source, "onnx", ArtifactOptions(), Clock(None)).write(tmp_path / "snake.onnx")
    assert (tmp_path / "snake.onnx").stat().st_size
    assert not TRANSLATIONS


def test_artifact_is_verified_without_the_mappings(tmp_path):
    model, file = Snake().eval(), written(tmp_path, RIGHT)
    path = tmp_path / "snake.keras"
    report = converter.convert(model, to=["keras"], output=path, input_shapes=["1,3,11"], mappings=[file])
    assert report.status == "verified"
    again = converter.verify(model, path)
    assert again.status == "verified"
    assert any("mappings of your own" in note for note in again.notes)
    assert isinstance(keras.saving.load_model(path), keras.Model)
    rows = converter.inspect(model, input_shapes=["1,3,11"], mappings=[file]).rows
    assert rows[0].becomes == "snake"
