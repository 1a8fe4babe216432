"""Every option stands once, in `converter/options.py`; what is made from it agrees with it."""

import shlex
import sys
from pathlib import Path

import click
import pytest

import cli
from converter.batch.jobs import OPTIONS
from converter.options import (
    ConvertKeywords,
    ConvertOptions,
    InspectKeywords,
    InspectOptions,
    LoadKeywords,
    LoadOptions,
    Preprocessing,
    PullKeywords,
    PullOptions,
    SyncKeywords,
    SyncOptions,
    VerifyKeywords,
    VerifyOptions,
    options_of,
)

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs/generate"))

import options as page  # noqa: E402  # found by the line above

KEYWORDS = {
    LoadOptions: LoadKeywords,
    InspectOptions: InspectKeywords,
    ConvertOptions: ConvertKeywords,
    PullOptions: PullKeywords,
    SyncOptions: SyncKeywords,
    VerifyOptions: VerifyKeywords,
}


@pytest.mark.parametrize("kind", KEYWORDS)
def test_keywords_of_the_api_are_the_options(kind):
    assert set(KEYWORDS[kind].__annotations__) == {name for name, *_ in options_of(kind)}


@pytest.mark.parametrize(
    "command, kind",
    [
        ("convert", ConvertOptions),
        ("verify", VerifyOptions),
        ("inspect", InspectOptions),
        ("sync", SyncOptions),
        ("pull", PullOptions),
    ],
)
def test_a_command_that_says_nothing_has_the_defaults_of_the_api(command, kind):
    said = cli.main.commands[command].make_context(command, [], resilient_parsing=True).params
    keywords = {name for name, *_ in options_of(kind)}
    assert keywords <= set(said)
    assert kind.of(**{name: said[name] for name in keywords}) == kind()


def test_manifests_take_what_the_command_takes():
    params = {param.name: param for param in cli.main.commands["batch"].params}
    assert {keyword for keyword, _ in OPTIONS.values()} <= set(params)
    for key, (keyword, _) in OPTIONS.items():
        assert params[keyword].opts[0] in (f"--{key}", f"--no-{key}")


def test_keywords_take_single_values_and_mappings():
    options = ConvertOptions.of(
        input_shapes="1,3,4", outputs="body.2", input_names={"x": "image"}, preprocessing="mean=0.5"
    )
    assert options.capture.input_shapes == ("1,3,4",)
    assert options.submodel.outputs == ("body.2",)
    assert options.submodel.input_names == ("x=image",)
    assert options.boundary.preprocessing == Preprocessing(mean=(0.5,))
    assert ConvertOptions.of(preprocessing=None).boundary.preprocessing is None


def test_a_keyword_that_is_no_option_is_named():
    with pytest.raises(
        TypeError, match=r"unknown option input_shape, did you mean input_shapes\?; the options are .*input_shapes"
    ):
        ConvertOptions.of(input_shape="1,3,4")


def test_page_of_options_is_that_of_the_commands():
    assert page.PAGE.read_text(encoding="utf-8") == page.document(), "run: python docs/generate/options.py"


@pytest.mark.parametrize("typed", ["convert", "pt-convert"])
@pytest.mark.parametrize("name", [None, *cli.main.commands])
@pytest.mark.parametrize("width", [80, 200])
def test_help_ends_with_two_calls_that_can_be_parsed(name, typed, width):
    command = cli.main if name is None else cli.main.commands[name]
    with click.Context(cli.main, info_name=typed, terminal_width=width) as root:
        context = root if name is None else click.Context(command, parent=root, info_name=name, terminal_width=width)
        lines = command.get_help(context).rstrip().splitlines()
    assert max(map(len, lines)) <= width
    start = lines.index("Examples:")
    calls = [shlex.split(line) for line in lines[start + 1 :]]
    assert [call[0] for call in calls] == [typed, typed]
    for _, *arguments in calls:
        known = arguments[0] if arguments[0] in cli.main.commands else "convert"
        rest = arguments[1:] if arguments[0] in cli.main.commands else arguments
        assert name in (None, known)
        cli.main.commands[known].make_context(known, rest)
