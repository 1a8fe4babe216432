"""Convert, verify, inspect and check models, each in a list of stages."""
