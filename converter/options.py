"""Every option, once.

Each field below carries its flag, help text, default and parser. The options of the command line and their help, the
keys of a manifest, the keywords of the Python API, the options in an artifact's stamp, and docs/OPTIONS.md are made
from these fields. To add an option, add a field here and use it where it acts.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cache, partial, wraps
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    ParamSpec,
    Self,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from converter.errors import ConversionError, Note, NoteCode, UsageError

if TYPE_CHECKING:
    import numpy as np

Group = Literal["Model", "Inputs", "Output", "Verification", "Advanced"]
Layout = Literal["auto", "nhwc", "nchw"]
Fit = Literal["stretch", "crop", "pad"]
Order = Literal["rgb", "bgr"]
Quantize = Literal["float16", "dynamic", "int8", "int16x8"]
InputType = Literal["float32", "uint8"]
Appended = Literal["softmax", "sigmoid", "argmax"]
ExplanationKind = Literal["softmax", "sigmoid", "boxes", "output-order", "input-order", "layout"]
AcceptedKind = Literal["aliased-shift", ExplanationKind]
Names = Sequence[str] | Mapping[str, str]
OneShape = str | Sequence[int | str] | Any  # or an example tensor
Shapes = OneShape | Sequence[OneShape] | Mapping[str, OneShape]
Examples = str | Path | Any | Sequence[Any] | Mapping[str, Any] | None  # Any: tensors and arrays
FLAG = re.compile(r"(?<![\w-])(?:--[a-z][a-z-]*|-o\b)")
T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Flag:
    """How an option is given on the command line and in a manifest.

    Attributes:
        name: with its dashes; a manifest's key is the name without them. `--no-NAME` is for a default of True.
        metavar: how the help shows the value.
        minimum: the smallest number that is allowed.
        parse: turns the command line's text into the value; raises ValueError with what to give instead.
        is_path: the value names files; in a manifest they are relative to it.
        completes: what the shell completes: "factory" or "package".
        default: how the help shows the default, where its text is not its value.
        hidden: the help does not list it.
        takes: turns what the Python API is given into the value.
    """

    name: str
    group: Group
    help: str
    metavar: str | None = None
    minimum: float | None = None
    parse: Callable[[str], Any] | None = None
    is_path: bool = False
    completes: Literal["factory", "package"] | None = None
    default: str | None = None
    hidden: bool = False
    takes: Callable[[Any], Any] | None = None

    @property
    def key(self) -> str:
        """The key in a manifest."""
        return self.name.removeprefix("--no-").removeprefix("--")


def option(name: str, group: Group, help: str, value: Any = None, **settings: Any) -> Any:
    """Declare a field with its flag; `value` is its default."""
    return field(default=value, metadata={"flag": Flag(name, group, help, **settings)})


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError."""
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise ValueError(f"this is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ValueError('give an object of keyword arguments, such as {"num_classes": 10}')
    return parsed


def numbers(text: str) -> tuple[float, ...]:
    """Read numbers that commas separate. Raises ValueError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError("give numbers separated by commas, such as 0.485,0.456,0.406") from error


def takes_model(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that takes a model take it as `model=` too; beside a model, `model=` is what builds it.

    An error that names options of the command line gets a note with their keywords.
    """

    @wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            if "model" in keywords and not arguments:
                return function(keywords.pop("model"), **keywords)  # type: ignore[arg-type]
            return function(*arguments, **keywords)
        except ConversionError as error:
            _note_keywords(error)
            raise

    return call


def _note_keywords(error: ConversionError) -> None:
    """Say which keywords are the options that an error names; a traceback shows it, the command line does not."""
    text = " ".join(filter(None, (error.what, error.where, error.fix)))
    known = {"--to": "to", "-o": "output", "--output": "output", "--model": "model"}
    for kind in (ConvertOptions, VerifyOptions, IntoOptions, PullOptions, SyncOptions):
        for keyword, _, one in options_of(kind):
            known.setdefault(one.metadata["flag"].name, keyword)
    named = [flag for flag in dict.fromkeys(FLAG.findall(text)) if flag in known]
    if named and not getattr(error, "__notes__", ()):
        error.add_note(f"In Python, {', '.join(f'{flag} is {known[flag]}=' for flag in named)}.")


def shape_texts(given: Any) -> tuple[str, ...]:
    """Return shapes as `--input-shape` has them.

    Args:
        given: a text, a sequence of sizes, an example tensor; several of these in a list or tuple, or by their inputs'
            names in a mapping.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(given, Mapping):
        if given and all(isinstance(one, int) for one in given.values()):
            sizes = tuple(given.values())
            raise TypeError(f"input_shapes maps inputs' names to shapes, not {list(given)} to sizes; write {sizes}")
        return tuple(f"{name}={_shape_text(one)}" for name, one in given.items())
    if isinstance(given, Sequence) and not isinstance(given, str) and not any(isinstance(one, int) for one in given):
        return tuple(map(_shape_text, given))
    return (_shape_text(given),)


def with_example_shapes(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords with the shapes of example tensors, if tensors of PyTorch are given and no shapes."""
    given = keywords.get("inputs")
    held = given.values() if isinstance(given, Mapping) else given if isinstance(given, tuple | list) else [given]
    shaped = keywords.get("input_shapes") or keywords.get("image_size")
    if shaped or given is None or not all(hasattr(one, "detach") for one in held):
        return dict(keywords)
    return {**keywords, "input_shapes": shape_texts(given)}


def _shape_text(one: Any) -> str:
    if isinstance(one, str):
        return one
    if hasattr(one, "shape") and hasattr(one, "dtype"):
        return f"{','.join(map(str, one.shape))}:{str(one.dtype).removeprefix('torch.')}"
    if isinstance(one, Sequence) and all(isinstance(size, int | str) and not isinstance(size, bool) for size in one):
        return ",".join(map(str, one))
    if isinstance(one, Sequence):
        wrong = next(size for size in one if not isinstance(size, int | str) or isinstance(size, bool))
        raise TypeError(f"input_shapes has {one!r:.80}, in which {wrong!r} is neither an integer nor a name of a size")
    raise TypeError(
        f"input_shapes takes '1,3,224,224', (1, 3, 224, 224), an example tensor, a list of these, or a mapping from "
        f"inputs' names to these, not {one!r:.80}; a name in place of a number makes a size dynamic: (1, 3, 'H', 'W')"
    )


def example_arrays(given: Any) -> Any:
    """Return tensors as arrays by name, or by their position where they have none; a path as it is."""
    if given is None or isinstance(given, str | Path):
        return given
    if isinstance(given, Mapping):
        return {name: _array(name, one) for name, one in given.items()}
    several = given if isinstance(given, tuple | list) else (given,)
    return {str(number): _array("inputs", one) for number, one in enumerate(several)}


def _array(name: str, one: Any) -> Any:
    if not hasattr(one, "shape"):
        raise TypeError(f"{name} takes a path, tensors or arrays, or a mapping of them by name, not {one!r:.80}")
    return one.detach().cpu().numpy() if hasattr(one, "detach") else one


@dataclass(frozen=True)
class ModelOptions:
    """What the checkpoint holds, and what of it may run.

    Attributes:
        factory: what builds a state dict's architecture: `package.module:name`, `file.py:name`, `timm:NAME`,
            `torchvision:NAME` or `hf:FOLDER`; in Python also the class or function. `model` is another name of it.
        factory_args: keyword arguments of the factory.
        drop_keys: glob patterns of keys of the state dict to leave out, by their names in the file or without a
            wrapper's prefix.
        state: the entry of a checkpoint with several models, or the prefix of the keys of one set of weights.
        trust: packages and Python files whose classes may be unpickled.
    """

    factory: str | Callable[..., Any] | None = option(
        "--model", "Model", "What builds a state dict's architecture: package.module:factory, file.py:factory, "
        "timm:NAME, torchvision:NAME or hf:FOLDER.", metavar="WHERE:FACTORY", completes="factory",
    )  # fmt: skip
    factory_args: Mapping[str, Any] | None = option(
        "--model-args",
        "Model",
        "Keyword arguments of the factory, as a JSON object.",
        metavar="JSON",
        parse=json_object,
    )
    drop_keys: tuple[str, ...] = option(
        "--drop-keys", "Model", "Leave out keys of the state dict that match, such as 'head.*'; repeatable.", (),
        metavar="PATTERN",
    )  # fmt: skip
    state: str | None = option(
        "--state", "Model", "The part of a file with several models or sets of weights: an entry, or a prefix of keys.",
        metavar="KEY",
    )  # fmt: skip
    trust: tuple[str, ...] = option(
        "--trust", "Model", "Allow classes of this package to be unpickled; repeatable.", (), metavar="PACKAGE",
        completes="package",
    )  # fmt: skip


@dataclass(frozen=True)
class SubmodelOptions:
    """Which part of the model is converted, and what its inputs and outputs are called.

    Attributes:
        outputs: names of the model's outputs to keep, and paths of modules whose outputs become the model's. What is
            both is the module.
        submodule: path of the module that is converted in place of the whole model.
        all_outputs: a model of ultralytics keeps the outputs that its own exporter leaves out.
        input_names, output_names: `OLD=NEW` each; the API takes a mapping too.
    """

    outputs: tuple[str, ...] = option(
        "--outputs", "Output", "Keep only this output, or that of this module; repeatable.", (),
        metavar="NAME|MODULE.PATH",
    )  # fmt: skip
    submodule: str | None = option(
        "--submodule", "Model", "Convert this module only; input shapes are the whole model's.", metavar="MODULE.PATH"
    )
    input_names: tuple[str, ...] = option(
        "--input-name", "Inputs", "Rename an input; repeatable.", (), metavar="OLD=NEW"
    )
    output_names: tuple[str, ...] = option(
        "--output-name", "Output", "Rename an output; repeatable.", (), metavar="OLD=NEW"
    )

    all_outputs: bool = option(
        "--all-outputs", "Output", "Keep every output of an ultralytics model; by default it has those that "
        "ultralytics' own exporter writes.", False,
    )  # fmt: skip


@dataclass(frozen=True)
class Preprocessing:
    """How the pixels of an image file become an input: value = (pixel x scale - mean) / std, channels first.

    Attributes:
        fit: to the input's height and width. "stretch"; "crop" the middle after the shorter side was resized; "pad"
            with gray after the longer side was. Always bilinear, antialiased, as Pillow does it.
        scale: of pixels, which are 0 to 255.
        mean, std: one number, or one for each channel in the order of `order`.
        order: of the three channels. An input of one channel gets gray, one of four also the opacity.

    Raises:
        UsageError: a value cannot be.

    Examples:
        >>> str(Preprocessing.parse("imagenet fit=crop"))
        'crop, rgb, (pixel x 0.00392157 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]'
    """

    fit: Fit = "stretch"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: Order = "rgb"

    def __post_init__(self) -> None:
        if self.fit not in get_args(Fit) or self.order not in get_args(Order):
            raise UsageError(
                f"Unknown image preprocessing: {self.fit}, {self.order}.",
                code="PTC6024",
                fix="Set fit to stretch, crop or pad, and order to rgb or bgr.",
            )
        if not all(map(math.isfinite, [self.scale, *self.mean, *self.std])) or 0 in (self.scale, *self.std):
            raise UsageError(
                "Scale, mean and std must be finite numbers, and scale and std must not be 0.",
                code="PTC6025",
                fix="Give numbers, as in --preprocessing 'mean=0.485,0.456,0.406 std=0.229,0.224,0.225'.",
                where="preprocessing of images",
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `imagenet`, or `KEY=VALUE` of the attributes, separated by blanks; later ones replace earlier ones.

        Raises ValueError with what to give instead.
        """
        given: dict[str, Any] = {}
        for word in text.split():
            key, equals, value = word.partition("=")
            if word in PRESETS:
                given |= PRESETS[word]
            elif key in ("mean", "std") and equals:
                given[key] = numbers(value)
            elif key == "scale" and equals:
                above, _, below = value.partition("/")
                given[key] = numbers(above)[0] / (numbers(below or "1")[0] or math.nan)
            elif key in ("fit", "order") and equals:
                given[key] = value
            else:
                known = f"{', '.join(PRESETS)}, or mean=, std=, scale=, order=, fit="
                raise ValueError(f"{word!r} is unknown: give {known}")
        return cls(**given)

    @property
    def text(self) -> str:
        """What `parse` reads as the same."""
        mean, std = (",".join(map(repr, values)) for values in (self.mean, self.std))
        return f"fit={self.fit} scale={self.scale!r} mean={mean} std={std} order={self.order}"

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{self.fit}, {self.order}, (pixel x {self.scale:g} - [{mean}]) / [{std}]"


def is_folder(given: Any) -> bool:
    return isinstance(given, str | Path) and Path(given).is_dir()


PRESETS: dict[str, dict[str, Any]] = {"imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}}


@dataclass(frozen=True)
class BoundaryOptions:
    """What an artifact does before and after the model: pixels in, probabilities or a class out.

    Attributes:
        preprocessing: of images, in a folder of `inputs` or `calibrate`, and within the artifact if it is embedded.
        embed_preprocessing: the artifact takes pixels, 0 to 255, and does all of it but for `fit`.
        input_type: of pixels that the artifact takes.
        append: what is computed of the only output, along its classes, which are dimension 1.

    Raises:
        UsageError: `preprocessing` cannot be read, or there are no pixels.
    """

    preprocessing: Preprocessing | str | None = option(
        "--preprocessing", "Inputs", "Of images: imagenet, or mean=, std=, scale=, order=, fit= as in "
        "'mean=127.5 std=127.5 scale=1'.", metavar="SPEC",
    )  # fmt: skip
    embed_preprocessing: bool = option(
        "--embed-preprocessing", "Inputs", "The artifact takes pixels, 0 to 255, and preprocesses them itself.", False
    )
    input_type: InputType = option(
        "--input-type", "Inputs", "Type of the pixels with --embed-preprocessing.", "float32"
    )
    append: Appended | None = option("--append", "Output", "Compute this of the only output, along its classes.")

    def __post_init__(self) -> None:
        if isinstance(self.preprocessing, str):
            try:
                object.__setattr__(self, "preprocessing", Preprocessing.parse(self.preprocessing))
            except ValueError as error:
                raise UsageError(
                    f"The preprocessing cannot be read: {error}.",
                    code="PTC6062",
                    where="--preprocessing",
                    fix="Give it as in --preprocessing 'imagenet fit=crop'.",
                ) from error
        if self.input_type != "float32" and not self.embed_preprocessing:
            raise UsageError(
                "Only an artifact that preprocesses takes pixels.",
                code="PTC6063",
                where="--input-type",
                fix="Add --embed-preprocessing, or give the type with the shape: --input-shape 1,3,224,224:uint8.",
            )

    def of(self, inputs: Any) -> Preprocessing | None:
        """Return the preprocessing of the user's inputs: where it is embedded, only the fit of images is left to do."""
        given = self.preprocessing
        assert not isinstance(given, str)
        if not self.embed_preprocessing:
            return given
        if not is_folder(inputs):
            return None
        return Preprocessing(fit="stretch" if given is None else given.fit, scale=1.0)

    def stamped(self) -> dict[str, Any]:
        """Return what an artifact's stamp says of it."""
        said: dict[str, Any] = {}
        if (embedded := self.embedded) is not None:
            said |= {"preprocessing": embedded.text, "embed_preprocessing": True, "input_type": self.input_type}
        return said | ({} if self.append is None else {"append": self.append})

    @property
    def embedded(self) -> Preprocessing | None:
        """What the artifact does with pixels."""
        assert not isinstance(self.preprocessing, str)
        return self.preprocessing or Preprocessing() if self.embed_preprocessing else None


@dataclass(frozen=True)
class CaptureOptions:
    """How the model is called while it is captured.

    Attributes:
        input_shapes: `[NAME=]1,3,224,224[:DTYPE]` for each input, batch first; a name in place of a number (`1,3,H,W`)
            makes that size dynamic. A size called `batch` is the batch wherever it stands (`7,batch,5`), and numbers
            are then fixed. Without any, the module's own hints are used.
        input_values: `NAME=VALUE` of parameters of forward that are not tensors; VALUE is JSON, or a text.
        image_size: `HEIGHT[,WIDTH]` of the only input, in place of `input_shapes`.
        freeze_control_flow: keep the branches that random inputs take; other inputs must take the same ones.
        strict: capture through Python bytecode, which torch.export calls strict, and in no other way.
        accept: kinds of known differences that a user accepts. "aliased-shift": take an assignment that reads elements
            which it writes as if it read a copy. The others are differences of an artifact, for `verify` only.
        seed: of the random inputs.
        debug: check the program's invariants after capture and after each rewrite.
    """

    input_shapes: tuple[str, ...] = option(
        "--input-shape", "Inputs", "Shape of an input, batch first, or where a size is called batch; repeat for each "
        "input.", (),
        metavar="[NAME=]1,3,640,640[:DTYPE]", takes=shape_texts,
    )  # fmt: skip
    input_values: tuple[str, ...] = option(
        "--input-value", "Inputs", "Fix a parameter of forward that is not a tensor, as in sr=16000; repeatable.", (),
        metavar="NAME=VALUE",
    )  # fmt: skip
    image_size: str | None = option(
        "--image-size", "Inputs", "Height and width of the only input, in place of --input-shape; its channels are "
        "those of the first convolution.", metavar="H[,W]",
    )  # fmt: skip
    freeze_control_flow: bool = option(
        "--freeze-control-flow", "Advanced", "Freeze data-dependent branches as taken on random inputs; checked on "
        "further inputs.", False,
    )  # fmt: skip
    strict: bool = option(
        "--strict", "Advanced", "Capture through Python bytecode, which torch.export calls strict.", False
    )
    accept: tuple[AcceptedKind, ...] = option(
        "--accept", "Verification", "Accept this known difference; repeatable. aliased-shift: an assignment that reads "
        "what it writes reads the old values. The others are for `verify`.", (),
    )  # fmt: skip
    seed: int = option("--seed", "Advanced", "Seed of the random inputs.", 0, metavar="N", minimum=0)
    debug: bool = option(
        "--debug", "Advanced", "Check the program's invariants after capture and after each rewrite; an error names "
        "the rewrite, to report. With -v or --log-file, print the plan.", False, hidden=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if unknown := set(self.accept) - set(get_args(AcceptedKind)):
            raise UsageError(
                f"Unknown difference: {', '.join(sorted(unknown))}.",
                code="PTC6033",
                where="--accept",
                fix=f"Choose from {', '.join(get_args(AcceptedKind))}.",
            )

    @property
    def reads_old_values(self) -> bool:
        """Whether assignments that read elements which they write read the old values."""
        return "aliased-shift" in self.accept


@dataclass(frozen=True)
class ArtifactOptions:
    """What decides the bytes of an artifact, besides the model.

    Attributes:
        layout: of inputs and outputs of Keras and TensorFlow artifacts.
        exact_shifts: treat a grid_sample at whole-pixel offsets as the shift that it is but for rounding.
        exact_infinities: treat infinities in inputs as PyTorch does where zero weights multiply them, which makes NaN.
        mappings: Python files that register mappings of the user's; in a stamp, the SHA-256 of each.
        labels: names of the classes, or the file that lists them; not in a stamp.

    Raises:
        UsageError: the file of labels cannot be read.
    """

    layout: Layout = option(
        "--layout", "Output", "Layout of inputs and outputs of Keras and TensorFlow artifacts.", "auto"
    )
    fixed_batch: int | None = option(
        "--fixed-batch", "Inputs", "Write a model for this batch size only.", metavar="N", minimum=1
    )
    dynamic_batch: bool = option(
        "--dynamic-batch", "Inputs", "Write a LiteRT file for any batch size; the default is 1, as devices take it.",
        False,
    )  # fmt: skip
    keep_batchnorm: bool = option(
        "--keep-batchnorm", "Advanced", "Do not fold batch normalization into convolutions.", False
    )
    freeze: bool = option(
        "--freeze", "Output", "Write a SavedModel's weights as constants, a few percent faster at batch 1; at most "
        "2 GB of weights.", False,
    )  # fmt: skip
    opset: int | None = option("--opset", "Output", "ONNX opset.", metavar="N", minimum=1)
    exact_shifts: bool = option(
        "--exact-shifts", "Advanced", "Treat grid_sample at whole-pixel offsets as an exact shift.", False
    )
    focus_as_convolution: bool = option(
        "--focus-as-convolution", "Advanced", "In PyTorch modules, write a Focus and the convolution behind it as one "
        "convolution with a stride.", False,
    )  # fmt: skip
    exact_infinities: bool = option(
        "--exact-infinities", "Advanced", "Keep operators whose zero weights turn an infinite input into NaN, instead "
        "of the shifts that they are for finite inputs.", False,
    )  # fmt: skip
    mappings: tuple[str | Path, ...] = option(
        "--mappings", "Advanced", "Python file with your own mappings for operators; repeatable.", (),
        metavar="FILE.py", is_path=True,
    )  # fmt: skip
    labels: str | Path | tuple[str, ...] | None = option(
        "--labels", "Output", "Names of the classes, one a line, for the metadata of a LiteRT file; by default those "
        "that the model has.", metavar="FILE", is_path=True, takes=lambda given: given,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if isinstance(self.labels, str | Path):
            try:
                lines = Path(self.labels).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(
                    f"The names of the classes cannot be read: {error}.",
                    code="PTC6098",
                    where="--labels",
                    fix="Give a text file in UTF-8 with one name a line.",
                ) from error
            object.__setattr__(self, "labels", tuple(line.strip() for line in lines if line.strip()))
        elif self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))


@dataclass(frozen=True)
class ComparisonOptions:
    """What outputs are compared on, and how closely.

    Attributes:
        atol, rtol: replace the bound that is derived from PyTorch's own rounding.
        inputs: compare on these too: a tensor or array, several in their order, or by name; an `.npz` of them (with
            labels for accuracy), the `.npy` of the only input, or a folder of images for it.
    """

    atol: float | None = option(
        "--atol", "Verification", "Absolute tolerance, in place of the derived one.", metavar="X", minimum=0
    )
    rtol: float | None = option(
        "--rtol", "Verification", "Relative tolerance, in place of the derived one.", metavar="X", minimum=0
    )
    inputs: str | Path | Mapping[str, np.ndarray] | None = option(
        "--inputs", "Verification", "Compare on these inputs too: an .npz (with labels for accuracy), an .npy, or a "
        "folder of images.", metavar="PATH", is_path=True, takes=example_arrays,
    )  # fmt: skip


@dataclass(frozen=True)
class ProofOptions(ComparisonOptions):
    """How an artifact is compared.

    Attributes:
        trace: report what every module computes on both sides.
        min_sqnr, min_accuracy: what a quantized file must reach: signal to noise of each output in dB, and the share
            of labels that it gets right.
    """

    trace: bool = option("--trace", "Verification", "Show for every module what it computes on both sides.", False)
    min_sqnr: float | None = option(
        "--min-sqnr", "Verification", "The least signal to noise of a quantized file's outputs.", metavar="DB"
    )
    min_accuracy: float | None = option(
        "--min-accuracy", "Verification", "The least share of labels in --inputs that a quantized file gets right.",
        metavar="SHARE", minimum=0,
    )  # fmt: skip


@dataclass(frozen=True)
class QuantizationOptions:
    """How the weights, and the values between operators, of a LiteRT file are stored.

    Attributes:
        quantize: "float16" halves the weights; "dynamic" stores them in 8 bits, for each output channel, and the
            runtime quantizes what they are multiplied with; "int8" and "int16x8" also fix 8 or 16 bits for all values,
            by the extremes that `calibrate` gives.
        calibrate: what `inputs` takes.
        quantize_io: inputs and outputs are integers too.
        keep_float: paths of modules whose operators stay floats.

    Raises:
        UsageError: they do not fit together.
    """

    quantize: Quantize | None = option(
        "--quantize", "Output", "Quantize the LiteRT file, once its floats are verified; int8 and int16x8 need "
        "--calibrate.",
    )  # fmt: skip
    calibrate: str | Path | Mapping[str, np.ndarray] | None = option(
        "--calibrate", "Output", "Typical inputs, whose extremes fix the ranges: as --inputs takes them.",
        metavar="PATH", is_path=True, takes=example_arrays,
    )  # fmt: skip
    quantize_io: bool = option("--quantize-io", "Output", "Inputs and outputs are integers too, not floats.", False)
    keep_float: tuple[str, ...] = option(
        "--keep-float", "Output", "Do not quantize this module; repeatable.", (), metavar="MODULE.PATH"
    )

    def __post_init__(self) -> None:
        static, where = self.quantize in ("int8", "int16x8"), "--quantize"
        if self.quantize is not None and self.quantize not in get_args(Quantize):
            raise UsageError(
                f"Unknown quantization: {self.quantize}.",
                code="PTC6054",
                where=where,
                fix=f"Choose from {', '.join(get_args(Quantize))}.",
            )
        if static and self.calibrate is None:
            raise UsageError(
                f"{self.quantize} needs typical inputs, whose extremes fix the ranges of all values.",
                code="PTC6055",
                where=where,
                fix="Give some, as in --calibrate images/, or use --quantize dynamic, which needs none.",
            )
        if self.calibrate is not None and not static:
            raise UsageError(
                "Only int8 and int16x8 are calibrated.",
                code="PTC6056",
                where="--calibrate",
                fix="Leave it out, or give --quantize int8.",
            )
        if self.quantize_io and not static:
            raise UsageError(
                "Only int8 and int16x8 files have integer inputs and outputs.",
                code="PTC6057",
                where="--quantize-io",
                fix="Leave it out, or give --quantize int8.",
            )
        if self.keep_float and self.quantize is None:
            raise UsageError(
                "Nothing is quantized.",
                code="PTC6058",
                where="--keep-float",
                fix="Leave it out, or give --quantize int8.",
            )


@dataclass(frozen=True)
class ReplaceOptions:
    """Over what is written."""

    force: bool = option("--force", "Output", "Replace what is in the way, even if pt-convert did not write it.", False)


@dataclass(frozen=True)
class PlaceOptions(ReplaceOptions):
    """What is put in place, and over what."""

    keep_failed: bool = option(
        "--keep-failed", "Verification", "Keep an artifact that is not verified, under another name.", False
    )


@dataclass(frozen=True)
class WriteOptions(PlaceOptions):
    """What is written, and over what."""

    verify: bool = option("--no-verify", "Verification", "Write without proof; the report says so.", True)


@dataclass(frozen=True)
class BuildOptions:
    """How a hand-written Keras model is built.

    Attributes:
        build_args: keyword arguments of the function that builds it.
    """

    build_args: Mapping[str, Any] | None = option(
        "--build-args", "Model", "Keyword arguments of the function that builds the Keras model, as a JSON object.",
        metavar="JSON", parse=json_object,
    )  # fmt: skip


@dataclass(frozen=True)
class MatchOptions:
    """How `verify` reads an artifact.

    Attributes:
        signature: of a SavedModel or a TFLite file that has several.
        weights: only find every tensor of the checkpoint in the artifact, by content; nothing runs.
    """

    signature: str | None = option(
        "--signature", "Model", "Signature of a SavedModel or TFLite file that has several.", metavar="NAME"
    )
    weights: bool = option(
        "--weights", "Verification", "Only find every tensor in the artifact, by its content; run nothing.", False
    )


@dataclass(frozen=True)
class ReportOptions:
    """What a report leaves out.

    Attributes:
        silence: codes of notes.

    Raises:
        UsageError: a code is not that of a note.
    """

    silence: tuple[NoteCode, ...] = option(
        "--silence", "Output", "Leave out notes with this code; repeatable.", (), metavar="PTC0123"
    )

    def __post_init__(self) -> None:
        if unknown := set(self.silence) - set(get_args(NoteCode)):
            raise UsageError(
                f"Not the code of a note: {', '.join(sorted(unknown))}.",
                code="PTC6039",
                where="--silence",
                fix="Give a code that the report shows beside a note. docs/ERRORS.md lists them all.",
            )

    def shown(self, notes: Iterable[Note]) -> tuple[Note, ...]:
        """Return the notes that are not silenced, each once."""
        return tuple(dict.fromkeys(note for note in notes if note.code not in self.silence))


@dataclass(frozen=True)
class LoadOptions:
    """Options of everything that loads and captures a model."""

    model: ModelOptions = ModelOptions()
    submodel: SubmodelOptions = SubmodelOptions()
    boundary: BoundaryOptions = BoundaryOptions()
    capture: CaptureOptions = CaptureOptions()
    report: ReportOptions = ReportOptions()

    @classmethod
    def of(cls, **keywords: Any) -> Self:
        """Collect keywords as the API takes them. Raises TypeError for a keyword that is not an option."""
        return _from_keywords(cls, keywords)


@dataclass(frozen=True)
class InspectOptions(LoadOptions):
    """Options of `inspect`, and of checks whether a model can be converted.

    Raises:
        UsageError: a difference is accepted that only an artifact can have.
    """

    artifact: ArtifactOptions = ArtifactOptions()

    def __post_init__(self) -> None:
        if others := sorted({*self.capture.accept} - {"aliased-shift"}):
            raise UsageError(
                f"Only `verify` accepts a difference of this kind: {', '.join(others)}.",
                code="PTC6041",
                where="--accept",
                fix="Leave it out, or give it to `verify`.",
            )


@dataclass(frozen=True)
class ConvertOptions(InspectOptions):
    """Options of `convert`."""

    proof: ProofOptions = ProofOptions()
    quantization: QuantizationOptions = QuantizationOptions()
    write: WriteOptions = WriteOptions()


@dataclass(frozen=True)
class VerifyOptions(LoadOptions):
    """Options of `verify`."""

    proof: ProofOptions = ProofOptions()
    match: MatchOptions = MatchOptions()


@dataclass(frozen=True)
class IntoOptions(LoadOptions):
    """Options of `into`."""

    build: BuildOptions = BuildOptions()
    proof: ComparisonOptions = ComparisonOptions()
    write: PlaceOptions = PlaceOptions()


@dataclass(frozen=True)
class SyncOptions:
    """Options of `sync`."""

    model: ModelOptions = ModelOptions()
    write: ReplaceOptions = ReplaceOptions()
    report: ReportOptions = ReportOptions()

    @classmethod
    def of(cls, **keywords: Any) -> Self:
        """Collect keywords as the API takes them. Raises TypeError for a keyword that is not an option."""
        return _from_keywords(cls, keywords)


@dataclass(frozen=True)
class PullOptions(InspectOptions):
    """Options of `pull`."""

    proof: ProofOptions = ProofOptions()
    write: ReplaceOptions = ReplaceOptions()


@cache
def options_of(kind: type) -> tuple[tuple[str, Any, Field[Any]], ...]:
    """List the options in a class and its parts: the API's keyword, the type, and the field."""
    return tuple(_options_of(kind))


def _options_of(kind: type) -> Iterator[tuple[str, Any, Field[Any]]]:
    hints = get_type_hints(kind, {**globals(), "np": _Arrays})
    for one in fields(kind):
        if "flag" in one.metadata:
            yield one.name, hints[one.name], one
        else:
            yield from _options_of(hints[one.name])


class _Arrays:
    """Stands for numpy, which type hints name and nothing here needs."""

    ndarray = Any


def _from_keywords(kind: type[T], keywords: Mapping[str, Any]) -> T:
    known = {name for name, *_ in options_of(kind)}  # type: ignore[arg-type]  # mypy: type[T] is not Hashable
    if "model" in keywords:
        keywords = {"factory": keywords["model"]} | {name: keywords[name] for name in keywords if name != "model"}
    if unknown := sorted(set(keywords) - known):
        near = [meant[0] for name in unknown if (meant := difflib.get_close_matches(name, known, n=1))]
        hint = f", did you mean {', '.join(near)}?" if near else ""
        raise TypeError(f"unknown option {', '.join(unknown)}{hint}; the options are {', '.join(sorted(known))}")
    made: T = _collect(kind, keywords)
    return made


def _collect(kind: type, keywords: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind, {**globals(), "np": _Arrays})
    held: dict[str, Any] = {}
    for one in fields(kind):
        if "flag" not in one.metadata:
            held[one.name] = _collect(hints[one.name], keywords)
        elif one.name in keywords and (keywords[one.name] is not None or one.default is None):
            takes = one.metadata["flag"].takes or partial(_plain, one.name, hints[one.name])
            held[one.name] = takes(keywords[one.name])
    return kind(**held)


def _plain(name: str, hint: Any, value: Any) -> Any:
    """Return a value as the field holds it: a tuple for what can be repeated, `OLD=NEW` for mappings of names.

    Raises:
        TypeError: the option does not take the type.
        UsageError: the option has no such choice.
    """
    if get_origin(hint) is not tuple:
        members = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
        if choices and value is not None and value not in choices:
            raise UsageError(
                f"{name} cannot be {value!r}.", code="PTC6095", fix=f"Choose from {', '.join(map(repr, choices))}."
            )
        if bool in members and not isinstance(value, bool):
            raise TypeError(f"{name} takes True or False, not {value!r}")
        if {int, float} & set(members) and (isinstance(value, bool) or not isinstance(value, int | float | None)):
            raise TypeError(f"{name} takes a number, not {value!r}")
        return value
    if isinstance(value, Mapping):
        return tuple(f"{old}={new}" for old, new in value.items())
    return (value,) if isinstance(value, str | Path) else tuple(value)


_JSON: dict[Any, type | tuple[type, ...]] = {
    tuple: list, Mapping: dict, Literal: str, str: str, bool: bool, int: int, float: (int, float),
}  # fmt: skip


def json_type(hint: Any) -> type | tuple[type, ...]:
    """Return the type that an option has in JSON and TOML."""
    members = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)  # a Literal makes the latter
    return next(_JSON[kind] for member in members if (kind := get_origin(member) or member) in _JSON)


class ModelKeywords(TypedDict, total=False):
    """The keywords of `ModelOptions`, and the codes of notes to leave out."""

    factory: str | Callable[..., Any] | None
    factory_args: Mapping[str, Any] | None
    drop_keys: Sequence[str]
    state: str | None
    trust: Sequence[str]
    silence: Sequence[str]


class SyncKeywords(ModelKeywords, total=False):
    """The keywords of `SyncOptions`."""

    force: bool


class LoadKeywords(ModelKeywords, total=False):
    """The keywords of `LoadOptions`."""

    outputs: Sequence[str]
    submodule: str | None
    input_names: Names
    output_names: Names
    all_outputs: bool
    preprocessing: Preprocessing | str | None
    embed_preprocessing: bool
    input_type: str
    append: str | None
    input_shapes: Shapes
    input_values: Names
    image_size: str | None
    freeze_control_flow: bool
    strict: bool
    accept: Sequence[str]
    seed: int
    debug: bool


class InspectKeywords(LoadKeywords, total=False):
    """The keywords of `InspectOptions`."""

    layout: str
    fixed_batch: int | None
    dynamic_batch: bool
    keep_batchnorm: bool
    freeze: bool
    opset: int | None
    exact_shifts: bool
    focus_as_convolution: bool
    exact_infinities: bool
    mappings: Sequence[str | Path] | str | Path
    labels: str | Path | Sequence[str] | None


class ComparisonKeywords(TypedDict, total=False):
    """The keywords of `ComparisonOptions`."""

    atol: float | None
    rtol: float | None
    inputs: Examples


class ProofKeywords(ComparisonKeywords, total=False):
    """The keywords of `ProofOptions`."""

    trace: bool
    min_sqnr: float | None
    min_accuracy: float | None


class ConvertKeywords(InspectKeywords, ProofKeywords, total=False):
    """The keywords of `ConvertOptions`."""

    quantize: str | None
    calibrate: Examples
    quantize_io: bool
    keep_float: Sequence[str]
    verify: bool
    keep_failed: bool
    force: bool


class PullKeywords(InspectKeywords, ProofKeywords, total=False):
    """The keywords of `PullOptions`."""

    force: bool


class VerifyKeywords(LoadKeywords, ProofKeywords, total=False):
    """The keywords of `VerifyOptions`."""

    signature: str | None
    weights: bool


class IntoKeywords(LoadKeywords, ComparisonKeywords, total=False):
    """The keywords of `IntoOptions`."""

    build_args: Mapping[str, Any] | None
    keep_failed: bool
    force: bool


class ConvertCall(ConvertKeywords, total=False):
    """The keywords of `convert`; `model` is `factory`."""

    model: str | Callable[..., Any] | None


class InspectCall(InspectKeywords, total=False):
    """The keywords of `inspect`; `model` is `factory`."""

    model: str | Callable[..., Any] | None


class VerifyCall(VerifyKeywords, total=False):
    """The keywords of `verify`; `model` is `factory`."""

    model: str | Callable[..., Any] | None


def to_json(value: Any) -> Any:
    """Return an option's value in its JSON form."""
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value
