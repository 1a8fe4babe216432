"""Every patch of another library: what it replaces, the versions that it is tested with, what is lost without it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from operator import attrgetter
from typing import Any

from converter.compat.replaced import replaced
from converter.errors import Note

TORCH = "2.13 to 2.15"
ONNXSCRIPT = "0.7"


@dataclass(frozen=True)
class Patch:
    """A name of a library that has another value within a context.

    Attributes:
        owner: the module that has the name; a class of it follows a colon.
        package: the distribution that brings it.
        versions: those of the package with which the patch is tested.
        effect: what the patch does.
        lost: what is lost where the library has no such name.
        required: nothing is done without it.
    """

    owner: str
    name: str
    package: str
    versions: str
    effect: str
    lost: str
    required: bool = False

    def __str__(self) -> str:
        return f"{self.owner.replace(':', '.')}.{self.name}"

    def find(self) -> tuple[Any, Any] | None:
        """Return the owner and its own value of the name, or None if this version of the library has none."""
        module, _, inner = self.owner.partition(":")
        try:
            owner = import_module(module)
            owner = attrgetter(inner)(owner) if inner else owner
            return owner, getattr(owner, self.name)
        except (ImportError, AttributeError):
            return None

    @contextlib.contextmanager
    def applied(self, make: Callable[[Any], Any]) -> Iterator[None]:
        """Give the name the value that `make` returns, given its own, if the library has the name.

        Raises:
            LookupError: it has not, and the patch is required.
        """
        found = self.find()
        if found is None and self.required:
            raise LookupError(_missing(self))
        with contextlib.nullcontext() if found is None else replaced(found[0], **{self.name: make(found[1])}):
            yield


RECURRENT_LAYERS = Patch(
    "torch.nn.modules.rnn", "_VF", "torch", TORCH,
    "Keeps recurrent layers whole while torch.export captures.",
    "Recurrent layers are captured step by step: slower, and for one length only.",
)  # fmt: skip
PACKED_SEQUENCES = {
    name: Patch(
        f"torch.nn.utils.rnn:{name}", "__code__", "torch", TORCH,
        "Captures packed sequences as padded ones with their lengths.",
        "Packed sequences are refused with PyTorch's own message.",
    )
    for name in ("pack_padded_sequence", "pad_packed_sequence")
}  # fmt: skip
LAYERS_OF_PACKED = tuple(
    Patch(
        f"torch.nn:{layer}", "forward", "torch", TORCH,
        "Stops a recurrent layer at each sequence's length.",
        "Packed sequences are refused.",
    )
    for layer in ("RNN", "LSTM", "GRU")
)  # fmt: skip
CAUSAL_MASKS = Patch(
    "torch.nn.modules.transformer", "_detect_is_causal_mask", "torch", TORCH,
    "Keeps transformers from reading a mask's values to see whether it is the causal one.",
    "Transformers whose mask is an input are refused.",
)  # fmt: skip
POOL_SIZES = Patch(
    "torch._meta_registrations", "pooling_output_shape_pad_lr", "torch", TORCH,
    "Computes the size of a pool that rounds up without restricting dynamic sizes.",
    "Dynamic sizes are restricted by pools that round up.",
)  # fmt: skip
SEQUENCE_POOLS = Patch(
    "torch", "max_pool1d", "torch", TORCH,
    "Pools sequences of dynamic length as images of one row.",
    "The length of a sequence under max_pool1d cannot be dynamic.",
)  # fmt: skip
PARTS, PARTS_OF_TENSORS, UNEVEN_PARTS, UNEVEN_PARTS_OF_TENSORS, PLACES, PLACES_OF_TENSORS = (
    Patch(
        owner, name, "torch", TORCH,
        f"Keeps a dynamic size in {name}.",
        f"What {name} reads cannot have a dynamic size.",
    )
    for name in ("chunk", "tensor_split", "take_along_dim")
    for owner in ("torch", "torch:Tensor")
)  # fmt: skip
EQUAL_PARTS = Patch(
    "torch:Tensor", "split", "torch", TORCH,
    "Keeps a dynamic size in parts by split(n), as far as they are not counted.",
    "What split(n) cuts cannot have a dynamic size.",
)  # fmt: skip
JOINED_PARTS = {
    name: Patch(
        "torch", name, "torch", TORCH,
        "Joins all parts of a dynamic size by split(n).",
        "Parts of a dynamic size by split(n) cannot be joined.",
    )
    for name in ("cat", "concat", "concatenate", "stack")
}  # fmt: skip
ADAPTIVE_MAXIMA = {
    rank: Patch(
        "torch.nn.functional", f"adaptive_max_pool{rank}d", "torch", TORCH,
        "Keeps a dynamic size under an adaptive pool to None.",
        "What adaptive maxima to None keep cannot have a dynamic size.",
    )
    for rank in (2, 3)
}  # fmt: skip
LINES = Patch(
    "torch", "linspace", "torch", TORCH,
    "Keeps a dynamic number of steps.",
    "The number of steps of linspace cannot be dynamic.",
)  # fmt: skip
QUOTIENTS = Patch(
    "torch.utils._sympy.functions:TruncToInt", "eval", "torch", TORCH,
    "Keeps int(4 * n / 4.0) the size n.",
    "Swin of its own repository is converted for one batch size only.",
)  # fmt: skip
QUOTIENTS_AND_REMAINDERS = Patch(
    "builtins", "divmod", "torch", TORCH,
    "Divides dynamic sizes.",
    "divmod of a dynamic size is refused.",
)  # fmt: skip
REMAINDERS = Patch(
    "math", "fmod", "torch", TORCH,
    "Divides dynamic sizes.",
    "math.fmod of a dynamic size is refused.",
)  # fmt: skip
NUMPY = tuple(
    Patch(
        "numpy", name, "torch", TORCH,
        "Keeps dynamic sizes in NumPy's functions of numbers.",
        "What NumPy rounds or compares cannot have a dynamic size.",
    )
    for name in ("ceil", "floor", "maximum")
)  # fmt: skip
SIZES_AS_UNKNOWN = Patch(
    "torch.fx.experimental._config", "backed_size_oblivious", "torch", TORCH,
    "Keeps strides from restricting dynamic sizes.",
    "Some models that pad to multiples are converted for multiples only.",
)  # fmt: skip
PADS = Patch(
    "torch.nn.functional", "pad", "torch", TORCH,
    "Drops pads of a whole period, where a model skips them at multiples.",
    "Models that pad only sizes that are not multiples may be converted for multiples only.",
)  # fmt: skip
STRUCTURES = Patch(
    "torch._export.serde.serialize", "treespec_loads", "torch", TORCH,
    "Reads the structure of a .pt2's inputs and outputs without the classes that it names, so that none is imported.",
    "Exported programs (.pt2) are refused.",
    required=True,
)  # fmt: skip
NUMBERS = tuple(
    Patch(
        f"torch:{kind}", name, "torch", TORCH,
        "Notes the line of forward that turns a size into a number.",
        "A note on a fixed batch does not name the line of forward that fixes it.",
    )
    for kind, name in (("SymInt", "__int__"), ("SymInt", "__index__"), ("SymBool", "__bool__"), ("SymFloat", "__int__"))
)  # fmt: skip
OPTIMIZER = Patch(
    "onnxscript.optimizer", "optimize_ir", "onnxscript", ONNXSCRIPT,
    "Records which constants the ONNX optimizer computes from weights.",
    "Weights that the ONNX optimizer folds are not traced to their sources, so proof 3 can fail.",
)  # fmt: skip
RULES = Patch(
    "onnxscript.rewriter", "_DEFAULT_REWRITE_RULES", "onnxscript", ONNXSCRIPT,
    "Keeps batch norms for pt-convert to fold, and drops only exact no-ops.",
    "The ONNX optimizer also drops products with 1 + 9e-6 and folds batch norms, which the proofs may not accept.",
)  # fmt: skip
NAMES = Patch(
    "onnx_ir.passes.common:NameFixPass", "call", "onnxscript", ONNXSCRIPT,
    "Renames tensors that have the name of an input or output.",
    "A model with a parameter that is named as an input cannot be exported to ONNX.",
)  # fmt: skip
TRITON = Patch(
    "sys", "meta_path", "torch", TORCH,
    "Refuses to import triton, which PyTorch brings, after TensorFlow, on Linux.",
    "A process that imports both ends with signal 6 or 11.",
)  # fmt: skip
PATCHES = (
    RECURRENT_LAYERS, *PACKED_SEQUENCES.values(), *LAYERS_OF_PACKED, CAUSAL_MASKS, POOL_SIZES, SEQUENCE_POOLS, PARTS,
    PARTS_OF_TENSORS, UNEVEN_PARTS, UNEVEN_PARTS_OF_TENSORS, EQUAL_PARTS, *JOINED_PARTS.values(), PLACES,
    PLACES_OF_TENSORS, *ADAPTIVE_MAXIMA.values(), LINES, QUOTIENTS, QUOTIENTS_AND_REMAINDERS, REMAINDERS, *NUMPY,
    SIZES_AS_UNKNOWN, PADS, STRUCTURES, *NUMBERS, OPTIMIZER, RULES, NAMES, TRITON,
)  # fmt: skip


def lost_patches(package: str) -> list[Note]:
    """Return a note for each patch of a package that the installed version does not have the name for."""
    missing = [patch for patch in PATCHES if patch.package == package and patch.find() is None]
    return [Note(_missing(patch), code="PTC2513") for patch in missing]


def _missing(patch: Patch) -> str:
    return f"{patch.package} {version(patch.package)} has no {patch}, which pt-convert replaces. {patch.lost}"
