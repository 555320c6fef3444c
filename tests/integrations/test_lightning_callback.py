"""Lightning's trainer with the callback: pruned before the optimizers are made, resumed, loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from other_layers import name_operators_of_torchvision
from small_networks import noise
from torch import Tensor, nn

import sparseprune as sp

name_operators_of_torchvision()
pl = pytest.importorskip("lightning.pytorch")

from sparseprune.integrations.lightning import PruneBeforeTraining  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("validation", nn.functional.cross_entropy(self.layers(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


class Loading(Module):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sp.sparsify_like(self, checkpoint["state_dict"], inplace=True)


def data() -> Any:
    labels = torch.arange(16) % 3
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(noise(16, 12), labels), 8)


def prune(module: Any) -> dict[str, Tensor]:
    return sp.prune(module, data(), sparsity=0.5, loss=lambda model, batch: model.training_step(batch, 0))


def trainer(epochs: int, folder: Path, layers: Any = "sparse", masks: Any = prune) -> Any:
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=[PruneBeforeTraining(masks, layers=layers)],
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(t, theirs[name]) for name, t in ours.items())


def test_the_optimizer_trains_the_kept_weights_of_the_masks(tmp_path: Path) -> None:
    expected, module = prune(Module()), Module()
    once = trainer(1, tmp_path)
    once.fit(module, data())
    assert type(module.layers[0]).__name__ == type(module.layers[3]).__name__ == "SparseLinear"
    assert torch.equal(module.layers[0].mask, expected["layers.0.weight"])
    optimized = {p for group in once.optimizers[0].param_groups for p in group["params"]}
    assert optimized == set(module.parameters())
    assert "loss" in once.logged_metrics
    assert "log" not in vars(module)


@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_a_dense_module_takes_over_what_a_checkpoint_has(layers: str, tmp_path: Path) -> None:
    module = Module()
    first = trainer(1, tmp_path)
    first.fit(module, data())
    first.save_checkpoint(tmp_path / "1.ckpt")
    first.fit_loop.max_epochs = 2
    torch.manual_seed(1)
    first.fit(module, data(), ckpt_path=tmp_path / "1.ckpt")

    # Other masks, and layers that turned out otherwise here.
    resumed = Module()
    other = sp.prune(resumed, method="random", sparsity=0.7)
    torch.manual_seed(1)
    trainer(2, tmp_path, layers, other).fit(resumed, data(), ckpt_path=tmp_path / "1.ckpt")
    assert same(resumed, module)

    first.save_checkpoint(tmp_path / "2.ckpt")
    validated = Module()
    trainer(2, tmp_path).validate(validated, data(), ckpt_path=tmp_path / "2.ckpt", verbose=False)
    assert same(validated, module)
    assert same(Loading.load_from_checkpoint(tmp_path / "2.ckpt", weights_only=False), module)


def test_a_sparse_module_stays_as_it_is(tmp_path: Path) -> None:
    module = Module()
    sp.sparsify(module, prune(module), layers="dense", inplace=True)
    layers = list(module.modules())
    trainer(1, tmp_path, masks={}).fit(module, data())
    assert list(module.modules()) == layers


def test_masks_that_do_not_fit_are_an_error_before_training(tmp_path: Path) -> None:
    module = Module()
    before = module.layers[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"sparsify: expected masks for weights of the model"):
        trainer(1, tmp_path, masks={"other.weight": torch.ones(2, 2) > 0}).fit(module, data())
    assert torch.equal(module.layers[0].weight, before)
    assert "log" not in vars(module)
