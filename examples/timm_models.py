"""A ViT or a ResNet of timm, pruned before training, with timm's optimizers and averages of weights.

    pip install sparseprune timm
    python examples/timm_models.py vit     # or resnet

Images are random, so that it runs anywhere in seconds; put your loader in their place.
"""

import sys
import time
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV2
from torch import Tensor, nn

import sparseprune as sp

MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, depth=4, num_classes=10
    ),
    # Batch norms whose scale begins at zero hide the layers before them from every score of gradients.
    "resnet": lambda: timm.create_model("resnet18", num_classes=10, zero_init_last=False),
}


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[nn.Module, float]:
    """The average of the weights, and the seconds of the fastest step."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    average = ModelEmaV2(model, decay=0.9)
    seconds = []
    for images, labels in batches:
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        average.update(model)
    return average.module, min(seconds)


def main(name: str) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(32, 3, 32, 32), torch.randint(10, (32,))) for _ in range(5)]
    model = MODELS[name]()
    masks = sp.prune(model, batches[:2], sparsity=0.95, scope="erk")
    sparse = sp.sparsify(model, masks, batch_size=32, input_size=(3, 32, 32))
    average, seconds = train(sparse, batches)
    _, seconds_dense = train(model, batches)

    # For timm, a dense model again.
    dense = MODELS[name]()
    dense.load_state_dict(sp.convert_state_dict(average.state_dict(), dense))
    x = batches[0][0]
    difference = (dense.eval()(x) - average.eval()(x)).abs().max().item()
    kept, total = (sum(p.numel() for p in m.parameters()) for m in (sparse, model))
    print(
        f"{name}: {kept:,} of {total:,} numbers are trained; "
        f"a step takes {seconds:.3f} s, dense {seconds_dense:.3f} s;"
    )
    print(f"loaded into timm's own model, the average differs by {difference:.0e}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "vit")
