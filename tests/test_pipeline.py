import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import stn.stages
from conftest import ROOT, beside, one_error, run, spawn
from stn.cells import config, declared, describe, on_demand, record_path, shown, stage
from stn.codebase import training_digest
from stn.config import experiment
from stn.environment import cores
from stn.errors import UserError
from stn.files import TYPED_IN, openable
from stn.params import BUDGETS, DEMO, TABLES, read_params, write_params
from stn.pipeline import bring_up_to_date, export_names, exports_to_bring_up_to_date, needed, workspace

PARAMS = """# tiny
budget: smoke   # a comment
seeds: "0"      # another
source: digits
columns: [digits_r]
rows: [cnn, st_cnn_affine]
numbers: svhn
birds: cub
"""


def dvc(*arguments, cwd) -> str:
    environment = beside(cwd) | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """What `make` would do: recipes are printed, not run; `make help` is."""
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "COLUMNS")}
    command = ["make", *(() if arguments[0] == "help" else ("-n",)), *arguments]
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A workspace in which the pipeline has run once: one column, two rows, seconds."""
    folder = tmp_path_factory.mktemp("tiny")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    workspace(folder, ROOT, PARAMS)
    (folder / "README.md").write_text("<!-- table1:begin -->\n<!-- table1:end -->\n")
    result = spawn("stn.pipeline", "table", "--jobs", "2", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "its numbers mean nothing; unpack params.yaml, " in result.stdout
    assert "2 of 2 cells trained here" in result.stdout
    return folder


def stale(folder) -> set[str]:
    dvc("repro", "-q", "cells", cwd=folder)
    return set(json.loads(dvc("status", "--json", "cell", "store@digits_r", cwd=folder)))


def test_the_pipeline_leaves_tables_figures_and_records(tiny):
    for name in ("table1.md", "table1.csv", "table1.tex", "figures/table1.png", "figures/table1_pose.png"):
        assert (tiny / "reports" / name).stat().st_size > 100
    assert "not comparable" in (tiny / "reports" / "table1.md").read_text()
    assert "smoke" in (tiny / "README.md").read_text()


@pytest.mark.parametrize("trainer, jobs", [("cpu", cores()), ("gpu", 1), ("ddp", 1)])
def test_cells_side_by_side_are_one_for_each_core_but_on_a_gpu_one(trainer, jobs, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("stn.pipeline.demo", asked.append)
    monkeypatch.setenv("STN_TRAINER", trainer)
    assert run("stn.pipeline", "demo", cwd=tmp_path).returncode == 0 and asked == [jobs]


def test_cells_that_would_take_turns_on_a_gpu_are_told_and_of_mps(monkeypatch, tmp_path):
    monkeypatch.setattr("stn.pipeline.demo", lambda jobs: None)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    told = {}
    for trainer, jobs in (("gpu", "8"), ("gpu", "1"), ("cpu", "8")):
        monkeypatch.setenv("STN_TRAINER", trainer)
        told[trainer, jobs] = run("stn.pipeline", "demo", "--jobs", jobs, cwd=tmp_path).stdout
    assert "nvidia-cuda-mps-control -d" in told.pop(("gpu", "8")) and set(told.values()) == {""}
    (tmp_path / "control").touch()
    monkeypatch.setenv("STN_TRAINER", "gpu")
    assert run("stn.pipeline", "demo", "--jobs", "8", cwd=tmp_path).stdout == ""


def test_what_stages_are_forked_from_has_not_woken_the_gpu(tmp_path):
    """CUDA cannot be used in a fork of a process that has used it, if only to count devices."""
    (tmp_path / "loads.py").write_text(
        "import importlib, torch\n"
        "def woken(*_, **__): raise SystemExit('woken')\n"
        "torch._C._cuda_getDeviceCount = torch._C._cuda_init = woken\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = woken\n"
        "from stn.stages import LOADED\n"
        "for name in LOADED: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "loads.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def order(tmp_path, monkeypatch) -> list[str]:
    """The cells in the order in which they are handed to `Stages`, which writes their records and trains nothing."""
    monkeypatch.chdir(tmp_path)
    rows = "fcn, cnn, st_fcn_affine, st_fcn_tps, st_cnn_affine, st_cnn_tps"
    Path("params.yaml").write_text(PARAMS.replace("cnn, st_cnn_affine", rows))
    cells = {stage("smoke", cell): {"reads": ""} for cell in declared(read_params(), 1)}
    Path("cells.json").write_text(json.dumps({"stored": {}, "cells": cells}))
    order = []

    class Trainer:
        def __init__(self, jobs: int):
            pass

        def repro(self, names: list[str], force: bool = False) -> bool:
            if not force:
                order.extend(names)
                for name in names:
                    write_seconds(name, 1.0)
            return True

    monkeypatch.setattr("stn.pipeline.Stages", Trainer)
    monkeypatch.setattr("subprocess.run", lambda command, **_: subprocess.CompletedProcess(command, 0))
    return order


def write_seconds(name: str, *seconds: float) -> None:
    """A record of the cell with this stage that says how long each of its seeds took."""
    path = Path("reports/results/smoke/mnist") / f"{name.removeprefix('cell@smoke-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"gpu": None, "cpu": "a processor", "cores": 2}
    seeds = [{"seconds": each, "provenance": place | {"date": f"{i}"}} for i, each in enumerate(seconds)]
    path.write_text(json.dumps({"seeds": seeds}))


def test_what_took_longest_is_trained_first_and_before_it_what_is_new(order):
    times = {"fcn": (9.0, 8.0), "cnn": (90.0,), "st_cnn_affine": (60.0,), "st_fcn_affine": (10.0, 10.0)}
    for name, seconds in times.items():
        write_seconds(f"cell@smoke-digits_r-{name}", *seconds)
    bring_up_to_date(1, 1, fresh=False)
    names = [name.removeprefix("cell@smoke-digits_r-") for name in order]
    assert sorted(names[:2]) == ["st_cnn_tps", "st_fcn_tps"]
    assert names[2:] == ["cnn", "st_cnn_affine", "st_fcn_affine", "fcn"]


def test_each_long_wait_is_told_before_it_begins(order, capsys):
    cells = json.loads(Path("cells.json").read_text())
    Path("cells.json").write_text(json.dumps(cells | {"stored": {"digits_r": {}}}))
    bring_up_to_date(1, 1, fresh=False)
    lines = capsys.readouterr().out.splitlines()
    waits = ["checking what is up to date", "checking the data: store@digits_r", "drawing Table 1 and its figures"]
    assert [line for line in lines if "about ten seconds" in line] == lines[:3]
    assert all(wait in line for wait, line in zip(waits, lines, strict=False))


def test_comparing_cells_is_told_and_dvc_draws_no_bars_of_its_own(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stn.stages, "survive_kills", lambda: pytest.fail("done"))
    with pytest.raises(pytest.fail.Exception, match="done"):
        stn.stages.Stages.repro(None, ["cell@a", "cell@b", "cell@c"], force=["cell@b"])
    assert capsys.readouterr().out == "comparing 2 cells with dvc.lock, about five seconds\n"
    with pytest.raises(pytest.fail.Exception, match="done"):
        stn.stages.Stages.repro(None, ["cell@a", "cell@b"], force=["cell@b"])
    assert capsys.readouterr().out == "comparing 1 cell with dvc.lock, about five seconds\n"
    from dvc.progress import Tqdm

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    assert list(Tqdm(range(3), desc="Collecting files", file=terminal)) == [0, 1, 2] and terminal.getvalue() == ""


@pytest.mark.parametrize(
    "typed_in, expected", [("", "outputs/demo/reports/a.png"), ("src", "../outputs/demo/reports/a.png")]
)
def test_the_demo_prints_paths_as_they_are_where_it_was_called(tmp_path, monkeypatch, typed_in, expected):
    (tmp_path / "outputs/demo").mkdir(parents=True)
    monkeypatch.setenv(TYPED_IN, str(tmp_path / typed_in))
    monkeypatch.chdir(tmp_path / "outputs/demo")
    assert openable(Path("reports/a.png")) == expected
    monkeypatch.delenv(TYPED_IN)
    assert openable(Path("reports/a.png")) == "reports/a.png"


def test_a_fresh_training_that_is_interrupted_keeps_the_old_records_and_goes_on_where_it_was(order, monkeypatch):
    models = ("fcn", "cnn", "st_fcn_affine", "st_fcn_tps", "st_cnn_affine", "st_cnn_tps")
    names = [f"cell@smoke-digits_r-{model}" for model in models]
    records = {name: Path("reports/results/smoke/mnist") / f"digits_r-{name.rpartition('-')[2]}.json" for name in names}
    for name in names:
        write_seconds(name, 5.0)
    old = {name: path.read_text() for name, path in records.items()}
    earlier, begun = Path("outputs/runs/smoke/digits_r-cnn/s0"), []
    earlier.mkdir(parents=True)

    class Interrupted:
        def __init__(self, jobs: int):
            pass

        def repro(self, names: list[str], force: list[str]) -> bool:
            for name in (name for name in names if name in force):
                begun.append(name)
                if len(begun) == 3:
                    raise KeyboardInterrupt
                write_seconds(name, 6.0)
            return True

    monkeypatch.setattr("stn.pipeline.Stages", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        bring_up_to_date(1, 1, fresh=True)
    assert not earlier.exists() and len(begun) == 3
    assert {name for name in names if records[name].read_text() == old[name]} == {*names} - {*begun[:2]}
    earlier.mkdir(parents=True)  # a checkpoint of the cell that was interrupted
    bring_up_to_date(1, 1, fresh=True)
    assert earlier.exists() and sorted(begun) == sorted([*names, begun[2], "table1"])
    before = len(begun)
    bring_up_to_date(1, 1, fresh=True)
    assert not earlier.exists() and sorted(begun[before:]) == sorted([*names, "table1"])


def test_after_a_complete_run_a_fresh_training_is_of_all_cells_whatever_was_interrupted_before(
    order, monkeypatch, capsys
):
    for model in ("fcn", "cnn", "st_fcn_affine", "st_fcn_tps", "st_cnn_affine", "st_cnn_tps"):
        write_seconds(f"cell@smoke-digits_r-{model}", 5.0)
    forced = []

    class Interrupted:
        def __init__(self, jobs: int):
            pass

        def repro(self, names: list[str], force: list[str] = ()) -> bool:
            forced.append([name for name in names if name in force and name.startswith("cell@")])
            if len(forced) == 1:
                write_seconds(names[0], 6.0)
                raise KeyboardInterrupt
            return True

    monkeypatch.setattr("stn.pipeline.Stages", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        bring_up_to_date(1, 1, fresh=True)
    bring_up_to_date(1, 1, fresh=False)
    before = len(forced)
    bring_up_to_date(1, 1, fresh=True)
    assert len(forced[before]) == 6 and "before an interrupt" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"seeds": null}', '{"seeds": [1]}', '{"seeds": [{"seconds": 1}]}']
)
def test_a_damaged_record_is_trained_again_like_one_that_is_missing(order, text):
    name = "cell@smoke-digits_r-cnn"
    write_seconds(name, 5.0)
    Path("reports/results/smoke/mnist/digits_r-cnn.json").write_text(text)
    bring_up_to_date(1, 1, fresh=False)
    assert name in order and json.loads(Path("reports/results/smoke/mnist/digits_r-cnn.json").read_text())["seeds"]


@pytest.mark.parametrize(
    "place, told",
    [
        ({"cpu": "a processor", "cores": 2}, "trained on a processor (2 cores)"),
        ({"cpu": "a processor"}, "trained on a processor ("),
        ({"cpu": None, "gpu": None}, "trained on unknown processor ("),
        ({"gpu": "a GPU"}, "trained on a GPU ("),
    ],
)
def test_a_reused_record_tells_what_it_knows_of_its_machine(order, monkeypatch, capsys, place, told):
    for name in ("fcn", "cnn", "st_fcn_affine", "st_fcn_tps", "st_cnn_affine", "st_cnn_tps"):
        write_seconds(f"cell@smoke-digits_r-{name}", 1.0)
        path = Path(f"reports/results/smoke/mnist/digits_r-{name}.json")
        path.write_text(json.dumps({"seeds": [{"seconds": 1.0, "provenance": place | {"date": "0"}}]}))
    monkeypatch.setattr("stn.pipeline.Stages.repro", lambda self, names, force=(): True)
    bring_up_to_date(1, 1, fresh=False)
    assert f"6 reused, {told}" in capsys.readouterr().out


@pytest.mark.parametrize("listed, again", [("0", True), ("0,1", False), ("1,0,2", False)])
def test_a_seed_of_a_record_that_is_not_listed_is_listed_before_anything_is_trained(order, monkeypatch, listed, again):
    """As after `make table FRESH=1` was interrupted: the cells not yet trained afresh keep their other seeds."""
    name, commands = "cell@smoke-digits_r-cnn", []
    write_seconds(name, 5.0, 6.0)
    path = Path("reports/results/smoke/mnist/digits_r-cnn.json")
    seeds = [part | {"seed": i} for i, part in enumerate(json.loads(path.read_text())["seeds"])]
    path.write_text(json.dumps({"seeds": seeds}))
    cells = json.loads(Path("cells.json").read_text())
    cells["cells"][name.removeprefix("cell@")]["seeds"] = listed
    Path("cells.json").write_text(json.dumps(cells))

    def ran(command: tuple[str, ...], **_) -> subprocess.CompletedProcess:
        commands.append(" ".join(command))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", ran)
    bring_up_to_date(1, 1, fresh=False)
    assert commands[0].endswith("repro -q --force cells" if again else "repro -q cells")


@pytest.mark.parametrize("git", [True, False])
def test_git_takes_smoke_back_where_there_is_git(order, git, capsys):
    if git:
        Path(".git").mkdir()
    bring_up_to_date(1, 1, fresh=False)
    way = "`git checkout params.yaml cells.json dvc.lock reports` takes them back" if git else "unpack params.yaml"
    assert f"budget smoke: its numbers mean nothing; {way}" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("git"), reason="no git here")
def test_an_interrupt_tells_the_way_back_only_where_something_is_changed(tmp_path, monkeypatch):
    def interrupt(jobs: int) -> None:
        raise KeyboardInterrupt

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@y", *arguments], cwd=tmp_path, check=True)

    def told() -> str:
        result = run("stn.pipeline", "demo", cwd=project)
        assert result.returncode == 130 and result.stdout == "" and result.stderr.count("\n") == 1
        return result.stderr.strip()

    monkeypatch.setattr("stn.pipeline.demo", interrupt)
    project = tmp_path / "project"  # the repository may hold more than the project
    (project / "reports").mkdir(parents=True)
    names = ("params.yaml", "cells.json", "dvc.lock", "reports/table1.md")
    for name in names:
        (project / name).write_text("committed")
    assert told() == "interrupted; run the same command again"  # there is no git
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    (project / "reports/table2.md").write_text("not committed")
    assert told() == "interrupted; run the same command again"
    for name in names[1:]:
        (project / name).write_text("changed")
    back = "`git checkout cells.json dvc.lock reports` to go back to the last commit, from which these differ"
    assert told() == f"interrupted; run the same command again to go on, or {back}"


def test_nothing_is_stale_the_second_time(tiny):
    assert "Running stage" not in dvc("repro", "table1", cwd=tiny)


def test_a_clone_that_pulls_from_a_remote_makes_and_trains_nothing(tiny, tmp_path):
    dvc("remote", "add", "--default", "storage", str(tmp_path / "storage"), cwd=tiny)
    try:
        dvc("push", cwd=tiny)
        left = {"data", "outputs", ".dvc/cache", ".dvc/tmp"}  # what git would not bring
        clone = tmp_path / "clone"
        for path in tiny.rglob("*"):
            name = path.relative_to(tiny)
            if path.is_file() and not any(str(part) in left for part in (name, *name.parents)):
                (clone / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, clone / name)
    finally:
        dvc("remote", "remove", "storage", cwd=tiny)
    dvc("pull", "--with-deps", "table1", cwd=clone)
    assert (clone / "data/stored/digits_r/sets.json").read_bytes() == (
        tiny / "data/stored/digits_r/sets.json"
    ).read_bytes()
    assert "Running stage" not in dvc("repro", "table1", cwd=clone)


def test_a_deleted_record_is_named_and_trained_alone(tiny):
    record = tiny / "reports/results/smoke/mnist/digits_r-cnn.json"
    record.unlink()
    assert "digits_r-cnn.json" in one_error(run("stn.table", cwd=tiny))
    result = spawn("stn.pipeline", "table", "--jobs", "2", cwd=tiny)
    assert "digits_r/st_cnn_affine" not in result.stdout and "1 reused" in result.stdout, result.stdout + result.stderr
    assert record.exists() and not stale(tiny)


def test_a_failed_cell_costs_no_other_and_is_told(tiny):
    for model in ("cnn", "st_cnn_affine"):
        (tiny / f"reports/results/smoke/mnist/digits_r-{model}.json").unlink()
    runs = tiny / "outputs/runs/smoke/digits_r-st_cnn_affine"
    shutil.rmtree(runs)
    runs.touch()
    result = spawn("stn.pipeline", "table", "--jobs", "2", cwd=tiny)
    first, last = result.stderr.splitlines()
    assert result.returncode == 2 and first.startswith("error: cannot write outputs/runs"), result.stderr
    assert last == "error: cell@smoke-digits_r-st_cnn_affine failed, see above; the same command resumes"
    assert stale(tiny) == {"cell@smoke-digits_r-st_cnn_affine"}
    runs.unlink()
    assert spawn("stn.pipeline", "table", "--jobs", "2", cwd=tiny).returncode == 0 and not stale(tiny)


def test_what_is_edited_while_cells_train_is_not_taken_for_what_was_trained(tiny):
    shutil.rmtree(tiny / "outputs/runs")
    for record in (tiny / "reports/results/smoke/mnist").glob("*.json"):
        record.unlink()
    edited = tiny / "conf/model/cnn.yaml"
    text = edited.read_text()
    comment = tiny / "src/stn/training/run.py"  # a comment is edited as well, which changes nothing
    command = [sys.executable, "-m", "stn.pipeline", "table", "--jobs", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tiny, env=beside(tiny), **pipes) as pipeline:
        for line in pipeline.stdout:  # the first cell has its config now
            if "step 10/" in line:
                break
        edited.write_text(text + "match_filters: 63\n")
        comment.write_text(comment.read_text() + "# edited\n")
        _, errors = pipeline.communicate(timeout=240)
    assert pipeline.returncode == 2 and "cell@smoke-digits_r-cnn" in errors.splitlines()[-1], errors
    assert "changed while it ran" in errors and stale(tiny) == {"cell@smoke-digits_r-cnn"}
    edited.write_text(text)
    result = spawn("stn.pipeline", "table", "--jobs", "2", cwd=tiny)
    assert result.returncode == 0 and "digits_r/st_cnn_affine" not in result.stdout, result.stdout + result.stderr
    assert not stale(tiny)


BOTH = {"cell@smoke-digits_r-cnn", "cell@smoke-digits_r-st_cnn_affine"}


@pytest.mark.parametrize(
    "name, old, new, cells",
    [
        ("src/stn/report/tables.py", "Sequence", "Sequence  # edited", set()),
        ("src/stn/config.py", "LARGEST_SEED = 2**32 - 1", "LARGEST_SEED = 7", set()),
        ("src/stn/training/learner.py", "import time\n", "import time  # edited\n\n\n", set()),
        ("src/stn/experiments/cub/data.py", "EXAMPLES, SHOWN = 8, 128", "EXAMPLES, SHOWN = 9, 128", set()),
        ("conf/data/digits_e.yaml", "sigma: 1.5", "sigma: 1.6", set()),
        ("conf/model/cnn.yaml", "name: cnn", "name: cnn  # edited", set()),
        ("conf/budget/quick.yaml", "steps: 4000", "steps: 4001", set()),
        ("conf/model/cnn.yaml", "name: cnn", "name: cnn\nwidth: 7", {"cell@smoke-digits_r-cnn"}),
        (
            "conf/model/st_cnn_affine.yaml",
            "transformation: affine",
            "transformation: tps",
            BOTH - {"cell@smoke-digits_r-cnn"},
        ),
        ("conf/budget/smoke.yaml", "steps: ", "steps: 1", BOTH),
        ("src/stn/training/learner.py", "betas = (budget.momentum, 0.999)", "betas = (budget.momentum, 0.99)", BOTH),
        ("src/stn/nn/transformer.py", "import torch\n", "import torch\n\nNEW = 1\n", set()),
    ],
)
def test_an_edit_voids_exactly_the_cells_whose_result_it_can_change(tiny, name, old, new, cells):
    """Cells that differ in `cells.json` are stale: the test above."""
    path = tiny / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    try:
        after = json.loads(spawn("stn.cells", "--print", cwd=tiny).stdout)["cells"]
    finally:
        path.write_text(text)
    before = json.loads((tiny / "cells.json").read_text())["cells"]
    assert {f"cell@{key}" for key in before if after[key] != before[key]} == cells


def test_check_finds_a_stale_readme(tiny):
    assert run("stn.table", "--check", cwd=tiny).returncode == 0
    readme = tiny / "README.md"
    text = readme.read_text()
    readme.write_text(text.replace("smoke", "paper"))
    assert "README.md" in one_error(run("stn.table", "--check", cwd=tiny))
    readme.write_text(text)


def test_the_table_refuses_a_record_of_another_config(tiny):
    record = tiny / "reports/results/smoke/mnist/digits_r-cnn.json"
    text = record.read_text()
    record.write_text(text.replace('"match_filters": 64', '"match_filters": 32'))
    assert "model.match_filters: 32, not 64" in one_error(run("stn.table", cwd=tiny))
    record.write_text(text)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--budget", "huge"], "paper"),
        (["--seeds", "0,x"], "0,1,2"),
        (["--seeds", "0,1,0"], "seeds: 0 is given twice"),
        (["--seeds", "0,00"], "seeds: 0 is given twice"),
        (["--seeds", "4294967296"], "4294967296 is not a seed"),
        (["--jobs", "many"], "JOBS=many"),
        (["--table", "90"], "TABLE=90"),
        (["--birds", "owls"], "cub50"),
        (["--columns", "digits_r,digits_q"], "digits_tc"),
        (["--columns", "svhn_64"], "digits_tc"),  # a data set, but of another table
        (["--columns", "digits_r,digits_r"], "columns: digits_r appears twice"),
        (["--oracle", "--table", "2"], "ORACLE=1"),
        (["--numbers", "seven"], "svhn_strips"),
    ],
)
def test_a_wrong_knob_is_one_line_and_turns_nothing(tmp_path, arguments, named):
    (tmp_path / "params.yaml").write_text(PARAMS)
    assert named in one_error(run("stn.pipeline", "table", *arguments, cwd=tmp_path))
    assert (tmp_path / "params.yaml").read_text() == PARAMS


@pytest.mark.parametrize("what", ["table", "demo"])
def test_a_wrong_trainer_is_one_line_and_turns_nothing(tmp_path, monkeypatch, what):
    monkeypatch.setattr("stn.pipeline.demo", lambda jobs: pytest.fail("begun"))
    monkeypatch.setenv("STN_TRAINER", "tpu")
    (tmp_path / "params.yaml").write_text(PARAMS)
    line = one_error(run("stn.pipeline", what, "--budget", "quick", cwd=tmp_path))
    assert "TRAINER=tpu" in line and line.endswith("is not one of those in conf/trainer: cpu, ddp, gpu")
    assert (tmp_path / "params.yaml").read_text() == PARAMS


@pytest.mark.parametrize("budget", ["demo", "huge"])
def test_a_table_has_the_budgets_of_make_help_and_that_of_the_demo_is_none(tmp_path, budget):
    mnist = PARAMS.replace("source: digits", "source: mnist").replace("digits_r", "mnist_r")
    (tmp_path / "params.yaml").write_text(mnist)
    line = one_error(run("stn.pipeline", "table", "--budget", budget, cwd=tmp_path))
    assert line.endswith(f"'{budget}' is not one of {', '.join(BUDGETS)}")
    assert (tmp_path / "params.yaml").read_text() == mnist
    assert f"BUDGET={'|'.join(BUDGETS)} " in make("help").stdout


def test_the_demo_has_its_budget_and_no_other_is_left_out(tmp_path, monkeypatch):
    assert {*BUDGETS, DEMO} == {path.stem for path in (ROOT / "conf/budget").glob("*.yaml")}
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "conf/demo.yaml", "params.yaml")
    assert read_params().budget == DEMO


@pytest.mark.parametrize(
    "arguments, unknown, meant",
    [
        (["BUGDET=smoke"], "BUGDET", "BUDGET"),
        (["TABEL=7"], "TABEL", "TABLE"),
        (["budget=smoke"], "budget", "BUDGET"),
        (["TABLE=1", "SEED=0 1"], "SEED", "SEEDS"),
        (["TABLE=1", "JOB=2"], "JOB", "JOBS"),
    ],
)
def test_make_refuses_a_misspelt_setting_in_one_line(arguments, unknown, meant):
    result = make("table", *arguments)
    assert result.returncode == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert f"error: {unknown} is no setting: did you mean {meant}?" in result.stderr


def test_make_refuses_a_setting_that_it_does_not_know_in_one_line():
    result = make("table", "EPOCHS=3")
    assert result.returncode == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    (known,) = re.findall(r"error: EPOCHS is no setting: there are (.*); put what is for the env", result.stderr)
    assert {"TABLE", "BUDGET", "SEEDS", "TRAINER"} <= set(known.split())


def test_make_takes_every_variable_that_it_reads_or_sets_and_what_is_for_the_environment():
    read = set(re.findall(r"\$\(([A-Z]+)\)", (ROOT / "Makefile").read_text()))
    read -= {"CURDIR", "PATH", "VARIABLES", "PASSED", "GIVEN", "UNKNOWN", "MEANT", "EXPORTED"}  # its own
    read -= {"MAKECMDGOALS", "COMMANDS", "NEAREST", "TAKEN", "UNUSED"}
    assert {"TABLE", "ORACLE", "CHECKPOINT", "QUICK", "PYTHON", "VENV"} <= read
    names = (*read, "SHELL", "STN_DATA_MIRROR", "STN_TRAINER", "WANDB_MODE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    result = make("help", "-n", *(f"{name}={'/bin/sh' if name == 'SHELL' else '1'}" for name in names))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "words, told",
    [
        (["demo", "BUDGET=quick", "TABLE=2"], "make demo takes only JOBS, not BUDGET TABLE"),
        (["figures", "SEEDS=0"], "make figures takes only TABLE, not SEEDS"),
        (["lint", "FRESH=1"], "make lint takes none of these words, not FRESH"),
        (["tabel"], "no command tabel: did you mean table? There are help setup demo "),
        (["LOCK"], "no command LOCK: did you mean lock? There are help setup demo "),
        (["setup", "figure"], "no command figure: did you mean figures? There are help setup demo "),
        (["qqqqqq"], "no command qqqqqq: There are help setup demo "),
    ],
)
def test_make_refuses_a_command_that_it_has_not_and_words_that_a_command_would_ignore(words, told):
    result = make(*words)
    assert result.returncode == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert f"error: {told}" in result.stderr


def test_make_help_fits_a_terminal_and_says_every_word_of_make_table():
    lines = make("help").stdout.splitlines()
    assert max(map(len, lines)) <= 100
    words = re.search(r"^OF_table := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert {line.split("=")[0].strip() for line in lines if line.startswith("    ")} == set(words)
    commands = re.search(r"^COMMANDS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert {line.split()[1] for line in lines if line.startswith("  make ")} == {*commands}


def test_a_switch_that_is_set_to_0_is_off():
    assert "--fresh" in make("table", "FRESH=1").stdout and "--quick" in make("bench", "QUICK=1").stdout
    assert "--fresh" not in make("table", "FRESH=0").stdout and "--quick" not in make("bench", "QUICK=0").stdout
    assert "--oracle" in make("table", "ORACLE=1").stdout and "--oracle" not in make("table", "ORACLE=0").stdout


def test_the_width_of_the_terminal_is_no_knob():
    assert "--columns" not in make("table", COLUMNS="120").stdout
    assert '--columns "mnist_tc"' in make("table", "COLUMNS=mnist_tc", COLUMNS="120").stdout


def test_only_the_command_line_turns_a_knob_and_what_is_exported_is_told():
    knobs = re.search(r"there are ([A-Z ]+);", make("table", "EPOCHS=3").stderr)[1].split()
    plain = {target: make(target).stdout for target in ("demo", "table", "figures", "export", "bench")}
    for knob in knobs:
        exported = {target: make(target, **{knob: "8"}) for target in plain}
        assert {target: result.stdout for target, result in exported.items()} == plain, knob
        told = knob not in ("COLUMNS",)
        assert all((f"{knob} in the environment is ignored" in result.stderr) == told for result in exported.values())
    assert make("table", "BUDGET=smoke", BUDGET="paper", JOBS="7").stdout == make("table", "BUDGET=smoke").stdout
    assert "make table BUDGET=smoke; not before it" in make("help").stdout


@pytest.mark.parametrize("home", [None, "/nonexistent/home"])
def test_make_has_a_cache_where_there_is_no_home(home, tmp_path):
    shown = "include Makefile\nshow:\n\t@echo $$XDG_CACHE_HOME\n"
    clean = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "MAKEFLAGS")}
    for given, expected in ((home, f"{ROOT}/outputs/home/.cache"), (str(tmp_path), "")):
        environment = {**clean, **({"HOME": given} if given else {})}
        command = ["make", "--silent", "-f", "-", "show"]
        result = subprocess.run(command, cwd=ROOT, env=environment, input=shown, capture_output=True, text=True)
        assert result.stdout.strip() == expected and result.stderr == "", result.stderr


def test_make_in_another_folder_is_one_line(tmp_path):
    command = ["make", "-f", ROOT / "Makefile", "table"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    result = subprocess.run(command, cwd=tmp_path, env=outside, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert f"error: {tmp_path} is not the project's folder" in result.stderr and not list(tmp_path.iterdir())


def test_make_tells_the_pipeline_the_trainer():
    assert 'STN_TRAINER="tpu" python -m stn.pipeline' in make("table", "TRAINER=tpu").stdout


def test_a_turned_knob_is_told_and_keeps_the_comments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    assert write_params(budget="quick", seeds="0,1") == [
        "params.yaml: budget smoke -> quick",
        "params.yaml: seeds 0 -> 0,1",
    ]
    text = (tmp_path / "params.yaml").read_text()
    assert "# a comment" in text and "# another" in text
    assert read_params().seeds == "0,1" and write_params(seeds="0,1") == []
    assert write_params(columns="digits_r,digits_e") == ["params.yaml: columns [digits_r] -> [digits_r, digits_e]"]
    assert read_params().columns == ["digits_r", "digits_e"] and write_params(columns="digits_r,digits_e") == []


def test_a_misspelt_knob_in_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS + "bugdet: quick\n")
    with pytest.raises(UserError, match="bugdet"):
        read_params()


@pytest.mark.parametrize(
    "text, told",
    [
        (b"budget: [quick\n", "line 2, column 1: not valid YAML (expected ',' or ']'"),
        (b"<<<<<<< HEAD\nbudget: quick\n=======\n", "not valid YAML ("),
        (b"budget: qu\xedck\n", ": not UTF-8 (invalid continuation byte at byte 10)"),
        (b"budget: \x00\n", "not valid YAML ("),
        (b"5\n", "params.yaml: not a list of knobs"),
        (b"- quick\n", "params.yaml: "),
        (b"", "params.yaml: "),
    ],
)
def test_a_params_file_that_cannot_be_read_is_one_line_that_names_it(tmp_path, text, told):
    (tmp_path / "params.yaml").write_bytes(text)
    line = one_error(run("stn.pipeline", "table", cwd=tmp_path))
    assert "params.yaml" in line and told in line
    assert (tmp_path / "params.yaml").read_bytes() == text


def test_the_committed_params_declare_the_32_cells_of_the_paper(monkeypatch):
    monkeypatch.chdir(ROOT)
    params = read_params()
    required, optional = shown(params, 1)
    assert len(required) == 32 and len(optional) == 8 + 8 + 5  # E edge, TC, and the CNN that is told the true pose
    assert [len(declared(params, table)) for table in TABLES] == [32, 6, 5, 14, 2, 3, 8, 24, 5]
    assert len(on_demand(params, 1)) == 5 and len(shown(params, 3)[1]) == 2 * 11


def test_photographs_of_house_numbers_are_chosen_with_the_strips(monkeypatch):
    monkeypatch.chdir(ROOT)
    for numbers, names in (
        ("svhn", {"svhn_64", "svhn_128"}),
        ("svhn_strips", {"svhn_strips_64", "svhn_photos_128"}),
    ):
        assert {cell.data for cell in declared(replace(read_params(), numbers=numbers), 2)} == names


def test_two_tables_that_show_the_same_experiment_share_its_cell(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert set(declared(read_params(), 1)) & set(declared(read_params(), 7))
    assert len(describe(read_params())["cells"]) == 32 + 5 + 6 + 11 + 14 + 2 + 3 + 6 + 24 + 5


def test_a_network_that_is_not_here_is_not_exported_again(tmp_path, monkeypatch):
    """In a clone, which has the exports' records but no checkpoints."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    params = read_params()
    cells, names = declared(params, 8), export_names(params, 8)
    assert exports_to_bring_up_to_date(params, 8) == names
    for cell in cells:
        record = record_path(params.budget, cell)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.with_name(f"{record.stem}-export.json").touch()
    assert exports_to_bring_up_to_date(params, 8) == [] == exports_to_bring_up_to_date(params, 1)
    run_here = Path("outputs/runs") / params.budget / cells[2].key / "0123-s0"
    run_here.mkdir(parents=True)
    (run_here / "last.ckpt").touch()
    assert exports_to_bring_up_to_date(params, 8) == [names[2]]


def test_the_seeds_of_a_record_stay_when_others_are_asked_for(tmp_path, monkeypatch):
    """Unless the record is of another config or of other code, or `make table FRESH=1` asks for just these seeds."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS.replace('seeds: "0"', 'seeds: "3,0"'))
    params = read_params()
    cell = declared(params, 1)[0]
    record = record_path(params.budget, cell)

    def seeds() -> str:
        return describe(params)["cells"][stage(params.budget, cell)]["seeds"]

    assert seeds() == "3,0"
    facts = {
        "code": {"digest": training_digest("mnist"), "commit": "1" * 40},
        "config": experiment(config(params.budget, cell)),
        "complete": True,
        "seeds": [{"seed": 0}, {"seed": 1}],
    }
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(facts))
    assert seeds() == "0,1,3"
    for part in (
        {"complete": False},
        {"code": {"digest": "0" * 16, "commit": "1" * 40}},
        {"config": experiment(config("quick", cell))},
    ):
        record.write_text(json.dumps(facts | part))
        assert seeds() == "3,0"
    record.write_text(json.dumps(facts))
    monkeypatch.setenv("STN_FRESH", "1")
    assert seeds() == "3,0"


def test_every_declared_cell_is_a_stage_and_what_it_needs_too(monkeypatch):
    monkeypatch.chdir(ROOT)
    params = read_params()
    stages = {line.split()[0] for line in dvc("stage", "list", "--all", cwd=ROOT).splitlines()}
    for table in TABLES:
        cells = {f"cell@{stage(params.budget, cell)}" for cell in declared(params, table)}
        assert cells | {*needed(params, table), *export_names(params, table), f"table{table}"} <= stages
    assert len(export_names(params, 8)) == len(declared(params, 8)) == 24


def test_the_committed_cells_are_those_of_the_code_here(monkeypatch):
    """`cells.json` is in git, since DVC reads it before it runs anything."""
    monkeypatch.chdir(ROOT)
    assert json.loads((ROOT / "cells.json").read_text()) == describe(read_params())


def test_the_lock_has_the_classifier_of_the_code_here():
    """Else Table 5 of a fresh clone trains it again, and with it every cell of the table."""
    stages = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    entry = stages["classifier"]["params"]["cells.json"]["classifier"]
    assert entry == json.loads((ROOT / "cells.json").read_text())["classifier"]


def test_a_stage_list_and_its_lock_stay_readable():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) < 200
    assert len((ROOT / "dvc.lock").read_text().splitlines()) < 6000


def test_what_a_table_depends_on_is_there():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for number in TABLES:
        assert all((ROOT / path.replace("${budget}", "quick")).exists() for path in stages[f"table{number}"]["deps"])
