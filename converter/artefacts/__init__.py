"""Writing artefacts, putting them in place, and opening them again in a process of their own.

The child process loads this folder as a package of its own, without `converter` (see `child.py`): the modules here
import each other relatively, and `converter.errors` only inside functions that the parent calls.
"""
