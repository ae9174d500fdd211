"""Rows that a kernel samples are those that the host samples, with their noise and logit correction."""

import pytest
import torch
from helpers.runs import assert_same_bits, config_of, curve, trained, whole
from hypothesis import given
from hypothesis import strategies as st

from partialfc.config import CosFace, HeadConfig
from partialfc.errors import InputError
from partialfc.head.kernels import build_kernels
from partialfc.head.losses import LossSchedule
from partialfc.head.sampling import ActiveClasses, ClassSampler
from partialfc.head.state import class_range

FIELDS = ("rows", "rounding_noise", "logit_correction", "target_slots", "has_target", "images_by_class")


def sampled(
    on: str,
    classes: int,
    rate: float,
    local: range,
    labels: torch.Tensor,
    step: int,
    kernels: str,
    device: str,
) -> ActiveClasses:
    """Return the active classes of a step with all tensors on a device."""
    config = HeadConfig(sample_rate=rate, sample_on=on, logit_correction="log_q")
    sampler = ClassSampler(
        classes,
        local,
        config,
        steps_per_epoch=None,
        seed=3,
        uses_stochastic_rounding=True,
        dtype=torch.float32,
        neighbors=None,
    )
    loss = LossSchedule(CosFace(), None, classes * rate, torch.device("cpu"), torch.float32)(0)
    found = sampler(labels, step, loss)
    backend = build_kernels(kernels, torch.device(device), one_direction=True)
    tensors = {name: it.to(device) for name, it in found.tensors().items()}
    return found.on_device(tensors, backend.sample_rows, torch.float32)


def assert_equal(found: ActiveClasses, expected: ActiveClasses) -> None:
    assert found.num_active == expected.num_active == len(expected.rows)
    for name in FIELDS:
        value = getattr(expected, name)
        assert torch.equal(getattr(found, name), value) and getattr(found, name).dtype == value.dtype, name
    assert (found.host_sorted_slots == expected.host_sorted_slots).all()


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@given(
    classes=st.integers(1, 400),
    rate=st.floats(0.001, 0.999),
    step=st.integers(0, 10**6),
    world_size=st.integers(1, 5),
    batch=st.integers(1, 40),
)
def test_the_device_samples_what_the_host_samples(device, kernels, classes, rate, step, world_size, batch):
    labels = torch.randint(-1, classes, (batch,), generator=torch.Generator().manual_seed(step))
    for rank in range(world_size):
        case = classes, rate, class_range(classes, rank, world_size), labels, step, kernels, device
        assert_equal(sampled("device", *case), sampled("host", *case))


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("rank", [0, 5])
def test_large_numbers_of_classes(device, kernels, rank):
    classes = 10**9
    labels = torch.randint(-1, classes, (512,), generator=torch.Generator().manual_seed(rank))
    local = class_range(classes, rank, 6)
    labels[::7] = torch.arange(
        local.start, local.start + len(labels[::7])
    )  # neighbors, and the edge of the rank
    case = classes, 1e-5, local, labels, 17, kernels, device
    assert_equal(sampled("device", *case), sampled("host", *case))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_run_is_the_same_to_the_bit(ranks, pack, tmp_path, world_size):
    """With a schedule that ends at the rate 1, where there is nothing to sample."""
    states = {}
    for on in ("host", "device"):
        head = {
            "sample_on": on,
            "sample_rate": {0: 0.2, 4: 1.0},
            "logit_correction": "log_q",
            "centers_dtype": "bfloat16",
        }
        config = config_of(pack, tmp_path / on, train={"length": 6}, head=head)
        states[on] = whole(ranks.run(world_size, trained, config))
    assert curve(tmp_path / "device") == curve(tmp_path / "host")
    assert_same_bits(states["device"], states["host"])


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"memory": "host"}, "memory: host; expected device"),
        ({"sampling": "hard"}, "sampling: hard; expected uniform"),
        ({"unsampled": "decay"}, "unsampled: decay; expected hold"),
    ],
)
def test_what_needs_indices_on_the_host_is_refused(options, found):
    with pytest.raises(InputError, match=f"head.{found}, as head.sample_on: device"):
        HeadConfig(sample_rate=0.1, sample_on="device", **options)
