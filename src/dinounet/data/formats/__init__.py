"""One reader a format: from files to arrays with a place in space."""

READERS = 2
"""Version of how files are read: raised with every change after which a file gives other numbers, another spacing or
another place. Slices cached by another version are made anew; plans and runs made by one say so."""


def other_reading(readers: int, what: str) -> str:
    """A sentence about what was made when files were read by another version; "" if it was by this one.

    Args:
        readers: the version by which it was made.
        what: it is, and what was done to it, such as "plan.json was decided".
    """
    if readers == READERS:
        return ""
    return (
        f"{what} with files as version {readers} of our readers gave them, and this is version {READERS}: some files "
        "have another spacing, place or values now (see CHANGELOG.md); if yours do, make it anew"
    )
