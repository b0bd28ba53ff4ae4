import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from conftest import one_error, run, spawn
from stn.config import compose
from stn.data.draws import generator
from stn.errors import UserError
from stn.experiments.colocalisation.data import Views, boxes, distortion, source
from stn.experiments.colocalisation.figures import draw_classes, draw_search
from stn.experiments.colocalisation.networks import Localisation, TripletHinge, overlap, windows
from stn.experiments.colocalisation.table import CLASSES as ROWS
from stn.experiments.colocalisation.table import COLOCALISATION, MEAN, TC
from stn.report import tables
from stn.report.comparisons import measure
from stn.training.learner import build_network
from stn.training.run import train_seed

SMALL = ["data.source=digits", "data.raw=data/raw/digits", "data.images=6", "data.validation=200"]
WEIGHTS = "reports/results/smoke/classifier/mnist_ts-cnn.weights.npz"
TINY = [
    *SMALL,
    "model=colocalisation",
    f"model.pretrained={WEIGHTS}",
    "model.starts=2",
    "model.race=8",
    "budget=smoke",
    "budget.batch_size=3",
    "budget.validate_every=5",
    "logger=none",
]


def front(*arguments, cwd):
    result = run(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with small sets T and TC of the embedded digits, a classifier, and the records of both columns."""
    folder = tmp_path_factory.mktemp("colocalisation")
    front("stn.fetch", "data=digits_r", cwd=folder)
    for column in ("t", "tc"):
        front("stn.distort", f"data=colocalisation_{column}", *SMALL, cwd=folder)
    plain = ["data=mnist_ts", "data.source=digits", "data.raw=data/raw/digits", "data.validation=200"]
    front("stn.distort", *plain, cwd=folder)
    front("stn.pretrain", *plain, "model=cnn", "model.width=16", "budget=smoke", "logger=none", cwd=folder)
    for column in ("t", "tc"):
        record = f"reports/results/smoke/colocalisation/colocalisation_{column}-colocalisation"
        front("stn.train", f"data=colocalisation_{column}", *TINY, f"record={record}", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def records(folder):
    paths = [
        folder / f"reports/results/smoke/colocalisation/colocalisation_{column}-colocalisation.json"
        for column in ("t", "tc")
    ]
    return tables.load(5, paths)


def config(column="t", *more):
    return compose(f"data=colocalisation_{column}", *TINY, *more)


def small_network(**changes):
    torch.manual_seed(0)
    changes = {"model.starts": 1} | changes
    return build_network(config("t", *(f"{key}={value}" for key, value in changes.items())))


def moved(network):
    """The network, with windows that differ between localisation networks and between images."""
    for k, localiser in enumerate(network.transformers):
        torch.nn.init.normal_(localiser.place.weight, std=0.3, generator=generator(k, "places"))
        torch.nn.init.normal_(localiser.side.weight, std=0.3, generator=generator(k, "sides"))
    return network


def some_views(n=20, canvas=84):
    draws = generator(3, "views")
    images = torch.rand(n, 1, canvas, canvas, generator=draws)
    return Views(images, torch.arange(n) % 10, 2 * torch.rand(n, 2, generator=draws) - 1)


# ------------------------------------------------------------------------------------------------- images


def test_the_box_holds_the_digit_and_only_clutter_is_outside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for column, patches in (("t", 0), ("tc", 16)):
        made = source(config(column).data)
        made.load("train")
        assert made.images.shape == (60, 84, 84) and made.images.dtype == torch.uint8
        corner = ((made.boxes[:, :2] + 1) * 42).round().long()
        assert torch.allclose(made.boxes[:, 2:] - made.boxes[:, :2], torch.tensor(2 * 28 / 84))
        assert corner.min() >= 0 and corner.max() <= 84 - 28 and len(corner.unique(dim=0)) > 50
        outside = made.images.clone()
        for image, (x, y) in zip(outside, corner.tolist(), strict=True):
            assert image[y : y + 28, x : x + 28].max() > 100
            image[y : y + 28, x : x + 28] = 0
        assert (outside.amax((1, 2)) > 0).any() == (patches > 0)


def test_images_stand_class_by_class_in_turn(folder, monkeypatch):
    """Held against the labels: each image's digit is one of its class."""
    from stn.experiments.mnist.data import undistorted

    monkeypatch.chdir(folder)
    cfg = config()
    made = source(cfg.data)
    made.load("test")
    known = undistorted(cfg.data)["test"]
    for i, image in enumerate(made.images):
        x, y = ((made.boxes[i, :2] + 1) * 42).round().int().tolist()
        same = (known.images == image[y : y + 28, x : x + 28]).all((1, 2))
        assert known.labels[same].tolist() == [i % 10]


def test_the_stored_set_is_the_same_on_every_draw(folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = json.loads((folder / "data/stored/colocalisation_tc/sets.json").read_text())
    front("stn.distort", "data=colocalisation_tc", *SMALL, cwd=folder)
    assert json.loads((folder / "data/stored/colocalisation_tc/sets.json").read_text()) == before


def test_settings_are_chosen_on_other_digits(folder, monkeypatch):
    """`data.digits=validation` shows digits held out, none of those that the table is about, in a folder of its own."""
    from stn.experiments.mnist.data import undistorted

    monkeypatch.chdir(folder)
    front("stn.distort", "data=colocalisation_t", *SMALL, "data.digits=validation", cwd=folder)
    known = undistorted(config().data)
    for split, other in (("test", "validation"), ("validation", "test")):
        made = source(config("t", f"data.digits={split}").data)
        made.load("train")
        for image, box in zip(made.images, made.boxes, strict=True):
            x, y = ((box[:2] + 1) * 42).round().int().tolist()
            digit = image[y : y + 28, x : x + 28]
            assert (known[split].images == digit).all((1, 2)).any()
            assert not (known[other].images == digit).all((1, 2)).any()


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["data.images=5000"], "data.images=5000: one class has only"),
        (["data.patches=-1"], "data.patches=-1"),
        (["data.digits=train"], "validation, test"),
    ],
)
def test_a_set_that_cannot_be_is_one_line(folder, overrides, said):
    assert said in one_error(run("stn.distort", "data=colocalisation_t", *SMALL, *overrides, cwd=folder))


def test_a_missing_foreign_or_damaged_set_is_one_line_with_the_command_that_mends(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is missing: run `python -m stn\.distort data=colocalisation_t`"):
        source(config().data).load("train")
    shutil.copytree(folder / "data/stored/colocalisation_t", "data/stored/colocalisation_t")
    with pytest.raises(UserError, match=r"with seed=2015 \(not 1\): to replace it, run `python -m stn\.distort"):
        source(config("t", "data.seed=1").data).load("train")
    path = tmp_path / "data/stored/colocalisation_t/test_images.npy"
    images = np.load(path)
    images[0, 0, 0] ^= 1
    np.save(path, images)
    with pytest.raises(UserError, match="is not what was written there"):
        source(config().data).load("train")
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        source(config().data).load("train")


def test_a_training_batch_holds_as_many_of_each_class_with_patches_that_are_fresh_and_fixed_in_tests(
    folder, monkeypatch
):
    monkeypatch.chdir(folder)
    made, index, device = source(config().data), torch.tensor([4, 0, 5]), torch.device("cpu")
    made.load("train")
    first, again = (made.batch("test", index, device)[0] for _ in range(2))
    assert torch.equal(first.places, again.places)
    steps = [made.train_batch(index, generator(0, "d", step), 3, slice(None), device)[0] for step in (1, 1, 2)]
    assert torch.equal(steps[0].places, steps[1].places) and not torch.equal(steps[0].places, steps[2].places)
    assert steps[0].classes.bincount().tolist() == [3] * 10 and made.count("train") == 6
    assert torch.equal(steps[0].images[10:20], made.batch("test", torch.arange(10), device)[0].images)
    assert torch.equal(steps[0].images[20:], made.batch("test", torch.arange(50, 60), device)[0].images)
    half = made.train_batch(index[::2], generator(0, "d", 1), 3, slice(0, None, 2), device)[0]
    assert torch.equal(half.places.view(2, 10, 2), steps[0].places.view(3, 10, 2)[::2])  # each process takes its share
    with pytest.raises(
        UserError, match=r"budget\.batch_size=1 leaves a single image of one class, but pairs are needed"
    ):
        made.train_batch(index[:1], generator(0, "d"), 1, slice(None), device)


# ------------------------------------------------------------------------------------------------- network


def test_iou_is_that_of_the_paper():
    box = torch.tensor([[-1.0, -1.0, 0.0, 0.0]])
    for other, expected in (
        ([-1, -1, 0, 0], 1),
        ([-0.5, -1, 0.5, 0], 1 / 3),
        ([0.1, 0.1, 1, 1], 0),
        ([-1, -1, 1, 1], 0.25),
    ):
        assert overlap(torch.tensor([other]).float(), box).item() == pytest.approx(expected)
    assert torch.equal(windows(torch.tensor([[0.25, 0.5, -0.5]])), torch.tensor([[0.25, -0.75, 0.75, -0.25]]))


def test_found_means_an_iou_above_one_half():
    box = boxes(torch.tensor([[28.0, 28.0]]), 84)
    for side, right in ((28, True), (39.5, True), (39.7, False), (19.9, True), (19.7, False)):
        found = Localisation(torch.tensor([[side / 84, 0.0, 0.0]]), torch.zeros(1))
        assert TripletHinge.right(found, box).tolist() == [[right]]


def test_the_loss_is_the_triplet_hinge_of_the_paper():
    network, e = small_network(), torch.randn(6, 5, generator=generator(0, "e"))
    r, classes = torch.randn(6, 5, generator=generator(0, "r")), torch.tensor([0, 1, 0, 0, 1, 2])
    expected = []
    for n in range(6):
        others = [m for m in range(6) if m != n and classes[m] == classes[n]]
        hinges = [max(0, ((e[n] - e[m]) ** 2).sum() - ((e[n] - r[n]) ** 2).sum() + 1) for m in others]
        expected.append(float(sum(hinges) / len(hinges)) if hinges else 0)
    assert network.hinge(e, r, classes).tolist() == pytest.approx(expected, abs=1e-5)


def test_labels_take_no_part_in_the_loss():
    found = small_network()(some_views())
    assert TripletHinge.loss(found, torch.zeros(20, 4)) == TripletHinge.loss(found, torch.ones(20, 4))


def test_each_class_is_a_problem_of_its_own():
    """A localisation network's gradients are those of a batch of its class alone; the classifier has none."""
    views, together, alone = some_views(), small_network(), small_network()
    for network in (together, alone):
        torch.nn.init.normal_(network.transformers[3].place.weight, std=0.1, generator=generator(0, "w"))
    together(views).hinge.sum().backward()
    alone(Views(*(part[views.classes == 3] for part in views))).hinge.sum().backward()
    for a, b in zip(together.transformers[3].parameters(), alone.transformers[3].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in alone.transformers[4].parameters())
    assert all(parameter.grad is None for parameter in together.classifier.parameters())


def test_each_start_is_a_problem_of_its_own():
    """Three starts side by side have the losses and the gradients that each would have alone."""
    views, together = some_views(), moved(small_network(**{"model.starts": 3}))
    result = together(views)
    result.hinge.sum().backward()
    for start in range(3):
        alone = small_network()
        alone.classifier.load_state_dict(together.classifier.state_dict())
        for k, localiser in enumerate(alone.transformers):
            localiser.load_state_dict(together.transformers[3 * k + start].state_dict())
        expected = alone(views)
        torch.testing.assert_close(result.theta[start::3], expected.theta)
        torch.testing.assert_close(result.hinge[start::3], expected.hinge)
        expected.hinge.sum().backward()
        for k, localiser in enumerate(alone.transformers):
            pairs = zip(together.transformers[3 * k + start].parameters(), localiser.parameters(), strict=True)
            for a, b in pairs:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_the_start_with_the_least_loss_is_kept_for_each_class_by_itself():
    views, network = some_views(), moved(small_network(**{"model.starts": 2}))
    for _ in range(3):
        hinge = network(views).hinge.detach()
    means = hinge.view(20, 2).view(2, 10, 2).mean(0)  # two images of each class, two starts
    torch.testing.assert_close(network.hinges, means * (1 - 0.99**3))
    best = means.argmin(1)
    assert 0 < best.sum() < 10  # both starts are kept for some class
    network.eval()
    result = network(views)
    of_starts = torch.stack([network.theta(views, 2 * views.classes + start) for start in (0, 1)])
    assert torch.equal(result.theta, of_starts[best[views.classes], torch.arange(20)])
    assert torch.equal(network.thetas(views)["theta"], result.theta)
    before = network.hinges.clone()
    network(views)
    assert torch.equal(network.hinges, before)  # a test does not choose


def test_after_the_race_only_the_best_start_of_each_class_goes_on():
    views, network = some_views(), moved(small_network(**{"model.starts": 3, "model.race": 2}))
    for batch in (1, 2, 3):
        network.zero_grad()
        result = network(views)
        result.hinge.sum().backward()
        assert len(result.theta) == (60 if batch <= 2 else 20)
        if batch == 2:
            chosen = network.kept
            assert torch.equal(chosen % 3, result.hinge.detach().view(2, 10, 3).mean(0).argmin(1))
    learns = [localiser.place.weight.grad is not None for localiser in network.transformers]
    assert [k for k, does in enumerate(learns) if does] == chosen.tolist()
    network.hinges[network.hinges.isfinite()] += 9
    assert torch.equal(network.kept, chosen)  # the choice is final


def test_a_class_that_a_batch_lacks_keeps_its_running_loss():
    views, network = some_views(), small_network(**{"model.starts": 2})
    network(views)
    before = network.hinges.clone()
    network(Views(*(part[views.classes == 3] for part in views)))
    changed = network.hinges != before
    assert changed[3].all() and not changed[torch.arange(10) != 3].any()


def test_windows_start_in_the_middle_and_never_leave_the_image():
    network, views = small_network(), some_views()
    start = torch.tensor([network_start(network), 0.0, 0.0]).expand(20, 3)
    torch.testing.assert_close(network.theta(views), start)
    for localiser in network.transformers:
        torch.nn.init.normal_(localiser.place.weight, std=5, generator=generator(0, "w"))
        torch.nn.init.normal_(localiser.side.weight, std=5, generator=generator(0, "w"))
    theta = network.theta(views)
    assert theta.std(0).min() > 0.1 and theta[:, 0].min() >= network.smallest
    assert windows(theta).abs().max() <= 1 + 1e-6


def network_start(network):
    return float(network.smallest + (1 - network.smallest) / (1 + np.exp(-network.start)))


def test_the_random_patch_is_as_large_as_the_window_and_inside_the_image():
    network = small_network()
    ramp = torch.linspace(0, 1, 84).expand(2, 1, 84, 84)  # grey tells x
    views = Views(ramp, torch.zeros(2, dtype=torch.long), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    theta = torch.tensor([[0.25, 0.3, 0.0], [0.5, 0.0, 0.0]])
    theta.requires_grad_()
    left, right = network.patches(views, theta)
    (gradient,) = torch.autograd.grad(left.mean(), theta)
    assert gradient[0, 0] > 0.5 and not gradient[:, 1:].any()  # it grows with the window and does not follow it
    left, right = left.detach(), right.detach()
    assert left.min() < 0.01 and left.max() == pytest.approx(0.25, abs=0.02)
    assert right.min() == pytest.approx(0.5, abs=0.02) and right.max() > 0.99


def test_e_weighs_layers_alike_and_takes_those_asked_for():
    crops = torch.rand(3, 1, 28, 28, generator=generator(0, "c"))
    for layers, width in (([1, 2, 3], 16 * 100 + 16 * 4 + 10), ([2], 64), ([2, 3], 74)):
        e = small_network(**{"model.layers": layers}).embedded(crops)
        assert e.shape == (3, width)
        torch.testing.assert_close(e.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    "override, said",
    [
        ("model.start=1.5", "model.start=1.5"),
        ("model.smallest=0.8", "model.smallest=0.8"),
        ("model.layers=[4]", r"model.layers=\[4\]"),
        ("model.layers=[]", r"model.layers=\[\]"),
        ("model.crop=20", "model.crop=20"),
        ("model.margin=-1", "model.margin=-1"),
        ("model.starts=0", "model.starts=0"),
        ("model.race=0", "model.race=0"),
    ],
)
def test_a_network_that_cannot_be_is_one_line(override, said):
    with pytest.raises(UserError, match=said):
        build_network(config("t", override))


def test_a_missing_or_foreign_classifier_is_one_line_with_the_command_that_mends(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is missing: run `python -m stn\.pretrain data=mnist_ts model=cnn"):
        small_network().load_pretrained()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"does not hold a classifier with this model\.filters"):
        small_network(**{"model.filters": 7}).load_pretrained()
    assert small_network().load_pretrained().startswith("mnist_ts-cnn.weights.npz (sha256 ")


def test_only_a_digit_classifier_is_pretrained(folder):
    said = one_error(run("stn.pretrain", "data=digits_r", "model=st_cnn_affine", "budget=smoke", cwd=folder))
    assert "digits_r/st_cnn_affine is not a digit classifier" in said


# ------------------------------------------------------------------------------------------------- a run


class Killed(Exception):
    pass


class Kill(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 12:
            raise Killed


@pytest.mark.slow
def test_two_processes_agree_on_who_won_the_race(folder, tmp_path):
    """After the race the losers have no gradients, which two processes have to bear in silence."""
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "budget.batch_size=4"]
    places = [f"outputs={tmp_path}/outputs", f"record={tmp_path}/record"]
    done = spawn("stn.train", "data=colocalisation_t", *TINY, *two, *places, cwd=folder)
    assert done.returncode == 0 and not done.stderr, done.stderr
    checkpoint = next(tmp_path.glob("outputs/**/last.ckpt"))
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert (weights["network.hinges"].isfinite().sum(1) == 1).all()


def test_a_resumed_run_ends_as_an_uninterrupted_one_with_its_trace_whole(folder, tmp_path, monkeypatch):
    import stn.training.run as runs

    monkeypatch.chdir(folder)
    cfg = config()
    _, whole = train_seed(cfg, 0, tmp_path / "whole")
    make = runs.make_trainer
    monkeypatch.setattr(runs, "make_trainer", lambda *a: make(*a[:4], [*a[4], Kill()]))
    with pytest.raises(Killed):
        train_seed(cfg, 0, tmp_path / "killed")
    monkeypatch.setattr(runs, "make_trainer", make)
    _, resumed = train_seed(cfg, 0, tmp_path / "killed")
    assert whole["trace_steps"].tolist() == [0, 5, 10, 15, 20] and whole["trace"].shape == (5, 20, 3)
    assert set(whole) == set(resumed)
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])
    np.testing.assert_allclose(whole["trace"][-1], whole["theta"][:20], atol=1e-3)


def test_to_watch_is_not_to_learn(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    _, watched = train_seed(config(), 0, tmp_path / "watched")
    monkeypatch.delattr("stn.experiments.colocalisation.data.ColocalisationSource.traced")
    monkeypatch.setattr("stn.experiments.colocalisation.data.ColocalisationSource.evidence", lambda *_: {})
    _, unwatched = train_seed(config(), 0, tmp_path / "unwatched")
    assert "trace" not in unwatched
    np.testing.assert_array_equal(watched["theta"], unwatched["theta"])


def test_training_moves_windows_and_leaves_the_classifier_alone(folder, monkeypatch):
    monkeypatch.chdir(folder)
    record = json.loads(
        (folder / "reports/results/smoke/colocalisation/colocalisation_t-colocalisation.json").read_text()
    )
    curve = [loss for _, _, loss in record["seeds"][0]["validation"]]
    assert curve[-1] < curve[0] and "mnist_ts-cnn.weights.npz" in record["seeds"][0]["provenance"]["weights"]
    arrays = np.load(folder / "reports/results/smoke/colocalisation/colocalisation_t-colocalisation.npz")
    assert np.ptp(arrays["trace"][-1], 0).max() > 1e-4 and not np.ptp(arrays["trace"][0], 0).any()


# ------------------------------------------------------------------------------------------------- report


def test_the_table_has_a_row_for_each_class_and_their_mean(records):
    values = measure(COLOCALISATION, records)
    assert [value.record.row.label for value in values[::2]] == [*map(str, range(10)), "mean"]
    for column in COLOCALISATION.columns:
        own = [value for value in values if value.record.column is column]
        assert [value.record.n_test for value in own] == [6] * 10 + [60]
        assert np.mean([value.ours for value in own[:-1]]) == pytest.approx(own[-1].ours)
    assert [value.paper for value in values if value.record.row.label == "3"] == [100, 75]
    assert MEAN.paper[TC] == pytest.approx(np.mean([row.paper[TC] for row in ROWS]))


def test_a_class_counts_its_own_images(folder, tmp_path):
    path = tmp_path / "colocalisation_t-colocalisation.json"
    record = json.loads((folder / f"reports/results/smoke/colocalisation/{path.name}").read_text())
    arrays = dict(np.load(folder / "reports/results/smoke/colocalisation/colocalisation_t-colocalisation.npz"))
    arrays["correct_s0"] = np.isin(arrays["classes"], (4, 7))
    arrays["correct_s0"][7] = False
    record["seeds"][0] |= {"errors": 49, "error": 100 * 49 / 60}
    path.write_text(json.dumps(record))
    np.savez(path.with_suffix(".npz"), **arrays)
    shares = {value.record.row.label: value.ours for value in measure(COLOCALISATION, tables.load(5, [path]))}
    assert shares["4"] == 100 and shares["7"] == pytest.approx(100 * 5 / 6) and shares["0"] == 0
    assert shares["mean"] == pytest.approx(100 * 11 / 60)


def test_the_training_of_ten_classes_is_counted_once(records):
    longer = [replace(record, seeds=(replace(record.seeds[0], seconds=600.0),)) for record in records]
    assert "; 20 minutes of training in all" in tables.to_markdown(longer, 5)


def test_the_caption_counts_the_images_of_all_classes_and_the_summary_no_mean(records):
    for text in (tables.to_markdown(records, 5), tables.to_tex(records, 5)):
        assert "20 steps of 30 images, 3 of each class, seed 0, 6 test images. " in text
    text = tables.to_markdown(records, 5)
    assert "minutes are of training, all seeds and all classes." in text
    line = next(line for line in text.splitlines() if line.startswith("Against the paper, "))
    assert line.startswith("Against the paper, 20 cells: ") and line.endswith(" The mean: worse on T, worse on TC.")
    longer = [replace(record, budget="medium") for record in records if record.column.label == "T"]
    text = tables.to_markdown(records, 5, [longer])
    assert "`smoke`: 20 of 20 cells, " in text and "`medium`: 10 of 20 cells, " in text
    moved = []
    for record in records:
        place = {**record.seeds[0].provenance, "gpu": None, "cpu": record.column.label}
        moved.append(replace(record, seeds=(replace(record.seeds[0], provenance=place),)))
    assert tables.to_markdown(moved, 5).partition("##")[0].count(" (10 cells)") == 2


def test_a_record_that_counts_the_images_of_one_class_is_refused(folder, tmp_path):
    """As they were written once: with the images of each class for those of all ten."""
    path = tmp_path / "colocalisation_t-colocalisation.json"
    record = json.loads((folder / f"reports/results/smoke/colocalisation/{path.name}").read_text())
    assert record["seeds"][0]["images_seen"] == 20 * 3 * 10
    record["seeds"][0]["images_seen"] = 20 * 3
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="60 images seen in 20 steps of 3 of each of 10 classes; delete it and `make"):
        tables.load(5, [path])


def test_the_papers_whole_numbers_are_shown_and_compared_as_such(records):
    """99 of 100 images and the paper's 100, which stands for 99.5 and more: the interval reaches 99.8."""
    record = next(record for record in records if (record.row.label, record.column.label) == ("3", "T"))
    seeds = (replace(record.seeds[0], error=1.0, errors=1, n_test=100),)
    text = tables.to_markdown([replace(record, seeds=seeds, n_test=100)], 5)
    assert "| **99.00** (100) ≈ |" in text and "worse than the paper's value ± 0.5, by our 95 % interval" in text
    lines = csv.DictReader(io.StringIO(tables.to_csv(records)))
    assert {(line["row"], line["paper"]) for line in lines if line["column"] == "TC"} >= {("3", "75"), ("mean", "85.8")}


def test_every_format_shows_classes_with_the_papers_values_beside(records):
    text = tables.to_markdown(records, 5)
    assert "| class |" in text and "| mean  |" in text and "(75)" in text and "(85.8)" in text
    assert "parameters (" not in text
    assert len(list(csv.DictReader(io.StringIO(tables.to_csv(records))))) == 22
    assert r"\textbf{" in tables.to_tex(records, 5)


def test_figures_show_every_class_and_the_animation_every_moment(records, tmp_path):
    draw_classes(records).save(tmp_path / "a.png")
    draw_search(records).save(tmp_path / "a.gif")
    assert (tmp_path / "a.png").stat().st_size > 20_000
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == len(records[-1].arrays["trace_steps"]) == 5
    short = [replace(record, arrays={**record.arrays, "trace_steps": np.array([0])}) for record in records]
    draw_search(short).save(tmp_path / "b.gif")
    draw_search(short).save(tmp_path / "c.gif")
    assert (tmp_path / "b.gif").read_bytes() == (tmp_path / "c.gif").read_bytes()
    (tmp_path / "file").write_text("")
    for draw in (draw_classes, draw_search):
        with pytest.raises(UserError, match=r"no record to draw .*`make table TABLE=5`"):
            draw([])
        with pytest.raises(UserError, match="cannot be written"):
            draw(short).save(tmp_path / "file" / "a.gif")


@pytest.mark.parametrize("budget", ["quick", "medium", "paper"])
def test_the_race_of_tc_takes_an_eighth_of_the_steps(budget):
    without, with_clutter = (
        compose(f"data=colocalisation_{column}", "model=colocalisation", f"budget={budget}") for column in ("t", "tc")
    )
    assert (without.model.starts, with_clutter.model.starts) == (1, 5)
    assert with_clutter.model.race * 8 == with_clutter.budget.steps


def test_the_paper_s_set_is_what_the_config_says():
    data = compose("data=colocalisation_tc", "model=colocalisation").data
    warp = distortion(data)
    assert (data.canvas, data.images, warp.patches, warp.side, warp.digit) == (84, 100, 16, 6, 28)
