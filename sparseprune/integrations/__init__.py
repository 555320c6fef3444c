"""Training frameworks. Each module needs its own: ``sparseprune.integrations.lightning``, ``.transformers``."""
