"""Rewrites of the captured program. Each leaves a program that runs in PyTorch and computes the same function."""
