"""Prediction: tiles, the predictor, and folders of files."""
