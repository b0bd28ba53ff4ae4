"""Killed at any moment, the pipeline leaves whole files and no process, and the same command ends as if undisturbed.

`python tests/interrupt.py` tries whole tables in this way; here is what it rests on, and one small cell.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
import torch
import zc.lockfile
from ruamel.yaml import YAML

import interrupt
from conftest import ROOT, run
from stn.errors import UserError
from stn.files import whole, write_texts, write_whole
from stn.pipeline import workspace
from stn.stages import clear_leftovers, survive_kills
from stn.training.run import WholeCheckpoints

PARAMS = """budget: smoke
seeds: "0"
source: digits
columns: [digits_r]
rows: [st_cnn_affine]
numbers: svhn
birds: cub
"""
PAGE = "docs/digits.md"


# Files


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path, end):
    path = tmp_path / "record.json"
    path.write_text("old")

    def write(file):
        file.write(b"ne")
        file.flush()
        assert path.read_text() == "old"
        raise end

    with pytest.raises(end):
        write_whole(path, write)
    with pytest.raises(end), whole(path) as part:
        assert part.suffix == ".json" and part.parent == tmp_path
        part.write_text("ne")
        raise end
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_whole(path, lambda file: file.write(b"new"))
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_of_several_texts_none_is_moved_in_before_all_are_written(tmp_path):
    first, second = tmp_path / "table1.md", tmp_path / "file/table1.csv"
    first.write_text("old")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file.*make it writable"):
        write_texts({first: "new", second: "new"})
    assert first.read_text() == "old" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_interrupt_comes_between_the_moves_of_texts(tmp_path, monkeypatch, number):
    paths, replace = [tmp_path / name for name in ("table1.md", "table1.csv", "README.md")], Path.replace

    def interrupted(part, path):
        os.kill(os.getpid(), number)
        return replace(part, path)

    monkeypatch.setattr(Path, "replace", interrupted)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_texts(dict.fromkeys(paths, "new"))
    finally:
        signal.signal(number, before)
    assert [path.read_text() for path in paths] == ["new"] * 3 and len(list(tmp_path.iterdir())) == 3


def test_a_checkpoint_is_written_beside_its_place_and_moved_in(tmp_path, monkeypatch):
    path, moves = tmp_path / "runs/last.ckpt", []
    monkeypatch.setattr(Path, "replace", lambda part, target: moves.append((part.name, target.name)))
    WholeCheckpoints().save_checkpoint({"state_dict": {"weight": torch.ones(2)}}, path)
    assert moves == [("last.ckpt.part", "last.ckpt")]
    monkeypatch.undo()
    WholeCheckpoints().save_checkpoint({"state_dict": {"weight": torch.ones(2)}}, path)
    assert torch.load(path, weights_only=True)["state_dict"]["weight"].tolist() == [1, 1]


SMALL_RUN = ("stn.train", "data=digits_r", "model=cnn", "model.width=4", "budget=smoke", "logger=none")


def test_a_damaged_checkpoint_costs_the_training_and_no_more(workplace, tmp_path):
    (tmp_path / "data").symlink_to(workplace / "data")
    command = SMALL_RUN
    assert run(*command, cwd=tmp_path).returncode == 0
    (folder,) = tmp_path.glob("outputs/runs/*/*/*")
    error = json.loads((folder / "result.json").read_text())["error"]
    content = (folder / "last.ckpt").read_bytes()
    half = len(content) // 2
    changed = content[:half] + bytes(byte ^ 1 for byte in content[half : half + 4000]) + content[half + 4000 :]
    for damaged in (*(content[:length] for length in (0, 100, half, len(content) - 30)), changed):
        (folder / "last.ckpt").write_bytes(damaged)
        (folder / "result.json").unlink()
        result = run(*command, cwd=tmp_path)
        assert result.returncode == 0 and "last.ckpt is damaged, so it is trained" in result.stdout, result.stderr
        assert json.loads((folder / "result.json").read_text())["error"] == error


@pytest.mark.parametrize("name", ["result.json", "result.npz"])
def test_a_damaged_result_costs_the_test_and_no_more(workplace, tmp_path, name):
    (tmp_path / "data").symlink_to(workplace / "data")
    assert run(*SMALL_RUN, cwd=tmp_path).returncode == 0
    (path,) = tmp_path.glob(f"outputs/runs/*/*/*/{name}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    result = run(*SMALL_RUN, cwd=tmp_path)
    assert result.returncode == 0 and f"the result in {path.parent.relative_to(tmp_path)} is damaged" in result.stdout
    assert path.read_bytes() != content[: len(content) // 2] and "step 20/20" not in result.stdout


def test_two_processes_that_train_the_same_seed_take_turns(workplace, tmp_path):
    (tmp_path / "data").symlink_to(workplace / "data")
    command = [sys.executable, "-m", *SMALL_RUN]
    processes = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sum("finished earlier with these settings" in lines for lines in said) == 1


# DVC


def test_dvc_keeps_a_record_until_the_new_one_is_there():
    """It would otherwise delete the record, with the seeds that the new one keeps, before it is trained."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for stage in (stages["classifier"], stages["cell"]["do"], stages["export"]["do"]):
        assert all(facts["persist"] for out in stage["outs"] for facts in out.values())


def test_dvc_moves_its_lock_file_in_when_it_is_whole(tmp_path, monkeypatch):
    from dvc import dvcfile

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvcfile, "modify_yaml", dvcfile.modify_yaml)
    Path("dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    before = Path("dvc.lock").read_text()
    for _ in range(2):
        survive_kills()

    def dump(self, data, stream):
        stream.write("schema: '2")
        assert Path("dvc.lock").read_text() == before
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(YAML, "dump", dump)
        with dvcfile.modify_yaml("dvc.lock") as data:
            data["stages"]["cell"] = {"cmd": "python"}
    assert Path("dvc.lock").read_text() == before
    with dvcfile.modify_yaml("dvc.lock") as data:
        data["stages"]["table"] = {"cmd": "python"}
    assert YAML(typ="safe").load(Path("dvc.lock"))["stages"] == {"table": {"cmd": "python"}}
    assert list(Path().iterdir()) == [Path("dvc.lock")]


def held(path: Path, pid: int) -> None:
    about = {"pid": pid, "cmd": "dvc repro"}
    path.write_text(json.dumps({"read": {"/a": [about]}, "write": {"/b": about}}))


def test_what_a_killed_dvc_left_in_its_lists_does_not_stop_the_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rwlock, tried = tmp_path / "rwlock", tmp_path / "reports/results/.gMIGBgQmjUeDOMY-SuLbHA.tmp"
    clear_leftovers(tmp_path / "nowhere")
    clear_leftovers(tmp_path)
    tried.parent.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as other:
        for text in ("", "{", '{"read": {"/a": [', "[]", '{"read": {}, "write": {}}'):
            rwlock.write_text(text)
            tried.touch()
            clear_leftovers(tmp_path)
            assert not rwlock.exists() and not tried.exists()
        held(rwlock, other.pid)
        os.utime(rwlock, (time.time() - 3600,) * 2)  # written before the process began: its number is another's
        tried.touch()
        clear_leftovers(tmp_path)
        assert not rwlock.exists() and not tried.exists()
        held(rwlock, other.pid)
        tried.touch()
        clear_leftovers(tmp_path)
        assert rwlock.exists() and tried.exists(), "of a DVC that runs"
        with (tmp_path / "rwlock.lock").open("w") as _:
            guard = zc.lockfile.LockFile(str(tmp_path / "rwlock.lock"))
            rwlock.write_text("")  # as while it is written
            clear_leftovers(tmp_path)
            guard.close()
        assert rwlock.exists()
        other.kill()
    held(rwlock, other.pid)
    clear_leftovers(tmp_path)
    assert not rwlock.exists()


STARTED = """
import multiprocessing, subprocess, sys
from stn.stages import end_with_parent, run_module
def start():
    code = "from stn.stages import end_with_parent; end_with_parent(); import sleeper"
    subprocess.run([sys.executable, "-c", code])
def fork():
    process = multiprocessing.get_context("forkserver").Process(target=run_module, args=("python -m sleeper", False))
    process.start()
    process.join()
"""
SLEEPER = "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '100'])"


@pytest.mark.parametrize("kind", ["start", "fork"])
def test_no_process_outlives_the_one_that_began_it(tmp_path, kind):
    """As when the system takes the first process alone for want of memory: no second run meets what runs on."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    (tmp_path / "first.py").write_text(f"{STARTED}\nif __name__ == '__main__': {kind}()\n")
    with subprocess.Popen([sys.executable, "first.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        deadline, below = time.monotonic() + 20, []
        while "sleep" not in [each.name() for each in below] and time.monotonic() < deadline:
            below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(below) >= 2 and not psutil.wait_procs(below, timeout=20)[1]


# The pipeline


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """A workspace as it was before one cell was trained, and after."""
    root = tmp_path_factory.mktemp("interrupt")
    before, after = (interrupt.Project(root / name, 1, ["--jobs", "2"], None) for name in ("before", "after"))
    workspace(before.folder, ROOT, PARAMS)
    interrupt.edit(before.folder / "conf/data/digits.yaml", r"(?m)^draws: 10", "draws: 1")
    (before.folder / "docs").mkdir()
    for name in ("README.md", PAGE):
        (before.folder / name).write_text("# Tables\n\n<!-- table1:begin -->\n<!-- table1:end -->\n")
    (before.folder / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    shutil.copytree(before.folder, after.folder)
    after.finish()
    return before, after


def test_a_cell_that_is_killed_while_it_is_entered_ends_as_an_undisturbed_one(cell, tmp_path):
    before, after = cell
    killed = interrupt.Project(tmp_path / "killed", 1, before.arguments, None)
    shutil.copytree(before.folder, killed.folder)
    entering = r"^open dvc\.lock"
    opened = [event for event in after.events() if re.search(entering, event)]
    # Each time it is copied and then written, the last time for the table and its figures.
    process = killed.start(at=entering, nth=len(opened) - 2, delay=0, signal=signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and interrupt.await_end(killed) == []
    assert killed.records().keys() == after.records().keys() and "dvc.lock.part" in killed.files()
    interrupt.check_state(killed, before, after)
    killed.finish()
    interrupt.check_end(killed, after, list(after.lock()))


def test_what_is_cut_short_or_left_behind_is_noticed(cell, tmp_path):
    """The watcher itself: each of these must be a fault."""
    before, after = cell

    def broken(name: str, change) -> interrupt.Project:
        project = interrupt.Project(tmp_path / name, 1, before.arguments, None)
        shutil.copytree(after.folder, project.folder, ignore=shutil.ignore_patterns("outputs", "data", "src", "conf"))
        change(project.folder)
        return project

    def cut(name: str):
        return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])

    record = "reports/results/smoke/mnist/digits_r-st_cnn_affine"
    interrupt.check_state(broken("sound", lambda folder: None), before, after)
    tables = ("reports/table1.csv", "README.md", PAGE, "reports/figures/table1.png")
    for i, name in enumerate(("params.yaml", "dvc.lock", "dvc.yaml", *tables, f"{record}.json", f"{record}.npz")):
        with pytest.raises(interrupt.Fault):
            interrupt.check_state(broken(f"cut{i}", cut(name)), before, after)
    stray = broken("stray", lambda folder: (folder / "docs/digits_new.md").write_text("# Tables\n"))
    with pytest.raises(interrupt.Fault, match=r"docs/digits_new\.md"):
        interrupt.check_state(stray, before, after)
    left = broken("left", lambda folder: (folder / "reports/table1.md.part").touch())
    with pytest.raises(interrupt.Fault, match=r"table1\.md\.part"):
        interrupt.check_names(left, after)


def test_files_of_a_table_that_are_of_two_runs_are_noticed(cell, tmp_path):
    """Only SIGKILL amid the moves may leave them so; what was not yet moved then waits beside its place."""
    before, after = cell
    killed = interrupt.Project(tmp_path / "killed", 1, before.arguments, None)
    shutil.copytree(after.folder, killed.folder, ignore=shutil.ignore_patterns("outputs", "data", "src", "conf"))
    new = (killed.folder / PAGE).read_text()
    shutil.copy(before.folder / PAGE, killed.folder / PAGE)
    part = killed.folder / f"{PAGE}.part"
    others = ["README.md", *(f"reports/table1.{suffix}" for suffix in ("csv", "md", "tex"))]
    for waiting, way, sound in (
        (None, "report", False),
        (new[:-9], "report", False),
        (new, "SIGTERM", False),
        (new, "report", True),
    ):
        part.unlink(missing_ok=True)
        if waiting:
            part.write_text(waiting)
        with nullcontext() if sound else pytest.raises(interrupt.Fault, match=rf"{PAGE} is of another run"):
            assert interrupt.check_state(killed, before, after, way) == others
    part.unlink()
    assert interrupt.check_state(killed, before, after, "SIGTERM", earlier=True) == others
