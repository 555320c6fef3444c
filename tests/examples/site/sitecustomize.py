"""Python imports this before a script that has the folder on its path, so that examples need not know of it:
torchvision beside a torch of another build fails on import."""

try:
    import torchvision  # noqa: F401
except ImportError:
    pass
except RuntimeError:
    from other_layers import name_operators_of_torchvision

    name_operators_of_torchvision()
