"""Precision of the head's matrix products: dtypes of the factors, and TF32 for float32 factors.

All sums are in float32. TF32 keeps 10 mantissa bits of a float32 factor and is eight times as fast on tensor cores.
float16 keeps 10 bits as well and is twice as fast as TF32. bfloat16 keeps 7 bits and has the range of float32.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Products = Literal["auto", "float32", "tf32", "half"]  # `head.matmul_precision` of a recipe

_FLOAT32: dict[Products, Literal["tf32", "ieee"]] = {"auto": "tf32", "tf32": "tf32", "float32": "ieee"}


class MatmulPrecision:
    """Matrix products of a head.

    Args:
        products: "float32"; "tf32" (also "auto") for TF32 on GPUs that have it; "half" for 16-bit factors.
        device: Device of the products. A CPU multiplies the rounded factors in float32.
        dtype: Dtype of the sums and of everything else.

    Attributes:
        logits_dtype: Dtype of the factors of logits.
        grads_dtype: Dtype of logit gradients and of their factors, which need the range of float32.
    """

    def __init__(self, products: Products, device: torch.device, dtype: torch.dtype) -> None:
        half = products == "half"
        self.logits_dtype = torch.float16 if half else dtype
        self.grads_dtype = torch.bfloat16 if half else dtype
        self._float32 = None if half or device.type != "cuda" else _FLOAT32[products]

    def mm(self, out: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Compute `out = left @ right`; both factors have one dtype."""
        if left.dtype == out.dtype:
            with self._as_configured():
                return torch.mm(left, right, out=out)
        if left.is_cuda:
            return torch.mm(left, right, out_dtype=out.dtype, out=out)
        return torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)

    def addmm_(self, total: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Compute `total += left @ right`; dtypes as in `mm`."""
        if left.dtype == total.dtype:
            with self._as_configured():
                return total.addmm_(left, right)
        if left.is_cuda:
            return total.add_(torch.mm(left, right, out_dtype=total.dtype))
        return total.addmm_(left.to(total.dtype), right.to(total.dtype))

    def _as_configured(self) -> AbstractContextManager[None]:
        return nullcontext() if self._float32 is None else _float32_precision(self._float32)


@contextmanager
def _float32_precision(precision: Literal["tf32", "ieee"]) -> Iterator[None]:
    """Set the process-wide precision of float32 products within the block."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, precision
    try:
        yield
    finally:
        matmul.fp32_precision = before
