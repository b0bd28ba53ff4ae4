"""Let records adopt the code that is checked out, once a commit has left numbers alone: `python -m benchmarks.adopt`.

A record that the present code did not train names code that it was shown to agree with: the commit that trained it, or
the last that it adopted. The reference curves of its experiment are computed with that commit's sources and configs,
and with those that are checked out, on this machine and at the precision at which the record was trained. Where each
loss agrees as far as rounding lets it (`tests/reference.py`), the record gets an entry in `adopted`. Where one does
not, or the older code cannot compute them, it gets none, its table's caption says so, and this command says why.

The curves are of a CPU. What a GPU alone runs is compared as code: a record that was trained on one adopts nothing
while that differs.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path

from stn import codebase
from stn.codebase import digest_of, is_shown, training_digest
from stn.errors import UserError
from stn.front_door import guard
from stn.messages import Parser
from stn.params import TABLES
from stn.schema import deliberate

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "reports/results"
REFERENCE = ROOT / "tests/reference.py"
GPU_ALONE = ("stn.nn.localisation:Layers", "stn.training.blocks:BlockLearner")


def git(*arguments: str) -> bytes:
    """The output of git; UserError if it fails."""
    answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    if answer.returncode:
        raise UserError(f"git {' '.join(arguments)}: {answer.stderr.decode().strip()}")
    return answer.stdout


@cache
def reader(commit: str) -> codebase.Reader:
    """A `Reader` of the modules of a commit."""
    blobs = {}
    for line in git("ls-tree", "-r", commit, "--", "src").decode().splitlines():
        facts, path = line.split("\t")
        blobs[path] = facts.split()[2]

    @cache
    def read(name: str) -> tuple[str, bool] | None:
        stem = f"src/{name.replace('.', '/')}"
        for path, is_package in ((f"{stem}.py", False), (f"{stem}/__init__.py", True)):
            if path in blobs:
                return git("cat-file", "blob", blobs[path]).decode(), is_package
        return None

    return read


def read_records() -> dict[Path, dict]:
    """The records of all cells."""
    contents = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*/*/*.json"))}
    return {path: record for path, record in contents.items() if "seeds" in record}


def origins(record: dict) -> list[str]:
    """The commits of which one gives the numbers of a record; empty if none is known."""
    if record.get("adopted"):
        return [record["adopted"][-1]["commit"]]
    code = record.get("code", {})
    return [code["commit"]] if code.get("commit") else code.get("between", [])


def precision(record: dict) -> str:
    """The precision at which a record was trained, by its name in budgets."""
    return "bf16" if record["seeds"][0]["provenance"]["precision"].startswith("bf16") else "float32"


class Curves:
    """Reference curves of an experiment (`data.kind`) by commit and precision, each computed once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.reference = json.loads((ROOT / "tests/reference_curves.json").read_text(encoding="utf-8"))["curves"]

    def of(self, kind: str, precision: str, commit: str | None) -> dict:
        """The curves of a commit; None means the code that is checked out."""
        file = self._file(kind, precision, commit)
        if not file.exists():
            base = self._file(kind, precision, None)
            command = [sys.executable, str(REFERENCE), "--out", str(file), "--only", *self.names(kind)]
            command += ["--set", f"budget.precision={precision}", *(["--like", str(base)] if commit else [])]
            source = self._unpacked(commit) if commit else ROOT
            environment = {**os.environ, "PYTHONPATH": str(source / "src"), "STN_TRAINER": "cpu"}
            print(f"curves of {kind}, {precision}, {commit or 'as checked out'} ...", flush=True)
            subprocess.run(command, check=True, env=environment, cwd=self.folder, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text(encoding="utf-8"))["curves"]

    def _file(self, kind: str, precision: str, commit: str | None) -> Path:
        try:
            code = training_digest(kind, read=reader(commit) if commit else None)
        except ValueError as error:
            raise UserError(f"{(commit or '')[:7]} has its code in other modules: {error}") from error
        return self.folder / f"{kind}-{precision}-{code}-{'then' if commit else 'now'}.json"

    def names(self, kind: str, model: str | None = None) -> list[str]:
        """The curves of an experiment, or those of one of its models."""
        configs = {name: curve["config"] for name, curve in self.reference.items()}
        return [
            name
            for name, config in configs.items()
            if config["data"]["kind"] == kind and model in (None, config["model"]["name"])
        ]

    def _unpacked(self, commit: str) -> Path:
        place = self.folder / commit
        if not place.exists():
            with tarfile.open(fileobj=BytesIO(git("archive", commit, "src", "conf"))) as archive:
                archive.extractall(place, filter="data")
        return place


def compared(curves: Curves, kind: str, precision: str, commit: str) -> tuple[dict[str, float], list[str]]:
    """The largest relative difference between a commit's curves and the present ones, by curve, and what disagrees.

    Curves of features that the commit does not have are left out.
    """
    sys.path.insert(0, str(REFERENCE.parent))
    from reference import differences, leaves, tolerances

    def is_there(name: str) -> bool:
        """Whether that commit has every key that the curve sets to other than its default."""
        return (
            "error" not in past[name]
            and leaves(deliberate(current[name]["config"])).keys() <= leaves(past[name]["config"]).keys()
        )

    current, past = curves.of(kind, precision, None), curves.of(kind, precision, commit)
    largest, faults = {}, []
    for name in curves.names(kind):
        if "error" in current[name]:
            raise UserError(f"{name}: {current[name]['error']}")
        if is_there(name):
            gaps, allowed = differences(current[name], past[name]), tolerances(curves.reference[name])
            largest[name] = max(value for split in gaps.values() for value in split)
            if any(gap > limit for split in gaps for gap, limit in zip(gaps[split], allowed[split], strict=True)):
                faults.append(f"{name} differs by {largest[name]:.1e}")
    return largest, faults


def evidence(curves: Curves, record: dict, commits: list[str]) -> str:
    """The evidence on which a record adopts the present code; UserError if there is none, with the reason."""
    kind, dtype, present_code = record["config"]["data"]["kind"], precision(record), gpu_code(None)
    if not commits:
        raise UserError("no commit is known that has its numbers")
    if record["seeds"][0]["provenance"]["gpu"]:
        for commit in commits:
            if gpu_code(commit) != present_code:
                raise UserError(f"trained on a GPU, and what only a GPU runs is other code in {commit[:7]}")
    largest = {}
    for commit in commits:
        gaps, faults = compared(curves, kind, dtype, commit)
        if faults:
            raise UserError(f"reference curves of {commit[:7]} at {dtype}: {'; '.join(faults)}")
        model_curves = curves.names(kind, record["model"])
        if not gaps or (model_curves and not set(model_curves) & set(gaps)):
            raise UserError(f"{commit[:7]} cannot compute the reference curves of {record['model']}")
        largest |= {name: max(value, largest.get(name, 0)) for name, value in gaps.items()}
    worst = max(largest.values())
    agreement = "every loss equal" if worst == 0 else f"largest relative difference of a loss {worst:.1e}"
    between = " and ".join(commit[:7] for commit in commits)
    gpu = "; code that only a GPU runs is unchanged" if record["seeds"][0]["provenance"]["gpu"] else ""
    return f"{len(largest)} reference curves of {kind} at {dtype} on a CPU, against {between}: {agreement}{gpu}"


@cache
def gpu_code(commit: str | None) -> str:
    """The digest of the code that only a GPU runs, in a commit; None means the code that is checked out."""
    try:
        return digest_of(*GPU_ALONE, read=reader(commit) if commit else None)
    except ValueError:
        return "has none"


class Lock:
    """`dvc.lock`, and the files whose entries in it are updated when this command changes them."""

    def __init__(self):
        self.path = ROOT / "dvc.lock"
        self.text = self.path.read_text(encoding="utf-8")
        entry = r"- path: (reports/\S+)\n +hash: md5\n +md5: (\S+)\n +size: (\d+)\n"
        self.before = {match[0]: state for match in re.findall(entry, self.text) if (state := dvc_state(match[0]))}

    def follow(self, digests: Mapping[Path, str]) -> int:
        """Update the code digests of adopting records, and the hashes and sizes of files that agreed with the lock.

        `digests` are those of the adopted code, by record. Returns how many lines changed.
        """
        text = self.text
        for path, digest in digests.items():
            key = re.escape(f"cells.{path.parts[-3]}-{path.stem}.code")
            quoted = f"'{digest}'" if re.fullmatch(r"[0-9]+(e[0-9]+)?", digest) else digest  # YAML would read a number
            text = re.sub(rf"(?m)^( +{key}: )\S+$", rf"\g<1>{quoted}", text)
        for path, old in self.before.items():
            new = dvc_state(path)
            if new and new != old:
                pattern = rf"(- path: {re.escape(path)}\n +hash: md5\n +md5: ){old[0]}(\n +size: ){old[1]}\n"
                text = re.sub(pattern, rf"\g<1>{new[0]}\g<2>{new[1]}\n", text)
        changed = sum(a != b for a, b in zip(text.splitlines(), self.text.splitlines(), strict=True))
        self.path.write_text(text, encoding="utf-8")
        return changed


def dvc_state(name: str) -> tuple[str, int] | None:
    """The hash and the size of a file or folder, as DVC computes them; None if it is absent."""
    path = ROOT / name
    if path.is_file():
        return _md5(path), path.stat().st_size
    if not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    parts = sorted((file.relative_to(path).parts, _md5(file)) for file in files)
    listing = [{"md5": md5, "relpath": "/".join(relative)} for relative, md5 in parts]
    return f"{_hash(json.dumps(listing).encode())}.dir", sum(file.stat().st_size for file in files)


def _md5(path: Path) -> str:
    return _hash(path.read_bytes())


def _hash(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def adopt(folder: Path) -> None:
    """Let every record adopt the code that is checked out, if the curves allow it, and renew tables and lock.

    Curves are kept in `folder`.
    """
    head = codebase.commit()
    if head is None or "+" in head:
        raise UserError("src/ or conf/ differ from the commit that is checked out: commit first, records name commits")
    lock, groups = Lock(), defaultdict(list)
    for path, record in read_records().items():
        kind = record["config"]["data"]["kind"]
        if not is_shown(record, training_digest(kind)):
            gpu = bool(record["seeds"][0]["provenance"]["gpu"])
            groups[kind, record["model"], precision(record), gpu, tuple(origins(record))].append(path)
    adopted: dict[Path, str] = {}
    curves = Curves(folder)
    for (kind, model, *_, commits), paths in sorted(groups.items(), key=str):
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        try:
            reason = evidence(curves, records[0], list(commits))
        except UserError as error:
            print(f"not adopted, {len(paths)} of {kind}, {model}: {error}", flush=True)
            continue
        entry = {"commit": head, "digest": training_digest(kind), "evidence": reason}
        for path, record in zip(paths, records, strict=True):
            record.setdefault("adopted", []).append(entry)
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        adopted |= dict.fromkeys(paths, entry["digest"])
    for number in TABLES:
        if (ROOT / f"reports/table{number}.md").exists():
            command = [sys.executable, "-m", "stn.table", "--table", str(number)]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    print(f"{len(adopted)} records adopted {head}; {lock.follow(adopted)} lines of dvc.lock follow")


def main() -> None:
    parser = Parser(prog="python -m benchmarks.adopt", description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the curves there, for another try")
    keep = parser.parse_args().keep
    with guard(), tempfile.TemporaryDirectory() as folder:
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
        adopt(keep.resolve() if keep else Path(folder))


if __name__ == "__main__":
    main()
