"""The demo: which of 40,000 inputs does pruning before training keep? Networks, table, curves and picture."""
