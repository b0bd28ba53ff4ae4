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
from itertools import chain
from pathlib import Path

from stn.config import CONF
from stn.environment import cores
from stn.errors import UserError, told
from stn.params import KNOBS, TABLES, Params, ceiling, declared, read_params, write_params
from stn.stages import Stages, gpu_is_shared

# The stages of `dvc.yaml` that make what a table's cells need, and last the one that trains them. `kind` is what a
# data set's name ends with: which distortion, or the side of the images.
STAGES = {
    1: ("distort@{data}", "cell@{data}-{model}-{budget}"),
    2: ("crop", "cell2@{data}-{model}-{budget}"),
    3: ("crop_birds", "cell3_{kind}@{data}-{model}-{budget}"),
    4: ("distort4@{data}", "cell4@{data}-{model}-{budget}"),
    5: ("distort_colocalisation@{data}", "classifier", "cell5@{data}-{model}-{budget}"),
    6: ("distort_volumes", "cell6_{kind}@{data}-{model}-{budget}"),
    7: ("distort@mnist_{kind}", "cell7@{kind}-{model}-{budget}"),
    8: ("distort@mnist_{kind}", "cell8@{kind}-{model}-{budget}"),
}
DVC = (sys.executable, "-m", "dvc")  # that of this Python, whatever `dvc` is on the path
EXPORTS = {8: "export8@{kind}-{model}-{budget}"}  # of the tables whose networks are exported
CEILING = ("distort@mnist_{kind}", "ceiling@{kind}-{model}-{budget}")


def bring_up_to_date(table: int, jobs: int, fresh: bool, oracle: bool = False) -> None:
    """Fetch, distort or crop, train what is stale, `jobs` cells at a time, and write the table and its figures.

    With `oracle` the cells that are told the true pose belong to Table 1 too.
    """
    params = read_params()
    required = declared(params, table)
    stages = {cell: _stages(STAGES[table], cell, params) for cell in required}
    if oracle:
        required = required | ceiling(params)
        stages |= {cell: _stages(CEILING, cell, params) for cell in ceiling(params)}
    names = [train for *_, train in stages.values()]
    before = {cell: _seconds_and_dates(path) for cell, path in required.items()}
    if fresh:
        for path in required.values():
            path.unlink(missing_ok=True)
            path.with_suffix(".npz").unlink(missing_ok=True)
            path.with_name(f"{path.stem}-export.json").unlink(missing_ok=True)
            shutil.rmtree(Path("outputs/runs") / params.budget / path.stem, ignore_errors=True)
    started = time.monotonic()
    side_by_side = Stages(jobs)
    _dvc("repro", "-q", *dict.fromkeys(chain.from_iterable(makers for *makers, _ in stages.values())))
    took = {stages[cell][-1]: runs for cell, runs in before.items()}
    side_by_side.repro(sorted(names, key=_longest_first(took)))
    trained = [cell for cell, path in required.items() if _seconds_and_dates(path) != before[cell]]
    exports = export_names(params, table)
    if exports:  # one after the other, since each is timed
        _dvc("repro", "-q", "--single-item", "--no-run-cache", *exports)
    side_by_side.repro([f"table{table}", f"figures{table}"], force=True)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(trained)} of {len(required)} cells trained here in {minutes:.1f} min", end="")
    if len(trained) < len(required):
        where = sorted({place for cell, path in required.items() if cell not in trained for place in _places(path)})
        print(f"; {len(required) - len(trained)} reused, trained on {' and '.join(where)}", end="")
        print(" (`make table FRESH=1` trains them here)", end="")
    print()
    if params.budget == "smoke":
        print(f"budget smoke: its numbers mean nothing; {_way_back()}")


def _way_back() -> str:
    if Path(".git").exists():
        return "`git checkout params.yaml dvc.lock reports` takes them back"
    return "unpack params.yaml, dvc.lock and reports again to take them back"


def stage_names(params: Params, table: int) -> list[str]:
    """The stages of `dvc.yaml` that make the stored sets of the table's cells and train them."""
    found = [_stages(STAGES[table], cell, params) for cell in declared(params, table)]
    if table == 1 and params.source == "mnist":
        found += [_stages(CEILING, cell, params) for cell in ceiling(params)]
    return list(dict.fromkeys(chain.from_iterable(found)))


def export_names(params: Params, table: int) -> list[str]:
    """The stages that export and time the networks of the table's cells; none for most tables."""
    templates = (EXPORTS[table],) if table in EXPORTS else ()
    return [name for cell in declared(params, table) for name in _stages(templates, cell, params)]


def _stages(templates: tuple[str, ...], cell: tuple[str, str], params: Params) -> tuple[str, ...]:
    """The stages of a cell: such as those that make what it needs, and the one that trains it."""
    data, model = cell
    names = {"data": data, "kind": data.rpartition("_")[2], "model": model, "budget": params.budget}
    return tuple(template.format(**names) for template in templates)


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
    with told():
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
