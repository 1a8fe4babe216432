"""Tell what of a `.tflite` file LiteRT's GPU delegate is not documented to take.

https://ai.google.dev/edge/litert/performance/gpu lists operators in 16-bit and 32-bit floats; what it does not take
runs on the CPU. LiteRT's own analyzer calls every file compatible, so these rules are read from that page.
"""

from __future__ import annotations

from collections import Counter

from converter.artifacts.runtime.tflite_content import operators
from converter.errors import Note

DOCUMENTED = frozenset({
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXP", "FULLY_CONNECTED", "LOGICAL_AND",
    "LOGISTIC", "LSTM", "MAX_POOL_2D", "MAXIMUM", "MINIMUM", "MUL", "PAD", "PRELU", "RELU", "RELU6", "RESHAPE",
    "RESIZE_BILINEAR", "SOFTMAX", "STRIDED_SLICE", "SUB", "TRANSPOSE_CONV",
})  # fmt: skip
AXES = 4
QUANTIZED = frozenset({"INT8", "UINT8"})


def gpu_delegate_note(content: bytes) -> Note:
    """Return a note on what runs on the CPU if an app asks for the GPU."""
    found = list(operators(content))
    others = Counter(one.name for one in found if one.name not in DOCUMENTED)
    told = [f"{count} {name}" for name, count in others.most_common()]
    if deep := sum(one.most_axes > AXES for one in found):
        told.append(f"{deep} with values of more than {AXES} axes")
    if dynamic := sum(one.is_dynamic for one in found):
        told.append(f"{dynamic} with sizes that are not fixed")
    if odd := sorted({t for one in found for t in one.types} - QUANTIZED - {"FLOAT32", "FLOAT16"}):
        told.append(f"values of type {', '.join(odd).lower()}")
    if not told:
        return Note("Nothing in this file is what the GPU delegate is documented to refuse.", code="PTC4502")
    text = f"If an app asks for the GPU, this still runs on the CPU, as documented: {'; '.join(told)}."
    return Note(text, code="PTC4503")
