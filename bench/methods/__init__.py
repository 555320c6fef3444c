"""Experiments on methods of pruning before training: accuracy and time of each, over several seeds."""
