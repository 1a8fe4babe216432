"""Quantize a `.tflite` file of floats: the script `python -P quantize_tflite.py REQUEST.json`.

In a process of its own, because the runtime can end the process. The request names the files and says how. Beside the
model it writes for each operator how far its result is from that of the float file, and what joins values that one
scale cannot hold. Where the package fails, its error goes to standard output, and the status is 3.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COMPARED = 8  # samples on which the layers are compared
APART = 16  # of values that are joined: a greater ratio of their largest ones leaves too few integers for the smaller
_JOINING, _MOVING = "CONCATENATION", {"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS"}
_PADDING = 1e30  # larger values stand for infinity: a max pool's padding, a mask
_BITS = {"int8": 8, "int16x8": 16}


def main(request_file: str) -> int:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the packages print to standard output
    logging.disable(logging.WARNING)
    request = json.loads(Path(request_file).read_text())
    content = Path(request["float"]).read_bytes()
    samples = list(_samples(request["samples"]))
    try:
        quantized, joined = _quantize(content, request["how"], request["keep"], request["quantize_io"], samples)
    except Exception as error:
        answer.write(f"{type(error).__name__}: {error}")
        answer.flush()
        return 3
    Path(request["quantized"]).write_bytes(quantized)
    learned = {"losses": _losses(content, quantized, samples[:COMPARED]), "joined": joined}
    Path(request["learned"]).write_text(json.dumps(learned))
    return 0


def _samples(file: str) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of one sample for each array, by the name of its input."""
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for number in range(len(next(iter(arrays.values()), ()))):
        yield {name: array[number] for name, array in arrays.items()}


def _quantize(
    content: bytes, how: str, keep: Sequence[str], quantize_io: bool, samples: Sequence[Mapping[str, np.ndarray]]
) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the quantized file, and what remains floats because one scale cannot hold what it joins.

    Args:
        keep: the scopes, each a regular expression, that remain floats.
    """
    from litert_quantizer import calibrator, qtyping, quantizer
    from litert_quantizer.algorithm_manager import AlgorithmName
    from litert_quantizer.recipe_manager import RecipeManager
    from litert_quantizer.utils import qsv_utils

    every = qtyping.TFLOperationName.ALL_SUPPORTED
    recipe = RecipeManager()
    if how == "float16":
        recipe.add_weight_only_config(".*", every, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    elif how == "dynamic":
        recipe.add_dynamic_config(".*", every, 8)
    else:
        recipe.add_static_config(".*", every, _BITS[how], 8)
        if not quantize_io:
            for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
                recipe.add_quantization_config(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    for scope in keep:
        recipe.add_quantization_config(scope, every, algorithm_key=AlgorithmName.NO_QUANTIZE)
    known, joined = None, []
    if recipe.need_calibration():
        # The default is a moving average, which lets extremes go: 16.6 dB where the extremes give 32.7.
        observer = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
        observer.calibrate({_signature(content): samples}, recipe)
        known = observer.get_model_qsvs()
        joined = [] if quantize_io else _joined_apart(content, {n: _largest(held) for n, held in known.items()})
        for outs in (outs for one in joined for outs in one["scopes"]):
            scope = f"^{re.escape(';'.join(outs))};$"
            recipe.add_quantization_config(scope, every, algorithm_key=AlgorithmName.NO_QUANTIZE)
    made = quantizer.Quantizer(content, recipe.get_quantization_recipe())
    model = made.quantize(known, enable_progress_bar=False, enable_progress_report=False).quantized_model
    return bytes(model or b""), joined


def _largest(known: Mapping[str, Any]) -> float:
    return float(max(np.abs(known[end]).max() for end in ("min", "max")))


def _joined_apart(content: bytes, largest: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the concatenations that give outputs, of values whose largest ones are far apart.

    Each has the names of its result and its inputs, the largest value of the inputs, and the names of the results, its
    own and of operators behind it that only move it.

    Args:
        largest: the largest absolute value of each tensor, by its name.
    """
    from ai_edge_litert import interpreter

    opened = interpreter.Interpreter(model_content=content, num_threads=1)
    names = {d["index"]: d["name"] for d in opened.get_tensor_details()}
    operators = [
        (o["op_name"], *([names.get(int(i), "") for i in o[key]] for key in ("inputs", "outputs")))
        for o in opened._get_ops_details()
    ]
    ends = {names[d["index"]] for d in opened.get_output_details()}
    behind: list[list[str]] = []
    found = []
    for name, ins, outs in reversed(operators):
        if not ends.intersection(outs):
            continue
        if name in _MOVING:
            ends.add(ins[0])
            behind.append(outs)
        values = [largest[n] for n in ins if n in largest]
        if name == _JOINING and len(values) > 1 and max(values) > APART * min(values):
            found.append({"name": outs[0], "inputs": ins, "largest": values, "scopes": [outs, *behind]})
    return found


def _signature(content: bytes) -> str:
    from ai_edge_litert import interpreter

    return next(iter(interpreter.Interpreter(model_content=content).get_signature_list()))


def _losses(content: bytes, quantized: bytes, samples: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Return for each operator, in order, the signal to noise of its result, and the lowest of its inputs, in dB.

    A tensor's noise is its difference from the float file's tensor of the same name.
    """
    from ai_edge_litert import interpreter

    def opened(model: bytes) -> Any:
        return interpreter.Interpreter(model_content=model, experimental_preserve_all_tensors=True, num_threads=1)

    pair = opened(content), opened(quantized)
    runners = [one.get_signature_runner() for one in pair]
    named = [{d["name"]: d for d in one.get_tensor_details()} for one in pair]
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for sample in samples:
        for runner in runners:
            ins = runner.get_input_details()
            runner(**{name: _as_input(array, ins[name]) for name, array in sample.items()})
        for name in named[0].keys() & named[1].keys():
            try:
                expected, actual = (
                    _real(one.get_tensor(details[name]["index"]), details[name])
                    for one, details in zip(pair, named, strict=True)
                )
            except ValueError:  # in a branch that did not run
                continue
            if expected.shape == actual.shape and expected.dtype.kind == "f":
                kept = np.abs(expected) < _PADDING
                wanted, found = expected[kept].astype(np.float64), actual[kept].astype(np.float64)
                signal[name] = signal.get(name, 0.0) + float(np.sum(np.square(wanted)))
                noise[name] = noise.get(name, 0.0) + float(np.sum(np.square(found - wanted)))
    decibels = {n: 10 * float(np.log10(s / noise[n])) for n, s in signal.items() if s > 0 and noise[n] > 0}
    by_index = {d["index"]: d["name"] for d in named[0].values()}
    operators = pair[0]._get_ops_details()
    computed = {by_index.get(int(i), "") for operator in operators for i in operator["outputs"]}  # the rest is constant
    rows, seen = [], set()
    for operator in operators:
        ins, outs = ([by_index.get(int(i), "") for i in operator[key]] for key in ("inputs", "outputs"))
        found = next((name for name in outs if name in decibels), None)
        if found is None or found in seen:  # a delegate's operators are listed again, at the end
            continue
        seen.add(found)
        before = [decibels[name] for name in ins if name in decibels and name in computed]
        row = {"name": found, "operator": operator["op_name"], "inputs": ins, "sqnr": decibels[found]}
        rows.append(row | {"before": min(before, default=None)})
    return rows


def _as_input(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    scale, zero = detail["quantization"]
    if not scale:
        return array
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.round(array / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def _real(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    scale, zero = detail["quantization"]
    return (array.astype(np.float64) - zero) * scale if scale else array


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
