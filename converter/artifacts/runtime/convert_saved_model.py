"""Convert a SavedModel to a `.tflite` file: the script `python -P convert_saved_model.py FOLDER FILE`.

In a process of its own, because TensorFlow's converter can end the process. It prints nothing but, where it fails, its
error, and ends with status 3 then.
"""

import logging
import os
import sys
from pathlib import Path


def main(folder: str, file: str) -> int:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the converter prints to standard output
    import tensorflow as tf

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter.exclude_conversion_metadata = True
    converter.canonicalizing_inf_as_min_max_float = False
    try:
        content = converter.convert()
    except Exception as error:  # the converter raises its own, which TensorFlow does not export
        answer.write(str(error))
        answer.flush()
        return 3
    Path(file).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
