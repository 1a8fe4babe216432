"""Capture an `nn.Module` as a Program: input shapes, example inputs, dynamic sizes, `torch.export`."""
