import os
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import pytest

T = TypeVar("T")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its idle threads must not spin on busy cores
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session", autouse=True)
def verified_programs() -> Iterator[None]:
    """Verify every program after its capture and after each rewrite, as `--debug` does."""
    from converter.ir.program import Program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "__init__", partialmethod(Program.__init__, debug=True))
        yield


# Tests that the default selection leaves out are not quick either.
LONG = ("slow", "zoo", "systems", "conformance", "wheel", "benchmark")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as quick the first row of each test, or of each family where rows have families, unless the test is long."""
    met: set[tuple[str, str | None]] = set()
    for item in items:
        if any(item.get_closest_marker(name) for name in LONG):
            continue
        family = item.get_closest_marker("family")
        key = item.nodeid.partition("[")[0], family.args[0] if family else None
        if key not in met:
            met.add(key)
            item.add_marker("quick")


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def calibrate() -> Callable:
    """`sample_models.calibration.calibrate`: an untrained network in which every parameter and statistic matters."""
    from sample_models.calibration import calibrate

    return calibrate


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision with its native operators, beside a CPU build of torch too. Where CI is set it must be there."""
    from torchvision_for_tests import load_torchvision

    return _or_skip(load_torchvision)


@pytest.fixture(scope="session")
def environment_with_torchvision() -> dict[str, str]:
    """The environment for a process of its own that imports torchvision."""
    from torchvision_for_tests import environment

    return os.environ | _or_skip(environment)


def _or_skip(load: Callable[[], T]) -> T:
    try:
        return load()
    except ImportError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))
