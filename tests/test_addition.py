"""Promises of Table 4, MNIST addition: the pairs, the networks, the report."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from conftest import one_error, run
from stn.cells import config
from stn.config import CONF, compose
from stn.data.download import export_embedded
from stn.errors import UserError
from stn.experiments.addition.attention import measure_attention
from stn.experiments.addition.data import POSES, AdditionSource, store
from stn.experiments.addition.networks import AdditionNetwork
from stn.experiments.addition.table import ADDITION
from stn.experiments.mnist.data import distortion, undistorted
from stn.experiments.mnist.networks import n_parameters
from stn.nn.localisation import FirstConvolution
from stn.report import tables
from stn.report.comparisons import compare, find_baseline, order_steps
from stn.report.summary import summarise
from stn.training.data_module import DataModule
from stn.training.learner import build_network, new_learner
from synthetic import write_cell

PARTS = {"filters": 4, "features": 4, "hidden": 8, "layers": 3}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pairs of the embedded digits."""
    folder = tmp_path_factory.mktemp("sums")
    export_embedded(folder / "data/raw/digits")
    result = run("stn.distort", "data=digits_addition", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "data/stored/digits_addition/test: 5000 images of 42 x 42 pixels\n" in result.stdout
    return folder


@pytest.fixture
def data(place, monkeypatch):
    monkeypatch.chdir(place)
    return compose("data=digits_addition", "model=fcn").data


@pytest.fixture
def source(data):
    made = AdditionSource(data)
    for split in ("train", "validation", "test"):
        made.load(split)
    return made


# Pairs


def test_each_test_digit_is_the_first_of_a_pair_and_its_partner_is_any_of_the_test_set(source, data):
    plain, made = undistorted(data)["test"], source.sets["test"]
    assert made.images.shape == (5000, 2, 42, 42) and made.images.dtype == torch.uint8
    assert torch.equal(made.labels[:, 0], plain.labels.repeat_interleave(data.draws))
    first = distortion(data).render(made.parameters[:, 0].double(), plain.images.repeat_interleave(data.draws, 0))
    assert ((first[:, 0] * 255).round().to(torch.uint8) == made.images[:, 0]).all()
    second = made.labels[:, 1].bincount(minlength=10) / 5000
    assert (second - plain.labels.bincount() / 500).abs().max() < 0.02
    assert made.labels.sum(1).unique().tolist() == list(range(19))


def test_both_digits_are_distorted_independently(source):
    poses = source.sets["test"].parameters
    correlation = torch.corrcoef(poses.flatten(1).T)
    assert correlation[:4, 4:].abs().max() < 0.06
    low, high = poses.flatten(0, 1)[:, :2].aminmax(dim=0)
    assert torch.allclose(low, torch.tensor([-45, 0.7]), rtol=0.02)
    assert torch.allclose(high, torch.tensor([45, 1.2]), rtol=0.02)


def test_the_label_is_the_sum(source):
    images, sums = source.batch("test", torch.tensor([0, 4999]), CPU)
    assert images.shape == (2, 2, 42, 42) and images.max() <= 1
    assert torch.equal(sums, source.sets["test"].labels[[0, 4999]].sum(1))
    index = torch.arange(64)
    _, sums = source.train_batch(index, torch.Generator().manual_seed(1), 64, slice(None), CPU)
    others = sums - source.sets["train"].labels[index]
    assert others.min() >= 0 and others.max() <= 9 and len(others.unique()) == 10


def test_a_training_pair_is_a_function_of_seed_and_step(data):
    cfg = compose("data=digits_addition", "model=fcn", "budget.batch_size=16")

    def batch(step, seed=0, world=1, rank=0):
        feed = DataModule(cfg.data, cfg.budget, seed)
        feed.source.load("train")
        feed.trainer = type("T", (), {"world_size": world, "global_rank": rank})()
        feed.trainer.strategy = type("S", (), {"root_device": CPU})
        return feed.on_after_batch_transfer(("train", step, feed.picks(step)[rank::world]), 0)

    images, sums = batch(9)
    assert images.shape == (16, 2, 42, 42)
    assert torch.equal(batch(9)[0], images)
    assert not torch.equal(batch(10)[0], images) and not torch.equal(batch(9, seed=1)[0], images)
    halves = [batch(9, world=2, rank=rank) for rank in (0, 1)]
    assert torch.equal(halves[0][0], images[::2]) and torch.equal(halves[1][1], sums[1::2])


def test_stored_pairs_have_the_same_bytes_on_every_run(data, tmp_path):
    small = compose("data=digits_addition", "model=fcn", "data.draws=1", f"data.stored={tmp_path}/stored").data

    def made():
        store(small, tmp_path / "scratch")
        return {path.name: path.read_bytes() for path in (tmp_path / "stored").iterdir()}

    first = made()
    torch.manual_seed(99)
    assert made() == first and len(first) == 7


def test_what_are_no_pairs_is_refused_in_one_line(place, data):
    run("stn.distort", "data=digits_rts", "data.draws=1", cwd=place)
    train = ["stn.train", "data=digits_addition", "model=fcn", "budget=smoke", "logger=none"]
    line = one_error(run(*train, "data.stored=data/stored/digits_rts", cwd=place))
    assert "was stored with distortion=Pose(" in line and "(not pairs of Pose(" in line
    assert "run `python -m stn.distort data=digits_addition`" in line
    assert "is missing: run" in one_error(run(*train, "data.stored=nowhere", cwd=place))


@pytest.mark.parametrize(
    "command, named",
    [
        (
            ["stn.train", "data=digits_addition", "model=volume_st"],
            "model=volume_st is a network of data.kind=volumes, data=digits_addition is of data.kind=addition",
        ),
        (
            ["stn.train", "data=volumes_60", "model=st_fcn_tps", "model.parallel=2"],
            "model=st_fcn_tps is a network of data.kind=addition or mnist, data=volumes_60 is of data.kind=volumes",
        ),
        (["stn.train", "data=digits_rts", "model=st_fcn_tps", "model.parallel=2"], "model.parallel=2: data=digits_rts"),
        (["stn.train", "data=digits_addition", "model=st_fcn_tps", "model.parallel=0"], "model.parallel=0"),
        (["stn.train", "data=digits_addition", "model=fcn", "data.undo=true"], "data.undo=true"),
        (["stn.distort", "data=svhn_64"], "is cropped, not distorted: run `python -m stn.crop data=svhn_64`"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, command, named):
    assert named in one_error(run(*command, cwd=tmp_path))


# Networks


def test_the_first_convolution_is_the_plain_one_whatever_the_channels():
    fast = FirstConvolution(5, 9, 4).double()
    images = torch.rand(3, 4, 14, 17, dtype=torch.float64, requires_grad=True)
    plain = nn.functional.conv2d(images, fast.weight, fast.bias)
    torch.testing.assert_close(fast(images), plain)
    weights = torch.rand_like(plain)
    wanted = torch.autograd.grad((plain * weights).sum(), [images, fast.weight, fast.bias])
    found = torch.autograd.grad((fast(images) * weights).sum(), [images, fast.weight, fast.bias])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("classifier", ["cnn", "fcn"])
@pytest.mark.parametrize("parallel", [1, 2])
def test_untrained_transformers_hand_on_both_channels_side_by_side(classifier, parallel):
    net = AdditionNetwork(42, classifier, 8, "affine", parallel, pool=2, localisation=PARTS)
    images = torch.rand(3, 2, 42, 42)
    pooled = nn.functional.avg_pool2d(images, 2)
    torch.testing.assert_close(net.seen(images), pooled.repeat(1, parallel, 1, 1), atol=1e-5, rtol=1e-5)
    assert net(images).shape == (3, 19) and net.thetas(images)["theta"].shape == (3, parallel, 6)


@pytest.mark.parametrize("classifier", ["cnn", "fcn"])
def test_a_transformer_reads_both_channels_and_warps_both_alike(classifier):
    torch.manual_seed(0)
    net = AdditionNetwork(42, classifier, 8, "affine", 2, pool=2, localisation=PARTS)
    for warp in net.transformers:
        nn.init.normal_(warp.regression.weight, std=0.3)
    images = torch.rand(3, 2, 42, 42)
    theta = net.thetas(images)["theta"]
    for channel in (0, 1):
        other = images.clone()
        other[:, channel] = torch.rand(3, 42, 42)
        assert ((net.thetas(other)["theta"] - theta).abs().amax((0, 2)) > 1e-4).all()
    same = images[:, :1].repeat(1, 2, 1, 1)
    seen = net.seen(same)
    torch.testing.assert_close(seen[:, 0], seen[:, 1])
    torch.testing.assert_close(seen[:, 2], seen[:, 3])
    assert not torch.allclose(seen[:, 0], seen[:, 2], atol=0.05)


def test_two_transformers_that_start_alike_part(place, data):
    network = ("model=st_fcn_affine", "model.parallel=2", "model.width=8")
    cfg = compose("data=digits_addition", *network, "budget.batch_size=32")
    torch.manual_seed(0)
    learner, feed = new_learner(cfg), DataModule(cfg.data, cfg.budget, 0)
    feed.source.load("train")
    optimiser = learner.configure_optimizers()["optimizer"]
    for step in range(10):
        draws = torch.Generator().manual_seed(step)
        images, sums = feed.source.train_batch(feed.picks(step), draws, 32, slice(None), CPU)
        first, second = learner.network.thetas(images)["theta"].unbind(1)
        if step == 0:
            assert torch.equal(first, second)
        optimiser.zero_grad()
        nn.functional.cross_entropy(learner(images), sums).backward()
        optimiser.step()
    moved = (first - first.new_tensor([1, 0, 0, 0, 1, 0])).norm()
    assert (first - second).norm() > 0.2 * moved > 0


def test_all_networks_have_about_400k_parameters():
    totals = [n_parameters(build_network(config("quick", cell))) for cell in ADDITION.cells()]
    assert len(totals) == 14 and max(totals) / min(totals) < 1.03
    assert all(370_000 < total < 400_000 for total in totals)


def test_each_row_is_the_network_that_its_label_says():
    families = {"affine": "Aff", "projective": "Proj", "tps": "TPS"}
    labels = []
    for cell in ADDITION.cells():
        model = config("quick", cell).model
        classifier, family = model.classifier.name.upper(), model.transformation and families[model.transformation.name]
        labels.append({1: "", 2: "2x"}[model.parallel] + (f"ST-{classifier} {family}" if family else classifier))
    assert labels == [row.label for row in ADDITION.rows]


def test_a_run_leaves_what_the_report_needs(place):
    network = ("model=st_cnn_tps", "model.parallel=2", "model.width=4")
    record = place / "reports/digits_addition-st_cnn_tps-parallel_2"
    short = ("budget=smoke", "budget.steps=2", "logger=none", f"record={record}")
    result = run("stn.train", "data=digits_addition", *network, *short, cwd=place)
    assert result.returncode == 0, result.stderr
    (cell,) = tables.load(4, [record.with_suffix(".json")])
    arrays = cell.arrays
    assert cell.n_test == 5000 and cell.part and arrays["theta"].shape == (POSES, 2, 32)
    assert arrays["pair_before"].shape == (1000, 2, 9, 2) and arrays["pair_after"].shape == (1000, 2, 2, 9, 2)
    assert arrays["example_grid"].shape == (4, 2, 42, 42, 2) and arrays["example_output"].shape == (4, 4, 21, 21)
    for attention in measure_attention([cell]):  # two steps from the identity
        assert all(abs(share) < 5 for share in attention.undone)


@pytest.mark.parametrize("budget", ["smoke", "quick", "medium", "paper"])
def test_sums_have_a_budget_that_can_be_overridden(budget):
    asked = ["data=mnist_addition", "model=cnn", f"budget={budget}"]
    own = OmegaConf.load(CONF / "schedule/addition.yaml")[budget].budget
    assert own and {key: compose(*asked).budget[key] for key in own} == own
    assert compose(*asked).budget.name == budget and compose(*asked, "budget.steps=7").budget.steps == 7


# Report


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Every step of the paper's order is taken, but that to 2xST-CNN TPS."""
    folder, errors = tmp_path_factory.mktemp("table4"), {"FCN": 4000, "CNN": 1500}
    for count, share in (("", 0.6), ("2x", 0.3)):
        for kind in ("FCN", "CNN"):
            for family in ("Aff", "Proj", "TPS"):
                errors[f"{count}ST-{kind} {family}"] = int(errors[kind] * share)
    errors["2xST-CNN TPS"] = errors["ST-CNN TPS"] + 5
    return [write_cell(folder, row.label, "RTS + RTS", [errors[row.label]], parameters=381459) for row in ADDITION.rows]


@pytest.fixture(scope="module")
def records(paths):
    return tables.load(4, paths)


def test_the_papers_order_is_told_for_each_family_and_apart_for_the_rows_that_are_ours(records):
    *_, theirs, ours = summarise(ADDITION, records)
    assert theirs == (
        "The paper's order holds in 3 of 3: FCN 40.00 > ST-FCN Aff 24.00 > 2xST-FCN Aff 12.00; "
        "FCN 40.00 > ST-FCN Proj 24.00 > 2xST-FCN Proj 12.00; FCN 40.00 > ST-FCN TPS 24.00 > 2xST-FCN TPS 12.00; "
        "every step is significant (p < 0.05, paired test)."
    )
    assert ours.startswith("The same order of rows that are ours holds in 2 of 3: CNN 15.00 > ST-CNN Aff 9.00 > ")
    assert ours.endswith(
        "ST-CNN TPS 9.00 < 2xST-CNN TPS 9.05; every step is significant, but those to 2xST-CNN TPS (p < 0.05, paired "
        "test)."
    )
    without = [record for record in records if "FCN" in record.row.label]
    assert summarise(ADDITION, without)[-1] == theirs
    assert "order" not in " ".join(summarise(ADDITION, [record for record in records if not record.row.transformer]))


def test_the_order_is_told_at_every_budget_as_far_as_its_rows_were_run(records):
    longer = [replace(record, budget="medium") for record in records if "CNN" not in record.row.label]
    text = tables.to_markdown(records, 4, [longer])
    _, _, aside = text.partition("The same at several budgets")
    assert aside.partition("`medium`: 7")[2].partition("\n")[0].count("The paper's order holds in 3 of 3") == 1
    shorter = [record for record in longer if "TPS" not in record.row.label]
    assert "The paper's order holds in 2 of 2" in tables.to_markdown(records, 4, [shorter])


def test_each_is_tested_against_its_classifier_alone_and_two_transformers_against_one(records):
    cells = compare(ADDITION, records, find_baseline)
    others = {cell.row.label: cell.other.row.label for cell in cells}
    assert len(others) == 12 and others["2xST-FCN TPS"] == "FCN" and others["2xST-CNN Aff"] == "CNN"
    steps = {step.row.label: step.other.row.label for whole in order_steps(ADDITION, records) for step in whole}
    assert len(steps) == 12 and steps["2xST-FCN TPS"] == "ST-FCN TPS" and steps["ST-CNN Aff"] == "CNN"


def test_the_table_shows_the_papers_values_and_says_which_rows_are_ours(records):
    text = tables.to_markdown(records, 4)
    assert text.startswith("# Table 4: MNIST addition")
    assert "2,000 steps of 256 pairs, seed 0, 10,000 test pairs" in text and "on the same test pairs: " in text
    assert "| **40.00** (47.7) ↓ |" in text and "the paper has transformers before the FCN alone." in text
    console = Console(width=100, record=True)
    console.print(tables.to_terminal(records, 4))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100 and any("47.7 | 40.00 ↓" in line for line in lines)


def test_which_digit_a_transformer_undoes_is_measured(records):
    """The synthetic transformers know 0.9 of the pose of one digit each, and nothing of the other's."""
    shares = [cell.undone for cell in measure_attention(records) if cell.record.row.label == "2xST-FCN Aff"]
    assert len(shares) == 2
    (own, other), (opposite, ours) = shares
    assert own > 85 and ours > 85 and other < 0 and opposite < 0
    text = tables.to_markdown(records, 4).partition("## Which digit each transformer undoes")[2]
    line = next(line for line in text.splitlines() if line.startswith("| 2xST-FCN Aff"))
    assert [place.strip() for place in line.split("|")[3:6]] == ["1", f"{own:.0f}", f"{other:.0f}".replace("-", "−")]


def test_a_record_without_its_evidence_is_refused(paths, tmp_path):
    path = write_cell(tmp_path, "2xST-FCN Aff", "RTS + RTS", [100])
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "pair_after"}
    np.savez(path.with_suffix(".npz"), **arrays)
    with pytest.raises(UserError, match="without pair_after"):
        tables.load(4, [path])
