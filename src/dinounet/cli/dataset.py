"""`dinounet plan`, which shows what a dataset holds, and `dinounet relabel`, which cleans its masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dinounet.backbones.registry import DEFAULT
from dinounet.io import summarize
from dinounet.schema.arguments import UNSET, Default, checked, given
from dinounet.schema.network import NetworkConfig
from dinounet.schema.plan import GroupRule, Plan
from dinounet.schema.recipe import Architecture, Recipe, RecipeName
from dinounet.system import Device, Precision

if TYPE_CHECKING:
    from dinounet.data.dataset import Dataset
    from dinounet.schema.plan import Fingerprint


@checked
def relabel(
    masks: Path,
    /,
    output: Path,
    *,
    labels: str,
) -> list[Path]:
    """Write clean copies of masks that were smoothed, saved as JPEG or painted in colours: one value per class.

    Each pixel takes the nearest of the given values, and the number of changed pixels is reported for every file: only
    a few, at the borders, if all is well. In fractional DICOM segmentations each pixel is assigned to the segment with
    a fraction of at least one half.

    Args:
        masks: Folder of masks, or of folders of masks.
        output: Folder for the clean masks, which keep their names; it must not exist yet.
        labels: Intended values, such as background=0,border=127,lesion=255, which are kept; or colours, such as
            background=#000000,lesion=#ff0000, which become 0, 1, 2 ... with the colours as palette, as do fractions
            such as 0.5.

    Returns:
        The copies' paths.
    """
    import shlex

    from dinounet.console import progress, say
    from dinounet.data.layouts import mask_files
    from dinounet.data.relabelling import relabel_folder, whole_labels
    from dinounet.errors import DataError
    from dinounet.io import require_new
    from dinounet.schema.labels import name_labels, parse_labels, write_labels

    given = parse_labels(labels)
    require_new(output, what="the clean masks")
    if not masks.is_dir():
        raise DataError(f"{masks} is not a folder; give the folder that holds the masks")
    files = mask_files(masks)
    with progress("relabelling", len(files)) as advance:
        changes = relabel_folder(masks, files, output, given, advance, lambda note: say("note", note))
    for change in changes:
        say(
            "relabelled",
            f"{change.path}: {change.pixels:,} pixels changed ({change.share:.2%}), by {change.most:g} at most",
            mask=str(change.path), pixels=change.pixels, share=change.share, most=change.most,
        )  # fmt: skip
    coloured = isinstance(next(iter(given.values())), str)
    means = write_labels(name_labels(given).with_ignore if coloured else whole_labels(given))
    told = f"{output}: {len(changes)} masks, to be used with --labels {shlex.quote(means)}"
    say("written", told, output=str(output), labels=means)
    return [change.path for change in changes]


@checked
def plan(
    data: Path,
    /,
    *,
    output: Path | None = None,
    recipe: Annotated[Recipe | RecipeName, Default("default")] = UNSET,
    changes: Mapping[str, Any] = {},
    network: Architecture = "dinounet",
    backbone: Annotated[str, Default(DEFAULT)] = UNSET,
    taps: tuple[int, int, int, int] | None = None,
    backbone_scale: Annotated[float, Default(NetworkConfig.backbone_scale)] = UNSET,
    backbone_precision: Annotated[Literal["auto", "fp32", "bf16", "int8"], Default("auto")] = UNSET,
    patch: tuple[int, int] | None = None,
    test: Path | None = None,
    group: GroupRule = "auto",
    labels: str | None = None,
    channels: str | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> Plan:
    """Inspect a dataset without training: print its contents and all planning decisions, or everything that is wrong.

    Args:
        data: Dataset, in the same layouts as for `dinounet train`.
        output: File to write the plan to; it can be edited and used by `dinounet train --plan FILE`.
        recipe: Training recipe: default (explained in docs/recipes.md) or paper (that of the published code, which also
            determines spacing, slices, patch and batch). In Python also a `Recipe`.
        changes: Fields of the named recipe to override; on the command line, one flag each.
        network: Network to train; unet is nnU-Net's 2D U-Net, a baseline without a backbone.
        backbone: Frozen backbone: a name listed by `dinounet info`, or timm:NAME.
        taps: Indices of the four backbone blocks whose features are used, counted from 0; by default the backbone's
            usual ones.
        backbone_scale: Factor from 1 to 4 by which images are enlarged for the backbone, which makes its feature grid
            finer; `dinounet info backbones --backbone-scale FACTOR` lists the cost.
        backbone_precision: Precision in which the backbone's weights are stored: fp32, bf16 (half the memory) or int8
            (a quarter); auto is bf16 for 7B and fp32 for all others.
        patch: Rows and columns of a patch; by default large enough to cover the median slice, at most 512.
        test: Text file of held-out test cases or groups (such as patients), one per line: training with this plan uses
            them neither for training nor for validation and affect no decision (their pixels are only compared with
            those of other cases, to find duplicates).
        group: How to recognise cases that must stay in the same fold, such as a patient's: folder (images in the same
            folder), name (names that are equal before _slice, _z or _frame and a number), patient (DICOM's PatientID,
            or BIDS's sub-), or none; auto uses patients if the files identify them, else folders or names if at least
            five contain several cases each. A table's column group takes precedence.
        labels: Meaning of the masks' values (background=0,lesion=255) or colours (background=#000000,lesion=#ff0000),
            for masks without a dataset.json; inferred from the masks by default.
        channels: Names of the images' channels, such as T1,T2, for images without a dataset.json. As in nnU-Net, they
            determine the normalisation: CT, rgb (0 to 1, then ImageNet's statistics), rescale_to_0_1, rgb_to_0_1,
            noNorm; any other name means each image's mean and standard deviation.
        device: Device to be trained on: a trial step on it measures which patch and batch fit into memory. It is
            skipped if PyTorch is not installed.
        precision: Numerical precision to be trained in.

    Returns:
        The plan.
    """
    from dinounet.backbones.registry import network_config
    from dinounet.console import say
    from dinounet.data.dataset import parse_channels, read_dataset, with_twins
    from dinounet.data.splits import read_test_list
    from dinounet.io import require_file, write_json
    from dinounet.planning.planner import choose_any_recipe, decides_batch, plan_dataset
    from dinounet.schema.labels import parse_labels
    from dinounet.system import choose_precision, choose_training_device
    from dinounet.training.options import TrainOptions, require_backbone

    if output is not None:
        require_file(output)
    recipe = recipe or "default"
    options = TrainOptions(
        **given(backbone=backbone, backbone_scale=backbone_scale, backbone_precision=backbone_precision), taps=taps
    )
    require_backbone(network, options, changes)
    choose_any_recipe(recipe, changes)
    dataset = read_dataset(
        data,
        parse_labels(labels) if labels else None,
        parse_channels(channels) if channels else None,
        test=read_test_list(test) if test else (),
        group=group,
    )
    found = plan_dataset(
        dataset,
        recipe,
        network_config(backbone or DEFAULT, **options.of_backbone) if network == "dinounet" else None,
        patch,
        changes=changes,
    )
    try:
        chosen = choose_training_device(device)
    except ModuleNotFoundError:
        if not device == precision == "auto":
            raise
        untried = (
            "no trial step was taken, which needs PyTorch; whether patch and batch fit into memory, training tells"
        )
        say("memory", untried)
    else:
        from dinounet.backbones.frozen import build_backbone
        from dinounet.training.memory import fit_plan

        frozen = build_backbone(found.network) if isinstance(found.network, NetworkConfig) else None
        found, _ = fit_plan(
            found, frozen, chosen, choose_precision(precision, chosen),
            patch_is_given=bool(patch), batch_is_given=decides_batch(recipe, changes),
        )  # fmt: skip
    _print(with_twins(dataset, found.data.groups.twins), found)
    for remark in (*found.data.groups.remarks_on_files, *found.data.groups.remarks_on_pixels):
        say("note", remark)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, found)
        say("plan", f"{output}: edit it, then train with it: dinounet train {data} --plan {output}", plan=str(output))
    return found


def _print(dataset: Dataset, plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dinounet.data.splits import by_group

    seen, data, memory = plan.data.fingerprint, plan.data, plan.memory
    total = sum(seen.label_pixels.values())
    groups = by_group(dataset.cases)
    first = dataset.cases[0]
    assert first.mask is not None
    sizes = [" x ".join(map(str, s)) for s in (seen.smallest_shape, seen.median_shape, seen.largest_shape)]
    table = Table("", "", title=Text(dataset.name), show_header=False)
    for name, value in {
        "cases": f"{seen.cases}",
        "groups": ("none" if dataset.group == "none" else f"{len(groups)}, by {dataset.group}")
        + (f"; {len(data.groups.twins)} of identical pixels" if data.groups.twins else ""),
        "paired by": dataset.paired_by,
        "masks": "numbers"
        if data.labels.colours is None
        else "colours " + ", ".join(f"{c} {n}" for n, c in data.labels.colours.items()),
        "first case": f"{first.name}: {' + '.join(path.name for path in first.images)} with {first.mask.name}",
        "slices x rows x columns": sizes[1] + (f" (from {sizes[0]} to {sizes[2]})" if sizes[0] != sizes[2] else ""),
        "median spacing": _spacing(seen, dataset),
        **{
            f"channel {channel.name}": f"{channel.normalisation}; foreground {channel.intensities.mean:.4g}, deviation "
            f"{channel.intensities.std:.4g}"
            for channel in data.channels
        },
        **{
            f"label {name} = {label}": f"{seen.label_pixels[name]:,} pixels, {seen.label_pixels[name] / total:.2%}"
            for name, label in data.labels.with_ignore.items()
        },
        **{
            f"region {region.name}": f"labels {', '.join(map(str, region.labels))}, written as {region.written_as}"
            for region in data.labels.regions or ()
        },
        "slices": f"along {'zyx'[data.slice_axis]}"
        + (f", resampled to {_times(data.spacing)} {seen.unit}" if data.spacing else ", pixels as they are"),
        "patch": f"{data.patch[0]} x {data.patch[1]}, {plan.recipe.batch_size} a step",
        "folds": ", ".join(f"{len(training)} + {len(watched)}" for training, watched in dataset.splits)
        or "none: one case, or one group of them, can't be split, and is all trained on",
        **({"held out": f"{len(data.test_cases)} cases: {summarize(data.test_cases)}"} if data.test_cases else {}),
        "memory": f"{memory.needed(data.patch) / 1e9:.2g} GB needed for a step of one patch on {memory.device}, "
        f"{memory.free / 1e9:.3g} GB free"
        if memory
        else "not measured",
        "network": getattr(plan.network, "backbone_in_words", plan.network.architecture) + f", {plan.recipe.duration}",
    }.items():
        table.add_row(Text(name), Text(value))
    Console().print(table)


def _spacing(seen: Fingerprint, dataset: Dataset) -> str:
    from dinounet.data.formats.dicom import differing_regions

    series = [case for case in dataset.cases if seen.cases_without_spacing and case.images[0].is_dir()]
    differing = [case.name for case in series if differing_regions(case.images[0])]
    why = f" (ultrasound regions of several spacings: {summarize(differing, 3)})" if differing else ""
    if not seen.median_spacing:
        return f"unknown{why}"
    # a picture's one slice is taken to be 1 thick
    flat = seen.largest_shape[0] == 1 and seen.median_spacing[0] == 1
    known = f"{_times(seen.median_spacing[1:] if flat else seen.median_spacing)} {seen.unit}"
    return known + (f"; unknown in {seen.cases_without_spacing}{why}" if seen.cases_without_spacing else "")


def _times(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:.3g}" for number in numbers)
