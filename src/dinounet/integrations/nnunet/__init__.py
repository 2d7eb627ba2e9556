"""Dino U-Net inside nnU-Net 2.8: a network that its plans name, a planner, trainers, and conversions both ways.

    environment.py   is nnU-Net there, and where are its folders
    network.py       the network, built from JSON in a plan
    planner.py       writes such a plan; trainer.py trains by it (both import nnU-Net)
    trainers/        the folder that nnU-Net looks for trainers in
    runs.py          runs of nnU-Net's as bundles
    folders.py       bundles as folders of nnU-Net's

Nothing here is a copy of nnU-Net's code; its own functions are called.
"""
