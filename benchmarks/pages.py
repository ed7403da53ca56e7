"""Pages of the documentation that hold what was measured."""

from __future__ import annotations


def between(page: str, begin: str, end: str, text: str) -> str:
    """A page with what stands between its two marks written anew.

    Raises:
        ValueError: it has not each mark once.
    """
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{text}\n{end}{after}"
