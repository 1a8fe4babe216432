"""From an `nn.Module` to a Program: input shapes, example inputs, dynamic sizes, `torch.export`."""
