"""The mosaic as a result: wide images of which one tile matters, tuned rates, and where pruning pays."""
