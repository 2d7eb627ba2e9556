"""What benchmarks share: means over cases with their intervals, and tables that are kept in pages."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dinounet.evaluation.means import intervals_of_means

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def by_case(found: Iterable[tuple[str, Sequence[float]]]) -> dict[str, np.ndarray]:
    """Numbers of each case, averaged over what found it several times, such as seeds."""
    collected: dict[str, list[Sequence[float]]] = {}
    for case, numbers in found:
        collected.setdefault(case, []).append(numbers)
    return {case: np.mean(numbers, axis=0) for case, numbers in collected.items()}


def means(cases: Mapping[str, np.ndarray]) -> list[tuple[float, tuple[float, float] | None]]:
    """Of each number its mean over cases, and the interval, bootstrapped over cases; None of a single case."""
    numbers = np.array(list(cases.values()))[:, None]
    return list(zip(numbers.mean((0, 1)).tolist(), intervals_of_means(numbers)[0], strict=True))


def cell(found: tuple[float, tuple[float, float] | None], digits: int, sign: str = "") -> str:
    """A mean and its interval in a table."""
    middle, ends = found
    told = "" if ends is None else f" ({ends[0]:{sign}.{digits}f} to {ends[1]:{sign}.{digits}f})"
    return f"{middle:{sign}.{digits}f}{told}"


def put_into_page(page: Path, text: str) -> None:
    """Put a text between the page's marks."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
