"""The Trainer of transformers with the callback, and from_pretrained of sparse models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from other_layers import name_operators_of_torchvision
from torch import Tensor

import sparseprune as sp

name_operators_of_torchvision()
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparseprune.integrations.transformers import PruneBeforeTraining, from_pretrained  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}
EXPERTS = {"num_local_experts": 2, "num_key_value_heads": 4, "experts_implementation": "eager"}
MODELS: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": {**SMALL, "vocab_size": 60},
    # Files have other names than the model.
    "ViTForImageClassification": {**SMALL, "image_size": 32, "patch_size": 8},
    # A shared weight, and layers whose weight is transposed.
    "GPT2LMHeadModel": {
        "vocab_size": 60,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
        **SPECIAL,
    },
    # Files have a weight for each expert.
    "MixtralForCausalLM": {**SMALL, **SPECIAL, **EXPERTS, "vocab_size": 60},
}


def make(name: str) -> Any:
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return kind(kind.config_class(**MODELS[name]))


def random_masks(model: Any) -> dict[str, Tensor]:
    return sp.prune(model, method="random", sparsity=0.5, scope="layer")


def inputs(name: str) -> dict[str, Tensor]:
    if name.startswith("ViT"):
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)}
    return {"input_ids": torch.arange(40).view(4, 10)}


def layers_of(model: Any) -> list[str]:
    return [type(module).__name__ for module in model.modules()]


@pytest.mark.parametrize("name", MODELS)
def test_from_pretrained_brings_layers_and_weights_back(name: str, tmp_path: Path) -> None:
    model = make(name)
    masks = random_masks(model)
    ways: Any = {name: "sparse" if i % 2 else "dense" for i, name in enumerate(masks)}
    saved = sp.sparsify(model, masks, layers=ways).eval()
    loaded: Any = saved
    # Also of what was loaded, whose names transformers keeps in mind.
    for folder in (tmp_path / "first", tmp_path / "second"):
        loaded.save_pretrained(folder)
        loaded = from_pretrained(type(model), folder)
        assert layers_of(loaded) == layers_of(saved)
        ours, theirs = loaded.state_dict(), saved.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(tensor, theirs[part]) for part, tensor in ours.items())
        assert torch.equal(loaded(**inputs(name)).logits, saved(**inputs(name)).logits)
    assert not loaded.training


def test_from_pretrained_takes_auto_classes_shards_and_types(tmp_path: Path) -> None:
    saved: Any = sp.sparsify(make("BertForMaskedLM"), random_masks(make("BertForMaskedLM")), layers="sparse")
    saved.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded: Any = from_pretrained(transformers.AutoModelForMaskedLM, tmp_path, dtype=torch.bfloat16)
    assert layers_of(loaded) == layers_of(saved)
    values = loaded.state_dict()["bert.encoder.layer.0.output.dense.values"]
    assert torch.equal(values, saved.state_dict()["bert.encoder.layer.0.output.dense.values"].bfloat16())


def test_from_pretrained_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors in .*, found none"):
        from_pretrained(transformers.BertForMaskedLM, tmp_path)
    model = make("BertForMaskedLM")
    saved: Any = sp.sparsify(model, random_masks(model), layers="sparse")
    saved.save_pretrained(tmp_path)
    wider = transformers.BertConfig(**{**MODELS["BertForMaskedLM"], "intermediate_size": 96})
    with pytest.raises(ValueError, match=r"intermediate\.dense\.weight: expected a pattern of 96 rows"):
        from_pretrained(transformers.BertForMaskedLM, tmp_path, config=wider)


def trainer(folder: Path, callbacks: list[Any], model: Any = None, **options: Any) -> Any:
    examples = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(16)]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=4, save_steps=2, use_cpu=True, report_to=[], disable_tqdm=True
    )
    return transformers.Trainer(model, arguments, train_dataset=examples, callbacks=callbacks, **options)


def test_the_optimizer_trains_the_kept_weights_of_the_masks(tmp_path: Path) -> None:
    model = make("BertForMaskedLM")
    masks = random_masks(model)
    began = trainer(tmp_path, [PruneBeforeTraining(random_masks, layers="sparse")], model)
    assert "SparseLinear" in layers_of(model)
    began.train()
    layer = model.bert.encoder.layer[0].output.dense
    assert torch.equal(layer.mask, masks["bert.encoder.layer.0.output.dense.weight"])
    optimized = {p for group in began.optimizer.param_groups for p in group["params"]}
    assert optimized == set(model.parameters())

    # What is sparse stays so, whatever the callback would do now.
    resumed = from_pretrained(type(model), tmp_path / "checkpoint-2")
    went_on = trainer(tmp_path / "on", [PruneBeforeTraining({}, layers="dense")], resumed)
    went_on.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), model.parameters(), strict=True))


def test_a_callback_that_comes_too_late_is_an_error(tmp_path: Path) -> None:
    model = make("BertForMaskedLM")
    prune = PruneBeforeTraining(random_masks, layers="sparse")
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="expected a Trainer that makes its optimizer itself"):
        trainer(tmp_path, [prune], model, optimizers=(optimizer, None))
    assert "SparseLinear" not in layers_of(model)
    late = trainer(tmp_path, [], model)
    late.add_callback(prune)
    with pytest.raises(ValueError, match=r"expected to be given to Trainer\(model=\.\.\., callbacks"):
        late.train()
    with pytest.raises(ValueError, match="with model_init=, prune and sparsify in that function"):
        trainer(tmp_path, [prune], model_init=lambda: make("BertForMaskedLM")).train()


def test_patterns_move_in_the_trainer(tmp_path: Path) -> None:
    class Rewiring(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        """As docs/rewiring.md has it."""

        def on_train_begin(
            self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any
        ):
            self.rewire = sp.Rewire(model, optimizer, every=2, until=state.max_steps * 3 // 4)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.rewire.step()

    dense = make("BertForMaskedLM")
    masks = random_masks(dense)
    model = sp.sparsify(dense, masks, layers="sparse")
    tokens = torch.randint(60, (24, 10))
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
    )
    data = [{"input_ids": row, "labels": row} for row in tokens]
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[Rewiring()]).train()
    moved = {name: m.mask for name, m in model.named_modules() if isinstance(m, sp.SparseLinear)}
    assert len(moved) == len(masks)
    for name, mask in moved.items():
        assert mask.sum() == masks[f"{name}.weight"].sum()
        assert not torch.equal(mask, masks[f"{name}.weight"])
