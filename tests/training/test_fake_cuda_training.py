"""What a step does beside the head, on CUDA tensors that hold no numbers. (A backward cannot run on such tensors.)"""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from helpers.fake_cuda import DEVICE, fake_cuda, launches

from partialfc.backbones import Backbone, build_backbone, move_to_device
from partialfc.config import SGD, AdamW, IResNetTiny, MobileFaceNetConfig, ViTTiny
from partialfc.data import loader
from partialfc.data.augment import network_input
from partialfc.data.loader import BatchLoader
from partialfc.training.backbone_optimizer import BackboneOptimizer
from partialfc.training.health import TrainingHealth
from partialfc.training.microbatches import MicroBatchRunner
from partialfc.training.replicas import ModelEMA, RunningStats

BATCH = 8


def built(settings: Any) -> Backbone:
    with torch.device(DEVICE):
        network = build_backbone(settings)
    with mock.patch.object(network, "to"):  # fake parameters are not swapped, and are there
        move_to_device(network, torch.device(DEVICE), channels_last=False)
    return network


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize(
    "optim", [SGD(precision="float16"), AdamW(ema_decay=0.9)], ids=lambda it: type(it).__name__
)
@pytest.mark.parametrize(
    "settings",
    [IResNetTiny(width=8, dropout=0.4), MobileFaceNetConfig(), ViTTiny()],
    ids=lambda it: type(it).__name__,
)
def test_backbone_and_optimizer_hold_nobody_up(settings, optim, micro_batch):
    with fake_cuda(2) as fake:
        with fake:
            ranks = SimpleNamespace(device=torch.device(DEVICE), group=dist.group.WORLD, rank=0, size=2)
            backbone, network = built(settings), built(settings)
            statistics = RunningStats(backbone)
            optimizer = BackboneOptimizer(backbone, optim, ranks)
            average = ModelEMA(backbone, network, 0.9)
            health = TrainingHealth(ranks.device)
            batches = MicroBatchRunner(
                backbone,
                lambda it: backbone(network_input(it)),
                optimizer.gradients,
                micro_batch_size=micro_batch,
                seed=0,
                rank=0,
            )
            size = settings.input_size
            images = torch.empty(BATCH, size, size, 3, dtype=torch.uint8, device=DEVICE)
            loss = torch.empty((), device=DEVICE)
        with launches(fake) as found:
            kept = statistics.clone()
            embeddings = batches.forward(images, 0)
            optimizer.gradients.zero()
            with optimizer.gradients.all_reduce_on_exit():
                pass
            _, finite = optimizer.step(0.1, loss)
            statistics.restore_unless(finite, kept)
            average.update(0, finite)
            health.update(1, finite, loss)
    assert embeddings.device.type == "cuda" and found.launched
    assert not found.crossings
    counted = [it for name, it in backbone.named_buffers() if name.endswith("num_batches_tracked")]
    assert {it.device.type for it in counted} <= {"cpu"}  # by no kernel


def test_images_are_handed_over_while_nobody_waits():
    with fake_cuda(1) as fake:
        reader = BatchLoader.__new__(BatchLoader)
        reader._copy_stream, reader._dist_ctx = (
            torch.cuda.Stream(),
            SimpleNamespace(device=torch.device(DEVICE)),
        )
        images, mirrored = torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.tensor([1, 2])
        part = loader._WorkerBatch(
            images.pin_memory(), torch.arange(4), mirrored.pin_memory(), 0, torch.zeros(4, 5).pin_memory()
        )
        with launches(fake) as found:
            images, teacher = reader._to_device(part)
    assert images.device.type == teacher.device.type == "cuda" and not found.crossings
