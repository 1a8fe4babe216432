"""Run `python -m converter`, with our `cli.py` loaded by its path: the user may have a module of that name too."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

from converter.console.signals import Interrupted, ignore_echoes, install_signal_handlers
from converter.console.supervision import supervise

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    _open_streams()
    supervise()
    install_signal_handlers()
    try:
        _command()()
    except Interrupted as error:  # before or after the command could catch it
        sys.exit(error.exit_status)
    finally:
        ignore_echoes()


def _open_streams() -> None:
    """Open the null device for standard streams that the parent process had closed.

    Otherwise the next opened files would get their descriptors.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123  # for as long as the process lives


def _command() -> Callable[[], None]:
    spec = importlib.util.spec_from_file_location("converter._cli", ROOT / "cli.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{ROOT / 'cli.py'} is missing")
    cli = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = cli
    spec.loader.exec_module(cli)
    command: Callable[[], None] = cli.main
    return command


if __name__ == "__main__":
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    main()
