"""Optimizer step of the replicated parameters: loss scale, clipping, and skipped steps decided on the device."""

import inspect
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from partialfc.config import SGD, AdamW, AnyOptimizer, TorchOptimizer
from partialfc.errors import InputError
from partialfc.runtime import precision
from partialfc.runtime.comm import DistContext
from partialfc.training.replicas import GradientBuckets

_UNSUPPORTED = ("Optimizer", "LBFGS", "SparseAdam")  # their step needs a closure or other gradients
_LR_SCALE = "lr_scale"  # factor of a group's learning rate
_GROWTH_INTERVAL = 2000  # steps without overflow after which the loss scale doubles


class LossScaler:
    """Loss scale that keeps float16 gradients from vanishing; lives on the device.

    Halved after an overflow and doubled after 2000 steps without one, as in torch.amp.GradScaler, but without
    host synchronization. It stays 1 if disabled.
    """

    def __init__(self, *, enabled: bool, device: torch.device) -> None:
        self._enabled = enabled
        self.value = torch.full((), 2.0**16 if enabled else 1.0, device=device)
        self.growth_streak = torch.zeros((), device=device)  # steps since the last change

    def update(self, finite: Tensor) -> None:
        """Update the scale in place after a step; `finite` is a bool scalar tensor."""
        if not self._enabled:
            return
        self.growth_streak.add_(1).mul_(finite)
        grown = self.growth_streak >= _GROWTH_INTERVAL
        self.value.mul_(torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5))
        self.growth_streak.mul_(~grown)


class BackboneOptimizer:
    """Optimizer of the backbone, with clipping by the global gradient norm.

    A non-finite step changes nothing; the device decides. Fused optimizers support this natively. For any
    other optimizer, parameters and optimizer state are copied before the step and restored.
    """

    def __init__(self, backbone: nn.Module, config: AnyOptimizer, dist_ctx: DistContext) -> None:
        self._config, self._device = config, dist_ctx.device
        self._named = {name: it for name, it in backbone.named_parameters() if it.requires_grad}
        sent_as = torch.bfloat16 if config.reduce_dtype == "bfloat16" else None
        self.gradients = GradientBuckets(self._named.values(), dist_ctx.group, reduce_dtype=sent_as)
        self.loss_scale = LossScaler(enabled=config.precision == "float16", device=dist_ctx.device)
        self._fused = not isinstance(config, TorchOptimizer)
        # Any: torch does not declare found_inf, which its fused optimizers read.
        self._lr_scales = _layer_lr_scales(backbone, list(self._named.values()), config.layer_decay)
        self._optimizer: Any = _build_optimizer(config, list(self._named.values()), self._lr_scales)
        # Created here and not in the first step, which may be skipped.
        for parameter in self._named.values():
            self._optimizer.state[parameter].update(_initial_state(config, parameter))

    @property
    def state(self) -> dict[str, dict[str, Tensor]]:
        """Optimizer state of each parameter; empty before the first step, except for fused optimizers."""
        return {
            name: self._optimizer.state[it] for name, it in self._named.items() if it in self._optimizer.state
        }

    def reset_state(self, names: Collection[str]) -> None:
        """Reset the optimizer state of the parameters with these names."""
        for name in names:
            parameter = self._named[name]
            self._optimizer.state[parameter] = _initial_state(self._config, parameter)

    def materialize_state(self) -> None:
        """Allocate the tensors of `state`, uninitialized, for loading a checkpoint."""
        if self._fused or any(self._optimizer.state.values()):
            return
        copies = {name: nn.Parameter(it.detach().clone()) for name, it in self._named.items()}
        for copy in copies.values():
            copy.grad = torch.zeros_like(copy)
        dry = _build_optimizer(self._config, list(copies.values()), self._lr_scales)
        dry.step()
        for name, copy in copies.items():
            self._optimizer.state[self._named[name]] = dry.state[copy]

    def autocast(self) -> AbstractContextManager[object]:
        """Run the backbone in the compute dtype of the recipe."""
        return precision.autocast(self._config.precision, self._device)

    def step(self, lr: float, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Apply one step at learning rate `lr`, from the gradients of loss scale x loss, summed over the ranks.

        Returns:
            Two scalar tensors on the device: the gradient norm before clipping, and whether gradients and
                loss are finite. If not, nothing changes. Both are equal on all ranks, as are the summed
                gradients and the loss.
        """
        norm = self.gradients.norm() / self.loss_scale.value
        finite = norm.isfinite() & loss.isfinite()
        clip = self._config.max_grad_norm
        excess = (norm / clip).clamp_min(1.0) if clip else torch.ones_like(norm)
        self.gradients.divide(self.loss_scale.value * excess)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group[_LR_SCALE]
        if self._fused:
            self._optimizer.found_inf = (~finite).float()  # 1: the step changes nothing
            self._optimizer.step()
        else:
            self._step_or_revert(finite)
        self.loss_scale.update(finite)
        return norm, finite

    def _step_or_revert(self, finite: Tensor) -> None:
        # These optimizers create their state in the first step. Only then there is nothing to restore.
        if not any(self._optimizer.state.values()) and not bool(finite):
            return
        tensors = self._tensors()
        before = [it.clone() for it in tensors]
        self._optimizer.step()
        for now, then in zip(tensors, before, strict=True):
            # State on the host, such as step counts without `capturable`, synchronizes with the device.
            now.copy_(torch.where(finite.to(now.device), now, then))

    def _tensors(self) -> list[Tensor]:
        """Return all tensors that a step changes."""
        kept = [it for moments in self.state.values() for it in moments.values() if isinstance(it, Tensor)]
        return [*(it.detach() for it in self._named.values()), *kept]


def _build_optimizer(
    config: AnyOptimizer, parameters: list[nn.Parameter], scales: list[float]
) -> torch.optim.Optimizer:
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    groups = _param_groups(config, parameters, scales)
    match config:
        case SGD():
            return torch.optim.SGD(
                groups, momentum=config.momentum, nesterov=config.nesterov, fused=True, **shared
            )
        case AdamW():
            return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True, **shared)
        case TorchOptimizer():
            return _build_torch_optimizer(config, groups, shared)


def _build_torch_optimizer(
    config: TorchOptimizer, groups: list[dict[str, Any]], common: dict[str, Any]
) -> torch.optim.Optimizer:
    kind = getattr(torch.optim, config.optimizer_class, None)
    if (
        not isinstance(kind, type)
        or not issubclass(kind, torch.optim.Optimizer)
        or config.optimizer_class in _UNSUPPORTED
    ):
        raise InputError(
            f"optim.optimizer_class: {config.optimizer_class!r}, expected a class of torch.optim, such as NAdam"
        )
    try:
        arguments: dict[str, Any] = common | config.kwargs
        if groups[0]["params"][0].is_cuda and "capturable" in inspect.signature(kind).parameters:
            arguments.setdefault("capturable", True)  # keeps its state on the device, too
        optimizer: torch.optim.Optimizer = kind(groups, **arguments)
    except (TypeError, ValueError) as error:  # caused by its arguments, which are the recipe's
        raise InputError(f"optim: torch.optim.{config.optimizer_class}: {error}") from None
    return optimizer


def num_state_copies(config: AnyOptimizer) -> int:
    """Return the number of parameter-sized tensors that an optimizer keeps, for a plan.

    A class of torch.optim is assumed to have two moments, and three copies for restoring a skipped step.
    """
    match config:
        case SGD():
            return 1
        case AdamW():
            return 2
        case TorchOptimizer():
            return 5


def _layer_lr_scales(backbone: nn.Module, parameters: list[nn.Parameter], decay: float) -> list[float]:
    """Return the learning-rate factor of each parameter: 1 after the last block, `decay` in it, and so on."""
    if decay == 1:
        return [1.0] * len(parameters)
    blocks = getattr(backbone, "blocks", None)
    if blocks is None:
        raise InputError("optim.layer_decay: not supported for external backbones, whose blocks are unknown")
    refresh_block_size = {id(it): place for place, block in enumerate(blocks) for it in block.parameters()}
    depths, last = [], -1  # -1: before the first block
    for parameter in parameters:
        known = refresh_block_size.get(id(parameter))
        last = known if known is not None else len(blocks) if last >= 0 else -1
        depths.append(last)
    return [decay ** (len(blocks) - depth) for depth in depths]


def _param_groups(
    config: AnyOptimizer, parameters: list[nn.Parameter], scales: list[float]
) -> list[dict[str, Any]]:
    """Return the parameter groups: with and without weight decay, for each learning-rate factor."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter, scale in zip(parameters, scales, strict=True):
        # excludes the position embeddings of a ViT, `[1, N, width]`
        decayed = config.weight_decay_on == "all" or (parameter.ndim > 1 and len(parameter) > 1)
        new: dict[str, Any] = {"params": [], _LR_SCALE: scale} | ({} if decayed else {"weight_decay": 0.0})
        groups.setdefault((scale, decayed), new)["params"].append(parameter)
    return list(groups.values())


def _initial_state(config: AnyOptimizer, parameter: Tensor) -> dict[str, Tensor]:
    match config:
        case SGD():
            return {"momentum_buffer": torch.zeros_like(parameter)}
        case AdamW():
            return {
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
                "step": torch.zeros((), device=parameter.device),
            }
        case TorchOptimizer():
            return {}
