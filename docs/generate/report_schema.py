"""Write docs/report.schema.json, the JSON Schema of all reports, from their types.

python docs/generate/report_schema.py
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/report.schema.json"
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from converter.batch.journal import Entry  # noqa: E402  # found by the line above where this is run as a script
from converter.batch.results import CheckResult  # noqa: E402
from converter.report import (  # noqa: E402
    SCHEMA,
    ArtifactReport,
    ConversionReport,
    Failure,
    IntoReport,
    ModelSummary,
    Status,
    VerificationReport,
)
from converter.report.results import Artifacts  # noqa: E402

ALONE = (ConversionReport, VerificationReport, IntoReport, ModelSummary, Failure)
PLAIN = {str: "string", int: "integer", bool: "boolean", Path: "string", type(None): "null"}


def schema() -> dict[str, Any]:
    """The schema: a report of one model, of several, or of a batch."""
    definitions: dict[str, Any] = {}
    alone = [_type(kind, definitions) for kind in ALONE]
    of_a_model = [_type(kind, definitions) for kind in (ConversionReport, VerificationReport, Failure)]
    models = {"type": "object", "required": ["models"], "properties": {"models": _array({"anyOf": of_a_model})}}
    entries = {
        "type": "object",
        "required": ["entries", "counts", "left", "seconds", "exit_status"],
        "properties": {
            "entries": _array({"anyOf": [_type(kind, definitions) for kind in (Entry, CheckResult)]}),
            "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
            "left": _array({"type": "string"}),
            "elsewhere": _array({"type": "string"}),
            "seconds": {"type": "number"},
            "exit_status": {"type": "integer"},
        },
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Reports of pt-convert",
        "description": "Fields may be added without another number. docs/REPORT.md says what each means.",
        "type": "object",
        "required": ["schema"],
        "properties": {"schema": {"const": SCHEMA}, "command": {"type": "string"}},
        "anyOf": [models, entries, *alone],
        "definitions": dict(sorted(definitions.items())),
    }


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _type(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if kind is float:
        return {"type": ["number", "null"]}  # null where it is not finite
    if origin in (Union, UnionType):
        return {"anyOf": [_type(part, definitions) for part in parts]}
    if origin is Literal:
        return {"enum": list(parts)}
    if kind is Artifacts:
        return _array(_type(ArtifactReport, definitions))
    if origin is tuple:
        return _array(_type(parts[0], definitions))
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _type(parts[1], definitions)}
    if not dataclasses.is_dataclass(kind):
        return {"type": PLAIN[kind]}
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # types refer to each other
        hints = get_type_hints(kind)
        properties = {field.name: _type(hints[field.name], definitions) for field in dataclasses.fields(kind)}
        if kind is ConversionReport:
            properties["status"] = _type(Status, definitions)
        definitions[kind.__name__] = {"type": "object", "required": list(properties), "properties": properties}
    return {"$ref": f"#/definitions/{kind.__name__}"}


def document() -> str:
    """The file."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    PAGE.write_text(document())
