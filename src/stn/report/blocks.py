"""Blocks of tables between two markers in pages such as the README, and which files are stale."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stn.errors import UserError


def readme_block(markdown: str) -> str:
    """The part of a table's Markdown that the README shows: caption, grid and marks, without title and sections."""
    return markdown.partition("\n## ")[0].partition("\n")[2].strip()


def replace_block(text: str, name: str, block: str) -> str:
    """`text` with `block` between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; UserError without one such pair."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"needs one {begin} and, below it, one {end}")
    head, rest = text.split(begin)
    return f"{head}{begin}\n\n{block.strip()}\n\n{end}{rest.split(end)[1]}"


def stale(expected: Mapping[Path, str]) -> list[Path]:
    """The files that are absent or do not have the expected text."""
    return [path for path, text in expected.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]], align: str) -> str:
    """A Markdown table; `align` has an l or an r for each column. Columns are padded, unless one has long cells."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    if max(widths) > 60:
        widths = [0] * len(head)

    def line(cells: Sequence[str]) -> str:
        sides = [">" if side == "r" else "<" for side in align]
        filled = [f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True)]
        return f"| {' | '.join(filled)} |"

    rule = ["-" * max(width - 1, 2) + (":" if side == "r" else "-") for side, width in zip(align, widths, strict=True)]
    return "\n".join(map(line, [head, rule, *body]))
