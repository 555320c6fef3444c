"""``summary``: what a pruned model keeps and costs, layer by layer."""

from sparseprune._summary.counting import summary
from sparseprune._summary.result import Summary, SummaryRow, Unpruned
