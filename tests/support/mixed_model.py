"""A small model whose weights an artifact holds rearranged, folded, summed, in parts, or as they are."""

import torch
from torch import nn

FACTORY = f"{__file__}:Mixed"


class Mixed(nn.Module):
    """Layers whose weights an artifact holds rearranged, folded, summed, in parts, or as they are."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.position = nn.Parameter(torch.randn(1, 16, 8))
        self.recurrent = nn.LSTM(8, 5, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(160, 9))
        self.head = nn.Linear(9, 4)

    def forward(self, x):
        y = self.grouped(self.norm(self.stem(x)).relu()).flatten(2).transpose(1, 2) + self.position
        y = self.recurrent(y)[0]
        y = self.attention(y, y, y)[0]
        return self.head(self.normed(y.flatten(1)).relu())


SHAPES = ["1,3,4,4"]


def trained(seed):
    torch.manual_seed(seed)
    net = Mixed().eval()
    for tensor in (*net.parameters(), net.norm.running_mean):
        tensor.data.normal_(0, 0.5)
    net.norm.running_var.uniform_(0.5, 2)
    return net
