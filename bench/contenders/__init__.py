"""Who takes part: one small function for each contender, registered by name."""

from bench.contenders import dense, own, peers, serving
from bench.contenders.base import CONTENDERS, Contender, Runnable
from bench.contenders.calls import one_layer

__all__ = ["CONTENDERS", "Contender", "Runnable", "dense", "one_layer", "own", "peers", "serving"]
