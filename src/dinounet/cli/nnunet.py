"""`dinounet nnunet plan|train|predict|trainers`: Dino U-Net in nnU-Net, by nnU-Net's own functions.

They do what nnU-Net's commands do with the flags that docs/nnunet.md names, and find its folders and our trainers
without a variable being set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from dinounet.arguments import UNSET, Default, checked
from dinounet.device import Device
from dinounet.network.config import NetworkConfig

Dataset = str
FoldName = str
Trainer = Literal["DinoUNetTrainer", "DinoUNetPaperTrainer"]


@checked
def plan(
    dataset: Dataset,
    /,
    *,
    backbone: str = NetworkConfig.backbone,
    taps: tuple[int, int, int, int] | None = None,
    backbone_scale: float = NetworkConfig.backbone_scale,
    backbone_precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
    weights: str = "hub",
    seed: Annotated[int, Default(0)] = UNSET,
    memory: float = 8.0,
    plans: str = "DinoUNetPlans",
    preprocess: bool = True,
    processes: int = 2,
    raw: Path | None = None,
    preprocessed: Path | None = None,
) -> Path:
    """Plan and preprocess a dataset: measures and slices as nnU-Net has them, patch and batch for this network.

    Args:
        dataset: Number or name of the dataset, such as 7 or Dataset007_Cells.
        backbone: Frozen backbone, as listed by `dinounet info`, or timm:NAME.
        taps: Four of its blocks to read, counted from 0; by default its usual ones.
        backbone_scale: How many times finer its grid is than usual, from 1 to 4.
        backbone_precision: How its weights are held; auto is bf16 for 7B and fp32 for all others.
        weights: The backbone's: hub (Hugging Face Hub), random, or a file or folder. The plan keeps their sha256, and
            others are refused in training and prediction.
        seed: Of random weights.
        memory: GB that training may take, from which the batch follows.
        plans: Name of the plan.
        preprocess: Whether to make the slices as well; planned again for another backbone, they stay as they are.
        processes: That measure and preprocess.
        raw: Folder of the datasets, if nnUNet_raw doesn't name it.
        preprocessed: Folder of plans and preprocessed data, if nnUNet_preprocessed doesn't name it.

    Returns:
        The plan's file.
    """
    from dinounet.errors import ConfigError
    from dinounet.integrations.nnunet.environment import find_dataset, set_up

    if weights != "random" and seed is not UNSET:
        raise ConfigError("--seed is of random weights; leave it out, or give --weights random")
    set_up(("raw", "preprocessed"), raw=raw, preprocessed=preprocessed)
    name = find_dataset(str(dataset), "raw")
    from dinounet.integrations.nnunet.planner import plan_dataset

    network = NetworkConfig(
        backbone=backbone,
        taps=tuple(taps) if taps else None,  # type: ignore[arg-type]  # JSON and Python users give lists
        backbone_scale=backbone_scale,
        backbone_precision=None if backbone_precision == "auto" else backbone_precision,
    )
    return plan_dataset(
        name, network, weights, seed=seed or 0, memory=memory, plans=plans, preprocess=preprocess, processes=processes
    )


@checked
def train(
    dataset: Dataset,
    fold: FoldName,
    /,
    *,
    trainer: Trainer = "DinoUNetTrainer",
    plans: str = "DinoUNetPlans",
    configuration: str = "2d",
    epochs: int | None = None,
    steps_an_epoch: int | None = None,
    resume: bool = False,
    npz: bool = False,
    gpus: int = 1,
    device: Device = "auto",
    preprocessed: Path | None = None,
    results: Path | None = None,
) -> Path:
    """Train a fold of a planned dataset, and segment its validation cases: nnUNetv2_train.

    Args:
        dataset: Number or name of the dataset.
        fold: Which of its splits, from 0, or all.
        trainer: DinoUNetTrainer trains by `dinounet train`'s default recipe, DinoUNetPaperTrainer by the published one.
        plans: Name of the plan.
        configuration: Of the plan; Dino U-Net segments slices, so 2d.
        epochs: How long, by default what the recipe says: 4 and 200.
        steps_an_epoch: By default nnU-Net's 250.
        resume: Go on with a training that was interrupted.
        npz: Also write the probabilities of the validation cases, which choosing an ensemble needs.
        gpus: That share each step.
        device: Where to compute.
        preprocessed: Folder of plans and preprocessed data, if nnUNet_preprocessed doesn't name it.
        results: Folder of trained models, if nnUNet_results doesn't name it.

    Returns:
        The fold's folder.
    """
    import os

    from dinounet.device import choose_training_device
    from dinounet.errors import ConfigError
    from dinounet.integrations.nnunet.environment import find_dataset, read_planned, set_up

    if fold != "all" and not str(fold).isdecimal():
        raise ConfigError(f"the fold is {fold}; it must be all or a number from 0")
    for name, value in {"--epochs": epochs, "--steps-an-epoch": steps_an_epoch}.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    set_up(("preprocessed", "results"), preprocessed=preprocessed, results=results)
    found = find_dataset(str(dataset), "preprocessed")
    read_planned(found, plans, configuration)
    chosen = choose_training_device(device)
    import torch
    from nnunetv2.run.run_training import run_training
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    from dinounet.integrations.nnunet.trainer import EPOCHS, STEPS

    lengths = {EPOCHS: epochs, STEPS: steps_an_epoch}
    os.environ |= {variable: str(value) for variable, value in lengths.items() if value is not None}
    run_training(
        found, configuration, str(fold), trainer, plans, num_gpus=gpus, export_validation_probabilities=npz,
        continue_training=resume, device=torch.device(chosen),
    )  # fmt: skip
    return Path(get_output_folder(found, trainer, plans, configuration, fold))


@checked
def predict(
    dataset: Dataset,
    images: Path,
    /,
    output: Path,
    *,
    trainer: Annotated[Trainer, Default("DinoUNetTrainer")] = UNSET,
    plans: Annotated[str, Default("DinoUNetPlans")] = UNSET,
    folds: tuple[str, ...] | None = None,
    tta: bool = True,
    step: float = 0.5,
    probabilities: bool = False,
    processes: int = 2,
    weights: str | None = None,
    device: Device = "auto",
    results: Path | None = None,
) -> Path:
    """Segment a folder of images with the trained folds: nnUNetv2_predict.

    Args:
        dataset: Number or name of the dataset that was trained on, or the folder of a trained model.
        images: Folder of images, named as nnU-Net wants them.
        output: Folder for the masks.
        trainer: That trained.
        plans: Name of the plan that it trained by.
        folds: Whose probabilities are averaged, by default all that are trained.
        tta: Whether to average mirrored copies, as nnU-Net does.
        step: Distance of neighbouring tiles at the most, as a share of a tile.
        probabilities: Also write the probabilities, which an ensemble needs.
        processes: That read images, and as many that write masks.
        weights: Where the backbone's weights are, if not where the plan says.
        device: Where to compute.
        results: Folder of trained models, if nnUNet_results doesn't name it.

    Returns:
        The folder of the masks.
    """
    import os

    from dinounet.device import choose_device
    from dinounet.errors import ConfigError, DataError
    from dinounet.integrations.nnunet.environment import CONFIGURATION, find_dataset, set_up
    from dinounet.integrations.nnunet.network import WEIGHTS

    given = Path(dataset)
    is_folder = (given / "plans.json").is_file()
    named = {"--trainer": trainer, "--plans": plans, "--results": results or UNSET}
    unused = [flag for flag, value in named.items() if value is not UNSET]
    if is_folder and unused:
        told = " and ".join(unused)
        raise ConfigError(f"{given} is the folder of a trained model, which tells {told} itself; leave that out")
    trainer, plans = trainer or "DinoUNetTrainer", plans or "DinoUNetPlans"
    set_up(() if is_folder else ("results",), results=results)
    if not Path(images).is_dir():
        raise DataError(f"{images} is not a folder; give the folder of the images")
    chosen = choose_device(device)
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    folder = given
    if not is_folder:
        folder = Path(get_output_folder(find_dataset(dataset, "results"), trainer, plans, CONFIGURATION))
    trained = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob("fold_*/checkpoint_final.pth"))
    missing = sorted({*map(str, folds or ())} - {*trained})
    if not trained or missing:
        what = f"no fold {', '.join(missing)}" if trained else "no trained fold"
        raise DataError(f"{folder} holds {what}; train it first: dinounet nnunet train {dataset} FOLD")
    if weights:
        os.environ[WEIGHTS] = str(Path(weights).absolute()) if weights not in ("hub", "random") else weights
    predictor = nnUNetPredictor(
        tile_step_size=step,
        use_mirroring=tta,
        device=torch.device(chosen),
        perform_everything_on_device=chosen == "cuda",
    )
    Path(output).mkdir(parents=True, exist_ok=True)
    numbered = [fold for fold in trained if fold != "all"] or trained
    predictor.initialize_from_trained_model_folder(str(folder), tuple(folds or numbered))
    predictor.predict_from_files(
        str(images), str(output), save_probabilities=probabilities, num_processes_preprocessing=processes,
        num_processes_segmentation_export=processes,
    )  # fmt: skip
    return Path(output)


def trainers() -> Path:
    """Print the folder of our trainers, for nnU-Net: export nnUNet_extTrainer=$(dinounet nnunet trainers).

    Returns:
        The folder.
    """
    from dinounet.integrations.nnunet.environment import TRAINERS

    print(TRAINERS)
    return TRAINERS
