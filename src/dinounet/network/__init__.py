"""The network: tensors in, tensors out, no files."""
