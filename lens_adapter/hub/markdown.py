"""Strings from a config or a record in Markdown: what they say is shown, and nothing in them is markup."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

MOST_LETTERS = 500  # that a card repeats of one string
_MARKUP = re.compile(r"([\\`*\[\]|!~])")


def plain(text: object) -> str:
    """As words in a paragraph, a heading or a table: on one line, without markup, HTML or links of its own."""
    shown = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", shown)


def code(text: object) -> str:
    """As inline code, in a table too."""
    shown = _one_line(text).replace("|", "\\|")
    ticks = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence, room = "`" * (ticks + 1), " " if shown[:1] == "`" or shown[-1:] == "`" else ""
    return f"{fence}{room}{shown}{room}{fence}"


def quoted(text: str) -> str:
    """As a string of Python or JSON, in a block of code."""
    return json.dumps(_one_line(text), ensure_ascii=False)


def aligned_table(rows: Sequence[Sequence[str]]) -> str:
    """A table, aligned for a terminal, too; the first row is its heading. Cells are as they are to stand there."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in lines)


def _one_line(text: object) -> str:
    """Control characters and line breaks are spaces; a long text is cut."""
    whole = str(text)
    shown = "".join(letter if letter.isprintable() else " " for letter in whole[: MOST_LETTERS + 1])
    return f"{shown[:MOST_LETTERS]}..." if len(whole) > MOST_LETTERS else shown
