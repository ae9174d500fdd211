"""Compiles the kernels that a step of the head would launch, for GPUs that are not here."""

import itertools
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from partialfc.config import AnyLoss, CenterAdamW, CosFace, CurricularFace, HeadConfig, MagFace
from partialfc.head import PartialFC, partial_fc
from partialfc.head.kernels import triton_backend, triton_centers, triton_images, triton_logits, triton_rows

POINTERS = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int64: "*i64", torch.int32: "*i32", torch.uint8: "*u8", torch.int16: "*i16",
}  # fmt: skip
SCALARS = {int: "i32", float: "fp32"}
SETTINGS: list[dict[str, Any]] = [
    {"sample_rate": 0.1},
    {"sample_rate": 0.1, "matmul_precision": "half", "centers_dtype": "bfloat16", "optim_state_dtype": "bfloat16"},
    {"sample_rate": 0.1, "matmul_precision": "half", "interclass_threshold": 0.5, "logit_correction": "log_q", "unsampled": "decay"},
    {"optim": CenterAdamW(), "margin": CosFace(scale=128.0)},
    {"sample_rate": 0.1, "memory": "host"},
    {"sample_rate": 0.1, "margin": CurricularFace()},
    {"sample_rate": 0.1, "margin": MagFace()},
]  # fmt: skip


def compiled_in(folder: Path, capability: int) -> None:
    """Write the PTX of each kernel, in each way in which the steps of SETTINGS launch it, for a compute capability."""
    count = itertools.count()

    def compile_(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        named = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        signature, attributes = {}, {}
        for place, (name, value) in enumerate(named.items()):
            if isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
                attributes[(place,)] = [["tt.divisibility", 16]]
            else:
                kind = SCALARS.get(type(value)) if name not in constants else None
                signature[name] = kind or "constexpr"
                if signature[name] == "i32" and value % 16 == 0:
                    attributes[(place,)] = [["tt.divisibility", 16]]
        values = {name: named[name] for name, kind in signature.items() if kind == "constexpr"}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
        result = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        (folder / f"{kernel.fn.__name__}.{next(count)}.ptx").write_text(result.asm["ptx"])

    with ExitStack() as stack:
        for module in (triton_logits, triton_rows, triton_images, triton_centers):
            stack.enter_context(mock.patch.object(module, "launch", compile_))
        stack.enter_context(mock.patch.object(partial_fc, "build_kernels", return_value=triton_backend()))
        for settings in SETTINGS:
            step(**settings)


def step(margin: AnyLoss | None = None, **settings: Any) -> None:
    """A step that computes nothing."""
    head = PartialFC(2000, 512, margin or CosFace(), config=HeadConfig(**settings))
    step = head.prepare(torch.arange(128), 0)
    head(torch.randn(128, 512, requires_grad=True), step).backward()
    head.update(step, 0.1)
