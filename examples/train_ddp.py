"""torchrun --nproc-per-node 2 examples/train_ddp.py PACK CHECKPOINT [--fsdp] [--steps 100] [--resume CHECKPOINT]

A network of one's own beside PartialFC: torch's loop and AdamW, and checkpoints that any number of ranks loads.
"""

import argparse

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from partialfc.config import AdamW, ElasticArcFace, HeadConfig
from partialfc.data import RecordDataset
from partialfc.head import PartialFC

SIZE, WIDTH, BATCH, LR = 32, 64, 48, 1e-3


def train(network: nn.Module, dataset: RecordDataset, options: argparse.Namespace) -> None:
    network = fully_shard(network) if options.fsdp else DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(network.parameters(), LR)
    config, rows = HeadConfig(sample_rate=0.5), AdamW(lr=LR)
    head = PartialFC(dataset.num_classes, WIDTH, ElasticArcFace(scale=16), config=config, optim=rows,
                     device=options.device, backbone_gradients="mean")  # as both of them take  # fmt: skip
    if options.resume:
        model, optim = get_state_dict(network, optimizer)
        state = {"network": model, "optimizer": optim, "head": head.state_dict()}
        dcp.load(state, checkpoint_id=options.resume)
        set_state_dict(network, optimizer, model_state_dict=model, optim_state_dict=optim)
        head.load_state_dict(state["head"])
    for number in range(head.steps, options.steps):
        chosen = torch.randint(len(dataset), (BATCH,), generator=torch.Generator().manual_seed(number))
        mine = [dataset[int(it)] for it in chosen.chunk(dist.get_world_size())[dist.get_rank()]]
        images = torch.stack([torch.from_numpy(it).permute(2, 0, 1) for it, _ in mine]).to(options.device)
        step = head.prepare(head.gather_labels(torch.tensor([label for _, label in mine])), number)
        loss = head(network((images.float() - 127.5) / 127.5), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        head.update(step, LR)
        if dist.get_rank() == 0:
            print(f"step {number}: loss {loss.item():.8f}", flush=True)
    model, optim = get_state_dict(network, optimizer)
    state = {"network": model, "optimizer": optim, "head": head.state_dict()}
    dcp.save(state, checkpoint_id=options.checkpoint)


def new_network() -> nn.Module:
    torch.manual_seed(0)  # the same on every rank
    first, second = nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.Conv2d(32, 64, 3, stride=2, padding=1)
    last = nn.Linear(64 * (SIZE // 4) ** 2, WIDTH)
    return nn.Sequential(first, nn.GroupNorm(4, 32), nn.PReLU(), second, nn.PReLU(), nn.Flatten(), last)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("pack"), parser.add_argument("checkpoint"), parser.add_argument("--resume")
    parser.add_argument("--fsdp", action="store_true"), parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    dist.init_process_group()
    cuda = torch.cuda.is_available()
    options.device = torch.device("cuda", dist.get_node_local_rank()) if cuda else torch.device("cpu")
    train(new_network().to(options.device), RecordDataset(options.pack, image_size=SIZE), options)
    dist.destroy_process_group()
