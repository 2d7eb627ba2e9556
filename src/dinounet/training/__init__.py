"""Training: loss, loop and checkpoint."""
