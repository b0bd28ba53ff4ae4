"""Bring a table up to date: `make table [TABLE=..] [BUDGET=..] [SEEDS=..] [JOBS=..] [FRESH=1] ...`, `make demo`.

DVC decides what is stale; this turns the knobs, runs cells side by side, and says what was trained and what reused.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from stn.cells import CELLS, EXPORTED, declared, on_demand, record_path, stage, write
from stn.config import CONF
from stn.environment import cores
from stn.errors import UserError
from stn.front_door import guard
from stn.params import KNOBS, TABLES, Params, read_params, write_params
from stn.stages import Stages, gpu_is_shared

DVC = (sys.executable, "-m", "dvc")  # that of this Python, whatever `dvc` is on the path


def bring_up_to_date(table: int, jobs: int, fresh: bool, oracle: bool = False) -> None:
    """Fetch, distort or crop, train what is stale, `jobs` cells at a time, and write the table and its figures.

    With `oracle` the cells of Table 1 that are trained only when asked for are trained too: the true pose.
    """
    params = read_params()
    cells = declared(params, table) + (on_demand(params, table) if oracle else [])
    records = {f"cell@{stage(params.budget, cell)}": record_path(params.budget, cell) for cell in cells}
    before = {name: _seconds_and_dates(path) for name, path in records.items()}
    if fresh:
        for path in records.values():
            path.unlink(missing_ok=True)
            path.with_suffix(".npz").unlink(missing_ok=True)
            path.with_name(f"{path.stem}-export.json").unlink(missing_ok=True)
            shutil.rmtree(Path("outputs/runs") / params.budget / path.stem, ignore_errors=True)
    started = time.monotonic()
    side_by_side = Stages(jobs)
    if not CELLS.exists():  # without it DVC cannot read dvc.yaml
        write()
    outside = ["--force"] if os.environ.get("STN_EXPERIMENTS") else []  # DVC does not see what lies outside
    _dvc("repro", "-q", *outside, "cells")
    if stages := needed(params, table):
        _dvc("repro", "-q", *stages)
    side_by_side.repro(sorted(records, key=_longest_first(before)))
    trained = [name for name, path in records.items() if _seconds_and_dates(path) != before[name]]
    exports = export_names(params, table)
    if exports:  # one after the other, since each is timed
        _dvc("repro", "-q", "--single-item", "--no-run-cache", *exports)
    if not side_by_side.repro([f"table{table}"], force=True):  # the table of an experiment outside of the project
        subprocess.run([sys.executable, "-m", "stn.table", "--table", str(table), "--figures"], check=True)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(trained)} of {len(records)} cells trained here in {minutes:.1f} min", end="")
    if len(trained) < len(records):
        where = sorted({place for name, path in records.items() if name not in trained for place in _places(path)})
        print(f"; {len(records) - len(trained)} reused, trained on {' and '.join(where)}", end="")
        print(" (`make table FRESH=1` trains them here)", end="")
    print()
    if params.budget == "smoke":
        print(f"budget smoke: its numbers mean nothing; {_way_back()}")


def _way_back() -> str:
    if Path(".git").exists():
        return "`git checkout params.yaml cells.json dvc.lock reports` takes them back"
    return "unpack params.yaml, cells.json, dvc.lock and reports again to take them back"


def needed(params: Params, table: int) -> list[str]:
    """The stages of `dvc.yaml` that make what the table's cells need."""
    known = json.loads(CELLS.read_text(encoding="utf-8"))
    cells = declared(params, table)
    stored = [data for data in dict.fromkeys(cell.data for cell in cells) if data in known["stored"]]
    weights = any(known["cells"][stage(params.budget, cell)]["reads"].endswith(".weights.npz") for cell in cells)
    return [*(f"store@{data}" for data in stored), *(["classifier"] if weights else [])]


def export_names(params: Params, table: int) -> list[str]:
    """The stages that export and time the networks of the table's cells; none for most tables."""
    return [f"export@{stage(params.budget, cell)}" for cell in declared(params, table)] if table in EXPORTED else []


def demo(jobs: int) -> None:
    """The same stages, on the embedded digits, in a workspace of their own: `outputs/demo`."""
    root = CONF.parent
    work = root / "outputs" / "demo"
    shutil.rmtree(work, ignore_errors=True)
    workspace(work, root, (CONF / "demo.yaml").read_text(encoding="utf-8"))
    os.chdir(work)
    os.environ["PYTHONPATH"] = str(work / "src")  # stages run the code beside them
    sys.path.insert(0, os.environ["PYTHONPATH"])
    bring_up_to_date(1, jobs, fresh=False)
    print(f"table and pictures: {work.relative_to(root)}/reports")


def workspace(work: Path, root: Path, params: str) -> None:
    """A DVC workspace in the folder `work`: the project's stages, code and conf, and its own `params.yaml`."""
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "dvc.yaml", work)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("conf", "src"):  # copies, because DVC does not follow links out of its folder
        shutil.copytree(root / name, work / name, ignore=ignore, dirs_exist_ok=True)
    (work / "params.yaml").write_text(params, encoding="utf-8")
    subprocess.run([*DVC, "init", "--no-scm", "--quiet", "--force"], cwd=work, check=True)
    environment = os.environ | {"PYTHONPATH": str(work / "src")}
    subprocess.run([sys.executable, "-m", "stn.cells"], cwd=work, check=True, env=environment)


def _dvc(*arguments: str) -> None:
    if subprocess.run([sys.executable, "-m", "stn.stages", *arguments]).returncode:
        raise UserError(f"dvc {' '.join(arguments[:3])} ... failed, see above; the same command resumes")


def _seconds_and_dates(path: Path) -> list | None:
    try:
        return [(seed["seconds"], seed["provenance"]["date"]) for seed in json.loads(path.read_bytes())["seeds"]]
    except (OSError, ValueError, KeyError):
        return None


def _longest_first(before: dict[str, list | None]):
    """A sorting key for the stages that train: what took long, by its last record, first; before all, what has none.

    So no core idles at the end.
    """
    took = {name: sum(seconds for seconds, _ in runs) for name, runs in before.items() if runs}
    return lambda name: -took.get(name, float("inf"))


def _places(path: Path) -> set[str]:
    about = [seed["provenance"] for seed in json.loads(path.read_text(encoding="utf-8"))["seeds"]]
    return {place["gpu"] or f"{place['cpu']} ({place['cores']} cores)" for place in about}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stn.pipeline", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("table", "demo"), default="table")
    parser.add_argument("--table", default="1")
    parser.add_argument("--budget")
    parser.add_argument("--seeds")
    parser.add_argument("--columns")
    parser.add_argument("--numbers")
    parser.add_argument("--birds")
    parser.add_argument("--jobs")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--oracle", action="store_true")
    args = parser.parse_args()
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"  # python and dvc of this venv
    with guard():
        trainer = os.environ.get("STN_TRAINER", "cpu")
        known = sorted(path.stem for path in (CONF / "trainer").glob("*.yaml"))
        if trainer not in known:
            raise UserError(f"TRAINER={trainer}: no {trainer!r} in conf/trainer; there are {', '.join(known)}")
        on_gpu = trainer in ("gpu", "ddp")  # its memory decides, which we do not know
        usual = 1 if on_gpu else cores()
        jobs = usual if args.jobs is None else args.jobs
        if not str(jobs).isdigit() or int(jobs) < 1:
            raise UserError(f"JOBS={jobs} is no number of cells to train side by side, such as 2")
        if args.table not in map(str, TABLES):
            raise UserError(f"TABLE={args.table}: there is {', '.join(map(str, TABLES))}")
        if args.oracle and args.table != "1":
            raise UserError(f"ORACLE=1 TABLE={args.table}: the true pose is for Table 1 alone")
        if on_gpu and int(jobs) > 1 and not gpu_is_shared():
            print("no MPS here, so cells take turns on the GPU: start it with `nvidia-cuda-mps-control -d`")
        if args.what == "demo":
            return demo(int(jobs))
        knobs = {knob: value for knob in KNOBS if (value := getattr(args, knob)) is not None}
        for line in write_params(**knobs):
            print(line)
        bring_up_to_date(int(args.table), int(jobs), args.fresh, args.oracle)


if __name__ == "__main__":
    main()
