import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import interruptible, one_error, run
from stn.codebase import commit, fault, training_digest
from stn.config import compose
from stn.environment import SHARED
from stn.training import run as runs
from stn.training.callbacks import Pictures, ProgressBar
from stn.training.data_module import DataModule
from stn.training.learner import Learner

QUICKLY = ["budget=smoke", "logger=none", "model.width=4", "budget.precision=float32"]


def train(cwd, *overrides):
    result = run("stn.train", "data=digits_r", *QUICKLY, *overrides, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result


def weights(folder: Path) -> dict:
    (path,) = folder.glob("outputs/runs/*/*/*/last.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def place(workplace, tmp_path) -> Path:
    """A folder of one's own with the data of the workplace."""
    (tmp_path / "data").symlink_to(workplace / "data")
    return tmp_path


def test_a_run_leaves_a_record_that_explains_itself(workplace, tmp_path):
    folder = place(workplace, tmp_path)
    train(folder, "model=st_cnn_tps", "seeds=[0,1]", "record=here/digits_r-st_cnn_tps")
    record = json.loads((folder / "here/digits_r-st_cnn_tps.json").read_text())
    arrays = np.load(folder / "here/digits_r-st_cnn_tps.npz")
    assert record["complete"] and record["n_test"] == 5000 and record["part"]
    assert record["config"]["model"]["width"] == 4 and record["parameters"] > 0 and record["multiply_adds"] > 0
    for seed in record["seeds"]:
        wrong = (~arrays[f"correct_s{seed['seed']}"]).sum()
        assert seed["errors"] == wrong and seed["error"] == pytest.approx(100 * wrong / 5000)
        assert [step for step, _, _ in seed["validation"]] == [10, 20] and seed["images_seen"] == 20 * 64
        assert {"cpu", "cores", "threads", "gpu", "precision", "torch"} <= set(seed["provenance"])
    assert record["code"] == {"digest": training_digest("mnist"), "commit": commit()}
    assert record["adopted"] == [] and fault(record) is None and not any("code" in seed for seed in record["seeds"])
    assert record["seeds"][0]["error"] != record["seeds"][1]["error"]
    assert arrays["theta"].shape == (5000, 32) and arrays["cloud_after"].shape == (1000, 9, 2)
    assert list(arrays["example_label"]) == list(range(10)) and record["pose_names"] == ["angle"]


@pytest.mark.parametrize("model", ["st_cnn_affine", "st_cnn_tps"])
def test_multiply_adds_do_not_depend_on_what_ran_before(model):
    """In a fresh process: what is worked out once, as the constants of a spline, is no cost of an image."""
    code = (
        "from stn.config import compose; from stn.training.learner import build_network\n"
        "from stn.training.record import multiply_adds\n"
        f"network = build_network(compose('data=mnist_rts', 'model={model}')).eval()\n"
        "print(multiply_adds(network, (1, 42, 42)), multiply_adds(network, (1, 42, 42)))"
    )
    first, second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert first == second


def test_seeds_that_are_added_to_a_record_leave_those_it_has_untouched(workplace, tmp_path, monkeypatch):
    folder, now = place(workplace, tmp_path), training_digest("mnist")
    file, cell = folder / "here/digits_r-fcn.json", ("model=fcn", "record=here/digits_r-fcn")
    train(folder, *cell)
    old = json.loads(file.read_text())
    old["code"] = {"digest": "0" * 16, "commit": "1" * 40}  # as if trained by earlier code, shown to give the same
    old["adopted"] = [{"digest": now, "commit": "2" * 40, "evidence": "a test"}]
    old["seeds"][0]["seconds"] = 1234.5
    file.write_text(json.dumps(old))
    with np.load(file.with_suffix(".npz")) as arrays:
        before = dict(arrays)

    shutil.rmtree(folder / "outputs")
    assert "s0: kept from here/digits_r-fcn.json" in train(folder, *cell, "seeds=[0,1]").stdout
    record = json.loads(file.read_text())
    assert record["seeds"][0] == old["seeds"][0] and [seed["seed"] for seed in record["seeds"]] == [0, 1]
    assert (record["code"], record["adopted"], record["pose_names"]) == (
        old["code"],
        old["adopted"],
        old["pose_names"],
    )
    assert record["seeds"][1]["code"] == {"digest": now, "commit": commit()} and fault(record) is None
    with np.load(file.with_suffix(".npz")) as arrays:
        assert {*arrays} == {*before, "correct_s1"}
        assert all(np.array_equal(arrays[name], before[name]) for name in before)

    for override in ("seeds=[0,1]", "seeds=[1,0,2]", "seeds=[0]"):  # the same, in another order, fewer
        assert "kept from" not in train(folder, *cell, override).stdout
    file.write_text(json.dumps(record))
    assert "kept from" not in train(folder, *cell, "seeds=[0,1,2]", "budget.learning_rate=0.01").stdout
    file.write_text(json.dumps(record | {"adopted": []}))
    shutil.rmtree(folder / "outputs")
    assert "kept from" not in train(folder, *cell, "seeds=[0,1,2]").stdout
    file.write_text(json.dumps(record))
    shutil.rmtree(folder / "outputs")
    monkeypatch.setenv("STN_FRESH", "1")  # make table FRESH=1
    assert "kept from" not in train(folder, *cell, "seeds=[0,1,2]").stdout


def test_a_run_says_at_once_what_it_loads_in_a_terminal_or_not_but_of_several_processes_one(
    workplace, tmp_path, monkeypatch
):
    folder = place(workplace, tmp_path)
    command = [sys.executable, "-m", "stn.train", "data=digits_r", "seeds=[0,1]", *QUICKLY]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        process.kill()
    assert line == "digits_r/st_cnn_affine, budget smoke, seed 0, 1: loading, about ten seconds\n"
    assert "digits_r/st_cnn_affine, budget smoke, seed 0: starts\n" in train(folder, "budget.steps=1").stdout
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "starts" not in train(folder, "budget.steps=1").stdout


def test_a_finished_seed_is_never_trained_again(workplace, tmp_path):
    folder = place(workplace, tmp_path)
    train(folder, "model=cnn")
    started = time.monotonic()
    assert "finished earlier" in train(folder, "model=cnn", "seeds=[0]").stdout
    assert "finished earlier" not in train(folder, "model=cnn", "seeds=[0]", "budget.learning_rate=0.01").stdout
    records = [json.loads(path.read_text()) for path in folder.glob("outputs/results/*/*.json")]
    assert sorted(record["config"]["budget"]["learning_rate"] for record in records)[1] == 0.01 and len(records) == 2
    assert time.monotonic() > started


EXPLORING = ["budget.explore_share=0.8", "budget.noise=[0.2,0]"]


PATHWISE = [*EXPLORING, "budget.gradient=pathwise"]


@pytest.mark.parametrize("settings", [[], EXPLORING, PATHWISE], ids=["plain", "exploring", "pathwise"])
def test_a_killed_run_ends_bit_for_bit_where_an_uninterrupted_one_ends(workplace, tmp_path, settings):
    long = ["model=st_cnn_affine", "budget.steps=60", "budget.validate_every=20", *settings]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        place(workplace, folder)
    train(whole, *long)
    command = [sys.executable, "-m", "stn.train", "data=digits_r", *QUICKLY, *long]
    with subprocess.Popen(
        command, cwd=killed, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        for line in process.stdout:
            if "step 40/60" in line:
                process.send_signal(signal.SIGKILL)
                break
    assert not list(killed.glob("outputs/runs/*/*/*/result.json"))
    assert len(re.findall(r"resumes at step [24]0 of 60\n", train(killed, *long).stdout)) == 1
    ours, theirs = weights(killed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    records = [json.loads(next(f.glob("outputs/results/*/*.json")).read_text())["seeds"][0] for f in (whole, killed)]
    assert records[0]["errors"] == records[1]["errors"] and records[0]["validation"] == records[1]["validation"]


def test_an_interrupted_run_says_so_in_one_line(workplace, tmp_path):
    folder = place(workplace, tmp_path)
    command = [sys.executable, "-m", "stn.train", "data=digits_r", *QUICKLY, "model=fcn", "budget.steps=100000"]
    with interruptible(command, folder) as process:
        next(line for line in process.stdout if "step 10/" in line)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130 and told.strip() == "interrupted; run the same command again"


def test_every_draw_is_a_function_of_seed_and_step(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    cfg = compose("data=digits_rts", "budget.batch_size=16")

    class Trainer:
        world_size, global_rank, global_step = 1, 0, 0

        class strategy:
            root_device = torch.device("cpu")

    def batch(step, seed=0, world=1, rank=0):
        data = DataModule(cfg.data, cfg.budget, seed)
        data.setup("fit")
        data.trainer = Trainer()
        data.trainer.world_size, data.trainer.global_rank = world, rank
        picks = data.picks(step)[rank::world]
        return data.on_after_batch_transfer(("train", step, picks), 0)

    images, labels = batch(70)
    assert images.shape == (16, 1, 42, 42) and images.min() >= 0 and images.max() <= 1
    assert torch.equal(batch(70)[0], images) and not torch.equal(batch(71)[0], images)
    assert not torch.equal(batch(70, seed=1)[0], images)
    halves = [batch(70, world=2, rank=rank) for rank in (0, 1)]
    assert torch.equal(halves[0][0], images[::2]) and torch.equal(halves[1][1], labels[1::2])


def test_an_epoch_shows_every_digit_once(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    cfg = compose("data=digits_r", "budget.batch_size=100")
    data = DataModule(cfg.data, cfg.budget, 0)
    data.setup("fit")
    seen = torch.cat([data.picks(step) for step in range(10)])
    assert len(seen.unique()) == 1000 and not torch.equal(seen[:100], data.picks(10))


def test_a_checkpoint_loads_with_weights_only(workplace, tmp_path):
    folder = place(workplace, tmp_path)
    train(folder, "model=st_fcn_projective")
    (path,) = folder.glob("outputs/runs/*/*/*/last.ckpt")
    assert Learner.load_from_checkpoint(path, weights_only=True).cfg.model.name == "st_fcn_projective"


def test_a_nan_loss_stops_the_run_with_one_line(workplace, tmp_path):
    folder = place(workplace, tmp_path)
    wild = ["model=cnn", "budget.optimiser=sgd", "budget.schedule=step", "budget.learning_rate=1e30"]
    line = one_error(run("stn.train", "data=digits_r", *QUICKLY, *wild, cwd=folder))
    assert "loss is" in line and "budget.learning_rate" in line
    assert not list(folder.glob("outputs/results/*/*.json"))


def test_training_without_its_stored_sets_is_one_line(workplace, tmp_path):
    command = ["stn.train", "data=digits_r", *QUICKLY, "data.stored=nowhere"]
    assert "stn.distort data=digits_r" in one_error(run(*command, cwd=place(workplace, tmp_path)))


def test_outputs_that_cannot_be_written_are_one_line(workplace, tmp_path):
    folder = place(workplace, tmp_path)
    (folder / "file").touch()
    command = ["stn.train", "data=digits_r", "model=cnn", *QUICKLY, "outputs=file/x"]
    assert "cannot write" in one_error(run(*command, cwd=folder))


def test_evaluate_repeats_the_recorded_error_and_refuses_what_does_not_fit(workplace, tmp_path):
    folder = place(workplace, tmp_path)
    train(folder, "model=fcn")
    (path,) = folder.glob("outputs/runs/*/*/*/last.ckpt")
    record = json.loads(next(folder.glob("outputs/results/*/*.json")).read_text())
    told = run("stn.evaluate", f"checkpoint={path}", "data=digits_r", *QUICKLY, cwd=folder)
    assert f"error {record['seeds'][0]['error']:.2f} %" in told.stdout, told.stderr

    def refused(*overrides):
        return one_error(run("stn.evaluate", *overrides, cwd=folder))

    assert "checkpoint of fcn, not of cnn" in refused(f"checkpoint={path}", "data=digits_r", "model=cnn")
    assert "canvas" in refused(f"checkpoint={path}", "data=digits_rts")
    assert "no such checkpoint" in refused("checkpoint=nowhere.ckpt", "data=digits_r")
    (folder / "broken.ckpt").write_bytes(path.read_bytes()[:1000])
    assert "damaged" in refused("checkpoint=broken.ckpt", "data=digits_r")


def test_a_record_may_have_a_dot_in_its_name(workplace, tmp_path):
    folder = place(workplace, tmp_path)
    said = train(folder, "model=fcn", "record=out/rate0.01").stdout
    assert "-> out/rate0.01.json" in said and (folder / "out/rate0.01.npz").exists()
    assert json.loads((folder / "out/rate0.01.json").read_text())["model"] == "fcn"


def test_wandb_runs_offline_without_an_account(workplace, tmp_path):
    folder = place(workplace, tmp_path)
    train(folder, "model=st_cnn_affine", "logger=wandb", "seeds=[0,1]")
    assert len(list(folder.glob("outputs/wandb/offline-run-*"))) == 2


def sent_picture(images, n, seen):
    """What wandb is sent at a validation whose examples are the first n of these images, by a network that sees so."""
    sent = {}
    trainer = SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        global_step=7,
        datamodule=SimpleNamespace(examples=lambda n: (images[:n], None)),
        logger=SimpleNamespace(experiment=SimpleNamespace(log=sent.update)),
    )
    Pictures(n).on_validation_end(trainer, SimpleNamespace(network=SimpleNamespace(seen=seen)))
    return sent["transformer"].image


@pytest.mark.parametrize("shared", [False, True])
def test_cells_side_by_side_do_not_draw_bars_over_each_other(monkeypatch, shared):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv(SHARED, "1") if shared else monkeypatch.delenv(SHARED, raising=False)
    bar, trainer = ProgressBar("mnist_r/cnn/s0"), SimpleNamespace(global_step=0, is_global_zero=True, max_steps=9)
    bar.on_train_start(trainer, None)
    assert (bar.bar is None) == shared
    bar.teardown(trainer, None, "fit")


@pytest.mark.parametrize("channels, rows, mode", [(1, 1, "L"), (2, 2, "L"), (3, 1, "RGB")])
def test_the_pictures_sent_to_wandb_show_all_channels_and_colours(channels, rows, mode):
    images = torch.rand(5, channels, 8, 8)
    picture = sent_picture(images, 4, lambda images: images.flip(1))
    assert (picture.mode, picture.size) == (mode, (4 * 8, 2 * rows * 8))
    shown = torch.from_numpy(np.array(picture)).view(2 * rows, 8, 4, 8, -1)
    above, below = shown[:rows], shown[rows:]
    order = (2, 0, 4, 1, 3) if channels < 3 else (2, 4, 0, 1, 3)  # to image, channel, height, width
    flat = [part.permute(order).reshape(4, channels, 8, 8) for part in (above, below)]
    torch.testing.assert_close(flat[0], (images[:4] * 255).to(torch.uint8))
    torch.testing.assert_close(flat[1], (images[:4].flip(1) * 255).to(torch.uint8))


def test_of_images_that_are_several_windows_the_picture_shows_the_first():
    """As of birds at their annotated windows."""
    images = torch.rand(4, 2, 3, 8, 8)
    shown = torch.from_numpy(np.array(sent_picture(images, 3, lambda images: images[:, 0]))).view(
        2, 8, 3, 8, 3
    )  # above and below, y, image, x
    for half in shown:
        torch.testing.assert_close(half.permute(1, 3, 0, 2), (images[:3, 0] * 255).to(torch.uint8))


def test_scratch_is_named_by_all_that_decides_the_result():
    one = runs.scratch(compose(), 0)
    assert runs.scratch(compose(), 0) == one and runs.scratch(compose("logger=csv"), 0) == one
    assert (
        len(
            {
                one,
                runs.scratch(compose(), 1),
                runs.scratch(compose("budget.steps=7"), 0),
                runs.scratch(compose("data=mnist_p"), 0),
            }
        )
        == 4
    )


def test_a_change_of_code_that_can_change_a_result_has_a_scratch_folder_of_its_own(monkeypatch):
    before = runs.scratch(compose(), 0)
    monkeypatch.setattr(runs, "training_digest", lambda kind: f"other code of {kind}")
    assert runs.scratch(compose(), 0) != before


def test_another_c_library_keeps_its_own_ways(monkeypatch):
    monkeypatch.setattr(runs.ctypes, "CDLL", lambda name: object())  # as musl's, without mallopt
    runs.keep_memory()
