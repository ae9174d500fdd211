"""A step of the head on CUDA tensors that hold no numbers: the host waits for nothing, and sends nothing but pinned memory."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.fake_cuda import DEVICE, Launches, fake_cuda, launches

from partialfc.config import (
    AdaFace,
    AnyLoss,
    CenterAdamW,
    CosFace,
    CurricularFace,
    ElasticArcFace,
    FollowTeacher,
    HeadConfig,
    LinearSoftmax,
    MagFace,
    SphereFace2,
    UniFace,
)
from partialfc.head import PartialFC, centers

DOCUMENT = Path(__file__).parents[2] / "docs/explanation/gpu.md"
CLASSES, WIDTH, BATCH = 3000, 16, 64
SAMPLED = {"sample_rate": 0.1}
OPTIONS: list[dict[str, Any]] = [
    {},
    SAMPLED,
    SAMPLED | {"matmul_precision": "half"},
    SAMPLED | {"sample_on": "device", "logit_correction": "log_q", "centers_dtype": "bfloat16"},
    SAMPLED | {"logits_budget": 0, "logit_correction": "log_q", "interclass_threshold": 0.5},
    SAMPLED | {"logits_budget": 0, "matmul_precision": "half"},
    SAMPLED | {"unsampled": "decay"},
    SAMPLED | {"unsampled": "decay", "optim_state_dtype": "none"},
    SAMPLED | {"centers_dtype": "bfloat16", "optim_state_dtype": "bfloat16"},
    SAMPLED | {"optim": CenterAdamW()},
    SAMPLED | {"memory": "host"},
    SAMPLED | {"subcenters": 3, "matmul_precision": "half"},
    SAMPLED | {"memory": "host", "centers_dtype": "bfloat16", "optim": CenterAdamW()},
    SAMPLED
    | {
        "sampling": "hard",
        "hard_refresh_steps": 100,
        "matmul_precision": "half",
        "centers_dtype": "bfloat16",
    },
]


def stepped(
    world_size: int,
    options: dict[str, Any],
    margin: AnyLoss | None = None,
    shape: tuple[int, int, int] = (CLASSES, WIDTH, BATCH),
    observed: bool = True,
    distilled: bool = False,
) -> Launches:
    """What a step launches."""
    classes, width, batch = shape
    labels = torch.arange(batch) * 37 % classes
    with fake_cuda(world_size) as fake, mock.patch.object(centers, "init_centers"):
        with fake:
            config, optim = HeadConfig(**options), FollowTeacher() if distilled else None
            head = PartialFC(classes, width, margin or CosFace(), config=config, optim=optim, device=DEVICE)
        step = head.prepare(labels, 0)
        with launches(fake) as found:
            teacher = torch.empty(batch // world_size, width, device=DEVICE) if distilled else None
            loss = head(torch.empty(batch // world_size, width, device=DEVICE, requires_grad=True), step)
            if observed:
                head.observe(step)
            step.add_gradient(torch.ones_like(loss))  # a backward cannot run on such tensors
            head.update(step, 0.1, teacher=teacher)
    assert found.launched
    return found


@pytest.mark.parametrize("world_size", [1, 8])
@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_holds_nobody_up(options, kernels, world_size):
    assert not stepped(world_size, options | {"kernels": kernels}).crossings


@pytest.mark.parametrize("world_size", [1, 8])
@pytest.mark.parametrize(
    "margin",
    [
        ElasticArcFace(order="paper", scale=128.0), AdaFace(), CurricularFace(), MagFace(), UniFace(), SphereFace2(),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_a_step_of_any_loss_holds_nobody_up(options, margin, world_size):
    assert not stepped(world_size, options, margin).crossings


@pytest.mark.parametrize("world_size", [1, 8])
@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize(
    "options", [{}, SAMPLED, SAMPLED | {"memory": "host", "centers_dtype": "bfloat16"}], ids=str
)
def test_a_step_with_a_teacher_holds_nobody_up(options, kernels, world_size):
    assert not stepped(world_size, options | {"kernels": kernels}, distilled=True).crossings


@pytest.mark.parametrize("world_size", [1, 8])
@pytest.mark.parametrize("options", [{}, SAMPLED | {"logits_budget": 0, "kernels": "triton"}], ids=str)
def test_a_step_of_a_linear_layer_holds_nobody_up(options, world_size):
    assert not stepped(world_size, options, LinearSoftmax()).crossings


@pytest.mark.parametrize(("products", "precision"), [("auto", "tf32"), ("tf32", "tf32"), ("float32", "ieee")])
def test_products_are_as_the_recipe_says_and_no_others(products, precision):
    before = torch.backends.cuda.matmul.fp32_precision
    found = stepped(1, SAMPLED | {"matmul_precision": products}, observed=False)
    assert found.precisions == {(torch.float32, precision)}
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_half_multiplies_logits_in_float16_and_exponentials_in_bfloat16():
    found = stepped(1, SAMPLED | {"matmul_precision": "half"}, observed=False)
    assert {kind for kind, _ in found.precisions} == {torch.float16, torch.bfloat16}


def test_what_would_hold_the_host_up_is_found():
    with fake_cuda(1) as fake, launches(fake) as found:
        there = torch.empty(4, 4, device=DEVICE)
        there[torch.tensor([1, 2])]  # copied from memory that is not pinned
        there.cpu()
    assert [it.split()[0] for it in found.crossings] == ["index", "_to_copy"]


def test_the_documentation_tells_how_many_kernels_a_step_launches():
    half = {"matmul_precision": "half"}
    low = half | {"centers_dtype": "bfloat16", "optim_state_dtype": "bfloat16"}
    columns = [
        options | {"kernels": kernels} for options in ({}, half, low) for kernels in ("torch", "triton")
    ]
    for case, classes, rate, world_size in (
        ("1,000,000 ids, r = 0.1, 1 rank", 1_000_000, 0.1, 1),
        ("1,000,000 ids, r = 0.1, 8 ranks", 1_000_000, 0.1, 8),
        ("360,000 ids, r = 1, 8 ranks", 360_000, 1.0, 8),
    ):
        counts = [
            stepped(
                world_size, options | {"sample_rate": rate}, shape=(classes, 512, 1024), observed=False
            ).launched.total()
            for options in columns
        ]
        assert f"| {case} | {' | '.join(map(str, counts))} |" in DOCUMENT.read_text()
