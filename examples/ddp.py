"""Two processes that train one pruned model: the same masks on both, and gradients of the kept weights alone.

torchrun --standalone --nproc_per_node=2 examples/ddp.py
"""

import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import sparseprune as sp


def train(model: nn.Module, batches: list[Any]) -> int:
    """Train, and count the bytes of gradients that a step sends."""
    parallel = DistributedDataParallel(model)
    sent = [0]

    def count(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent[0] += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)

    parallel.register_comm_hook(dist.group.WORLD, count)
    optimizer = torch.optim.AdamW(parallel.parameters(), 1e-3)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(parallel(x), y).backward()
        optimizer.step()
    return sent[0] // len(batches)


def same_on_all_ranks(tensors: Any) -> bool:
    mine = torch.cat([t.detach().flatten().float() for t in tensors])
    theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(theirs, mine)
    return all(torch.equal(mine, other) for other in theirs)


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )
    # Each process has its own data.
    torch.manual_seed(1 + dist.get_rank())
    batches = [(torch.randn(64, 784), torch.randint(10, (64,))) for _ in range(5)]

    masks = sp.prune(model, batches, sparsity=0.95)  # scores are summed over the processes
    sparse = sp.sparsify(model, masks, batch_size=64)
    sent, sent_dense = train(sparse, batches), train(copy.deepcopy(model), batches)
    same = same_on_all_ranks(masks.values()), same_on_all_ranks(sparse.parameters())
    if dist.get_rank() == 0:
        print(f"{sent:,} bytes of gradients a step, dense {sent_dense:,};", end=" ")
        print(f"the same on all ranks: masks {same[0]}, trained weights {same[1]}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
