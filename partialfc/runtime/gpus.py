"""Specifications of GPUs from their vendors: upper bounds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPUSpec:
    """One GPU of a machine with eight."""

    memory: int  # bytes
    float32: float  # matmul operations per second without tensor cores
    tf32: float  # float32 factors rounded to 10 bits of mantissa on tensor cores; dense
    float16: float  # float16 or bfloat16 factors; dense
    memory_bandwidth: float  # bytes per second between the GPU and its memory
    intra_node_bandwidth: float  # bytes per second to GPUs of the same machine
    inter_node_bandwidth: float  # bytes per second to other machines


GPUS = {
    # NVIDIA V100 datasheet (SXM2, 32 GB); DGX-1: 4 x 100 Gb/s InfiniBand for 8 GPUs; tensor cores without
    # TF32 and bfloat16
    "v100": GPUSpec(32 << 30, 15.7e12, 15.7e12, 15.7e12, 0.9e12, 150e9, 6.25e9),
    # NVIDIA A100 datasheet (SXM, 80 GB); DGX A100: one 200 Gb/s InfiniBand port per GPU
    "a100": GPUSpec(80 << 30, 19.5e12, 156e12, 312e12, 2.039e12, 300e9, 25e9),
    # NVIDIA H100 datasheet (SXM, 80 GB); DGX H100: one 400 Gb/s InfiniBand port per GPU
    "h100": GPUSpec(80 << 30, 67e12, 494.5e12, 989e12, 3.35e12, 450e9, 50e9),
    # NVIDIA H200 datasheet (SXM, 141 GB); otherwise as H100
    "h200": GPUSpec(140 << 30, 67e12, 494.5e12, 989e12, 4.8e12, 450e9, 50e9),
}
GPUS_PER_NODE = 8


def find_gpu(name: str) -> GPUSpec | None:
    """Return the specification of a GPU by its full name, such as `NVIDIA H100 80GB HBM3`; None if it is unknown."""
    return next((spec for key, spec in GPUS.items() if key in name.lower()), None)
