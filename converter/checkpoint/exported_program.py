"""Open a `.pt2` after checking that everything in it is data.

PyTorch's loader unpickles whatever an archive marks as pickled (and falls back to the unrestricted unpickler for its
sample inputs), takes any attribute of `torch` as an operator, passes expressions to sympy's evaluator, imports what
the tree specifications name, and pastes names into the Python source of the graph. So every record, name, operator and
expression is checked first, and anything unknown is refused. Classes in the structure of inputs and outputs are never
looked up: their recorded fields become dictionaries.
"""

import io
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import load_pt2

from converter.checkpoint.file_format import archive_names, torch_records
from converter.checkpoint.pickle_allowlist import installed_module
from converter.checkpoint.symbolic_expressions import is_size_expression
from converter.checkpoint.trust import NotFoundError
from converter.compat.patches import STRUCTURES
from converter.errors import CheckpointError, Note

TRUST_KEYWORD = "pt2"  # --trust pt2
LARGEST_JSON = 1 << 29

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OPTIONAL_IDENTIFIER = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)?")
# Text pasted between quotes, or read as a path of attributes, must not end the quotes.
QUOTABLE = re.compile(r"[^\"'\\{}\x00-\x1f\x7f]*")

RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id|"
    r"\.format_version|\.storage_alignment|models/model\.json|data/sample_inputs/model\.pt|"
    r"data/weights/(weight_\d+|model_weights_config\.json)|"
    r"data/constants/(tensor_\d+|model_constants_config\.json)|extra/.*"
)
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.[a-z_][A-Za-z0-9_]*\.[A-Za-z0-9_]+|"
    r"torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|associative_scan|wrap_with_set_grad_enabled|"
    r"wrap_with_autocast|invoke_subgraph|strict_mode|hints_wrapper)|"
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|abs|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|not_|getitem)|"
    r"math\.(trunc|ceil|floor|sqrt)|"
    r"torch\._?sym_(int|float|not|ite|max|min|sqrt|sum)"
)
FILE_OPERATORS = ("torch.ops.aten.from_file.", "torch.ops.aten.save.")
CONTAINERS = {
    *(None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"),
    *("torch.fx.immutable_collections.immutable_list", "torch.fx.immutable_collections.immutable_dict"),
}
CUSTOM_OBJECTS = {"as_custom_obj", "custom_obj", "custom_obj_name", "class_fqn", "custom_obj_values"}
NAMED_BY = {"tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "custom_obj_values"}
# Operators outside of torch's core, and the module that registers them.
OPERATOR_LIBRARIES = {"torchvision": "torchvision.ops", "quantized_decomposed": "torch.ao.quantization.fx._decomposed"}
PROGRAM = "models/model.json"
QUOTED_KEYS = {"range_constraints", "opset_version", "metadata", "treespec_namedtuple_fields", "as_string_to_argument"}


def _matches(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: pattern.fullmatch(text) is not None


def _is_operator(text: str) -> bool:
    return OPERATORS.fullmatch(text) is not None and not text.startswith(FILE_OPERATORS)


def _is_module_path(text: str) -> bool:
    return QUOTABLE.fullmatch(text) is not None and not re.search(r"(^|\.)__\w+__(\.|$)", text)


def _anything(_: str) -> bool:
    return True


# The fields of torch's schema that hold text; a field that is not here is refused.
TEXTS: dict[str, Callable[[str], bool]] = {
    "expr_str": is_size_expression,
    "target": _is_operator,
    "as_operator": _is_operator,
    "name": _matches(OPTIONAL_IDENTIFIER),
    "as_name": _matches(IDENTIFIER),
    "user_input_name": _matches(IDENTIFIER),
    "forward_arg_names": _matches(IDENTIFIER),
    "parameter_name": _is_module_path,
    "buffer_name": _is_module_path,
    "tensor_constant_name": _is_module_path,
    "fqn": _is_module_path,
    "field_names": _matches(QUOTABLE),
    "as_string": _matches(QUOTABLE),
    "as_strings": _matches(QUOTABLE),
    "type": _matches(IDENTIFIER),
    "verifiers": _matches(OPTIONAL_IDENTIFIER),
    "torch_version": _matches(QUOTABLE),
    "path_name": _matches(re.compile(r"(weight|tensor)_\d+")),
    "as_float": _matches(re.compile(r"-?Infinity|NaN")),
    "real": _matches(re.compile(r"-?Infinity|NaN")),
    "imag": _matches(re.compile(r"-?Infinity|NaN")),
    "as_floats": _matches(re.compile(r"-?Infinity|NaN")),
    "guards_code": _anything,  # dropped after loading, before anything could compile it
}


def load_exported(path: Path, *, trusted: bool) -> tuple[ExportedProgram, list[Note]]:
    """Return the program in a `.pt2` of torch.export.save, and notes.

    Args:
        trusted: load whatever it holds, as the user requested with `--trust pt2`.

    Raises:
        CheckpointError: the archive is damaged, of another version, or holds anything that could run code.
    """
    reader = torch_records(path, archive_names(path)) if trusted else check_archive(path)
    content = _json(path, reader, PROGRAM)
    _register_operators(path, content)
    try:
        with path.open("rb") as file, _plain_structures(content):
            # torch.export.load calls this too, but after an error it would try the file as an older format.
            program = load_pt2(file).exported_programs["model"]
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        fix = "Export it on the CPU with the PyTorch that is installed here, and save it again with torch.export.save."
        raise CheckpointError(
            f"PyTorch cannot load the exported program: {reason}", code="PTC1001", where=str(path), fix=fix
        ) from error
    if trusted:
        return program, []
    # Source text that ExportedProgram.module() would compile. The shapes it guards are checked where the model runs.
    program._guards_code = []
    return program, []


def _register_operators(path: Path, program: Any) -> None:
    """Import the installed libraries whose operators the program uses; reading it needs their schemas.

    Raises:
        CheckpointError: such a library is not installed, or cannot be imported.
    """
    operators = {text for text in _texts(program) if text.startswith("torch.ops.")}
    for namespace, library in OPERATOR_LIBRARIES.items():
        if not any(operator.startswith(f"torch.ops.{namespace}.") for operator in operators):
            continue
        try:
            installed_module(library)
        except NotFoundError as error:
            what = f"The exported program uses operators of {namespace}, which cannot be imported: {error}"
            fix = f"Install a {namespace} that matches torch {torch.__version__}."
            raise CheckpointError(what, code="PTC1002", where=str(path), fix=fix) from error


def _texts(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        match pending.pop():
            case dict() as table:
                pending += table.values()
            case list() as items:
                pending += items
            case str(text):
                yield text


def _plain_structures(program: Any) -> AbstractContextManager[None]:
    """Give PyTorch's loader the structures of inputs and outputs without classes, so that it imports none."""
    namedtuples = _namedtuples(program)

    def reading(loads: Callable[[str], Any]) -> Callable[[str], Any]:
        return lambda text: loads(json.dumps(_plain_structure(text, namedtuples)))

    return STRUCTURES.applied(reading)


def _namedtuples(program: Any) -> dict[str, list[str]]:
    """Return the fields of each named tuple, by its recorded name."""
    table = program["graph_module"].get("treespec_namedtuple_fields") or {}
    return {name: list(entry["field_names"]) for name, entry in table.items()}


def _plain_structure(text: str, namedtuples: dict[str, list[str]]) -> list[Any]:
    """Return the protocol's version and the tree, with other classes replaced by dictionaries of their recorded fields.

    If no fields are recorded, as for the caches of `transformers`, a list of the object's contents replaces it.
    """
    version, tree = json.loads(text)
    pending = [tree]
    while pending:
        node = pending.pop()
        pending += node["children_spec"]
        if node["type"] not in CONTAINERS:
            fields = _fields(node, namedtuples)
            node["type"] = "builtins.list" if fields is None else "builtins.dict"
            node["context"] = json.dumps(fields)
    return [version, tree]


def _fields(node: dict[str, Any], namedtuples: dict[str, list[str]]) -> list[Any] | None:
    """Return a class's field names as its context records them, one for each child, or None."""
    context = node["context"]
    if node["type"] == "collections.namedtuple":
        candidates = [namedtuples.get(context)]
    elif node["type"] == "collections.defaultdict":
        candidates = [context["dict_context"]]
    else:
        recorded = json.loads(context) if isinstance(context, str) else context
        # A list of fields; or that and something else, such as those that were None, or the layout of a cache.
        candidates = [recorded, recorded[0] if isinstance(recorded, list) and recorded else None]
    return next((names for names in candidates if _are_fields(names, len(node["children_spec"]))), None)


def _are_fields(names: Any, count: int) -> bool:
    return (
        isinstance(names, list)
        and all(type(name) in (str, int) for name in names)
        and len(names) == len(set(names)) == count
    )


def check_archive(path: Path) -> torch._C.PyTorchFileReader:
    """Refuse a `.pt2` whose loading could do more than make tensors and a graph; return its reader.

    Raises:
        CheckpointError: says what was found, and that `--trust pt2` lifts it.
    """
    names = archive_names(path)
    reader = torch_records(path, names)
    root = names[0].split("/")[0]
    records = [name.removeprefix(f"{root}/") for name in names]
    _refuse_if(path, "records that torch.export.save does not write", (r for r in records if not RECORDS.fullmatch(r)))
    if PROGRAM not in records:
        raise CheckpointError(
            "The exported program does not contain a model.", code="PTC1003", where=str(path), fix="Export it again."
        )
    weights = _json(path, reader, "data/weights/model_weights_config.json")
    constants = _json(path, reader, "data/constants/model_constants_config.json")
    program = _json(path, reader, PROGRAM)
    try:
        _refuse_if(path, "weights that are not plain tensors", _odd_payloads(weights, reader, "data/weights"))
        _refuse_if(path, "constants that are not plain tensors", _odd_payloads(constants, reader, "data/constants"))
        namedtuples = _namedtuples(program)
        for call in program["graph_module"]["module_call_graph"]:
            for side in ("in_spec", "out_spec") if call["signature"] else ():
                call["signature"][side] = json.dumps(_plain_structure(call["signature"][side], namedtuples))
        _refuse_if(path, "a graph with parts that are not plain operators on tensors", _odd_parts(program))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # RecursionError too
        what = f"The exported program is damaged: {type(error).__name__}: {error}"
        raise CheckpointError(what, code="PTC1004", where=str(path), fix="Copy or export it again.") from error
    _check_sample_inputs(path, reader)
    return reader


def _refuse_if(path: Path, what: str, found: Iterator[str]) -> None:
    first = list(dict.fromkeys(found))
    if first:
        shown = "".join(f"\n    {part[:200]}" for part in first[:10])
        more = f"\n    and {len(first) - 10} more" if len(first) > 10 else ""
        fix = f"Export the model again without them; or, if you trust the file's maker, add --trust {TRUST_KEYWORD}."
        raise CheckpointError(
            f"The exported program contains {what}:{shown}{more}", code="PTC1005", where=str(path), fix=fix
        )


def _json(path: Path, reader: torch._C.PyTorchFileReader, record: str) -> Any:
    try:
        if reader.get_record_size(record) > LARGEST_JSON:
            raise CheckpointError(
                f"{record} is larger than in any model.",
                code="PTC1006",
                fix="Do not trust this file, or export the model again.",
                where=str(path),
            )
        return json.loads(reader.get_record(record).decode("utf-8"))
    except (RuntimeError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        what = f"The exported program is damaged: {record}: {reason}"
        raise CheckpointError(what, code="PTC1007", where=str(path), fix="Copy or export it again.") from error


def _odd_payloads(config: Any, reader: torch._C.PyTorchFileReader, folder: str) -> Iterator[str]:
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        yield f"{folder}: not a table of tensors"
        return
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            yield f"{name}: a pickle"
            continue
        yield from _odd_parts(entry)
        if not _is_module_path(name):
            yield f"{name}: a name that is not a module path"
        sizes = (entry.get("tensor_meta") or {}).get("sizes")
        if not isinstance(sizes, list) or not all(type(size.get("as_int")) is int for size in sizes):
            yield f"{name}: a tensor without a size"
            continue
        elements = math.prod(size["as_int"] for size in sizes)
        stored = reader.get_record_size(f"{folder}/{entry['path_name']}")
        if min((size["as_int"] for size in sizes), default=0) < 0 or elements > max(stored, 0):
            yield f"{name}: {elements} elements in {stored} bytes"


def _odd_parts(value: Any, field: str = "", operand: bool = False) -> Iterator[str]:
    """Walk the program as JSON; `operand` means inside a node, where PyTorch quotes text."""
    if isinstance(value, dict):
        if field in NAMED_BY or field in QUOTED_KEYS:
            pattern = IDENTIFIER if field in NAMED_BY else QUOTABLE
            yield from (f"{field}: {key}" for key in value if not pattern.fullmatch(key))
            if field == "metadata":
                return  # text that is kept and shown, never read as code
            if field == "opset_version":
                return
            for inner in value.values():
                yield from _odd_parts(inner, "", operand)
            return
        for key, inner in value.items():
            if key in CUSTOM_OBJECTS and inner:
                yield f"a custom object ({key})"
            else:
                yield from _odd_parts(inner, key, key == "nodes" or (operand and key != "graph"))
    elif isinstance(value, list):
        for inner in value:
            yield from _odd_parts(inner, field, operand)
    elif isinstance(value, str):
        if field in ("in_spec", "out_spec"):
            yield from _odd_tree(value, keywords=field == "in_spec")
        elif field in ("as_string", "as_strings") and operand:
            return
        elif field not in TEXTS:
            yield f"{field}: an unknown field"
        elif not TEXTS[field](value):
            yield f"{field}: {value}"


def _odd_tree(text: str, *, keywords: bool) -> Iterator[str]:
    """Yield the odd parts of a structure of inputs or outputs; nested containers keyed by text or numbers are fine.

    Keywords of inputs become Python names.
    """
    try:
        _, tree = json.loads(text)
        nodes = [tree]
        while nodes:
            node = nodes.pop()
            context = json.loads(node["context"]) if node["context"] is not None else None
            if node["type"] not in CONTAINERS:
                yield f"an input or output of the class {node['type']}"
            keys = context if isinstance(context, list) else [] if context is None else [{}]
            for key in keys:
                if type(key) is not int and not (isinstance(key, str) and QUOTABLE.fullmatch(key)):
                    yield f"a key of an input or output: {key}"
            nodes += node["children_spec"]
        if keywords and tree["type"] == "builtins.tuple" and len(tree["children_spec"]) == 2:
            named = json.loads(tree["children_spec"][1]["context"] or "[]")
            yield from (f"a keyword of the input: {key}" for key in named if not IDENTIFIER.fullmatch(str(key)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        yield f"a structure of inputs or outputs that cannot be read: {text}"


def _check_sample_inputs(path: Path, reader: torch._C.PyTorchFileReader) -> None:
    record = "data/sample_inputs/model.pt"
    try:
        data = reader.get_record(record)
        if data:  # the same call as the loader's first; only if it fails would that unpickle without restriction
            torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        fix = (
            "Export the model again with tensors as inputs; or, if you trust the file's maker, add --trust "
            f"{TRUST_KEYWORD}."
        )
        what = "The exported program's sample inputs are not plain tensors."
        raise CheckpointError(what, code="PTC1008", where=f"{path}: {record}", fix=fix) from error
