"""Data from files to patches: formats, dataset, preprocessing, cache, augmentation and sampling."""
