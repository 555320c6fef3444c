"""Whole models of transformers and timm, where those are installed: pruned, sparse, and dense again."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits
from other_layers import name_operators_of_torchvision
from small_networks import check_unchanged, masked, noise, state
from torch import Tensor, nn

import sparseprune as sp

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}
EXPERTS = {"num_local_experts": 2, "num_key_value_heads": 4, "experts_implementation": "eager"}
VIT = {key: value for key, value in SMALL.items() if key != "vocab_size"}

# Library, what makes the model, number of weights with masks, of those without sparse kernels.
MODELS: dict[str, tuple[str, str, dict[str, Any], int, int]] = {
    "bert": ("transformers", "BertForMaskedLM", SMALL, 13, 0),
    "vit": ("transformers", "ViTModel", {**VIT, "image_size": 32, "patch_size": 8}, 14, 0),
    "gpt2": ("transformers", "GPT2LMHeadModel", {**GPT2, **SPECIAL}, 8, 0),
    "llama": ("transformers", "LlamaForCausalLM", {**SMALL, **SPECIAL}, 15, 0),
    # Other implementations know no float64.
    "mixtral": ("transformers", "MixtralForCausalLM", {**SMALL, **SPECIAL, **EXPERTS}, 13, 4),
    "timm vit": ("timm", "vit_tiny_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 2}, 10, 0),
    "timm resnet": ("timm", "resnet18", {"zero_init_last": False}, 21, 0),
    # Depthwise convolutions, and those whose padding depends on the image.
    "timm efficientnet": ("timm", "tf_efficientnet_lite0", {}, 50, 17),
    # All convolutions are standardised; the head is not.
    "timm nf": ("timm", "nf_resnet26", {}, 30, 29),
}


def make(name: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    library, kind, config, *_ = MODELS[name]
    pytest.importorskip(library)
    name_operators_of_torchvision()
    torch.manual_seed(0)
    images, tokens = noise(2, 3, 32, 32).double(), torch.arange(40).view(4, 10)
    if library == "timm":
        model = importlib.import_module("timm").create_model(kind, pretrained=False, num_classes=10, **config)
        return model.double().eval(), lambda model: model(images)
    transformers = importlib.import_module("transformers")
    model = getattr(transformers, kind)
    model = model(model.config_class(**config)).double().eval()
    given = {"pixel_values": images} if name == "vit" else {"input_ids": tokens}
    return model, lambda model: model(**given)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layers", ["sparse", "dense"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_pruned_computes_alike_and_comes_back(name: str, layers: Any) -> None:
    model, run = make(name)
    *_, count, dense_layers = MODELS[name]
    masks = sp.prune(model, method="random", sparsity=0.5, scope="layer")
    assert len(masks) == count
    reference = masked(model, masks)
    result = sp.sparsify(model, masks, layers=layers)
    rows = {row.name: row for row in sp.summary(result).rows}
    assert list(rows) == list(masks)
    assert {name: row.kept for name, row in rows.items()} == {
        name: int(mask.sum()) for name, mask in masks.items()
    }
    assert sp.summary(result).parameters == sum(p.numel() for p in model.parameters())
    if layers == "sparse":
        assert sum(row.computes.startswith("dense") for row in rows.values()) == dense_layers
    y, expected = run(result), run(reference)
    assert not torch.allclose(run(model), expected)
    assert_half_the_digits(y, expected)
    y.square().mean().backward()
    back = sp.densify(result)
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    check_unchanged(back, state(reference))
    assert_half_the_digits(run(back), expected)
