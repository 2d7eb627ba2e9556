"""What is shared: bundles, their check, export, card, and the Hub."""
