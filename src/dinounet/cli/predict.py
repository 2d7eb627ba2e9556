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
    """Segment images with a trained run; masks are written in the images' own format and geometry.

    Masks of DICOM series are DICOM Segmentation objects (which need the extra dicom); masks of JPEGs are PNG, since
    JPEG would change the values. Masks that are already in the folder are kept, so the same command continues after an
    interruption. Images that cannot be predicted are listed at the end and do not stop the others.

    Args:
        run: Folder written by `dinounet train` or `dinounet export`; a folder of such folders, whose probabilities are
            averaged; an ONNX file, which needs no PyTorch; or a bundle on the Hugging Face Hub, hf://user/name or
            hf://user/name@revision.
        inputs: Images, or folders of images (`<case>_0000.nii.gz` or `<case>.nii.gz`, as in training), searched
            recursively; a folder of DICOM files is one image.
        output: Folder for the masks, named `<case>` with the image's extension.
        also: Further runs, such as the other folds, whose probabilities are averaged with those of the first.
        format: File extension for all masks, instead of the image's: .nii.gz, .nii, .nrrd, .mha, or for DICOM series
            .dcm.
        tta: Test-time augmentation: average the mirrored copies of each tile (flip, four times the computation), or all
            mirrored and rotated copies (full, eight times).
        step: Maximum distance between neighbouring tiles, as a fraction of the tile size.
        batch: Number of tiles per forward pass; auto chooses one that suits the device.
        probabilities: Also write the class probabilities: probabilities/<case>.npz, float16.
        uncertainty: Also write the uncertainty of each pixel: uncertainty/<case>_entropy and, with several runs or
            test-time augmentation, uncertainty/<case>_disagreement.
        overlay: Also write pictures of the images with the masks in colour: overlays/<case>.png.
        postprocessing: auto applies what was selected on the run's validation cases; none; or a postprocessing.json
            file.
        overwrite: Predict again the images whose masks are already in the folder.
        weights: Source of the backbone's weights, if not the same as in training.
        device: Device to compute on.
        precision: Numerical precision; auto is bf16 on devices that support it natively.
        offload: Keep the backbone's weights on disk and load each block when it is computed: slower, but in little
            memory.

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
        f"{output}: {len(cases)} masks" + (f", {len(cases) - done} of which existed" if done < len(cases) else ""),
        output=str(output),
        masks=len(cases),
        predicted=done,
    )
    return [outputs.mask_of(case) for case in cases]
