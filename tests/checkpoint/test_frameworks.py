"""Checkpoints of transformers and Lightning."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from other_layers import name_operators_of_torchvision
from torch import Tensor, nn

import sparseprune as sp

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.fixture(autouse=True)
def operators() -> None:
    name_operators_of_torchvision()


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    layers = {name: m for name, m in model.named_modules() if type(m) is nn.Linear and "encoder" in name}
    return {
        f"{name}.weight": torch.rand(m.weight.shape, generator=generator) < 0.3 for name, m in layers.items()
    }


def bert() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config)


def test_transformers_from_pretrained_of_a_densified_model(tmp_path: Path) -> None:
    model = bert()
    masks = masks_of(model)
    sparse = sp.sparsify(model, masks, layers="sparse").eval()
    sp.densify(sparse).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    found = sp.masks_from_zeros(loaded)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    again = sp.sparsify(loaded, {name: found[name] for name in masks}, layers="sparse").eval()
    tokens = torch.arange(12).reshape(2, 6)
    assert torch.equal(again(tokens).logits, sparse(tokens).logits)


def test_transformers_save_pretrained_of_a_sparse_model(tmp_path: Path) -> None:
    model = bert()
    sparse = sp.sparsify(model, masks_of(model), layers="sparse").eval()
    sparse.save_pretrained(tmp_path)
    loaded = type(model)(model.config).eval()
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    loaded.load_state_dict(sp.convert_state_dict(state, loaded))
    expected = sp.densify(sparse).state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in loaded.state_dict().items())


def test_lightning_load_from_checkpoint(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss: Tensor = self.encoder(batch[0]).square().mean()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 0.01)

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"] = sp.convert_state_dict(checkpoint["state_dict"], self)

    module = Module()
    sparse = sp.sparsify(module, masks_of(module), layers="sparse")
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 8)), 4)
    options = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    trainer = lightning.Trainer(max_epochs=1, enable_checkpointing=False, **options)
    trainer.fit(sparse, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Module.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    expected = sp.densify(sparse).state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in loaded.state_dict().items())
