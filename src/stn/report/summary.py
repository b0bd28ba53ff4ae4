"""The summary of a table in plain sentences: against the paper, between rows, and whether the paper's orders hold."""

from collections import Counter
from collections.abc import Sequence

from stn.report.comparisons import SIGNIFICANT, compare, measure, order_steps
from stn.report.records import Record
from stn.report.table import Comparison, Table


def summarise(table: Table, records: Sequence[Record]) -> list[str]:
    """How many cells agree with the paper, which rows do not beat their opponents, and whether the orders hold."""
    values = measure(table, records)
    means = [value for value in values if table.is_mean(value.record.row)]
    counts = Counter(value.verdict for value in values if value not in means)
    compared = sum(counts[name] for name in ("better", "within", "worse"))
    lines = []
    if compared:
        lines.append(
            f"Against the paper, {compared} cell{'s' * (compared > 1)}: {counts['better']} better, "
            f"{counts['within']} within, {counts['worse']} worse."
        )
        if means:
            verdicts = (f"{value.verdict} on {value.record.column.label}" for value in means)
            lines.append(f"The mean: {', '.join(verdicts)}.")
    if compared and counts["not comparable"]:
        count = counts["not comparable"]
        lines.append(f"Without a number of the paper: {count} cell{'s' * (count > 1)}.")
    if not records:
        return lines
    for contest in table.contests:
        lines += contest.tell(table, compare(table, records, contest.opponents))
    return lines + _orders(table, records)


def _orders(table: Table, records: Sequence[Record]) -> list[str]:
    """Whether the paper's orders hold, where all of their rows have records."""
    chains = order_steps(table, records)
    if len(table.orders) == 1:
        return [_order(chain) for chain in chains]
    papers: list[Sequence[Comparison]] = []
    variants: list[Sequence[Comparison]] = []
    for chain in chains:
        rows = (chain[0].other.row, *(step.row for step in chain))
        (papers if all(row.paper for row in rows) else variants).append(chain)
    return [
        _several_orders(subject, part)
        for subject, part in (("The paper's order", papers), ("The same order of rows that are ours", variants))
        if part
    ]


def _order(chain: Sequence[Comparison]) -> str:
    """Whether the paper's order holds in one column, with the values, and which of its steps are significant."""
    verdict = "holds" if all(step.beats for step in chain) else "does not hold"
    sure = [f"the step {'up' if step.beats else 'down'} to {step.row.label}" for step in chain if step.sure]
    steps = f"{', '.join(sure)} {'is' if len(sure) == 1 else 'are'}" if sure else "no step is"
    return (
        f"The paper's order {verdict} on {chain[0].column.label}: {_chain(chain)}; {steps} significant "
        f"({_name_test([chain])})."
    )


def _several_orders(subject: str, chains: Sequence[Sequence[Comparison]]) -> str:
    """In how many families an order holds, with the values of each, and which of the steps are not significant."""
    count = sum(all(step.beats for step in chain) for chain in chains)
    unsure = [f"to {step.row.label}" for chain in chains for step in chain if not step.sure]
    steps = f"every step is significant, but those {', '.join(unsure)}" if unsure else "every step is significant"
    values = "; ".join(map(_chain, chains))
    return f"{subject} holds in {count} of {len(chains)}: {values}; {steps} ({_name_test(chains)})."


def _name_test(chains: Sequence[Sequence[Comparison]]) -> str:
    """What makes a step significant."""
    several = any(len(step.tests) > 1 for chain in chains for step in chain)
    return f"p < {SIGNIFICANT}, paired test{', the same way with every seed' if several else ''}"


def _chain(chain: Sequence[Comparison]) -> str:
    """The rows of an order with their values, which are over the seeds that all of them have (`order_steps`)."""
    text = f"{chain[0].other.row.label} {chain[0].theirs:.2f}"
    for step in chain:
        sign = "<" if step.ours > step.theirs else ">" if step.ours < step.theirs else "="
        text += f" {sign} {step.row.label} {step.ours:.2f}"
    common = len(chain[0].tests)
    if any(len(record.seeds) > common for record in (chain[0].other, *(step.record for step in chain))):
        text += f" (on the seed{'s' * (common > 1)} that all of them have)"
    return text
