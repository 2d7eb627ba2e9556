"""`dinounet relabel`: clean masks of smoothed ones."""

from __future__ import annotations

from pathlib import Path

from dinounet.schema.arguments import checked


@checked
def relabel(
    masks: Path,
    /,
    output: Path,
    *,
    labels: str,
) -> list[Path]:
    """Write clean copies of masks that were smoothed, stored as JPEG or painted in colours: one number a pixel.

    Each pixel takes the nearest of the named values, and how much that changes is told of every file: a few pixels at
    the borders if all is well. In DICOM segmentations of fractions each pixel goes to the segment that holds at least
    half of it.

    Args:
        masks: Folder of masks, or of folders of them.
        output: Folder for the copies, by the same names; it must not exist yet.
        labels: What is meant, as background=0,border=127,lesion=255, which the copies keep, or as background=#000000,
            lesion=#ff0000, which become 0, 1, 2 ... with these colours as their palette, as do fractions such as 0.5.

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
    means = write_labels(name_labels(given).given if coloured else whole_labels(given))
    told = f"{output}: {len(changes)} masks, to be used with --labels {shlex.quote(means)}"
    say("written", told, output=str(output), labels=means)
    return [change.path for change in changes]
