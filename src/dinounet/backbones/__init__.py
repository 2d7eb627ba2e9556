"""What is frozen, and where its weights come from."""
