"""Keras as mappings name it: a plan is made without Keras, which is imported only when the plan is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class LazyMember:
    """A layer class or a function of Keras, by name."""

    module: str
    name: str

    @property
    def __name__(self) -> str:
        return self.name

    def resolve(self) -> Any:
        """Import Keras and return the member."""
        return getattr(import_module(self.module), self.name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.resolve()(*arguments, **keywords)


class LazyModule:
    """A module of Keras; its attributes are lazy members, also of names that it lacks."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python asks of any object
            raise AttributeError(name)
        return LazyMember(self._module, name)


layers, ops, image_ops = map(LazyModule, ("keras.layers", "keras.ops", "keras.ops.image"))
backend, tf = map(LazyModule, ("keras.backend", "tensorflow"))
