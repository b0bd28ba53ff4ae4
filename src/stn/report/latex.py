r"""A table as a LaTeX float for `\input`; the document needs `\usepackage{booktabs}` and nothing else."""

import re
from collections.abc import Sequence
from dataclasses import replace

from stn.report.captions import caption, legend
from stn.report.matrix import build_matrix, format_place, join
from stn.report.records import Record
from stn.report.table import Table

SIGNS = {"↓": "downarrow", "≈": "approx", "↑": "uparrow", "±": "pm", "≥": "geq", "†": "dagger", "‡": "ddagger"}


def render_latex(table: Table, records: Sequence[Record]) -> str:
    """Caption, grid and legend. A column without records is left out, unless it shows a cited row."""
    matrix = build_matrix(table, records)
    heads = {place[1] for place in matrix.values} | {column for row in table.rows if row.cited for column in row.paper}
    matrix = replace(matrix, columns=[column for column in matrix.columns if column in heads])
    body, above = [], matrix.rows[0]
    for row in matrix.rows:
        if table.starts_block(above, row):
            body.append(r"\addlinespace")
        line = [row.label]
        for column in matrix.columns:
            place = format_place(
                table, row, column, matrix.values.get((row, column)), r"\textbf{{{}}}", matrix.compared
            )
            line.append(_translate_signs(place.replace("not run", "–")))
        line += [_round_count(counts[row]) if row in counts else "--" for _, counts in matrix.parameters]
        body.append(" & ".join(line) + r" \\")
        above = row
    head = [table.entries, *(column.label for column in matrix.columns)]
    head += [rf"\shortstack[r]{{params\\({names})}}" for names in matrix.parameter_heads]
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs}. Written by `python -m stn.table`: do not edit.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{translate(join(matrix.entitle(caption(table, records)), legend(table, matrix)))}}}",
            rf"\label{{tab:{table.name}}}",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def translate(text: str) -> str:
    """A paragraph of Markdown as LaTeX."""
    text = re.sub(r"([%&#_$])", r"\\\1", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
    return _translate_signs(re.sub(r"`(.+?)`", r"\\texttt{\1}", text))


def _translate_signs(text: str) -> str:
    for sign, name in SIGNS.items():
        text = text.replace(sign, f"$^\\{name}$" if sign in "†‡" else f"$\\{name}$")
    return text.replace("–", "--")


def _round_count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}k"
