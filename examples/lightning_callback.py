"""A Lightning module, pruned by a callback before its optimizer is made: train, resume, load.

pip install "sparseprune[lightning]"
python examples/lightning_callback.py
"""

import tempfile
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparseprune as sp
from sparseprune.integrations.lightning import PruneBeforeTraining


class Classifier(pl.LightningModule):
    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layers(x))

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-3)

    # For load_from_checkpoint; a trainer with the callback needs it not.
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sp.sparsify_like(self, checkpoint["state_dict"], inplace=True)


def fit(module: Any, data: DataLoader[Any], folder: str, epochs: int, resume: str | None = None) -> None:
    prune = PruneBeforeTraining(
        lambda module: sp.prune(
            module, data, sparsity=0.95, loss=lambda model, batch: model.training_step(batch, 0)
        ),
        batch_size=64,
    )
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[prune],
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=resume)
    trainer.save_checkpoint(f"{folder}/{epochs}.ckpt")


def main() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(512, 784), torch.randint(10, (512,))
    data = DataLoader(TensorDataset(x, y), batch_size=64)
    first = Classifier()
    dense = sum(p.numel() for p in first.parameters())
    with tempfile.TemporaryDirectory() as folder:
        fit(first, data, folder, epochs=1)
        fit(first, data, folder, epochs=2, resume=f"{folder}/1.ckpt")
        # A new process would begin with a dense module.
        resumed = Classifier()
        fit(resumed, data, folder, epochs=2, resume=f"{folder}/1.ckpt")
        loaded = Classifier.load_from_checkpoint(f"{folder}/2.ckpt")
    same = all(torch.equal(p, q) for p, q in zip(first.parameters(), resumed.parameters(), strict=True))
    alike = torch.equal(loaded(x), resumed(x))
    trained = sum(p.numel() for p in first.parameters())
    print(f"{trained:,} of {dense:,} numbers are trained; resumed, the same weights: {same}; loaded: {alike}")


if __name__ == "__main__":
    main()
