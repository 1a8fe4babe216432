"""Import TensorFlow so that it gives memory back, in a command's own process.

With oneDNN, its default on x86, TensorFlow 2.21 keeps the memory of freed tensors until the process ends.
Nothing that a command's process runs gains from oneDNN, which has no float64. Processes that open artifacts keep the
default, and so do programs of users, whose own models would be slower.
"""

import os
import sys

from converter.compat.keras_extras import is_own_process

_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"  # TensorFlow reads it on import

if is_own_process() and "tensorflow" not in sys.modules and _VARIABLE not in os.environ:
    os.environ[_VARIABLE] = "0"
    try:
        import tensorflow  # noqa: F401
    finally:
        del os.environ[_VARIABLE]
