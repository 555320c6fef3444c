"""Python imports this before a script that has the folder on its path; examples need not know of it."""

from other_layers import name_operators_of_torchvision

name_operators_of_torchvision()
