"""The program that every room works on: nodes, sizes, lazy tensors, facts about ATen operators."""
