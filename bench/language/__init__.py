"""A language model of characters at equal time: dense, narrower and dense, and sparse."""
