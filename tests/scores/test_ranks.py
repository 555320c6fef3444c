"""Two processes of torch.distributed (gloo) that score their own batches, and hold the same masks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from networks import batches, block, dict_batches, loss_of_dict, network

from sparseprune.scores import METHODS

HERE = Path(__file__).resolve().parent

RANK = """
import sys
from types import SimpleNamespace
from unittest.mock import patch
import torch
from networks import batches, block, dict_batches, loss_of_dict, network
import sparseprune as sp
from sparseprune import scores
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
mine = batches(4)[rank::2]
model = network("batch-norm")
result = {}
for method in ("gradient", "snip", "force", "grasp", "prospr", "ntk_sap"):
    result[method] = scores.METHODS[method](model, mine)
for method, rounds in (("snip", 1), ("iter_snip", 3), ("random", None), ("synflow", 3)):
    result[f"masks {method}"] = sp.prune(model, mine, method=method, sparsity=0.7, rounds=rounds)
transformer, dicts = block(), dict_batches(4)[rank::2]
for method in ("gradient", "snip", "force", "grasp"):
    result[f"block {method}"] = scores.METHODS[method](transformer, dicts, loss_of_dict)
for method, rounds in (("snip", 1), ("iter_snip", 3)):
    result[f"masks of the block {method}"] = sp.prune(
        transformer, dicts, method=method, sparsity=0.7, rounds=rounds, loss=loss_of_dict
    )
# Weights of their own, as before DistributedDataParallel has made them equal.
torch.manual_seed(rank)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter)
result["masks of others"] = sp.prune(model, mine, method="magnitude", sparsity=0.7)
# Layers that are faster sparse on rank 0 alone.
linear = torch.nn.Sequential(torch.nn.Linear(8, 8))
with patch("sparseprune._sparsify.choose", lambda *_, **__: SimpleNamespace(use_sparse=rank == 0)):
    layer = sp.sparsify(linear, {"0.weight": torch.eye(8) > 0})[0]
assert isinstance(layer, sp.SparseLinear)
torch.save(result, f"{folder}/{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    processes = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(folder)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_all_ranks_hold_the_same_bits(ranks: list[dict]) -> None:
    assert len(ranks[0]) == 17
    for what, tensors in ranks[0].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, ranks[1][what][name]), (what, name)


@pytest.mark.parametrize("method", ["gradient", "snip", "force", "grasp"])
def test_scores_are_those_of_all_batches(method: str, ranks: list[dict]) -> None:
    alone = METHODS[method](network("batch-norm"), batches(4), F.cross_entropy)
    for name, score in alone.items():
        assert_half_the_digits(ranks[0][method][name], score)


@pytest.mark.parametrize("method", ["gradient", "snip", "force", "grasp"])
def test_scores_of_a_transformer_are_those_of_all_dicts(method: str, ranks: list[dict]) -> None:
    alone = METHODS[method](block(), dict_batches(4), loss_of_dict)
    assert "block.self_attn.in_proj_weight" in alone
    for name, score in alone.items():
        assert_half_the_digits(ranks[0][f"block {method}"][name], score)


def test_masks_keep_exactly_k(ranks: list[dict]) -> None:
    for what, masks in ranks[0].items():
        if what.startswith("masks"):
            n = sum(mask.numel() for mask in masks.values())
            assert sum(int(mask.sum()) for mask in masks.values()) == round(n * 0.3)
