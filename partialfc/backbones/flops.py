"""Floating-point operations of a backbone, counted once."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from partialfc.backbones import Backbone


@torch.no_grad()
def count_forward_flops(backbone: Backbone) -> int:
    """Return the operations of the matrix products and convolutions of a forward, per image.

    A multiplication and an addition are two operations. Embeds one image; the backbone does not change.
    """
    parameter, training, size = next(backbone.parameters()), backbone.training, backbone.input_size
    image = torch.zeros(1, 3, size, size, dtype=parameter.dtype, device=parameter.device)
    backbone.eval()
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        backbone(image)
    backbone.train(training)
    return counter.get_total_flops()
