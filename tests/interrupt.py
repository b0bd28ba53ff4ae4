"""Kill `make table` again and again, at random moments and where it hurts, and see that nothing is lost or left behind.

python tests/interrupt.py --table 1 --kills 20        # on made data: no download, no mirror
python tests/interrupt.py --table 4 --real            # on what STN_DATA_MIRROR holds

In a copy of the project the pipeline runs once to its end. In other copies it is killed, and run again until it is
done: with SIGKILL, SIGINT or SIGTERM to all its processes, or SIGKILL to the first alone; after a random time, while
stages are entered in `dvc.lock`, while files are written, or just before they are moved into place. After each kill no
file may be cut short, and no process be left. At the end all records (but for dates and seconds), stored sets, tables,
pages and figures must be those of the undisturbed run, and `dvc status` clean. Exits with 1 if anything differs.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
COPIED = ("conf", "src", "docs", "reports", "dvc.yaml", "dvc.lock", "cells.json", "params.yaml", "README.md")
COPIED += (".dvcignore", ".dvc/config")
VOLATILE = {"seconds", "date", "latency"}  # of records: what no two runs have alike
LEFT = re.compile(r"\.part\b|\.tmp$|(^|/)tmp\w*$")  # names of what is to be moved or removed
ALIKE = ("reports/results/", "reports/figures/")  # two runs may write other bytes there
SCRATCH = ("outputs/", ".dvc/tmp/", ".dvc/cache/")  # what a run may leave there is looked at apart
MISSES = 5  # how often a way may come too late before it is given up
PATIENCE = 60  # seconds for a process that is asked to end

# Where to kill: a regular expression of events, see tests/interrupts, and the longest delay in seconds.
PLACES = {
    "entering": (r"^open dvc\.lock", 1.0),
    "lock_move": (r"^rename dvc\.lock$", 0.0),
    "rwlock": (r"^open \.dvc/tmp/rwlock$", 0.001),
    "params": (r"^(open|rename) params\.yaml", 0.0005),
    "report": (r"^(open|rename) (README|docs/|reports/\.?(table|figures))", 0.001),
    "record": (r"^(open|rename) reports/results", 0.002),
    "checkpoint": (r"^(open|rename) outputs/runs", 0.002),
    "data": (r"^(open|rename|remove|rmdir) data/", 0.005),
    "cache": (r"^(open|rename|remove) \.dvc/cache", 0.005),
}
WAYS = ("random", "random", "leader", "SIGINT", "SIGTERM", *PLACES)
LOCKS: dict[str, dict] = {}  # by their text: they are long


class Fault(Exception):
    """What must not be."""


@dataclass
class Project:
    """A copy of the project in a folder of its own, in which one table is brought up to date."""

    folder: Path
    table: int
    arguments: list[str]
    mirror: Path | None
    starts: int = 0
    kills: Counter = field(default_factory=Counter)

    def start(self, **spec) -> subprocess.Popen:
        """The pipeline in a session of its own. `spec` says at which write it is killed, if at any."""
        self.starts += 1
        about, log = self.beside("interrupt.json"), self.beside("events")
        for path in (log, log.with_name(f"{log.name}.hits")):
            path.unlink(missing_ok=True)
        about.write_text(json.dumps({"root": str(self.folder), "log": str(log), **spec}))
        command = [sys.executable, "-m", "stn.pipeline", "table", "--table", str(self.table), *self.arguments]
        self.output = self.beside("output").open("w+")
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment() | {"INTERRUPT": str(about)},
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
        )

    def environment(self) -> dict[str, str]:
        path = [str(ROOT / "tests/interrupts"), str(self.folder / "src")]
        temporary = self.beside("tmp")
        temporary.mkdir(exist_ok=True)
        made = {"STN_DATA_MIRROR": str(self.mirror)} if self.mirror else {}
        return {
            **os.environ,
            **made,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(path),
            "WANDB_MODE": "offline",
            "TMPDIR": str(temporary),
        }

    def beside(self, name: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{name}")

    def said(self) -> str:
        """The last lines of the last run."""
        return "\n".join(self.beside("output").read_text(errors="replace").splitlines()[-15:])

    def run(self, module: str, *arguments: str) -> str:
        """What a module prints that leaves things alone; a Fault if it fails."""
        command = [sys.executable, "-m", module, *arguments]
        environment = self.environment() | {"PYTHONPATH": str(self.folder / "src")}
        result = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise Fault(f"{module} {' '.join(arguments)}: {result.stdout}{result.stderr}")
        return result.stdout

    def finish(self) -> float:
        """Run to the end. Returns the seconds that it took."""
        began = time.monotonic()
        status = self.start().wait()
        if status:
            raise Fault(f"a run that nobody disturbed ended with {status}:\n{self.said()}")
        return time.monotonic() - began

    def events(self) -> list[str]:
        log = self.beside("events")
        return log.read_text(errors="replace").splitlines() if log.exists() else []

    def files(self) -> dict[str, Path]:
        paths = {path.relative_to(self.folder).as_posix(): path for path in sorted(self.folder.rglob("*"))}
        return {name: path for name, path in paths.items() if "__pycache__" not in name and not path.is_dir()}

    def lock(self) -> dict[str, dict]:
        """The stages in `dvc.lock`."""
        text = (self.folder / "dvc.lock").read_text()
        if text not in LOCKS:
            try:
                stages = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
                whole = all("cmd" in stage and "outs" in stage for stage in stages.values())
            except (yaml.YAMLError, KeyError, TypeError):
                whole = False
            if not whole or not text.endswith("\n"):
                raise Fault(f"dvc.lock is cut short: it ends with {text[-80:]!r}")
            LOCKS[text] = stages
        return LOCKS[text]

    def tables(self) -> dict[str, str]:
        """What the table's stage writes at once, by file: its own files, README.md and the pages of docs/."""
        paths = [*(self.folder / "reports").glob(f"table{self.table}[.-]*"), self.folder / "README.md"]
        paths += (self.folder / "docs").rglob("*.md")
        names = {path.relative_to(self.folder).as_posix(): path for path in sorted(paths)}
        return {name: path.read_text(encoding="utf-8") for name, path in names.items() if not LEFT.search(name)}

    def records(self) -> dict[str, Path]:
        folder = self.folder / "reports/results"
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------- data


def make_small(project: Path, mirror: Path) -> None:
    """Archives of MNIST and CUB-200-2011 that are small, which the copy of the project takes for the official ones."""
    from cub_archive import pack, write_cub
    from stn.config import compose
    from stn.data.download import export_embedded
    from stn.experiments.mnist.data import undistorted

    raw = mirror / "embedded"
    export_embedded(raw)
    digits = undistorted(compose("data=digits_r", "model=cnn", f"data.raw={raw}", "data.validation=1").data)
    (mirror / "mnist").mkdir()
    checksums = []
    for prefix, split in (("train", "train"), ("t10k", "test")):
        images, labels = digits[split].images, digits[split].labels
        for kind, code, values in (("images-idx3", 0x803, images), ("labels-idx1", 0x801, labels)):
            array = values.numpy().astype(np.uint8)
            header = b"".join(number.to_bytes(4, "big") for number in (code, *array.shape))
            path = mirror / "mnist" / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes(), 1))
            checksums.append((path.name, checksum(path)))
    archive = pack(write_cub(mirror / "birds"), mirror / "cub/CUB_200_2011.tgz")
    official = f'CUB_MD5, CUB_BYTES = "{checksum(archive)}", {archive.stat().st_size}'
    download = project / "src/stn/data/download.py"
    edit(download, r"(    from torchvision.datasets import MNIST[^\n]*\n)", rf"\1    MNIST.resources = {checksums!r}\n")
    edit(project / "src/stn/experiments/cub/data.py", r"(?m)^CUB_MD5, CUB_BYTES = .*$", official)
    for name in ("mnist", "colocalisation_t", "volumes_60"):
        edit(project / f"conf/data/{name}.yaml", r"(?m)^validation: 5000", "validation: 200")
    for folder in (project / "reports/results").glob("*/*"):  # they are of the whole sets
        if folder.name != "classifier":
            shutil.rmtree(folder)
    edit(project / "conf/data/colocalisation_t.yaml", r"(?m)^images: 100", "images: 20")
    for name in ("cub50_224", "cub50_448"):
        edit(project / f"conf/data/{name}.yaml", r"(?m)^classes: 50", "classes: 4")


def checksum(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def edit(path: Path, pattern: str, text: str) -> None:
    content, count = re.subn(pattern, text, path.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(f"{path}: {pattern} is there {count} times, where one was to be edited")
    path.write_text(content, encoding="utf-8")


def copy_project(folder: Path, rows: str) -> None:
    """The project as it stands here, in a DVC workspace of its own; of Table 1 it trains these rows."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.part"))
        elif source.exists():
            shutil.copy(source, target)
    edit(folder / "params.yaml", r"(?m)^rows: \[.*\]", f"rows: [{rows.replace(',', ', ')}]")
    init = [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet", "--force"]
    subprocess.run(init, cwd=folder, check=True)
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    edit(folder / ".dvc/config", r"\[core\]\n", "[core]\n    no_scm = true\n")


# ------------------------------------------------------------------------------------------------- kills


def kill_once(project: Project, way: str, seconds: float, counts: dict[str, int], draws: random.Random) -> bool:
    """Start the pipeline and kill it in this way. Returns whether that came before the run's end."""
    if way in PLACES:
        pattern, longest = PLACES[way]
        delay = draws.uniform(0, longest) if draws.random() < 0.7 else 0.0
        nth = draws.randint(1, max(1, counts[way]))
        process = project.start(at=pattern, nth=nth, delay=delay, signal=signal.SIGKILL)
        process.wait()
    else:
        process = project.start()
        try:
            process.wait(draws.uniform(0.2, 0.8 * seconds / project.starts**0.5))  # more of it is done each time
        except subprocess.TimeoutExpired:
            number = getattr(signal, way, signal.SIGKILL)
            (os.kill if way == "leader" else os.killpg)(process.pid, number)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise Fault(f"{way}: the pipeline went on for {PATIENCE} seconds:\n{project.said()}") from None
    left = await_end(project)
    if left:
        raise Fault(f"{way}: these went on when the pipeline had ended: {', '.join(left)}")
    if process.returncode == 0:
        return False
    if process.returncode > 0 and way not in ("SIGINT", "SIGTERM"):
        raise Fault(f"{way}: the pipeline ended by itself with {process.returncode}:\n{project.said()}")
    if "Traceback" in project.said():
        raise Fault(f"{way}: {project.said()}")
    project.kills[way] += 1
    return True


def await_end(project: Project) -> list[str]:
    """The processes of the run that outlive it; they are killed."""
    deadline = time.monotonic() + PATIENCE  # what is still loading ends when it has loaded
    while (left := list(processes(project))) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        process.kill()
    return [" ".join(process.info["cmdline"] or [process.info["name"]])[:120] for process in left]


def processes(project: Project) -> Iterator[psutil.Process]:
    """All of a run, but the service of wandb, which sees by itself that it is no longer needed."""
    mark = str(project.beside("interrupt.json"))
    for process in psutil.process_iter(["name", "cmdline", "environ", "status"]):
        about = process.info
        others = about["status"] == psutil.STATUS_ZOMBIE or about["name"].startswith(("wandb", "gpu_stats"))
        if (about["environ"] or {}).get("INTERRUPT") == mark and not others:
            yield process


# ------------------------------------------------------------------------------------------------- what must be


def check_state(project: Project, before: Project, whole: Project, way: str = "", earlier: bool = False) -> list[str]:
    """After a kill: raises a Fault if a file is cut short, or if the table's files are of several runs.

    One way leads there: SIGKILL while these files are moved in. Then those that were not yet moved must wait, whole,
    beside their places; those that were are returned. `earlier`: an earlier kill left them so.
    """
    params = (project.folder / "params.yaml").read_text()
    if params not in [(other.folder / "params.yaml").read_text() for other in (before, whole)]:
        raise Fault(f"params.yaml is cut short: {params[-80:]!r}")
    stages, first, last = (other.lock() for other in (project, before, whole))
    lost = [name for name in first if name not in stages]
    changed = [name for name, stage in stages.items() if first.get(name) == last.get(name) != stage]
    if lost or changed:
        raise Fault(f"dvc.lock lost {lost[:3]}, and these are neither as before nor as after: {changed[:3]}")
    check_files(project, before, whole)
    old, now, new = (other.tables() for other in (before, project, whole))
    for name, text in now.items():
        if not is_one_of(text, [texts[name] for texts in (old, new) if name in texts]):
            raise Fault(f"{name} is neither that of before nor that of after:\n{text[-300:]}")
    rewritten = {name for name, text in new.items() if text != old.get(name)}
    moved = sorted(name for name in rewritten if name in now and now[name] != old.get(name))
    if len(moved) == len(rewritten) or not moved:
        return []
    for name in rewritten.difference(moved):
        part = project.folder / f"{name}.part"
        waits = part.is_file() and is_one_of(part.read_text(encoding="utf-8"), [new[name]])
        if not earlier and (way in ("SIGINT", "SIGTERM") or not waits):
            raise Fault(f"{way}: {name} is of another run than {', '.join(moved)}")
    return moved


def check_files(project: Project, before: Project, whole: Project) -> None:
    """Raises a Fault unless each file, the table's apart, is as before or as after, but for what no two runs share."""
    known = [other.files() for other in (before, whole)]
    apart = {"dvc.lock", "params.yaml", *project.tables()}
    for name, path in project.files().items():
        if name in apart or LEFT.search(name) or (name.startswith(SCRATCH) and not name.startswith("outputs/runs")):
            continue
        content = path.read_bytes()
        if any(name in files and files[name].read_bytes() == content for files in known):
            continue
        others = [files[name] for files in known if name in files]
        if not name.startswith("outputs/runs") and not (others and name.startswith(ALIKE)):
            raise Fault(f"{name} is neither that of before nor that of after")
        try:
            value = load(path)
        except Exception as error:
            raise Fault(f"{name} is cut short: {error!r}") from error
        if name.startswith("reports/results") and path.suffix == ".json" and value not in map(load, others):
            raise Fault(f"{name} is neither as before nor as after")
    check_cache(project)


def load(path: Path):
    """Read all of a file that no two runs have alike; an exception if it is cut short. Returns what JSON says."""
    if path.suffix == ".json":
        return steady(json.loads(path.read_bytes()))
    elif path.suffix in (".npz", ".ckpt"):
        with zipfile.ZipFile(path) as members:
            if broken := members.testzip():
                raise ValueError(broken)
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".yaml":
        yaml.safe_load(path.read_text(encoding="utf-8"))
    else:
        raise ValueError(f"{path.suffix}: of a kind that is not known here")
    return None


def is_one_of(text: str, others: list[str]) -> bool:
    """Whether a text is one of the others, but for its numbers."""
    return text.endswith("\n") and shape(text) in map(shape, others)


def shape(text: str) -> str:
    """A text without its numbers, and as if all columns were as wide."""
    return re.sub(r"[\s-]+", " ", re.sub(r"\d[\d.,]*( seconds| minutes| hours)?", "0", text))


def check_end(project: Project, whole: Project, stages: list[str]) -> int:
    """At the end: raises a Fault unless all is as in the undisturbed run. Returns how many files were compared."""
    check_names(project, whole)
    for name, path in whole.files().items():
        ours = project.folder / name
        if name.startswith(SCRATCH) or name == "dvc.lock" or name in whole.tables():
            continue
        if name.startswith("reports/results") and name.endswith(".json"):
            theirs, text = json.loads(path.read_bytes()), json.loads(ours.read_bytes())
            if steady(theirs) != steady(text):
                raise Fault(f"{name}: {first_difference(steady(theirs), steady(text))}")
        elif name.endswith(".npz"):
            with np.load(path) as theirs, np.load(ours) as arrays:
                keys = {*theirs.files, *arrays.files}
                held = set(theirs.files) & set(arrays.files)
                differing = keys - {key for key in held if same(theirs[key], arrays[key])}
                if differing:
                    raise Fault(f"{name}: other arrays {sorted(differing)}")
        elif name.startswith("reports/figures/table8"):  # it shows times
            continue
        elif path.read_bytes() != ours.read_bytes():
            raise Fault(f"{name} is another than in the undisturbed run")
    check_tables(project, whole)
    project.run("stn.table", "--check", "--table", str(project.table))
    status = json.loads(project.run("dvc", "status", "--json", *stages) or "{}")
    if status:
        raise Fault(f"dvc status is not clean: {status}")
    if set(project.lock()) != set(whole.lock()):
        raise Fault(f"dvc.lock has other stages: {set(project.lock()) ^ set(whole.lock())}")
    check_cache(project)
    return len(whole.files())


def check_names(project: Project, whole: Project) -> None:
    """No file is missing, none too many, and none waits to be moved."""
    ours, theirs = project.files(), whole.files()
    apart = {name for name in ours.keys() ^ theirs.keys() if not name.startswith(SCRATCH)}
    waiting = {name for name in ours if LEFT.search(name) and not name.startswith("outputs/wandb")} - theirs.keys()
    if apart or waiting:
        raise Fault(f"left behind or missing: {sorted(apart | waiting)}")
    rwlock = project.folder / ".dvc/tmp/rwlock"
    if rwlock.exists() and any(json.loads(rwlock.read_text() or "{}").values()):
        raise Fault(f".dvc/tmp/rwlock holds {rwlock.read_text()}")


def check_tables(project: Project, whole: Project) -> None:
    """With the undisturbed run's dates and seconds in the records, `stn.table` must write its tables, byte for byte."""
    copy = project.folder.with_name(f"{project.folder.name}.tables")
    shutil.rmtree(copy, ignore_errors=True)
    for name in ("conf", "src", "docs", "reports"):
        if (project.folder / name).exists():
            shutil.copytree(project.folder / name, copy / name)
    for name in ("README.md", "params.yaml", "dvc.yaml"):
        shutil.copy(project.folder / name, copy)
    again = Project(copy, project.table, project.arguments, project.mirror)
    for name, path in again.records().items():
        if path.suffix == ".json":
            theirs = json.loads((whole.folder / "reports/results" / name).read_bytes())
            path.write_text(json.dumps(filled(json.loads(path.read_bytes()), theirs), indent=1) + "\n")
    again.run("stn.table", "--table", str(project.table))
    ours, theirs = again.tables(), whole.tables()
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise Fault(f"{name} does not say what the undisturbed run's says")
    shutil.rmtree(copy)


def check_cache(project: Project) -> None:
    """What DVC stored is what its name says."""
    for path in (project.folder / ".dvc/cache/files/md5").rglob("*"):
        stored = path.is_file() and not LEFT.search(path.name)  # else DVC tried there how to link, or is yet to move it
        if stored and checksum(path) != path.parent.name + path.name.removesuffix(".dir"):
            raise Fault(f"{path.relative_to(project.folder)} is not what DVC stored there")


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def steady(value):
    """A record without what no two runs have alike."""
    if isinstance(value, dict):
        return {key: steady(part) for key, part in value.items() if key not in VOLATILE}
    return [steady(part) for part in value] if isinstance(value, list) else value


def filled(value, other):
    """A record with what no two runs have alike taken from `other`."""
    if isinstance(value, dict):
        return {key: other[key] if key in VOLATILE else filled(part, other[key]) for key, part in value.items()}
    if isinstance(value, list):
        return [filled(part, theirs) for part, theirs in zip(value, other, strict=True)]
    return value


def first_difference(one, other, place: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next(first_difference(one[key], other[key], f"{place}.{key}") for key in one if one[key] != other[key])
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next(first_difference(a, b, f"{place}[{i}]") for i, (a, b) in pairs if a != b)
    return f"{place} is {other!r}, undisturbed {one!r}"


# ------------------------------------------------------------------------------------------------- the whole


def interrupt(
    table: int,
    arguments: list[str],
    work: Path,
    kills: int,
    seed: int = 0,
    real: bool = False,
    rows: str = "cnn,st_cnn_affine",
    ways: tuple[str, ...] = WAYS,
) -> dict:
    """Kill a table's pipeline so many times. Returns the counts; a Fault if anything is not as it must be."""
    draws, began = random.Random(seed), time.monotonic()
    before = Project(work / "before", table, arguments, None)
    copy_project(before.folder, rows)
    mirror = None
    if not real:
        mirror = work / "mirror"
        mirror.mkdir()
        make_small(before.folder, mirror)

    def fresh(name: str) -> Project:
        shutil.rmtree(work / name, ignore_errors=True)
        shutil.copytree(before.folder, work / name)
        return Project(work / name, table, arguments, mirror)

    whole = fresh("whole")
    seconds = whole.finish()
    counts = {way: sum(bool(re.search(at, event)) for event in whole.events()) for way, (at, _) in PLACES.items()}
    old, new = before.lock(), whole.lock()
    stages = [name for name in new if new[name] != old.get(name)]
    status = json.loads(whole.run("dvc", "status", "--json", *stages) or "{}")
    if status:
        raise Fault(f"dvc status is not clean after an undisturbed run: {status}")
    print(f"undisturbed: {seconds:.0f} s, {len(stages)} stages, writes {counts}", flush=True)
    todo = [ways[i % len(ways)] for i in range(kills)]
    draws.shuffle(todo)
    killed, laps, between, compared, missed = Counter(), 0, 0, 0, Counter()
    while todo:
        laps += 1
        project, moved = fresh("killed"), []
        while todo:
            way = todo.pop()
            if way in PLACES and not counts[way]:
                missed[way] += 1
                continue
            if not kill_once(project, way, seconds, counts, draws):
                missed[way] += 1  # it came too late: once more from the start
                if missed[way] <= MISSES:
                    todo.append(way)
                break
            earlier, moved = moved, check_state(project, before, whole, way, bool(moved))
            between += bool(moved) and not earlier
            print(f"lap {laps}: {way}{f', between two moves: {moved}' if moved else ''}", flush=True)
        project.finish()
        compared += check_end(project, whole, stages)
        killed += project.kills
        print(f"lap {laps}: all as in the undisturbed run after {sum(project.kills.values())} kills", flush=True)
    return {
        "table": table,
        "kills": sum(killed.values()),
        "ways": dict(killed),
        "missed": dict(missed),
        "laps": laps,
        "between two moves": between,
        "files compared": compared,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, default=1)
    parser.add_argument("--kills", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--ways", default=",".join(WAYS), help="of " + ", ".join(dict.fromkeys(WAYS)))
    parser.add_argument("--rows", default="cnn,st_cnn_affine", help="of Table 1")
    parser.add_argument("--real", action="store_true", help="the data of STN_DATA_MIRROR or the official hosts")
    parser.add_argument("--keep", action="store_true", help="leave the copies where they are")
    args, more = parser.parse_known_args()
    more = more or ["--budget", "smoke"]
    if args.table == 1 and "--columns" not in more:
        more += ["--columns", "mnist_r"]
    if args.table == 3 and not args.real:
        more += ["--birds", "cub50"]
    work = Path(tempfile.mkdtemp(prefix="interrupt-", dir=ROOT / "outputs" if (ROOT / "outputs").is_dir() else None))
    try:
        ways = tuple(args.ways.split(","))
        print(json.dumps(interrupt(args.table, more, work, args.kills, args.seed, args.real, args.rows, ways)))
    except Fault as fault:
        print(f"fault: {fault}", file=sys.stderr)
        sys.exit(1)
    finally:
        if args.keep:
            print(work)
        else:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
