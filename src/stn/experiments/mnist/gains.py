"""The share of the possible gain that a transformer achieves; the ceiling is a CNN that knows the true pose."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stn.report.matrix import typeset_minus
from stn.report.records import Record
from stn.report.statistics import share_gained
from stn.report.table import Grid, Row, Section, Table


@dataclass(frozen=True)
class Gain:
    """The errors (%) of a baseline, of a row with a transformer, and of the ceiling, and the share of the gain.

    `share` is 100 (baseline - ours) / (baseline - ceiling); `low` and `high` are its 95 % interval. They are nan where
    there may be nothing to gain (`share_gained`).
    """

    record: Record
    baseline: float
    ours: float
    ceiling: float
    share: float
    low: float
    high: float


def measure_gains(records: Sequence[Record], baseline: Row, ceiling: Row) -> list[Gain]:
    """The gain of each record of a row with this baseline, in columns that have the ceiling.

    It is of the first seed that the three records have in common.
    """
    places = {(record.row, record.column): record for record in records}
    gains = []
    for record in records:
        trio = [places[row, record.column] for row in (baseline, record.row, ceiling) if (row, record.column) in places]
        if record.row.baseline is not baseline or len(trio) < 3:
            continue
        common = sorted(set.intersection(*({seed.seed for seed in member.seeds} for member in trio)))
        if common and len({member.n_test for member in trio}) == 1:
            without, ours, best = right = [member.arrays[f"correct_s{common[0]}"].astype(bool) for member in trio]
            errors = [100 * float((~correct).mean()) for correct in right]
            gains.append(Gain(record, errors[0], errors[1], errors[2], *share_gained(without, ours, best)))
    return gains


def describe_gains(table: Table, records: Sequence[Record], baseline: Row, ceiling: Row) -> Section | None:
    """The section on the gains; None if no column has the ceiling."""
    gains = measure_gains(records, baseline, ceiling)
    if not gains:
        return None
    body = [
        [
            gain.record.row.label,
            gain.record.column.label,
            *(f"{error:.2f}" for error in (gain.baseline, gain.ours, gain.ceiling)),
            "–" if math.isnan(gain.share) else typeset_minus(f"{gain.share:.0f}"),
            "–" if math.isnan(gain.low) else typeset_minus(f"{gain.low:.0f} to {gain.high:.0f}"),
        ]
        for gain in gains
    ]
    head = ["model", "column", "baseline", "with ST", "ceiling", "share of the gain, %", "95 % interval"]
    text = (
        f"The ceiling ({ceiling.label}) sees each digit as its distortion left it, undone by the true parameters and "
        "resampled into the digit's own frame: what a transformer could hope for that finds the pose without fail. The "
        "share is how far the error has come from the baseline's to the ceiling's; its interval is a bootstrap over "
        "the test images. Errors and shares are of the first seed that the three networks have in common."
    )
    return Section("How much of the possible gain", [text, Grid(head, body, "llrrrrr")])
