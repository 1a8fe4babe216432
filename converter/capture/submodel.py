"""A submodel as a model of its own: a submodule, or the part that leads to modules' outputs; and renaming."""

from __future__ import annotations

import difflib
import inspect
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_unflatten

from converter.capture.dataclass_outputs import return_dicts_for_dataclasses
from converter.capture.dynamic_shapes import names_of
from converter.capture.example_inputs import CallSpec, set_positional_forward
from converter.capture.import_exported import name_outputs
from converter.capture.input_shapes import FreeSize, InputShape
from converter.errors import CaptureError, UsageError
from converter.ir.program import Program
from converter.options import SubmodelOptions

VALID = r"[A-Za-z][A-Za-z0-9_]*"
SHOWN = 10
Runs = Callable[[list[Tensor]], Any]


def extract_submodel(
    module: nn.Module,
    calling: CallSpec,
    part: SubmodelOptions,
    runs: Callable[[nn.Module, list[Tensor]], Any],
    batch: int | None,
    seed: int,
) -> tuple[nn.Module, CallSpec]:
    """Return the module to convert, and how it is called; `module` is changed.

    Args:
        runs: calls a module with inputs; raises CaptureError if it fails.

    Raises:
        UsageError: a path does not exist, or is outside of the submodule.
        CaptureError: forward does not call a module.
    """
    outputs = part.outputs
    whole = module
    paths = {path for path, _ in whole.named_modules(remove_duplicate=False) if path}
    if part.submodule is not None:
        module, calling = _submodule(whole, calling, part.submodule, lambda given: runs(whole, given), batch, seed)
        prefix = f"{part.submodule}."
        for path in outputs:
            if path in paths and not path.startswith(prefix):
                raise UsageError(
                    f"Module `{path}` is not inside `{part.submodule}`.",
                    code="PTC2027",
                    where="--outputs",
                    fix="Write paths from the root of the whole model.",
                )
        outputs = tuple(path.removeprefix(prefix) if path in paths else path for path in outputs)
        paths = {path for path, _ in module.named_modules(remove_duplicate=False) if path}
    if not paths.issuperset(outputs):
        _select(module, outputs, paths, lambda: runs(module, calling.examples(batch, seed)))
    elif outputs:
        _stop_at(module, outputs, lambda: runs(module, calling.examples(batch, seed)))
    return module, calling


def rename(program: Program, part: SubmodelOptions) -> None:
    """Give inputs and outputs the requested names.

    Raises:
        UsageError: a name does not exist, is not valid in all formats, or is taken.
    """
    program.inputs = _renamed(program.inputs, part.input_names, "--input-name")
    program.outputs = _renamed(program.outputs, part.output_names, "--output-name")
    if part.input_names or part.output_names:
        every = [*program.inputs, *program.outputs]
        twice = sorted({name for name in every if every.count(name) > 1})
        if twice:
            raise UsageError(
                f"Two inputs or outputs would be named {', '.join(f'`{name}`' for name in twice)}.",
                code="PTC2028",
                where="--input-name" if part.input_names else "--output-name",
                fix="Give each its own name.",
            )


def select_outputs(program: Program, wanted: Sequence[str]) -> None:
    """Keep the outputs of these names, in this order, and what they need.

    Raises:
        UsageError: a name does not exist.
    """
    results = dict(zip(program.outputs, program.results, strict=True))
    for name in wanted:
        if name not in results:
            raise _no_output(name, results, "The program")
    program.graph.output_node().args = (tuple(results[name] for name in wanted),)
    program.outputs = list(wanted)
    program.cleanup()


def _renamed(names: Sequence[str], pairs: Sequence[str], where: str) -> list[str]:
    renamed = list(names)
    for pair in pairs:
        old, _, new = (piece.strip() for piece in pair.partition("="))
        if old not in names:
            raise UsageError(
                f"`{old}` cannot be renamed: the names are {', '.join(f'`{name}`' for name in names)}.",
                code="PTC2029",
                where=f"{where} {pair}",
                fix="Write OLD=NEW.",
            )
        if sum(other.partition("=")[0].strip() == old for other in pairs) > 1:
            raise UsageError(
                f"`{old}` is renamed twice.", code="PTC2030", where=f"{where} {pair}", fix="Give it one name."
            )
        if not re.fullmatch(VALID, new, re.ASCII):
            raise UsageError(
                f"`{new}` is not a valid name in all formats.",
                code="PTC2031",
                where=f"{where} {pair}",
                fix="Use a letter, then letters, digits and _.",
            )
        renamed[list(names).index(old)] = new
    return renamed


def _found(module: nn.Module, path: str, where: str) -> nn.Module:
    modules = dict(module.named_modules(remove_duplicate=False))
    if path in modules and path:
        return modules[path]
    named = [name for name in modules if name]
    near = difflib.get_close_matches(path, named, n=3, cutoff=0.4) or named[:5]
    raise UsageError(
        f"The model does not have a module `{path}`.",
        code="PTC2032",
        where=where,
        fix=f"Did you mean {' or '.join(near)}? `convert inspect` lists all modules."
        if near
        else ("The model does not have any modules."),
    )


def _no_output(name: str, outputs: Iterable[str], whole: str, modules: Iterable[str] = ()) -> UsageError:
    held = list(outputs)
    near = difflib.get_close_matches(name, [*held, *modules], n=3, cutoff=0.4) or held[:SHOWN]
    kinds = "a module or an output" if modules else "an output"
    return UsageError(
        f"{whole} does not have {kinds} `{name}`.",
        code="PTC2043",
        where="--outputs",
        fix=f"Did you mean {' or '.join(near)}? `convert inspect` lists them.",
    )


def _not_called(path: str, where: str) -> CaptureError:
    return CaptureError(
        f"Forward does not call the module `{path}`.",
        code="PTC2033",
        where=where,
        fix="Name a module that it calls; `convert inspect` lists them.",
    )


# -- outputs


class _StopForward(BaseException):
    """Stops forward once all outputs are there; not an Exception, so that the model's own code does not catch it."""


def _stop_at(module: nn.Module, paths: Sequence[str], run: Callable[[], None]) -> None:
    parts = {path: _found(module, path, "--outputs") for path in paths}
    calls = dict.fromkeys(paths, 0)

    def counts(path: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[path] += 1

        return count

    hooks = [part.register_forward_hook(counts(path)) for path, part in parts.items()]
    try:
        run()
    except CaptureError:
        if not all(calls.values()):  # a failure after the last of them does not matter
            raise
    finally:
        for hook in hooks:
            hook.remove()
    for path, count in calls.items():
        if not count:
            raise _not_called(path, "--outputs")
    forward = module.forward
    names = _output_names(paths)

    def stopping(*inputs: Tensor) -> dict[str, Any]:
        results: dict[str, list[Any]] = {path: [] for path in paths}

        def keeps(path: str) -> Callable[..., None]:
            def keep(_: nn.Module, __: Any, result: Any) -> None:
                results[path].append(result)
                if all(len(results[other]) >= calls[other] for other in paths):
                    raise _StopForward

            return keep

        held = [part.register_forward_hook(keeps(path)) for path, part in parts.items()]
        try:
            forward(*inputs)
        except _StopForward as enough:
            _leave_modules(enough.__traceback__)
        finally:
            for hook in held:
                hook.remove()
        return {names[path]: found[0] if len(found) == 1 else found for path, found in results.items()}

    stopping.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    module.forward = stopping


def _select(module: nn.Module, wanted: Sequence[str], paths: Collection[str], run: Callable[[], Any]) -> None:
    """Make `module` return the outputs of these names, and of modules at these paths, in this order."""
    return_dicts_for_dataclasses(module, run())
    modules = {path: module.get_submodule(path) for path in wanted if path in paths}
    forward = module.forward

    def every(*inputs: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        results: dict[str, list[Any]] = {path: [] for path in modules}

        def keeps(path: str) -> Callable[..., None]:
            return lambda _, __, result: results[path].append(result)

        hooks = [part.register_forward_hook(keeps(path)) for path, part in modules.items()]
        try:
            outputs = name_outputs(forward(*inputs))
        finally:
            for hook in hooks:
                hook.remove()
        return outputs, {path: found[0] if len(found) == 1 else found for path, found in results.items()}

    def selecting(*inputs: Tensor) -> dict[str, Any]:
        outputs, results = every(*inputs)
        return {name: results[path] if path in results else outputs[path] for path, name in names.items()}

    first: list[dict[str, Any]] = []
    module.forward = lambda *inputs: first.extend(every(*inputs))
    run()
    outputs, results = first
    tensors = [name for name, value in outputs.items() if isinstance(value, Tensor)]
    for name in wanted:
        if name in paths and isinstance(results[name], list) and not results[name]:
            raise _not_called(name, "--outputs")
        if name not in paths and name not in tensors:
            raise _no_output(name, tensors, "The model", paths)
    names = {name: name for name in wanted} | _output_names(modules, [name for name in wanted if name not in paths])
    selecting.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    module.forward = selecting


def _leave_modules(trace: TracebackType | None) -> None:
    """Pop modules from the stack of torch.export's tracer, which does not notice when an exception leaves them."""
    for frame, _ in traceback.walk_tb(trace):
        tracer = frame.f_locals.get("self")
        if isinstance(tracer, fx.Tracer) and "module_key" in frame.f_locals:
            tracer.module_stack.pop(frame.f_locals["module_key"], None)


def _output_names(paths: Iterable[str], taken: Sequence[str] = ()) -> dict[str, str]:
    names: dict[str, str] = {}
    for path in paths:
        name = re.sub(r"[^A-Za-z0-9_]", "_", path)
        name = name if re.fullmatch(VALID, name) else f"output_{name.strip('_')}"
        while name in (*names.values(), *taken):
            name += "_"
        names[path] = name
    return names


# -- submodules


def _submodule(
    module: nn.Module, calling: CallSpec, path: str, run: Runs, batch: int | None, seed: int
) -> tuple[nn.Module, CallSpec]:
    part = _found(module, path, "--submodule")
    sizes = dict(calling.sizes or {})

    def given_at(values: Mapping[str, int]) -> tuple[tuple, dict[str, Any]]:
        held: list[tuple[tuple, dict[str, Any]]] = []

        def keep(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            held.append((args, kwargs))
            raise _StopForward

        hook = part.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            run(replace(calling, sizes=values).examples(batch, seed))
        except _StopForward:
            pass
        finally:
            hook.remove()
        if not held:
            raise _not_called(path, "--submodule")
        return held[0]

    args, kwargs = given_at(sizes)
    leaves, spec = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if not places:
        raise CaptureError(
            f"The module `{path}` is called without a tensor.",
            code="PTC2034",
            where="--submodule",
            fix="Name a module that takes tensors.",
        )
    tensors = [leaves[i] for i in places]
    free, inner = _free_within(path, tensors, sizes, given_at)
    names = _input_names(part, args, kwargs)
    shapes = tuple(
        InputShape(
            name,
            tuple(held.get(d, n) for d, n in enumerate(x.shape)),
            "float32" if x.is_floating_point() else str(x.dtype).removeprefix("torch."),
        )
        for name, x, held in zip(names, tensors, free, strict=True)
    )
    if not (kwargs == {} and len(places) == len(args) and all(isinstance(arg, Tensor) for arg in args)):
        forward = part.forward

        def whole(*inputs: Tensor) -> Any:
            filled = list(leaves)
            for place, x in zip(places, inputs, strict=True):
                filled[place] = x
            positional, named = tree_unflatten(filled, spec)
            return forward(*positional, **named)

        set_positional_forward(part, names, whole)
    return part, CallSpec(shapes, (), inner)


def _free_within(
    path: str, tensors: Sequence[Tensor], sizes: Mapping[str, int], given_at: Callable[..., Any]
) -> tuple[list[dict[int, FreeSize]], dict[str, int]]:
    """Find the sizes of a submodule's inputs that follow from the model's dynamic sizes, by running it at others."""
    free: list[dict[int, FreeSize]] = [{} for _ in tensors]
    inner: dict[str, int] = {}
    for name, size in sizes.items():
        leaves, _ = tree_flatten(given_at({**sizes, name: 2 * size}))
        others = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        pairs = zip(tensors, others, strict=True)
        changed = {
            (i, d): (n, m)
            for i, (x, y) in enumerate(pairs)
            for d, (n, m) in enumerate(zip(x.shape, y.shape, strict=True))
            if d and n != m
        }
        if not changed:
            continue
        least, doubled = min(changed.values())
        for (i, d), (n, m) in changed.items():
            if n % least or m % doubled or n // least != m // doubled or d in free[i]:
                raise CaptureError(
                    f"The input sizes of `{path}` are not whole multiples of {name}.",
                    code="PTC2035",
                    where="--submodule",
                    fix=f"Give a number in place of {name} in --input-shape.",
                )
            free[i][d] = FreeSize(name, n // least)
        inner[name] = least
    assert set(inner) >= set(names_of(free))
    return free, inner


def _input_names(part: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> list[str]:
    """Name inputs by the parameters of forward, plus positions and keys where a parameter holds several tensors."""
    try:
        given = dict(inspect.signature(part.forward).bind(*args, **kwargs).arguments)
    except TypeError:
        given = {"input": args, **kwargs}
    names: list[str] = []
    for leaf_path, leaf in tree_flatten_with_path(given)[0]:
        if isinstance(leaf, Tensor):
            keys = (str(getattr(key, "key", getattr(key, "idx", key))) for key in leaf_path)
            name = "_".join(re.sub(r"[^A-Za-z0-9_]", "", key) for key in keys)
            name = name if re.fullmatch(VALID, name) else f"input_{name}"
            while name in names:
                name += "_"
            names.append(name)
    return names
