"""Run a Keras model in this process, where what was written needs the user's code to be opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .runner import TensorSpec
from .runtime.keras import Reader


class LocalModel:
    """A Keras model with what a `Runner` says and does of one that it has opened."""

    format = "keras"

    def __init__(self, model: Any):
        self._reader = Reader()
        self._reader.take(model)
        self.inputs, self.outputs = (
            tuple(TensorSpec(name, None if shape is None else tuple(shape), dtype) for name, shape, dtype in facts)
            for facts in (self._reader.inputs, self._reader.outputs)
        )

    @property
    def model(self) -> Any:
        """The model, functional."""
        return self._reader.model

    def pack(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """Return what the model is called with, of arrays by the names of its inputs."""
        return self._reader.pack(arrays)

    def held(self) -> dict[str, np.ndarray]:
        """Return every array of numbers in the model by name."""
        return self._reader.held()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model and return its outputs by name."""
        return self._reader.run(inputs)
