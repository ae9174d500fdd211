"""The step of the parameters that every rank has a replica of: loss scale, clipping, and skips decided on the device."""

import operator
from contextlib import AbstractContextManager
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from partialfc.config import AdamW, AnyOptimizer, Sgd
from partialfc.runtime import precision
from partialfc.runtime.comm import Ranks
from partialfc.training.replicas import ReplicatedGradients

_GROWTH_INTERVAL = 2000  # steps without an overflow after which the loss scale doubles


class LossScale:
    """What a loss is multiplied by before backward so that fp16 gradients do not vanish; lives on the device.

    Halved after an overflow, doubled after 2000 steps without one, as torch.amp.GradScaler does, but without
    asking the device. Where not enabled it stays 1.
    """

    def __init__(self, *, enabled: bool, device: torch.device) -> None:
        self._enabled = enabled
        self.value = torch.full((), 2.0**16 if enabled else 1.0, device=device)
        self.streak = torch.zeros((), device=device)  # steps since it last changed

    def update(self, finite: Tensor) -> None:
        """After a step, in place; finite: bool scalar."""
        if not self._enabled:
            return
        self.streak.add_(1).mul_(finite)
        grown = self.streak >= _GROWTH_INTERVAL
        self.value.mul_(torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5))
        self.streak.mul_(~grown)


class BackboneOptimizer:
    """The step of the parameters of `backbone`, clipped by the norm of all gradients together."""

    def __init__(self, backbone: nn.Module, config: AnyOptimizer, ranks: Ranks) -> None:
        self._config, self._device = config, ranks.device
        named = {name: it for name, it in backbone.named_parameters() if it.requires_grad}
        self.gradients = ReplicatedGradients(named.values(), ranks.group)
        self.loss_scale = LossScale(enabled=config.precision == "fp16", device=ranks.device)
        # Any: torch declares neither grad_scale nor found_inf, which its fused optimizers read.
        self._torchs: Any = _optimizer(config, list(named.values()))
        # Made here and not at the first step, which may be one that is skipped.
        self.moments = {name: _moments(config, parameter) for name, parameter in named.items()}
        for name, parameter in named.items():
            self._torchs.state[parameter].update(self.moments[name])

    def autocast(self) -> AbstractContextManager[object]:
        """Around the backbone: computes in the recipe's precision."""
        return precision.autocast(self._config.precision, self._device)

    def step(self, rate: float, loss: Tensor) -> tuple[Tensor, Tensor]:
        """One step at learning rate `rate`, from the gradients of loss scale x loss, summed over the ranks.

        Returns scalars on the device: the gradient's norm before clipping, and whether it and the loss are
        finite. Where not, nothing changes. Both are the same on every rank, as the summed gradients and the
        loss are.
        """
        norm = self.gradients.norm() / self.loss_scale.value
        finite = norm.isfinite() & loss.isfinite()
        clip = self._config.clip
        excess = (norm / clip).clamp_min(1.0) if clip else torch.ones_like(norm)
        for group in self._torchs.param_groups:
            group["lr"] = rate
        # Fused optimizers divide by grad_scale, and leave everything as it is where found_inf is 1, on the device.
        self._torchs.grad_scale = self.loss_scale.value * excess
        self._torchs.found_inf = (~finite).float()
        self._torchs.step()
        self.loss_scale.update(finite)
        return norm, finite


def _optimizer(config: AnyOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    groups = _groups(config, parameters)
    match config:
        case Sgd():
            return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, **shared)
        case AdamW():
            return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, **shared)


def _groups(config: AnyOptimizer, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Those that decay, and those that do not."""
    if config.decayed == "all":
        return [{"params": parameters}]
    matrices = [
        it.ndim > 1 and len(it) > 1 for it in parameters
    ]  # not a ViT's positions, which are [1, N, width]
    return [
        {"params": list(compress(parameters, matrices))},
        {"params": list(compress(parameters, map(operator.not_, matrices))), "weight_decay": 0.0},
    ]


def _moments(config: AnyOptimizer, parameter: Tensor) -> dict[str, Tensor]:
    match config:
        case Sgd():
            return {"momentum_buffer": torch.zeros_like(parameter)}
        case AdamW():
            return {
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
                "step": torch.zeros((), device=parameter.device),
            }
