"""What a head that owns its rows cannot do as other modules can: be moved, converted or copied."""

from collections.abc import Callable
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn


class FixedModule(nn.Module):
    """A module that stays on the device and in the type that it was made with. RuntimeError, as torch raises, of what
    would change that, and of copies.
    """

    def __init__(self, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__()
        self.like = torch.empty(0, device=device, dtype=dtype)  # a tensor of its device and type; no buffer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Called by to(), cuda(), half(), double() and their kin."""
        here, there = self.like, fn(self.like)
        if there.device != here.device or there.dtype != here.dtype:
            raise RuntimeError(
                f"a PartialFC stays as it was made, {here.dtype} on {here.device}; found {there.dtype} on "
                f"{there.device}: make it with PartialFC(..., device=..., dtype=...), and load_state_dict()"
            )
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Called by copy.deepcopy and pickle."""
        raise RuntimeError(
            "a PartialFC is not copied or pickled: make another, and load_state_dict(head.state_dict())"
        )
