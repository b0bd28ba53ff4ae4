"""The cost of small networks in torch and as ONNX files, and whether a small ST-CNN is better than a large CNN."""

from collections import Counter
from collections.abc import Sequence

from stn.report.captions import format_counts, format_span
from stn.report.comparisons import format_p
from stn.report.records import Record
from stn.report.statistics import interval
from stn.report.table import Aside, Comparison, Grid, Row, Table

# The heads of the columns, and the same in two short lines for the terminal.
HEADS = {
    "model": "\nmodel",
    "data": "\ndata",
    "error, %": "error\n%",
    "95 % interval": "95 %\ninterval",
    "int8 error, %": "int8\n%",
    "torch, ms": "torch\nms",
    "float32, ms": "ONNX\nms",
    "int8, ms": "int8\nms",
    "multiply-adds, M": "mult.-\nadds, M",
    "parameters": "para-\nmeters",
    "float32, KB": "ONNX\nKB",
    "int8, KB": "int8\nKB",
}


def find_larger(table: Table, row: Row) -> list[Row]:
    """The larger networks without a transformer with which a row with one is compared; rows are ordered by size."""
    if not row.transformer:
        return []
    return [candidate for candidate in table.rows[table.rows.index(row) + 1 :] if not candidate.transformer]


def count_parameters(comparison: Comparison) -> float:
    """The parameters of the larger network, as a multiple of those of the smaller one."""
    return comparison.other.parameters / comparison.record.parameters


def count_multiply_adds(comparison: Comparison) -> float:
    """The multiply-adds per image of the larger network, as a multiple of those of the smaller one."""
    return comparison.other.multiply_adds / comparison.record.multiply_adds


def tell_small_against_large(table: Table, comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for each column that says whether a small ST-CNN is better than a larger CNN."""
    lines = []
    for column in table.columns:
        pairs = [pair for pair in comparisons if pair.column is column]
        if not pairs:
            continue
        wins = [pair for pair in pairs if pair.clear]
        losses = [pair for pair in pairs if pair.sure and not pair.beats]
        if wins:
            best = max(wins, key=count_parameters)
            line = f"On {column.label} a small ST-CNN is better than a large CNN: {best.row.label} ({best.ours:.2f} %) "
            line += f"beats {best.other.row.label} ({best.theirs:.2f} %) with "
            line += f"{_ratio(count_parameters(best), 'parameters')} and "
            line += f"{_ratio(count_multiply_adds(best), 'multiply-adds')} (p = {format_p(best.p)})"
        else:
            line = f"On {column.label} no ST-CNN is significantly better than a larger CNN"
        lines.append(
            f"{line}. Pairs of an ST-CNN and a larger CNN: {len(pairs)}; the smaller is significantly better in "
            f"{len(wins)}, worse in {len(losses)}."
        )
    return lines


def describe_costs(table: Table, records: Sequence[Record]) -> Aside | None:
    """The cost of each cell, and the accuracy and latency of its ONNX files."""
    if not records:
        return None
    ordered = sorted(records, key=lambda record: table.columns.index(record.column))
    exports = [record.export for record in ordered if record.export]
    text = "Cost: multiply-adds of one image, in millions, sampling itself not counted."
    if exports:
        machines = Counter(
            f"{export.provenance.get('cpu') or 'unknown processor'}, "
            f"onnxruntime {export.provenance.get('onnxruntime', 'unknown')}"
            for export in exports
        )
        lowest = min(export.runs["float32"].agreement for export in exports)
        runs = [run.latency for export in exports for run in export.runs.values()]
        widest = max(latency["high"] / latency["median"] for latency in runs)
        timed = format_span(export.runs["int8"].latency["n"] for export in exports)
        text += (
            " The same network in ONNX, of the first seed: float32 gives torch's answer on "
            f"{'all' if lowest == 100 else f'at least {lowest:.2f} % of the'} test images; int8 has 8-bit weights and "
            "activations, but theta, grid and sampler in float32. Latency: one image, one thread, the median of "
            f"{timed} runs (the 95th percentile is at most {widest:.1f} times the median), {format_counts(machines)}; "
            "torch runs eagerly."
        )
    absent = len(records) - len(exports)
    if absent:
        text += f" {absent} cell{'s have' if absent > 1 else ' has'} no export record (–): `{table.make}` writes it."
    body = [_cost(record) for record in ordered]
    return Aside(text, Grid(list(HEADS), body, "ll" + "r" * (len(HEADS) - 2), list(HEADS.values()), block=1))


def _cost(record: Record) -> list[str]:
    """The line of the grid for one record."""
    low, high = interval(record.seeds)
    line = [record.row.label, record.column.label, f"{record.error:.2f}", f"{low:.2f}–{high:.2f}"]
    counts = [f"{record.multiply_adds / 1e6:.2f}", f"{record.parameters:,}"]
    if record.export is None:
        return [*line, *["–"] * 4, *counts, *["–"] * 2]
    runs = record.export.runs
    medians = [runs[name].latency["median"] for name in ("torch", "float32", "int8")]
    times = [f"{median:.{3 if median < 1 else 2}f}" for median in medians]
    sizes = [f"{runs[name].bytes / 1000:,.0f}" for name in ("float32", "int8")]
    return [*line, f"{runs['int8'].error:.2f}", *times, *counts, *sizes]


def _ratio(times: float, name: str) -> str:
    """A ratio as text: "1/29 of the parameters", or "1.2 times the parameters" where it is near or above 1."""
    if times >= 1.5:
        return f"1/{times:.{0 if times >= 3 else 1}f} of the {name}"
    return f"{1 / times:.1f} times the {name}"
