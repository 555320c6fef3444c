"""Real data with thousands of inputs: words of descriptions, genes of cells, alleles of people."""
