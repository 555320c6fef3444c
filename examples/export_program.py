"""Freeze a sparse model and export it to a file, which run_program.py runs without this code.

python examples/export_program.py model.pt2
python examples/run_program.py model.pt2
"""

import sys

import torch
from torch import Tensor, nn

import sparseprune as sp


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.hidden = nn.Linear(64 * 16, 256)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 4)
        logits: Tensor = self.head(self.hidden(x.flatten(1)).relu())
        return logits


def main(path: str) -> None:
    torch.manual_seed(0)
    model, x = Network(), torch.randn(8, 3, 16, 16)
    masks = sp.prune(model, [(x, torch.randint(10, (8,)))], sparsity=0.95)
    sparse = sp.freeze(sp.sparsify(model, masks, batch_size=8, input_size=(3, 16, 16)))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(sparse, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    dense, kept = (sum(p.numel() for p in m.parameters()) for m in (model, sparse))
    print(f"wrote {path}: {kept:,} of {dense:,} numbers; on ones its first logits are")
    print(sparse(torch.ones(3, 3, 16, 16))[0, :4].tolist())


if __name__ == "__main__":
    main(sys.argv[1])
