"""Import TensorFlow so that it gives memory back.

With oneDNN, its default on x86, TensorFlow 2.21 keeps the memory of freed tensors until the process ends.
Nothing that this process runs gains from oneDNN, which has no float64. Processes that open artifacts keep the default.
If TensorFlow was imported before, all works, with more memory.
"""

import os
import sys

_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"  # TensorFlow reads it on import

if "tensorflow" not in sys.modules and _VARIABLE not in os.environ:
    os.environ[_VARIABLE] = "0"
    try:
        import tensorflow  # noqa: F401
    finally:
        del os.environ[_VARIABLE]
