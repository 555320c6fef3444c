"""BERT, ViT or GPT-2, pruned before training, with the Trainer of transformers: train, save, resume.

    pip install "sparseprune[transformers]"
    python examples/hf_trainer.py bert     # or vit, gpt2

Models come from configs and data from chance, so that it runs anywhere in seconds; put yours in their place.
"""

import sys
import tempfile
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

import sparseprune as sp
from sparseprune.integrations.transformers import PruneBeforeTraining, from_pretrained


def make(name: str) -> tuple[Any, list[dict[str, Any]]]:
    """A model and 320 examples."""
    torch.manual_seed(0)
    tokens, images = torch.randint(500, (320, 32)), torch.randn(320, 3, 32, 32)
    width = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    if name == "bert":
        model: Any = BertForSequenceClassification(BertConfig(vocab_size=500, **width))
        labels = (tokens[:, 1] < 250).long()
        return model, [{"input_ids": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]
    if name == "gpt2":
        special = {"bos_token_id": 0, "eos_token_id": 0}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=128, n_layer=2, n_head=4, **special))
        return model, [{"input_ids": t.sort().values, "labels": t.sort().values} for t in tokens]
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=2, **width))
    labels = (images.mean((1, 2, 3)) > 0).long()
    return model, [{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)]


def trainer_of(model: Any, train: list[dict[str, Any]], folder: str) -> Trainer:
    batches = [default_data_collator(train[:64])]
    prune = PruneBeforeTraining(
        lambda model: sp.prune(
            model, batches, sparsity=0.9, scope="erk", loss=lambda model, batch: model(**batch).loss
        ),
        batch_size=16,
        example_inputs={name: x for name, x in batches[0].items() if name != "labels"},
    )
    args = TrainingArguments(
        folder,
        max_steps=20,
        save_steps=10,
        learning_rate=1e-3,
        per_device_train_batch_size=16,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    return Trainer(model, args, train_dataset=train, callbacks=[prune])


def main(name: str) -> None:
    model, train = make(name)
    dense = sum(p.numel() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        trainer_of(model, train, f"{folder}/whole").train()
        # As after a kill at step 10: the layers of the checkpoint, then its weights and its optimizer.
        checkpoint = f"{folder}/whole/checkpoint-10"
        resumed = from_pretrained(type(model), checkpoint)
        trainer_of(resumed, train, f"{folder}/resumed").train(resume_from_checkpoint=checkpoint)
    same = all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))
    trained = sum(p.numel() for p in model.parameters())
    print(
        f"{name}: {trained:,} of {dense:,} numbers are trained; resumed at step 10, the same weights: {same}"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "bert")
