"""torchrun --nproc-per-node 2 examples/train_ddp.py PACK CHECKPOINT [--fsdp] [--steps 100] [--resume CHECKPOINT]"""

import argparse

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from partialfc import PartialFC, RecordDataset
from partialfc.config import AdamW, ElasticArcFace, HeadConfig

SIZE, WIDTH, BATCH, LR = 32, 64, 48, 1e-3


def state_of(network: torch.nn.Module, optimizer: torch.optim.Optimizer, head: PartialFC) -> dict[str, dict]:
    parts = zip(("network", "optimizer"), get_state_dict(network, optimizer), strict=True)
    return dict(parts, head=head.state_dict())


def train(network: torch.nn.Module, dataset: RecordDataset, options: argparse.Namespace) -> None:
    network = fully_shard(network) if options.fsdp else DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(network.parameters(), LR)
    head = PartialFC(dataset.num_classes, WIDTH, ElasticArcFace(scale=16), config=HeadConfig(sample_rate=0.5),
                     optim=AdamW(lr=LR), device=options.device, backbone_gradients="mean")  # fmt: skip
    if options.resume:  # of any number of ranks
        dcp.load(kept := state_of(network, optimizer, head), checkpoint_id=options.resume)
        set_state_dict(
            network, optimizer, model_state_dict=kept["network"], optim_state_dict=kept["optimizer"]
        )
        head.load_state_dict(kept["head"])
    for number in range(head.steps, options.steps):
        chosen = torch.randint(len(dataset), (BATCH,), generator=torch.Generator().manual_seed(number))
        mine = [dataset[int(it)] for it in chosen.chunk(dist.get_world_size())[dist.get_rank()]]
        step = head.prepare(head.gather_labels(torch.tensor([label for _, label in mine])), number)
        loss = head(network(torch.stack([image for image, _ in mine]).to(options.device)), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        head.update(step, LR)
        if dist.get_rank() == 0:
            print(f"step {number}: loss {loss.item():.8f}", flush=True)
    dcp.save(state_of(network, optimizer, head), checkpoint_id=options.checkpoint)


def as_input(image) -> torch.Tensor:
    return (torch.from_numpy(image).permute(2, 0, 1) - 127.5) / 127.5


def new_network() -> torch.nn.Module:
    torch.manual_seed(0)  # the same on every rank
    stem, last = torch.nn.Conv2d(3, 64, 4, stride=4), torch.nn.Linear(64 * (SIZE // 4) ** 2, WIDTH)
    return torch.nn.Sequential(stem, torch.nn.PReLU(), torch.nn.Flatten(), last)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("pack"), parser.add_argument("checkpoint"), parser.add_argument("--resume")
    parser.add_argument("--fsdp", action="store_true"), parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    dist.init_process_group()
    options.device = f"cuda:{dist.get_node_local_rank()}" if torch.cuda.is_available() else "cpu"
    dataset = RecordDataset(options.pack, SIZE, transform=as_input)
    train(new_network().to(options.device), dataset, options)
    dist.destroy_process_group()
