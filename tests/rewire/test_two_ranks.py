"""Two processes of torch.distributed (gloo), each with its own samples, that rewire alike."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from moving_networks import masks_of, sample, sparse
from torch import nn

import sparseprune as sp

HERE = Path(__file__).resolve().parent

RANK = """
import sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from moving_networks import masks_of, sample, sparse
import sparseprune as sp
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
result = {}
for layers in ("sparse", "dense"):
    for method in ("rigl", "set"):
        model = sparse("linear", layers)
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        rewire = sp.Rewire(wrapped, optimizer, method, every=2, until=20)
        for step in range(8):
            x, y = sample("linear", step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(wrapped(x[rank::2]), y[rank::2]).backward()
            optimizer.step()
            rewire.step()
        result[f"{layers} {method}"] = {
            "masks": masks_of(model),
            "weights": {name: model.get_submodule(name).weight.detach().clone() for name in "02"},
        }
torch.save(result, f"{folder}/{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(folder)], env={**os.environ, "PYTHONPATH": path}
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_ranks_rewire_alike_and_as_one_process_does(layers: str, method: str, ranks: list[dict]) -> None:
    first, second = (rank[f"{layers} {method}"] for rank in ranks)
    model = sparse("linear", layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rewire = sp.Rewire(model, optimizer, method, every=2, until=20)  # type: ignore[arg-type]
    for step in range(8):
        x, y = sample("linear", step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        rewire.step()
    for name, mask in masks_of(model).items():
        assert torch.equal(first["masks"][name], second["masks"][name])
        assert torch.equal(first["masks"][name], mask)
        assert torch.equal(first["weights"][name], second["weights"][name])
        # Sums in another order.
        own = model.get_submodule(name).weight.detach() * mask
        torch.testing.assert_close(first["weights"][name] * mask, own, rtol=1e-9, atol=1e-12)
