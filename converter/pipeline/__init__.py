"""Convert, verify, inspect and check: each a list of stages."""
