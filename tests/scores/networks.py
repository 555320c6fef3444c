"""Small networks in float64, and batches for them: what scores are derived for a second time on."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3
VOCABULARY = 9


class Residual(nn.Module):
    """A convolution, one whose output is added to its input, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.branch = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.stem(x)))
        return self.head((x + torch.tanh(self.branch(x))).mean((2, 3)))


class Shared(nn.Module):
    """A layer that is called twice, and two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 5)
        self.middle = nn.Linear(5, 5)
        self.twin = nn.Linear(5, 5)
        self.twin.weight = self.middle.weight
        self.head = nn.Linear(5, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.flatten(1)))
        return self.head(torch.tanh(self.twin(torch.tanh(self.middle(torch.tanh(self.middle(x)))))))


class Block(nn.Module):
    """A block of a transformer, of tokens (N, L) and where they are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.block(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        return self.head(x.mean(1))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.Tanh(), nn.Linear(6, CLASSES))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.Linear(5, CLASSES),
    )


NETWORKS = {"perceptron": perceptron, "batch-norm": with_batch_norm, "residual": Residual, "shared": Shared}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    # Statistics and scales as after some training.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.add_(0.3 * torch.randn_like(tensor))
            module.running_var.uniform_(0.5, 2)
    return model


def batches(count: int = 3, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    """(inputs (size, 2, 4, 4) in float64, labels), every class in each."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 2, 4, 4, generator=generator, dtype=torch.float64), torch.arange(size) % CLASSES)
        for _ in range(count)
    ]


def block() -> nn.Module:
    torch.manual_seed(0)
    return Block().double()


def dict_batches(count: int = 3, size: int = 6) -> list[dict[str, Tensor]]:
    """As those of tokenizers, each with as much padding, and every class in each."""
    generator = torch.Generator().manual_seed(1)
    padded = torch.ones(size, 5, dtype=torch.long)
    padded[0, 3:] = 0
    return [
        {
            "input_ids": torch.randint(0, VOCABULARY, (size, 5), generator=generator),
            "attention_mask": padded,
            "labels": torch.arange(size) % CLASSES,
        }
        for _ in range(count)
    ]


def loss_of_dict(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])


def random_masks(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.rand(weight.shape, generator=generator) < 0.6 for name, weight in weights.items()}
