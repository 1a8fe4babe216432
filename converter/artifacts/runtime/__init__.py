"""Code that runs in the child process that opens an artifact, and must not import the rest of `converter`."""
