"""Say how an artifact is opened."""

OPENED = {
    "tf": "tensorflow.saved_model.load({}).signatures['serving_default']",
    "keras": "keras.saving.load_model({})",
    "onnx": "onnxruntime.InferenceSession({})",
    "tflite": "ai_edge_litert.interpreter.Interpreter({}).get_signature_runner()",
    "torch": "sys.path.insert(0, {}); import model; model.load()",
}


def opened(format: str, path: object, status: str) -> str:
    """Return the Python expression that opens an artifact that was put in place, or ""."""
    kept = path is not None and status in ("verified", "quantized")
    return OPENED[format].format(repr(str(path))) if kept and format in OPENED else ""
