"""The table of mappings: one function per ATen operator, keyed by the operator itself."""

from collections.abc import Callable

from torch._ops import OpOverload

Mapping = Callable[..., object]
MAPPINGS: dict[OpOverload, Mapping] = {}
CHANNELS_LAST: set[OpOverload] = set()
PRODUCERS: dict[OpOverload, int] = {}
FACTORS: dict[OpOverload, Callable[..., tuple[int, ...]]] = {}
DECOMPOSITIONS: dict[OpOverload, Callable[..., object]] = {}
TRANSLATIONS: dict[OpOverload, Callable[..., object]] = {}  # to ONNX
OWNERS: dict[OpOverload, str] = {}  # the file of a mapping that is the user's


def maps(
    *targets: OpOverload,
    channels_last: bool = False,
    produces: int | None = None,
    factors: Callable[..., tuple[int, ...]] | None = None,
) -> Callable[[Mapping], Mapping]:
    """Register the decorated function as the Keras translation of `targets`.

    It is called as `function(plan, *args, **kwargs)` with the operator's own arguments, so its parameters follow the
    ATen schema, defaults included; a tensor arrives as a `Value` or, where known at conversion, a `Constant`. It
    returns the result as a `Value` (a list of them for several).

    Args:
        channels_last: the operator asks for channels last, which decides the layout of graph inputs before it and of
            graph outputs behind it.
        produces: the dimension of its result whose order it leaves to the plan (`Plan.produced`).
        factors: into which sizes the operator cuts its channels, of their number and its other arguments; for one whose
            result's shape does not show it.

    Raises:
        ValueError: an operator is registered twice.
    """

    def register(function: Mapping) -> Mapping:
        for target in targets:
            if target in MAPPINGS:
                raise ValueError(f"{target} is already mapped by {getattr(MAPPINGS[target], '__qualname__', '?')}")
            MAPPINGS[target] = function
            if channels_last:
                CHANNELS_LAST.add(target)
            if produces is not None:
                PRODUCERS[target] = produces
            if factors is not None:
                FACTORS[target] = factors
        return function

    return register


def decomposes(*targets: OpOverload) -> Callable[[Mapping], Mapping]:
    """Register the decorated function as what `targets` are in terms of other operators of PyTorch.

    It is for operators that PyTorch itself does not decompose, or into what has no mapping, and is called as
    `function(node, *args, **kwargs)` with the operator's own arguments, tensors without values; `node` is None where
    another operator was decomposed to this one. It returns what the operator does, or NotImplemented; None in a tuple
    stands for a result that it does not compute, which nobody may take then.

    Raises:
        ValueError: an operator is registered twice.
    """

    def register(function: Mapping) -> Mapping:
        for target in targets:
            if target in DECOMPOSITIONS:
                raise ValueError(f"{target} is already decomposed by {DECOMPOSITIONS[target].__qualname__}")
            DECOMPOSITIONS[target] = function
        return function

    return register


def translates(*targets: OpOverload) -> Callable[[Mapping], Mapping]:
    """Register the decorated function as the ONNX translation of `targets`.

    It is what `torch.onnx.export` takes in its `custom_translation_table`: a function of onnxscript's operators whose
    parameters are those of the operator's schema.

    Raises:
        ValueError: an operator is registered twice.
    """

    def register(function: Mapping) -> Mapping:
        for target in targets:
            if target in TRANSLATIONS:
                raise ValueError(
                    f"{target} is already translated by {getattr(TRANSLATIONS[target], '__qualname__', '?')}"
                )
            TRANSLATIONS[target] = function
        return function

    return register
