"""Dino U-Net inside nnU-Net 2.8: trainers that put our network into its plans, and conversions both ways.

    network.py       the network, built from JSON in a plan
    planner.py       puts it into nnU-Net's plan; trainer.py trains by it, and alone imports nnU-Net
    trainers/        the folder that nnU-Net looks for trainers in
    checkpoints.py   what checkpoints hold, also those of the published network
    conversions.py   models of nnU-Net's as bundles, and bundles as folders of nnU-Net's

Nothing here is a copy of nnU-Net's code; its own commands plan, train and predict.
"""

from pathlib import Path

TRAINERS = Path(__file__).parent / "trainers"
"""The folder in which nnU-Net finds our trainers, once its environment variable nnUNet_extTrainer names it."""
