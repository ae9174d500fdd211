"""The losses of a head's steps, one after the other."""

import torch

from partialfc.config import AnyMargin
from partialfc.config.stages import stages_at
from partialfc.head.losses import Loss, State, loss_of


class LossByStep:
    """Gives each step its loss: settings are those of the step, the state is that of all steps.

    steps_per_epoch: wanted where stages of the settings begin at epochs, else ValueError. classes: that a step works on.
    device, dtype: of the state.
    """

    def __init__(
        self,
        settings: AnyMargin,
        steps_per_epoch: int | None,
        classes: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._settings, self._steps_per_epoch = settings, steps_per_epoch
        self._staged = bool(stages_at({"margin": settings}, 0, steps_per_epoch))
        self._first = loss_of(settings, 0, steps_per_epoch)
        self._first.begin(classes)
        self._first.state = {name: it.to(device, dtype) for name, it in self._first.state.items()}

    @property
    def state(self) -> State:
        """What the steps taken so far have left, as it is kept: to be saved, and written into."""
        return self._first.state

    def __call__(self, step: int) -> Loss:
        """The loss of a step; the same object for all where no setting has stages."""
        if not self._staged:
            return self._first
        loss = loss_of(self._settings, step, self._steps_per_epoch)
        loss.state = self._first.state
        return loss
