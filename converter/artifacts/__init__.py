"""Write artifacts, put them in place, and open them again in a process of their own.

The child process loads the folder `runtime` as a package of its own, without `converter` (see `runtime/main.py`):
its modules import only each other, relatively.
"""
