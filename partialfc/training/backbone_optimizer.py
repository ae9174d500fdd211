"""The step of the parameters that every rank has a replica of: loss scale, clipping, and skips decided on the device."""

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

_UNSUPPORTED = ("Optimizer", "LBFGS", "SparseAdam")  # whose step takes more than gradients, or other ones
_LR_SCALE = "lr_scale"  # of a group's rate
_GROWTH_INTERVAL = 2000  # steps without an overflow after which the loss scale doubles


class LossScaler:
    """What a loss is multiplied by before backward so that float16 gradients do not vanish; lives on the device.

    Halved after an overflow, doubled after 2000 steps without one, as torch.amp.GradScaler does, but without
    asking the device. Where not enabled it stays 1.
    """

    def __init__(self, *, enabled: bool, device: torch.device) -> None:
        self._enabled = enabled
        self.value = torch.full((), 2.0**16 if enabled else 1.0, device=device)
        self.growth_streak = torch.zeros((), device=device)  # steps since it last changed

    def update(self, finite: Tensor) -> None:
        """After a step, in place; finite: bool scalar."""
        if not self._enabled:
            return
        self.growth_streak.add_(1).mul_(finite)
        grown = self.growth_streak >= _GROWTH_INTERVAL
        self.value.mul_(torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5))
        self.growth_streak.mul_(~grown)


class BackboneOptimizer:
    """The step of the parameters of `backbone`, clipped by the norm of all gradients together.

    A step that is not finite changes nothing, which the device decides: the fused optimizers see to it themselves; of
    any other, what the step has changed is taken back, for which parameters and moments are copied before.
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
        # Made here and not at the first step, which may be one that is skipped.
        for parameter in self._named.values():
            self._optimizer.state[parameter].update(_initial_state(config, parameter))

    @property
    def state(self) -> dict[str, dict[str, Tensor]]:
        """What the optimizer keeps of each parameter; empty before the first step, but for the fused ones."""
        return {
            name: self._optimizer.state[it] for name, it in self._named.items() if it in self._optimizer.state
        }

    def reset_state(self, names: Collection[str]) -> None:
        """What is kept of the parameters of these names is as before the first step."""
        for name in names:
            parameter = self._named[name]
            self._optimizer.state[parameter] = _initial_state(self._config, parameter)

    def materialize_state(self) -> None:
        """Make the tensors of `state`, with any content, for a checkpoint to be read into."""
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
        """Around the backbone: it computes in the recipe's precision."""
        return precision.autocast(self._config.precision, self._device)

    def step(self, lr: float, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step at learning rate `lr`, from the gradients of loss scale x loss, summed over the ranks.

        Returns scalars on the device: the gradient's norm before clipping, and whether it and the loss are
        finite. Where not, nothing changes. Both are the same on every rank, as the summed gradients and the
        loss are.
        """
        norm = self.gradients.norm() / self.loss_scale.value
        finite = norm.isfinite() & loss.isfinite()
        clip = self._config.max_grad_norm
        excess = (norm / clip).clamp_min(1.0) if clip else torch.ones_like(norm)
        self.gradients.divide(self.loss_scale.value * excess)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group[_LR_SCALE]
        if self._fused:
            self._optimizer.found_inf = (~finite).float()  # where it is 1, nothing changes
            self._optimizer.step()
        else:
            self._step_or_revert(finite)
        self.loss_scale.update(finite)
        return norm, finite

    def _step_or_revert(self, finite: Tensor) -> None:
        # What such an optimizer keeps is made in its first step: only before that one is there nothing to go back to.
        if not any(self._optimizer.state.values()) and not bool(finite):
            return
        tensors = self._tensors()
        before = [it.clone() for it in tensors]
        self._optimizer.step()
        for now, then in zip(tensors, before, strict=True):
            # What is kept on the host, as steps are where `capturable` is unknown, waits for the device.
            now.copy_(torch.where(finite.to(now.device), now, then))

    def _tensors(self) -> list[Tensor]:
        """All that a step changes."""
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
            f"optim.optimizer_class: {config.optimizer_class!r}, wanted a class of torch.optim, such as NAdam"
        )
    try:
        arguments: dict[str, Any] = common | config.kwargs
        if groups[0]["params"][0].is_cuda and "capturable" in inspect.signature(kind).parameters:
            arguments.setdefault("capturable", True)  # what it keeps lies on the device, too
        optimizer: torch.optim.Optimizer = kind(groups, **arguments)
    except (TypeError, ValueError) as error:  # of its arguments, which are the recipe's
        raise InputError(f"optim: torch.optim.{config.optimizer_class}: {error}") from None
    return optimizer


def num_state_copies(config: AnyOptimizer) -> int:
    """How many tensors of the size of the parameters an optimizer keeps beside them, for a plan.

    Two moments are assumed of a class of torch.optim, and three copies with which a step may be taken back.
    """
    match config:
        case SGD():
            return 1
        case AdamW():
            return 2
        case TorchOptimizer():
            return 5


def _layer_lr_scales(backbone: nn.Module, parameters: list[nn.Parameter], decay: float) -> list[float]:
    """By what each parameter's rate is multiplied: 1 after the last block, `decay` in it, and so on to the first layers."""
    if decay == 1:
        return [1.0] * len(parameters)
    blocks = getattr(backbone, "blocks", None)
    if blocks is None:
        raise InputError("optim.layer_decay: not for networks of others, which have no blocks that are known")
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
    """Those that decay, and those that do not, of each scale of the rate."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter, scale in zip(parameters, scales, strict=True):
        # not a ViT's positions, which are [1, N, width]
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
