"""Callbacks of training frameworks: ``lightning`` and ``transformers``. Each module imports its own."""
