"""A block in which nothing may wait for the device."""

from torch.utils._python_dispatch import TorchDispatchMode


class NoWaiting(TorchDispatchMode):
    """Fails on what would make the host wait for a device: reading a value, or a shape that values decide."""

    FORBIDDEN = (
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.masked_select",
        "aten._unique",
        "aten.unique",
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not str(function).startswith(self.FORBIDDEN), f"{function} waits for the device"
        return function(*args, **(kwargs or {}))
