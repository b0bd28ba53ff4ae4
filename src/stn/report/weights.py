"""The documentation's block of trained networks, and the cards beside the weight files, which are their source."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stn.errors import UserError
from stn.report.blocks import markdown_table
from stn.report.statistics import wilson
from stn.weights import CLONE, SUFFIX, conflict, read

HEAD = ("name", "budget", "error %", "95 % interval", "as stored, %", "stored as", "KB", "commit")
NONE = "None are published yet: `python -m stn.publish` writes those of the runs that are finished."
STALE = "†"


def cards(root: Path) -> dict[Path, str]:
    """The text of the card beside each weight file, by its path below `root`; UserError for a damaged file."""
    files = _files(root).items()
    return {path.with_suffix(".json").relative_to(root): json.dumps(card, indent=1) + "\n" for path, card in files}


def weights_block(root: Path) -> str:
    """The trained networks that come with the project: each with its training, its error and its storage."""
    files = _files(root)
    if not files:
        return NONE
    rows = [_row(card, path, conflict(card, root) is not None) for path, card in files.items()]
    size = sum(path.stat().st_size for path in files) / 1e6
    licences = {(card["licence"]["weights"], card["licence"]["data"]) for card in files.values()}
    terms = "; ".join(f"{licence}, data {data}" for licence, data in sorted(licences))
    line = (
        f"{len(files)} network{'s' * (len(files) != 1)}, {size:.1f} MB. Test error in % on the stored test set: of the "
    )
    line += f"record, with its 95 % interval, and of the weights as they are stored. Licence of the weights: {terms}."
    if any(STALE in row[0] for row in rows):
        line += f" {STALE} its record tells of another training since; `python -m stn.publish` writes it again."
    return f"{line}\n\n{markdown_table(HEAD, rows, 'llrlrlrl')}"


def _files(root: Path) -> dict[Path, dict[str, Any]]:
    """The cards of the weight files below `root`, by path, in alphabetical order."""
    try:
        return {path: read(path)[0] for path in sorted((root / CLONE).glob(f"*/*{SUFFIX}"))}
    except ValueError as error:
        raise UserError(str(error)) from error


def _row(card: Mapping[str, Any], path: Path, is_stale: bool) -> list[str]:
    low, high = wilson(card["errors"], card["n_test"])
    commit = card["code"].get("commit")
    head, plus, _ = (commit or "").partition("+")
    return [
        f"`{card['name']}`" + f" {STALE}" * is_stale,
        f"`{card['budget']}`",
        f"{card['error']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{card['stored']['error']:.2f}",
        card["stored"]["dtype"],
        f"{path.stat().st_size / 1000:.0f}",
        f"`{head[:7]}`" + " with changes" * bool(plus) if head else "–",
    ]
