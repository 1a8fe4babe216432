"""Measure how long the stages take and report progress."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

Progress = Callable[[str], AbstractContextManager]


@dataclass
class Clock:
    """Times the stages and tells the caller which one runs."""

    progress: Progress | None
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        with self.progress(step) if self.progress else contextlib.nullcontext():
            yield
        self.timings[step] = self.timings.get(step, 0.0) + time.perf_counter() - started
