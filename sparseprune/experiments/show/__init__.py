"""What masks keep, layer by layer: numbers, and a picture."""
