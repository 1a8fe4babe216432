"""Write artifacts, put them in place, and open them again in a separate process.

The child process loads the folder `runtime` as a separate package, without `converter` (see `runtime/main.py`): its
modules import only each other, relatively.
"""
