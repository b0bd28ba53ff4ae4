"""Promises of what is compared: with the paper, with baselines, and in the paper's orders."""

from dataclasses import replace

import pytest

from stn.experiments.addition.table import ADDITION
from stn.experiments.mnist.table import DISTORTED
from stn.report.captions import legend
from stn.report.comparisons import compare, find_baseline, measure, order_steps, tell_each
from stn.report.markdown import render_markdown
from stn.report.matrix import build_matrix
from stn.report.records import load_records
from stn.report.summary import summarise
from synthetic import write_cell, write_table


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """All cells of Table 1 but those of TC."""
    return load_records(DISTORTED, write_table(tmp_path_factory.mktemp("table1")))


def test_values_carry_interval_and_verdict(records):
    values = {(value.record.row.label, value.record.column.label): value for value in measure(DISTORTED, records)}
    assert len(values) == 32
    value = values["CNN", "R"]
    assert (value.paper, value.ours, value.record.parameters, value.seconds) == (1.2, 2.0, 208586, 77.5)
    assert value.low == pytest.approx(1.743, abs=1e-3) and value.high == pytest.approx(2.293, abs=1e-3)
    assert value.verdict == "worse"
    assert values["FCN", "RTS"].verdict == "better" and values["ST-CNN Aff", "E"].verdict == "within"


def test_part_of_the_data_gets_no_verdict(tmp_path):
    part = "embedded digits, not MNIST"
    records = load_records(DISTORTED, [write_cell(tmp_path, "CNN", "R", [120], part=part)])
    assert measure(DISTORTED, records)[0].verdict == "not comparable"
    text = render_markdown(DISTORTED, records)
    assert "on embedded digits, not MNIST: not comparable with the paper" in text
    assert not set("↓≈↑") & set(text)


def test_a_comparison_counts_what_only_one_has_right(tmp_path):
    paths = [write_cell(tmp_path, "CNN", "R", [200, 180]), write_cell(tmp_path, "ST-CNN Aff", "R", [100, 190], n=20)]
    records = load_records(DISTORTED, paths)
    by_hand = []
    for seed in (0, 1):
        without, with_st = (record.arrays[f"correct_s{seed}"] for record in records)
        by_hand.append((int((~without & with_st).sum()), int((without & ~with_st).sum())))
    (comparison,) = compare(DISTORTED, records, find_baseline)
    assert [test[1:] for test in comparison.tests] == by_hand
    assert comparison.p == max(test[0] for test in comparison.tests) > 0.05
    # 1.45 against 1.90, but the second seed alone says otherwise.
    assert comparison.beats and not comparison.clear


def test_the_summary_names_the_row_that_does_not_beat_its_baseline(records):
    assert summarise(DISTORTED, records)[-1] == (
        "An ST network beats its baseline in 23 of 24 cells; not in ST-FCN TPS on E."
    )


def test_records_of_different_seeds_are_compared_over_those_that_both_have(tmp_path):
    """Over all its seeds the CNN's error is 1.5 %, as the ST-CNN's; with seed 0, which both have, it is 2 %."""
    paths = [write_cell(tmp_path, "CNN", "R", [200, 100]), write_cell(tmp_path, "ST-CNN Aff", "R", [150])]
    records = load_records(DISTORTED, [], paths)
    (comparison,) = compare(DISTORTED, records, find_baseline)
    assert (comparison.theirs, comparison.ours) == (2.0, 1.5) and comparison.beats and len(comparison.tests) == 1
    text = render_markdown(DISTORTED, records)
    assert "one test for each seed that both have" in text
    assert "Student's over seeds where a cell has several, else Wilson's" in text and "seed 0 or seeds 0, 1" in text


def test_two_seeds_that_contradict_each_other_are_not_said_to_be_without_significance(tmp_path):
    """The ST-CNN is better by 3 points with one seed and worse by 1 with the other, p < 0.001 each."""
    paths = [write_cell(tmp_path, "CNN", "R", [400, 100]), write_cell(tmp_path, "ST-CNN Aff", "R", [100, 200], n=20)]
    records = load_records(DISTORTED, paths)
    (comparison,) = compare(DISTORTED, records, find_baseline)
    assert comparison.p < 1e-3 and comparison.beats and not comparison.sure
    text = " ".join([render_markdown(DISTORTED, records), *tell_each(DISTORTED, [comparison])])
    assert "without significance" not in text and "p ≥" not in text
    for words in (
        "‡ beats its baseline, but not significantly with every seed (p < 0.05, paired test).",
        "It does so, but not significantly with every seed (p < 0.05), in ST-CNN Aff on R.",
        "| yes, not significantly with every seed |",
        "ST-CNN Aff beats CNN on R, but not significantly with every seed (p < 0.05).",
    ):
        assert words in text


def test_with_one_seed_no_seeds_are_spoken_of(tmp_path):
    paths = [write_cell(tmp_path, "CNN", "R", [200]), write_cell(tmp_path, "ST-CNN Aff", "R", [199])]
    text = render_markdown(DISTORTED, load_records(DISTORTED, paths))
    assert "‡ beats its baseline, but not significantly (p < 0.05, paired test)." in text
    assert "It does so, but not significantly (p < 0.05), in" in text and "| yes, not significantly |" in text


@pytest.mark.parametrize(("errors", "said"), [(180, "† does not beat its baseline"), (148, "‡ beats its baseline")])
def test_a_sign_says_that_it_is_of_the_seeds_that_both_have_where_seeds_differ(tmp_path, errors, said):
    """As 1.80 † beside a baseline that prints 2.00, the mean of 1.50 and two other seeds."""
    paths = [write_cell(tmp_path, "CNN", "R", [150, 250, 200]), write_cell(tmp_path, "ST-CNN Aff", "R", [errors], n=20)]
    records = load_records(DISTORTED, [], paths)
    assert f"{said} on the seeds that both have" in legend(DISTORTED, build_matrix(DISTORTED, records))
    same = [replace(record, seeds=record.seeds[:1]) for record in records]
    assert said in legend(DISTORTED, build_matrix(DISTORTED, same))
    assert "that both have" not in legend(DISTORTED, build_matrix(DISTORTED, same))
    # Where the table itself has the same seeds, the legend of the other budgets says it.
    beside = render_markdown(DISTORTED, same, [[replace(record, budget="medium") for record in records]])
    assert beside.partition("##")[0].count(f"{said} on the seeds that both have") == 1
    beside = render_markdown(DISTORTED, records, [[replace(record, budget="medium") for record in same]])
    assert beside.partition("##")[0].count(said) == 1


def test_an_order_gives_each_row_one_value_over_the_seeds_that_all_rows_have(tmp_path):
    """The last step has two seeds in common, the first one only."""
    errors = {"FCN": [2500], "ST-FCN Aff": [2000, 500], "2xST-FCN Aff": [1900, 900]}
    paths = [write_cell(tmp_path, row, "RTS + RTS", counts, parameters=381459) for row, counts in errors.items()]
    records = load_records(ADDITION, [], paths)
    ((first, second),) = order_steps(ADDITION, records)
    assert (first.theirs, first.ours, second.theirs, second.ours) == (25, 20, 20, 19)
    shown = "FCN 25.00 > ST-FCN Aff 20.00 > 2xST-FCN Aff 19.00"
    assert f"{shown} (on the seed that all of them have); every step is" in summarise(ADDITION, records)[-1]
    assert "over the seeds that all of its rows have" in render_markdown(ADDITION, records)
    both = order_steps(ADDITION, [replace(record, seeds=record.seeds[:1]) for record in records])
    assert [(step.theirs, step.ours) for steps in both for step in steps] == [(25, 20), (20, 19)]


def test_a_step_whose_seeds_contradict_each_other_is_not_called_significant_without_a_word(tmp_path):
    errors = {"FCN": [3000, 3000], "ST-FCN Aff": [2000, 500], "2xST-FCN Aff": [500, 900]}
    paths = [write_cell(tmp_path, row, "RTS + RTS", counts, parameters=381459) for row, counts in errors.items()]
    said = summarise(ADDITION, load_records(ADDITION, [], paths))[-1]
    assert said.endswith("but those to 2xST-FCN Aff (p < 0.05, paired test, the same way with every seed).")
