"""Compares outputs and weights, given as arrays; knows nothing of how they came about."""
