"""`dinounet predict`: masks for images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from dinounet.device import Device, Precision


def predict(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    inputs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE [IMAGE ...]")],
    /,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    *,
    format: str | None = None,
    weights: str | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> list[Path]:
    """Segment images with a trained run; masks come in the images' own format and geometry.

    Those of DICOM series are DICOM Segmentation objects (which need the extra dicom); those of JPEGs, which would
    change labels, are PNG.

    Args:
        run: Folder that `dinounet train` wrote.
        inputs: Images, or folders of images (`<case>_0000.nii.gz` or `<case>.nii.gz`, as the run was trained on), which
            may hold folders; a folder of DICOM files is one image.
        output: Folder for the masks, `<case>` with the image's ending; it must not exist yet.
        format: Ending of all masks instead: .nii.gz, .nii, .nrrd, .mha, or for DICOM series .dcm.
        weights: Where the backbone's weights are, if not where they were in training.
        device: Where to compute.
        precision: How precisely; auto is bf16 where the device computes with it natively.

    Returns:
        The masks' paths.
    """
    run, inputs, output = Path(run), [Path(path) for path in inputs], Path(output)  # Python users may give strings
    import shutil

    from dinounet.files import PREDICTION, require_new, write_json
    from dinounet.inference.predictor import choose_endings, find_inputs, load, predict_files
    from dinounet.inference.record import record_prediction
    from dinounet.progress import progress, say

    require_new(output, what="the predictions")
    predictor = load(run, weights=weights, device=device, precision=precision)
    cases = find_inputs(inputs, predictor.plan)
    endings = choose_endings(cases, format)
    record = record_prediction(run, predictor)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / PREDICTION, record)
    try:
        with progress("predicting", len(cases)) as advance:
            written = predict_files(predictor, cases, output, on_case=advance, endings=endings)
    except BaseException:
        if [path.name for path in output.iterdir()] == [PREDICTION]:  # not one mask: leave nothing
            shutil.rmtree(output)
        raise
    say("predicted", f"{output}: {len(written)} masks", output=str(output), masks=len(written))
    return written
