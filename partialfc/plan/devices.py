"""What GPUs can do, as their makers say: bounds, not promises."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One GPU of a machine of eight."""

    memory: int  # bytes
    float32: float  # operations a second, tensor cores not counted
    bfloat16: float  # operations a second, dense
    traffic: float  # bytes a second, between the GPU and its memory
    near: float  # bytes a second that it can send to GPUs of its machine
    far: float  # bytes a second, to other machines


DEVICES = {
    # NVIDIA V100 datasheet (SXM2, 32 GB); DGX-1: 4 x 100 Gb/s InfiniBand for 8 GPUs;
    # no bfloat16 in its tensor cores
    "v100": Device(32 << 30, 15.7e12, 15.7e12, 0.9e12, 150e9, 6.25e9),
    # NVIDIA A100 datasheet (SXM, 80 GB); DGX A100: a 200 Gb/s InfiniBand port a GPU
    "a100": Device(80 << 30, 19.5e12, 312e12, 2.039e12, 300e9, 25e9),
    # NVIDIA H100 datasheet (SXM, 80 GB); DGX H100: a 400 Gb/s InfiniBand port a GPU
    "h100": Device(80 << 30, 67e12, 989e12, 3.35e12, 450e9, 50e9),
}
MACHINE = 8  # GPUs
