"""What nnU-Net finds here: it looks through the folders in `nnUNet_extTrainer` for a class of the trainer's name."""

from dinounet.nnunet.trainer import DinoUNetPaperTrainer, DinoUNetTrainer

__all__ = ["DinoUNetPaperTrainer", "DinoUNetTrainer"]
