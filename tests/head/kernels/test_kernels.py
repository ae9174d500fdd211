"""Triton's kernels compute what the functions of torch do: steps of one head with each, in Triton's interpreter."""

import os
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from compiling import compiled_in
from torch import Tensor

from partialfc.config import CenterAdamW, CenterSGD, CosFace, HeadConfig
from partialfc.errors import InputError
from partialfc.head import PartialFC

CLASSES, WIDTH, BATCH = 300, 20, 12
SAMPLED = {"sample_rate": 0.3}
CASES = {
    "all classes": {},
    "sampled": SAMPLED,
    "computed twice": SAMPLED | {"logits_budget": 0},
    "in host memory": SAMPLED | {"memory": "host"},
    "skipped updates of rows": SAMPLED | {"unsampled": "decay"},
    "that, without momentum": SAMPLED | {"unsampled": "decay", "optim_state_dtype": "none"},
    "without momentum": SAMPLED | {"optim_state_dtype": "none"},
    "nesterov": SAMPLED | {"optim": CenterSGD(nesterov=True)},
    "AdamW": SAMPLED | {"optim": CenterAdamW()},
    "shifted, left out, corrected": {"scale": 128.0, "interclass_threshold": 0.3, "logit_correction": "log_q"} | SAMPLED,
    "bfloat16 rows": SAMPLED | {"centers_dtype": "bfloat16", "optim_state_dtype": "bfloat16"},
    "bfloat16 moments of AdamW": SAMPLED | {"optim_state_dtype": "bfloat16", "optim": CenterAdamW()},
    "bfloat16 rows that have missed steps": SAMPLED | {"centers_dtype": "bfloat16", "unsampled": "decay"},
}  # fmt: skip


def stepped(
    kernels: str,
    device: str,
    dtype: torch.dtype,
    scale: float = 64.0,
    **options: Any,
) -> dict[str, Tensor]:
    """Losses, gradients and rows of four steps, the third of which is skipped."""
    generator = torch.Generator().manual_seed(0)
    head = PartialFC(
        CLASSES,
        WIDTH,
        CosFace(scale=scale),
        config=HeadConfig(**{"kernels": kernels, "matmul_precision": "float32"} | options),
        seed=1,
        device=device,
        dtype=dtype,
    )
    found = {}
    for number in range(4):
        embeddings = torch.randn(BATCH, WIDTH, dtype=dtype, generator=generator).to(device).requires_grad_()
        labels = torch.randint(-1, CLASSES, (BATCH,), generator=generator)
        labels[3] = labels[2]
        with mock.patch("partialfc.head.workspace.classes_per_chunk", return_value=70):
            step = head.prepare(labels, number)
            loss = head(embeddings, step)
            loss.backward()
            head.update(step, 0.1, torch.tensor(number != 2, device=device))
        found |= {f"loss {number}": loss.detach(), f"gradient {number}": embeddings.grad}
    return found | head.centers.tensors


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_the_functions_of_torch(name, device):
    """In double precision, and rows of bfloat16 to the bit, which tells of any other noise."""
    options = CASES[name]
    low = "bfloat16" in options.values()
    dtype = torch.float32 if low else torch.float64
    expected, found = (stepped(kernels, device, dtype, **options) for kernels in ("torch", "triton"))
    tolerance = 2e-3 if low else 1e-11
    for key, wanted in expected.items():
        if wanted.dtype == torch.bfloat16:
            assert (wanted != found[key]).float().mean() < 1e-3, key  # where a sum is rounded otherwise
        else:
            atol = tolerance * wanted.abs().max().item()
            torch.testing.assert_close(
                found[key], wanted, rtol=0, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize("options", [SAMPLED, SAMPLED | {"centers_dtype": "bfloat16"}], ids=str)
def test_kernels_give_16_bit_factors(options, device):
    """The interpreter cuts a number off at bfloat16 where a GPU rounds it."""
    expected, found = (
        stepped(kernels, device, torch.float32, matmul_precision="half", **options)
        for kernels in ("torch", "triton")
    )
    for key, wanted in expected.items():
        error = (found[key].double() - wanted.double()).norm() / wanted.double().norm()
        assert error < 2**-7, key


def test_a_step_by_kernels_gives_the_same_bits_each_time(device):
    one, other = (
        stepped("triton", device, torch.float32, matmul_precision="half", **SAMPLED) for _ in range(2)
    )
    assert all(torch.equal(it, other[name]) for name, it in one.items())


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus(capability, tmp_path):
    """With loads and stores of 16 bytes wherever a row, or a row of logits, is read or written."""
    outside = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with mock.patch.dict(os.environ, outside | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}, clear=True):
        process = get_context("spawn").Process(target=compiled_in, args=(tmp_path, capability))
        process.start()
    process.join(120)
    assert process.exitcode == 0
    kernels = {path.name.split(".")[0]: path.read_text() for path in Path(tmp_path).glob("*.ptx")}
    assert kernels.keys() == {
        "_normalize_centers", "_exp_logits", "_step_centers", "_copy_rows", "_target_distances", "_softmax_totals", "_softmax_gradient",
        "_embedding_gradients", "_add_target_gradients",
    }  # fmt: skip
    by_image = "_softmax_totals", "_softmax_gradient"  # which read and write [B]
    assert all(".v4" in text for name, text in kernels.items() if name not in by_image)


def test_kernels_that_cannot_run_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match=r"head\.kernels: triton requires a GPU and Triton, got device cpu"):
        PartialFC(7, 4, CosFace(), config=HeadConfig(kernels="triton"))
