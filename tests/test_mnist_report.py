"""Promises of what Tables 1, 7 and 8 say beyond their numbers: gains, kernels, costs."""

import numpy as np
import pytest
from rich.console import Console

from stn.errors import UserError
from stn.experiments.mnist.costs import count_multiply_adds, count_parameters, find_larger
from stn.experiments.mnist.gains import measure_gains
from stn.experiments.mnist.table import CNN, DISTORTED, KERNELS, SIZES, TRUE_POSE
from stn.report import tables
from stn.report.comparisons import compare
from stn.report.latex import render_latex
from stn.report.markdown import render_markdown
from stn.report.records import load_records
from stn.report.summary import summarise
from stn.report.terminal import render_terminal
from synthetic import check_tex, write_cell, write_sizes, write_table


def show(table, records):
    """The table as a terminal of 100 columns shows it."""
    console = Console(width=100, record=True)
    console.print(render_terminal(table, records))
    return console.export_text()


def test_the_ceiling_is_shown_where_it_was_run(tmp_path):
    cells = write_table(tmp_path / "table1")
    without = load_records(DISTORTED, cells)
    absent = render_markdown(DISTORTED, without)
    assert "true pose" not in absent
    records = load_records(DISTORTED, cells, [write_cell(tmp_path, "CNN, true pose", "R", [77])])
    text = render_markdown(DISTORTED, records)
    line = next(line for line in text.splitlines() if line.startswith("| CNN, true pose "))
    assert "**0.77**" in line and "not run" not in line and "the ceiling for a transformer" in text
    gains = measure_gains(records, CNN, TRUE_POSE)
    assert [gain.record.row.label for gain in gains] == ["ST-CNN Aff", "ST-CNN Proj", "ST-CNN TPS"]
    assert all(gain.share == pytest.approx(100 * (2.0 - 1.0) / (2.0 - 0.77)) for gain in gains)
    assert "## How much of the possible gain" in text and "possible gain" not in absent
    assert "CNN, true pose" in render_latex(DISTORTED, records)
    assert "CNN, true pose" not in render_latex(DISTORTED, without)


def test_the_share_of_a_gain_and_its_errors_are_of_the_same_seed(tmp_path):
    cells = {"CNN": [200, 100], "ST-CNN Aff": [100, 100], "CNN, true pose": [77]}
    paths = [write_cell(tmp_path, row, "R", errors) for row, errors in cells.items()]
    (gain,) = measure_gains(load_records(DISTORTED, [], paths), CNN, TRUE_POSE)
    assert (gain.baseline, gain.ours, gain.ceiling) == pytest.approx((2.0, 1.0, 0.77))
    assert gain.share == pytest.approx(100 * (gain.baseline - gain.ours) / (gain.baseline - gain.ceiling))


def test_a_share_of_nothing_to_gain_is_a_dash(tmp_path):
    cells = {"CNN": 100, "ST-CNN Aff": 90, "CNN, true pose": 99}
    records = load_records(DISTORTED, [], [write_cell(tmp_path, row, "R", [count]) for row, count in cells.items()])
    _, _, text = render_markdown(DISTORTED, records).partition("## How much of the possible gain")
    line = next(line for line in text.splitlines() if line.startswith("| ST-CNN Aff "))
    assert [cell.strip() for cell in line.split("|")[-3:-1]] == ["1000", "–"]


def test_kernels_are_held_against_bilinear_sampling(tmp_path):
    errors = {"integer": 300, "bilinear": 150, "bicubic": 152, "learned": 90}
    paths = [
        write_cell(tmp_path, f"ST-CNN Aff, {kernel}", column.label, [count])
        for kernel, count in errors.items()
        for column in KERNELS.columns
    ]
    records = load_records(KERNELS, paths)
    text = render_markdown(KERNELS, records)
    assert "A kernel beats bilinear sampling in 2 of 6 cells; not in ST-CNN Aff, integer on R" in text
    assert "paper" not in text and "not run" not in text
    shown = show(KERNELS, records)
    assert "0.90" in shown and "paper" not in shown


def test_a_learned_kernel_without_its_weights_is_refused(tmp_path):
    path = write_cell(tmp_path, "ST-CNN Aff, learned", "R", [90])
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "phi_y"}
    np.savez(path.with_suffix(".npz"), **arrays)
    with pytest.raises(UserError, match=r"mnist_r-st_cnn_affine-sampler_learned\.npz without phi_x and phi_y"):
        load_records(KERNELS, [path])


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    return load_records(SIZES, write_sizes(tmp_path_factory.mktemp("sizes")))


def test_a_small_st_network_is_held_against_every_larger_one(sizes):
    pairs = compare(SIZES, sizes, lambda row: find_larger(SIZES, row))
    assert len(pairs) == 2 * 15 and all(count_parameters(pair) > 1 for pair in pairs)
    (best,) = (
        pair
        for pair in pairs
        if (pair.row.label, pair.other.row.label, pair.column.label) == ("ST-CNN 60k", "CNN 400k", "R")
    )
    assert best.clear and count_parameters(best) == pytest.approx(9) and count_multiply_adds(best) == pytest.approx(18)
    line = next(line for line in summarise(SIZES, sizes) if line.startswith("On R "))
    assert "ST-CNN 20k (2.80 %) beats CNN 200k (3.00 %)" not in line  # not significant
    assert "a small ST-CNN is better than a large CNN: ST-CNN 60k (2.00 %) beats CNN 400k (2.50 %)" in line
    assert "with 1/9 of the parameters and 1/18 of the multiply-adds" in line
    assert "Pairs of an ST-CNN and a larger CNN: 15; the smaller is significantly better in 4, worse in 8" in line


def test_where_no_small_network_wins_that_is_said(tmp_path):
    cells = [("CNN 2.5k", 500), ("ST-CNN 2.5k", 400), ("CNN 7k", 300)]
    records = load_records(SIZES, [write_cell(tmp_path, row, "R", [errors], n=20) for row, errors in cells])
    (line,) = (line for line in summarise(SIZES, records) if line.startswith("On R "))
    assert line.startswith("On R no ST-CNN is significantly better than a larger CNN. Pairs")


def test_what_a_network_costs_is_shown_and_what_is_not_exported_is_said(sizes):
    block = tables.readme_block(render_markdown(SIZES, sizes))
    line = next(line for line in block.splitlines() if line.startswith("| ST-CNN 7k ") and "| RTS" in line)
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [
        *("RTS", "6.00", "5.55–6.48", "7.00", "0.400", "0.200", "0.133", "0.30", "7,500", "38", "16"),
    ]
    assert "1 cell has no export record (–): `make table TABLE=8` writes it." in block
    last = next(line for line in block.splitlines() if line.startswith("| ST-CNN 400k ") and "| RTS" in line)
    assert [cell.strip() for cell in last.split("|")].count("–") == 6 and "1.50" in last
    assert "(the CNN of its size)" in block and "paper" not in block and "not run" not in block
    shown = show(SIZES, sizes).splitlines()
    assert all(len(line) <= 100 for line in shown) and any("5.55–6.48" in line for line in shown)
    check_tex(render_latex(SIZES, sizes), len(SIZES.rows))
