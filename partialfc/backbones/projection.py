"""The layer that every backbone ends in."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Projection(nn.Linear):
    """A linear layer that computes in float32, under autocast too: its output is the embedding, whose small
    differences decide.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.float(), self.weight, self.bias)
