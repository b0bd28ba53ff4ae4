"""A table as Markdown: the caption and grid that pages show, then sections with details."""

from collections.abc import Mapping, Sequence

from stn.report.budgets import build_budgets
from stn.report.captions import caption, explain_against, legend
from stn.report.comparisons import compare, describe_unclear, format_p, order_steps
from stn.report.matrix import Matrix, build_matrix, format_place, join, typeset_minus
from stn.report.records import Record
from stn.report.summary import summarise
from stn.report.table import Comparison, Contest, Grid, Row, Section, Table

PAIRED = (
    "Both networks on the same test {images}: McNemar's exact two-sided test on the {images} that only one of them "
    "has right, one test for each seed that both have, the largest p shown, not corrected for the number of tests. "
    "Values are means over these seeds."
)
ORDERED = "All steps of an order are over the seeds that all of its rows have."
ORDER_HEAD = ("step before", "this step", "before", "this", "is a step up")


def render_markdown(table: Table, records: Sequence[Record], alternatives: Sequence[Sequence[Record]] = ()) -> str:
    """The whole report. `alternatives` are the existing records of the same cells at other budgets."""
    matrix = build_matrix(table, records)
    text = [
        f"# Table {table.number}: {table.title}",
        matrix.entitle(caption(table, records)),
        render_grid(_main_grid(table, matrix)),
        legend(table, matrix),
        " ".join(summarise(table, records)),
    ]
    for build in table.asides:
        aside = build(table, records)
        text += [aside.text, render_grid(aside.grid)] if aside else []
    budgets = build_budgets([records, *alternatives], table, "**{}**", with_paper=True)
    if budgets:
        (first, *rest), grid = budgets
        text += [first, "\n".join(f"- {line}" for line in rest), render_grid(grid)]
        others = [build_matrix(table, other) for other in alternatives if other]
        explained = explain_against(table, [matrix])
        text.append(" ".join(line for line in explain_against(table, others, [matrix]) if line not in explained))
    sections = [
        *_contests(table, records),
        *(build(table, records) for build in table.sections),
        _every_cell(table, matrix),
    ]
    for section in filter(None, sections):
        text.append(f"## {section.title}")
        text += [render_grid(block) if isinstance(block, Grid) else block for block in section.blocks]
    return "\n\n".join(filter(None, text)) + "\n"


def render_grid(grid: Grid) -> str:
    """The grid as a Markdown table, columns padded to one width."""
    widths = [max(map(len, column)) for column in zip(grid.head, *grid.body, strict=True)]

    def line(texts: Sequence[str]) -> str:
        places = zip(texts, widths, grid.align, strict=True)
        return f"| {' | '.join(text.rjust(n) if side == 'r' else text.ljust(n) for text, n, side in places)} |"

    rule = ("-" * (n + 1) + (":" if side == "r" else "-") for n, side in zip(widths, grid.align, strict=True))
    return "\n".join([line(grid.head), f"|{'|'.join(rule)}|", *map(line, grid.body)])


def _main_grid(table: Table, matrix: Matrix) -> Grid:
    body = []
    for row in matrix.rows:
        places = [
            format_place(table, row, column, matrix.values.get((row, column)), "**{}**", matrix.compared)
            for column in matrix.columns
        ]
        body.append([row.label, *places, *(_format_count(counts, row) for _, counts in matrix.parameters)])
    head = [table.entries, *(column.label for column in matrix.columns)]
    head += [f"parameters ({names})" for names in matrix.parameter_heads]
    return Grid(head, body, "l" + "r" * (len(head) - 1))


def _format_count(counts: Mapping[Row, int], row: Row) -> str:
    return f"{counts[row]:,}" if row in counts else "–"


def _contests(table: Table, records: Sequence[Record]) -> list[Section]:
    """Comparisons on the same images: a section for each contest, and one for the paper's orders."""
    contests = [(contest, compare(table, records, contest.opponents)) for contest in table.contests]
    order = Contest("The paper's order", ORDER_HEAD, lambda row: ())
    contests.append((order, [step for steps in order_steps(table, records) for step in steps]))
    sections: list[Section] = []
    for contest, comparisons in contests:
        if comparisons:
            text = "" if sections else PAIRED.format(images=table.images)
            if contest is order and any(step.differ for step in comparisons):
                text = join(text, ORDERED)
            sections.append(Section(contest.title, [text, _comparison_grid(contest, comparisons)]))
    return sections


def _comparison_grid(contest: Contest, comparisons: Sequence[Comparison]) -> Grid:
    first, second, first_alone, second_alone, beats = contest.head
    head = ["model", "column", first, second, "difference", f"only {first_alone} right", f"only {second_alone} right"]
    body = [
        [
            f"{cell.row.label} : {cell.other.row.label}" if contest.names_both else cell.row.label,
            cell.column.label,
            f"{cell.theirs:.2f}",
            f"{cell.ours:.2f}",
            typeset_minus(f"{cell.ours - cell.theirs:+.2f}"),
            "; ".join(str(n10) for _, _, n10 in cell.tests) or "–",
            "; ".join(str(n01) for _, n01, _ in cell.tests) or "–",
            format_p(cell.p),
            "yes" if cell.clear else f"yes, {describe_unclear([cell])}" if cell.beats else "**no**",
        ]
        for cell in comparisons
    ]
    return Grid([*head, "p", beats], body, "llrrrrrrl")


def _every_cell(table: Table, matrix: Matrix) -> Section | None:
    if not matrix.values:
        return None
    body = [
        [
            value.record.row.label,
            value.record.column.label,
            table.cite(value.record.row, value.record.column) or "–",
            f"{value.ours:.2f}",
            f"{value.low:.2f} to {value.high:.2f}",
            str(len(value.record.seeds)),
            f"{value.record.n_test:,}",
            f"{value.record.parameters:,}",
            f"{value.record.multiply_adds / 1e6:,.1f}",
            f"{value.seconds / 60:.1f}",
            value.verdict,
        ]
        for value in matrix.values.values()
    ]
    head = ["row", "column", "paper", "ours", "95 % interval", "n seeds", "n test", "parameters"]
    head += ["multiply-adds, M", "minutes", "verdict"]
    align = "llrrrrrrrrl"
    if table.is_all_ours or not matrix.compared:  # no values of the paper to compare with
        indices = [i for i, name in enumerate(head) if name not in ("paper", "verdict")]
        head, *body = ([line[i] for i in indices] for line in (head, *body))
        align = "".join(align[i] for i in indices)
    text = "Multiply-adds are those of one image in a test, in millions; minutes are of training, all seeds"
    text += " and all classes." if table.shares_records else "."
    return Section("Every cell", [text, Grid(head, body, align)])
