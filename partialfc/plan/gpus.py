"""What GPUs can do, as their makers say: bounds, not promises."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPUSpec:
    """One GPU of a machine of eight."""

    memory: int  # bytes
    float32: float  # operations a second of products, tensor cores not counted
    tf32: float  # of float32 factors, on tensor cores that take 10 bits of their mantissas; dense
    float16: float  # of float16 or bfloat16 factors; dense
    memory_bandwidth: float  # bytes a second, between the GPU and its memory
    intra_node_bandwidth: float  # bytes a second that it can send to GPUs of its machine
    inter_node_bandwidth: float  # bytes a second, to other machines


GPUS = {
    # NVIDIA V100 datasheet (SXM2, 32 GB); DGX-1: 4 x 100 Gb/s InfiniBand for 8 GPUs;
    # neither TF32 nor bfloat16 in its tensor cores
    "v100": GPUSpec(32 << 30, 15.7e12, 15.7e12, 15.7e12, 0.9e12, 150e9, 6.25e9),
    # NVIDIA A100 datasheet (SXM, 80 GB); DGX A100: a 200 Gb/s InfiniBand port a GPU
    "a100": GPUSpec(80 << 30, 19.5e12, 156e12, 312e12, 2.039e12, 300e9, 25e9),
    # NVIDIA H100 datasheet (SXM, 80 GB); DGX H100: a 400 Gb/s InfiniBand port a GPU
    "h100": GPUSpec(80 << 30, 67e12, 494.5e12, 989e12, 3.35e12, 450e9, 50e9),
    # NVIDIA H200 datasheet (SXM, 141 GB); otherwise as H100
    "h200": GPUSpec(140 << 30, 67e12, 494.5e12, 989e12, 4.8e12, 450e9, 50e9),
}
GPUS_PER_NODE = 8  # GPUs
