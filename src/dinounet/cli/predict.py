"""`dinounet predict`: masks for images."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from dinounet.schema.arguments import checked
from dinounet.system import Device, Precision


@checked
def predict(
    run: Path,
    inputs: list[Path],
    /,
    output: Path,
    *,
    also: tuple[Path, ...] = (),
    format: str | None = None,
    tta: Literal["none", "flip", "full"] = "none",
    step: float = 0.5,
    batch: int | Literal["auto"] = "auto",
    probabilities: bool = False,
    uncertainty: bool = False,
    overlay: bool = False,
    postprocessing: str = "auto",
    overwrite: bool = False,
    weights: str | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    offload: bool = False,
) -> list[Path]:
    """Segment images with a trained run; masks come in the images' own format and geometry.

    Those of DICOM series are DICOM Segmentation objects (which need the extra dicom); those of JPEGs, which would
    change labels, are PNG. Masks that are in the folder already are kept, so that the same command goes on after an
    interruption; images that can't be predicted are listed at the end and don't keep the others from it.

    Args:
        run: Folder that `dinounet train` or `dinounet export` wrote, or a folder of such, whose probabilities are
            averaged; or an ONNX file, which needs no PyTorch; or a bundle on the Hugging Face Hub,
            hf://user/name or hf://user/name@revision.
        inputs: Images, or folders of images (`<case>_0000.nii.gz` or `<case>.nii.gz`, as the run was trained on), which
            may hold folders; a folder of DICOM files is one image.
        output: Folder for the masks, `<case>` with the image's ending.
        also: Further runs, such as the other folds, whose probabilities are averaged with the first one's.
        format: Ending of all masks instead: .nii.gz, .nii, .nrrd, .mha, or for DICOM series .dcm.
        tta: Average mirrored copies of each tile (flip, four times the work), or all mirrored and turned (full, eight).
        step: Distance of neighbouring tiles at the most, as a share of a tile.
        batch: Tiles at a time; auto is what the device works on well.
        probabilities: Also write the probabilities of the classes, probabilities/<case>.npz, float16.
        uncertainty: Also write how unsure each pixel is: uncertainty/<case>_entropy, and with several runs or copies
            how much they disagree.
        overlay: Also write pictures with what was found in colour, overlays/<case>.png.
        postprocessing: auto does with masks what was chosen on the run's validation cases; none; or a file that says
            what.
        overwrite: Predict anew what is in the folder already.
        weights: Where the backbone's weights are, if not where they were in training.
        device: Where to compute.
        precision: How precisely; auto is bf16 where the device computes with it natively.
        offload: Leave the backbone's weights on the disk and bring each block as it computes: slower, in little memory.

    Returns:
        The masks' paths.
    """
    from dinounet.bundle.load import load
    from dinounet.console import progress, say
    from dinounet.errors import Interrupted
    from dinounet.inference.folder import predict_folder, record_prediction, require_place
    from dinounet.inference.inputs import find_inputs
    from dinounet.inference.outputs import Outputs, choose_endings
    from dinounet.io import require_outside
    from dinounet.system import dist_info

    for folder in inputs:
        require_outside(output, folder, what="the predictions", inside="the images")
    require_place(output)
    context = None
    if dist_info().world_size > 1:
        from dinounet.distributed import DistributedContext
        from dinounet.system import choose_device

        context = DistributedContext(choose_device(device), "fp32")
    predictor = load(
        [run, *also] if also else run, weights=weights, device=device, precision=precision, offload=offload, tta=tta,
        step=step, batch=batch, postprocessing=postprocessing,
    )  # fmt: skip
    cases = find_inputs(inputs, predictor.plan.data)
    endings = choose_endings(cases, format, predictor.plan.data.labels.largest)
    outputs = Outputs(output, endings, probabilities, uncertainty, overlay)
    record = record_prediction(predictor)
    with context.fail_together() if context else nullcontext(), progress("predicting", len(cases)) as advance:
        count = context.counter("predicted") if context else lambda more: more
        try:
            done = predict_folder(
                predictor, cases, outputs, record,
                overwrite=overwrite, on_case=lambda more: advance(count(more)), context=context,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; the same command goes on with {output}") from None
    say(
        "predicted",
        f"{output}: {len(cases)} masks" + (f", of which {len(cases) - done} were there" if done < len(cases) else ""),
        output=str(output),
        masks=len(cases),
        predicted=done,
    )
    return [outputs.mask_of(case) for case in cases]
