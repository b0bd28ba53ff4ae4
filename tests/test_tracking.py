"""What wandb is told of runs and tables, read from the files that it writes offline."""

import json
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT, interruptible, run
from stn import table
from stn.tracking import run_id

SMALL = ["data=digits_r", "model=st_cnn_affine", "model.width=4", "budget=smoke", "budget.precision=float32"]
LONG = [*SMALL, "budget.steps=200", "budget.validate_every=50", "logger.every=10"]


def records(folder: Path) -> Iterator:
    """The records of a run's file, whose format is that of LevelDB's log, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("run-*.wandb")
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no record begins in the last bytes of a block
            place += 32768 - place % 32768
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(parts)
            parts = b""


def items(updates) -> dict:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in updates}


def told(folder: Path) -> tuple:
    """Of a run: its record, its config, its summary, its rows, and on which axis the curves of each name are."""
    everything, patience = list(records(folder)), 200
    while not everything or everything[-1].WhichOneof("record_type") != "exit":  # wandb's service may still write it
        assert patience, folder
        patience -= 1
        time.sleep(0.1)
        everything = list(records(folder))
    (about,) = (record.run for record in everything if record.WhichOneof("record_type") == "run")
    summary: dict = {}
    for record in everything:
        summary |= items(record.summary.update)
    rows = [items(record.history.item) for record in everything if record.HasField("history")]
    axes = {record.metric.glob_name or record.metric.name: record.metric.step_metric for record in everything}
    return about, items(about.config.update), summary, rows, axes


def train(cwd: Path, *overrides: str) -> list[Path]:
    """Train; returns the folders of wandb's runs, oldest first."""
    result = run("stn.train", *overrides, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return sorted(cwd.glob("outputs/wandb/offline-run-*"))


@pytest.fixture
def place(workplace, tmp_path) -> Path:
    (tmp_path / "data").symlink_to(workplace / "data")
    return tmp_path


def test_runs_carry_summary_curves_config_tags_and_group(place):
    folders = train(place, *SMALL, "seeds=[0,1]", "record=out/cell")
    folders += [path for path in train(place, *SMALL, "seed=2", "budget.learning_rate=0.001") if path not in folders]
    record = json.loads((place / "out/cell.json").read_text())
    runs = [told(folder) for folder in folders]
    for seed, (about, config, summary, rows, axes) in zip(record["seeds"], runs, strict=False):
        assert about.display_name == f"digits_r/st_cnn_affine-width_4/s{seed['seed']}" and about.job_type == "train"
        assert list(about.tags) == ["mnist", "digits_r", "st_cnn_affine", "smoke"]
        config.pop("_wandb", None)
        assert config == {**record["config"], "seed": seed["seed"]}
        errors = [error for _, error, _ in seed["validation"]]
        expected = {"test/error": seed["error"], "parameters": record["parameters"], "steps": 20, "images_seen": 1280}
        expected |= {"seconds": seed["seconds"]}
        expected |= {"validation/best_error": min(errors), "validation/last_error": errors[-1]}
        assert expected.items() <= summary.items()
        assert axes["*"] == "trainer/global_step"
        curve = [[row["_step"], row["validation/error"]] for row in rows if "validation/error" in row]
        assert curve == [[step, pytest.approx(error, abs=1e-3)] for step, error, _ in seed["validation"]]
        assert all(row["_step"] == row["trainer/global_step"] for row in rows) and "train/loss" in rows[0]
        assert "transformer._type" in rows[-1]
    first, second, other = (about.run_group for about, *_ in runs)
    assert first == second != other and first.startswith("smoke/digits_r/st_cnn_affine-width_4/")


def test_folders_of_a_resumed_run_are_one_run(place):
    command = [sys.executable, "-m", "stn.train", *LONG]
    with interruptible(command, place) as process:
        next(line for line in process.stdout if "step 100/" in line)
        process.send_signal(signal.SIGINT)
        process.communicate()
    folders = train(place, *LONG)
    assert len(folders) == 2
    (before, _, _, early, _), (after, _, summary, late, _) = map(told, folders)
    assert before.run_id == after.run_id and before.resume and after.resume
    assert (before.display_name, before.run_group) == (after.display_name, after.run_group)
    losses = [{row["_step"]: row["train/loss"] for row in rows if "train/loss" in row} for rows in (early, late)]
    again = losses[0].keys() & losses[1].keys()  # logged after the last checkpoint
    assert all(losses[0][step] == losses[1][step] for step in again) and max(again, default=0) < 150
    assert sorted(losses[0] | losses[1]) == list(range(0, 200, 10))
    (seed,) = json.loads(next(place.glob("outputs/results/smoke/*.json")).read_text())["seeds"]
    assert summary["validation/best_error"] == min(error for _, error, _ in seed["validation"])
    wandb = [str(Path(sys.executable).with_name("wandb")), "sync", "--dry-run", *map(str, folders)]
    answer = subprocess.run(wandb, capture_output=True, text=True, cwd=place)
    assert answer.returncode == 0 and "Would sync 2 run(s)" in answer.stderr + answer.stdout
    assert all(folder.name in answer.stderr + answer.stdout for folder in folders)


def test_a_run_that_starts_afresh_is_another_run(place):
    (first,) = train(place, *SMALL)
    assert train(place, *SMALL) == [first]  # finished: nothing to tell
    _, second = train(place, *SMALL, "fresh=true")
    assert told(first)[0].run_id != told(second)[0].run_id


def test_what_an_early_kill_left_empty_is_removed(tmp_path):
    (tmp_path / "scratch").mkdir()
    name = run_id(tmp_path / "scratch", tmp_path)
    for date, content in (("1", b":W&B..."), ("2", b":W&B... and more")):
        folder = tmp_path / f"wandb/offline-run-{date}-{name}"
        folder.mkdir(parents=True)
        (folder / f"run-{name}.wandb").write_bytes(content)
    assert run_id(tmp_path / "scratch", tmp_path) == name
    assert [path.name for path in (tmp_path / "wandb").iterdir()] == [f"offline-run-2-{name}"]


def test_a_table_is_sent_with_the_lines_of_its_csv(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    budgets = [table.records(4), *table.others(4)]
    monkeypatch.chdir(tmp_path)
    table.send(4, budgets)
    (folder,) = tmp_path.glob("outputs/wandb/offline-run-*")
    assert str(folder.relative_to(tmp_path)) in capsys.readouterr().out
    about, _, _, rows, _ = told(folder)
    assert (about.display_name, about.job_type) == ("table4", "table") and rows[0]["table4._type"] == "table-file"
    sent = json.loads((folder / "files" / rows[0]["table4.path"]).read_text())
    lines = [dict(zip(sent["columns"], line, strict=True)) for line in sent["data"]]
    assert len(lines) == sum(map(len, budgets)) and {line["budget"] for line in lines} >= {"quick", "medium"}
    for line, record in zip(lines, [record for results in budgets for record in results], strict=True):
        assert (line["row"], line["paper"]) == (record.row.label, record.row.paper.get(record.column))
        assert line["ours"] == pytest.approx(record.error, abs=1e-3)
