"""Benchmarks: what is measured (`workloads`), who takes part (`contenders`), and `python -m bench.run`."""
