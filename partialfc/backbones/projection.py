"""Final layer of every backbone."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Projection(nn.Linear):
    """Linear layer that computes in float32, also under autocast, since small differences of embeddings matter."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the embeddings in float32."""
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.float(), self.weight, self.bias)
