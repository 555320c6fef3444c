"""Models of transformers, from configurations."""

from __future__ import annotations

from typing import Any

from torch import nn

from bench.models.libraries import load
from bench.models.model import VOCABULARY, Model, images, labels, numbers, of_output, sentences, tokens

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"vocab_size": VOCABULARY, **SIZES}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
# Without the keys and values of former calls, which are for generation.
DECODER = {**SPECIAL, "use_cache": False}


def _model(name: str, config: dict[str, Any], batch: dict[str, Any]) -> Model:
    def make() -> nn.Module:
        kind = getattr(load("transformers"), name)
        model: nn.Module = kind(kind.config_class(**config))
        return model

    return Model(f"transformers/{name}", make, batch, of_output)


def _pictures(size: int = 32) -> dict[str, Any]:
    pixels, targets = images(4, size)
    return {"pixel_values": pixels, "labels": targets}


_classified = {**sentences(), "labels": labels(4, 2)}
_continued = {**sentences(), "labels": tokens(4, 12)}
_translated = {**sentences(), "labels": tokens(4, 10, seed=1)}

MODELS = [
    _model("BertForMaskedLM", TEXT, _continued),
    _model("RobertaForSequenceClassification", {**TEXT, "pad_token_id": 1}, _classified),
    _model(
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        _classified,
    ),
    _model("AlbertForSequenceClassification", {**TEXT, "embedding_size": 16}, _classified),
    _model(
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, **DECODER},
        _continued,
    ),
    _model("LlamaForCausalLM", {**TEXT, **DECODER, "num_key_value_heads": 2}, _continued),
    _model(
        "MixtralForCausalLM",
        {**TEXT, **DECODER, "num_key_value_heads": 2, "num_local_experts": 4},
        _continued,
    ),
    _model(
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "use_cache": False,
        },
        _translated,
    ),
    _model(
        "WhisperForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "num_mel_bins": 8,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "decoder_start_token_id": 0,
            **DECODER,
        },
        {"input_features": numbers(4, 8, 32), "labels": tokens(4, 10)},
    ),
    _model(
        "ViTForImageClassification",
        {**SIZES, "image_size": 32, "patch_size": 8, "num_labels": 10},
        _pictures(),
    ),
    _model(
        "CLIPModel",
        {
            "text_config": {
                **TEXT,
                "max_position_embeddings": 16,
                "eos_token_id": 1,
                "bos_token_id": 0,
                "pad_token_id": 0,
            },
            "vision_config": {**SIZES, "image_size": 32, "patch_size": 8},
            "projection_dim": 16,
        },
        {**sentences(), "pixel_values": images(4)[0], "return_loss": True},
    ),
]
