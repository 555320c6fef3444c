"""Networks whose pattern moves while they are trained (dynamic sparse training)."""

from sparseprune._rewire.rewire import Rewire
from sparseprune._rewire.rules import Candidates

__all__ = ["Candidates", "Rewire"]
