"""From files to patches: formats, dataset, plan, preprocessing, cache, augmentation and sampling."""
