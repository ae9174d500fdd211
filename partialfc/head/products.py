"""Matrix products of the head: the types of their factors, and how they are multiplied. Sums are in float32.

A product of float32 factors keeps 10 bits of their mantissas on tensor cores with TF32, which are eight times faster
than without. float16 keeps as many, and is twice as fast again; bfloat16 keeps 7, and has the range of float32.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["auto", "float32", "tf32", "half"]

_PRECISION: dict[Kind, Literal["tf32", "ieee"]] = {"auto": "tf32", "tf32": "tf32", "float32": "ieee"}


class Products:
    """How the head multiplies, on `device`, what is computed in `dtype`.

    float32: as it is. tf32: on a GPU with TF32, elsewhere as float32. auto: as tf32. half: logits of float16 factors,
    which are unit vectors and scaled ones; products with exponentials, which float16 has no range for, of bfloat16
    factors. A CPU multiplies the rounded factors in float32: right, and no faster.
    """

    def __init__(self, kind: Kind, device: torch.device, dtype: torch.dtype) -> None:
        half = kind == "half"
        self.of_logits = torch.float16 if half else dtype  # the factors' type
        self.of_exponentials = torch.bfloat16 if half else dtype
        self._precision = None if half or device.type != "cuda" else _PRECISION[kind]

    def into(self, out: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """out [m, n] = left [m, k] @ right [k, n]; both of one type, out of the type that is computed in."""
        if left.dtype == out.dtype:
            with self._set():
                return torch.mm(left, right, out=out)
        if left.is_cuda:
            return torch.mm(left, right, out_dtype=out.dtype, out=out)
        return torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)

    def added_to(self, total: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """total [m, n] += left [m, k] @ right [k, n]; types as in `into`."""
        if left.dtype == total.dtype:
            with self._set():
                return total.addmm_(left, right)
        if left.is_cuda:
            return total.add_(torch.mm(left, right, out_dtype=total.dtype))
        return total.addmm_(left.to(total.dtype), right.to(total.dtype))

    def _set(self) -> AbstractContextManager[None]:
        return nullcontext() if self._precision is None else _float32_products(self._precision)


@contextmanager
def _float32_products(precision: Literal["tf32", "ieee"]) -> Iterator[None]:
    """Within the block; it is a setting of the whole process, of which others, such as the backbone, keep their own."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, precision
    try:
        yield
    finally:
        matmul.fp32_precision = before
