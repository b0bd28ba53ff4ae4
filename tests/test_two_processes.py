"""Two processes (DDP) train what one process trains, and a run leaves nothing on stderr.

What is random follows the images, not the processes. Which images a step shows, how they are augmented and which
windows the data chooses is drawn for the whole batch. The noise of exploration, and the random windows that a network
chooses, are drawn for a part of it: two processes draw as one process does that takes its batch in two parts.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import run, spawn
from cub_archive import write_cub
from svhn_archive import write_part

pytestmark = pytest.mark.slow

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
STEPS = ["budget=smoke", "budget.steps=6", "budget.validate_every=2", "budget.batch_size=8"]
STEPS += ["budget.precision=float32"]  # bf16 rounds a loss at its third digit
SCHEDULE = ["budget.random_share=0.34", "budget.explore_share=0.34", "budget.noise=[0.2,0.1]", "budget.pull=0.1"]

DIGITS = ["data=digits_r", "model=st_cnn_affine", "model.width=4"]
SVHN = ["data=svhn_64", "data.validation=20"]
CUB = ["data=cub_224", "data.classes=4", "data.side=64", "data.canvas=48"]
NUMBERS = [*SVHN, "model=svhn_st_multi", "logger=none"]
WINDOW = [*SVHN, "model=svhn_st_single", "model.family=crop", "model.size=32", "model.reach=0.7", "logger=none"]
BIRDS = [*CUB, "model=cub_2st", "model.size=48", "model.reach=0.5", "logger=none"]
BIRDS += ["model.dropout=0"]  # each process would drop units of its own


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> Path:
    """A folder with cropped house numbers."""
    folder = tmp_path_factory.mktemp("numbers")
    for seed, (part, n) in enumerate({"train": 40, "extra": 10, "test": 10}.items()):
        write_part(folder / "data/raw/svhn" / part, n, seed)
    return cropped(folder, SVHN)


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """A folder with stored birds."""
    folder = tmp_path_factory.mktemp("birds")
    write_cub(folder / "data/raw/cub", classes=4, training=7, test=2)
    return cropped(folder, CUB)


def cropped(folder: Path, data: list[str]) -> Path:
    done = run("stn.crop", *data, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def train(start, here: Path, outputs: Path, *overrides: str) -> dict:
    """What the record of a run says of its only seed; the run says nothing but its progress."""
    places = [f"outputs={outputs}", f"record={outputs}/record"]
    done = start("stn.train", *STEPS, *overrides, *places, cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "warn" not in done.stdout.lower(), done.stdout
    return json.loads((outputs / "record.json").read_text())["seeds"][0]


@pytest.mark.parametrize(
    ("place", "settings", "parts"),
    [
        pytest.param("workplace", DIGITS, 1, id="digits"),
        pytest.param("numbers", [*NUMBERS, SCHEDULE[0]], 1, id="numbers-random"),
        pytest.param("numbers", [*WINDOW, *SCHEDULE], 2, id="numbers-random-exploring"),
        pytest.param("birds", BIRDS, 1, id="birds"),
        pytest.param("birds", [*BIRDS, *SCHEDULE], 2, id="birds-random-exploring"),
    ],
)
def test_two_processes_train_what_one_process_trains(place, settings, parts, request, tmp_path):
    here = request.getfixturevalue(place)
    one = train(run, here, tmp_path / "one", *settings, "logger=none", f"trainer.accumulate={parts}")
    two = train(spawn, here, tmp_path / "two", *settings, *TWO)
    losses, again = (np.array(result["validation"])[:, 2] for result in (one, two))
    assert [step for step, _, _ in two["validation"]] == [2, 4, 6] and np.ptp(losses) > 1e-3  # it does move
    # Float32 sums in another order differ by 1e-7, which six steps of AdamW grow; other noise, or half the images, make
    # a difference of 1e-4 and more.
    np.testing.assert_allclose(again, losses, rtol=2e-5)
    errors, those = ([*(error for _, error, _ in result["validation"]), result["error"]] for result in (one, two))
    # In percent: of a thousand images one may have two best classes within a rounding of each other.
    np.testing.assert_allclose(those, errors, atol=0.1, rtol=0)


def test_an_ordinary_run_says_nothing_but_its_progress(workplace, tmp_path):
    train(spawn, workplace, tmp_path / "one", *DIGITS)
