"""Matrix products of the head: float32 sums, of float32 or of bfloat16 factors."""

import torch
from torch import Tensor


class Matmul:
    """`bf16_inputs`: factors are rounded to bfloat16, which tensor cores multiply many times faster; sums stay in float32."""

    def __init__(self, *, bf16_inputs: bool) -> None:
        self._bf16_inputs = bf16_inputs

    def into(self, out: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """out [m, n] = left [m, k] @ right [k, n]."""
        if not self._bf16_inputs:
            return torch.mm(left, right, out=out)
        return out.copy_(_rounded(left, right))

    def added_to(self, total: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """total [m, n] += left [m, k] @ right [k, n]."""
        if not self._bf16_inputs:
            return total.addmm_(left, right)
        return total.add_(_rounded(left, right))


def _rounded(left: Tensor, right: Tensor) -> Tensor:
    left, right = left.bfloat16(), right.bfloat16()
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float())  # CPUs have no such product: right, and no faster
