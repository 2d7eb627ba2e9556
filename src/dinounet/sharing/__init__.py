"""What is given to others: bundles with model cards, the Hub, and checkpoints of the published network as bundles."""
