"""The trained sparse model as an ordinary ONNX file, for any runtime: zeros stand where weights were pruned.

pip install sparseprune onnx onnxscript onnxruntime
python examples/export_onnx.py model.onnx
"""

import sys

import onnxruntime
import torch
from torch import nn

import sparseprune as sp


def main(path: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    x, y = torch.randn(32, 3, 16, 16), torch.randint(10, (32,))
    masks = sp.prune(model, [(x, y)], sparsity=0.9)
    sparse = sp.sparsify(model, masks, batch_size=32, input_size=(3, 16, 16))
    optimizer = torch.optim.AdamW(sparse.parameters(), 1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(sparse(x), y).backward()
        optimizer.step()

    dense = sp.densify(sparse).eval()
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(dense, (x,), path, dynamic_shapes=({0: batch},), external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x[:5].numpy()})
    difference = (torch.from_numpy(logits) - sparse.eval()(x[:5])).abs().max().item()
    print(f"wrote {path}; onnxruntime and the sparse model differ by {difference:.0e}")


if __name__ == "__main__":
    main(sys.argv[1])
