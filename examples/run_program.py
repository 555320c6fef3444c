"""Run what export_program.py wrote, for a batch of another size. Torch and the kernels are all that it needs."""

import sys

import torch

import sparseprune  # noqa: F401  (its operators)

model = torch.export.load(sys.argv[1]).module()
print("on ones its first logits are")
print(model(torch.ones(3, 3, 16, 16))[0, :4].tolist())
