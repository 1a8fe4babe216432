"""What the child process that opens an artifact imports. Nothing here may import the rest of `converter`."""
