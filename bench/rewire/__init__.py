"""Networks that rewire themselves: accuracy at equal epochs and equal time, and the cost."""
