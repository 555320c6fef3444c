"""The plots of a page: each module's `draw` takes rows, and returns None where too little was measured."""
