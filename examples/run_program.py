"""Run what export_program.py wrote, on another number of samples; its code is not needed."""

import sys

import torch

import sparseprune  # noqa: F401  (its operators)

model = torch.export.load(sys.argv[1]).module()
print("on ones its first logits are")
print(model(torch.ones(3, 3, 16, 16))[0, :4].tolist())
