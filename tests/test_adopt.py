"""How records adopt code, and how `dvc.lock` follows."""

import json
import re
import subprocess

import pytest

from benchmarks import adopt
from conftest import ROOT
from stn.codebase import fault, is_shown, training_digest
from stn.config import compose, experiment
from stn.errors import UserError

HERE, THERE = "1" * 40, "2" * 40


def record(**changes) -> dict:
    """A record of Table 1 that was trained by the code of a commit."""
    provenance = {"precision": "32-true", "gpu": None}
    code = {"digest": "0" * 16, "commit": THERE}
    return {
        "config": {"data": {"kind": "mnist"}},
        "model": "cnn",
        "seeds": [{"provenance": provenance}],
        "code": code,
        "adopted": [],
    } | changes


class Curves:
    """Curves that are what a test says: by commit, the validation loss of each; `younger` are settings of now alone."""

    def __init__(self, younger=(), **losses):
        self.now, self.then = experiment(compose(*younger)), experiment(compose())
        names = "mnist_r-cnn", "mnist_r-fcn"
        self.reference = {name: {"rounding": {"train": [0.0], "validation": [1e-7]}} for name in names}
        self.losses = losses

    def names(self, kind, model=None):
        return [name for name in self.reference if model is None or name.endswith(f"-{model}")]

    def of(self, kind, precision, commit):
        losses, config = self.losses["then" if commit else "now"], self.then if commit else self.now
        return {
            name: {"error": "none"} if loss is None else {"train": [2.0], "validation": [loss], "config": config}
            for name, loss in zip(self.reference, losses, strict=True)
        }


@pytest.fixture(autouse=True)
def same_gpu_code(monkeypatch):
    monkeypatch.setattr(adopt, "gpu_code", lambda commit: "same")


def test_equal_curves_are_evidence():
    told = adopt.evidence(Curves(now=(1.0, 3.0), then=(1.0, 3.0)), record(), [THERE])
    assert told == "2 reference curves of mnist at float32 on a CPU, against 2222222: every loss equal"
    told = adopt.evidence(Curves(now=(1.0, 3.0), then=(1.0, 3.0003)), record(), [THERE, HERE])
    assert "against 2222222 and 1111111: largest relative difference of a loss 1.0e-04" in told
    assert adopt.evidence(Curves(now=(1.0, 3.0), then=(1.0, None)), record(), [THERE]).startswith("1 reference curves")


def test_a_curve_of_a_key_that_a_commit_does_not_have_is_no_evidence_against_it():
    younger = Curves(["budget.explore_share=0.5", "budget.noise=[0.2,0.1]"], now=(1.0, 3.0), then=(2.0, 4.0))
    del younger.then["budget"]["explore_share"], younger.then["budget"]["noise"]
    with pytest.raises(UserError, match="cannot compute"):
        adopt.evidence(younger, record(), [THERE])
    default = Curves(now=(1.0, 3.0), then=(1.0, 3.0))
    del default.then["budget"]["explore_share"]
    assert adopt.evidence(default, record(), [THERE]).endswith("every loss equal")


@pytest.mark.parametrize(
    "then, changes, commits, reason",
    [
        ((1.0, 3.01), {}, [THERE], r"curves of 2222222 at float32: mnist_r-fcn differs by 3.3e-03"),
        ((None, 3.0), {}, [THERE], r"2222222 cannot compute the reference curves of cnn"),
        ((None, None), {"model": "st_cnn_tps"}, [THERE], r"2222222 cannot compute"),
        ((1.0, 3.0), {}, [], r"no commit is known"),
    ],
)
def test_curves_that_differ_or_are_not_there_are_none(then, changes, commits, reason):
    with pytest.raises(UserError, match=reason):
        adopt.evidence(Curves(now=(1.0, 3.0), then=then), record(**changes), commits)


def test_a_record_of_a_gpu_adopts_nothing_while_what_only_a_gpu_runs_differs(monkeypatch):
    seeds = [{"provenance": {"precision": "32-true", "gpu": "NVIDIA H100"}}]
    curves = Curves(now=(1.0, 3.0), then=(1.0, 3.0))
    assert "only a GPU runs is unchanged" in adopt.evidence(curves, record(seeds=seeds), [THERE])
    monkeypatch.setattr(adopt, "gpu_code", str)
    with pytest.raises(UserError, match="what only a GPU runs is other code in 2222222"):
        adopt.evidence(curves, record(seeds=seeds), [THERE])


def test_a_record_says_against_which_commits_to_hold_the_present_code():
    later = {"commit": HERE, "digest": "3" * 16, "evidence": "curves"}
    assert adopt.origins(record()) == [THERE]
    assert adopt.origins(record(adopted=[later])) == [HERE]
    unknown = {"digest": None, "commit": None, "note": "not known", "between": [THERE, HERE]}
    assert adopt.origins(record(code=unknown)) == [THERE, HERE] and fault(record(code=unknown)) is None
    assert adopt.origins({"seeds": []}) == []


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two records in `dvc.lock`, of which it holds the hashes as DVC takes them."""
    folder = tmp_path / "reports/results/quick/mnist"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / f"mnist_r-{name}.json").write_text(json.dumps(record(), indent=1) + "\n")
    (tmp_path / "reports/other.txt").write_text("as it is\n")
    monkeypatch.setattr(adopt, "ROOT", tmp_path)
    monkeypatch.setattr(adopt, "RECORDS", tmp_path / "reports/results")
    paths = ["reports/results/quick/mnist", *(f"reports/results/quick/mnist/mnist_r-{name}.json" for name in "ab")]
    entries = [
        f"    - path: {path}\n      hash: md5\n      md5: {md5}\n      size: {size}\n"
        for path in paths
        for md5, size in [adopt.dvc_state(path)]
    ]
    stale = f"    - path: reports/other.txt\n      hash: md5\n      md5: {'0' * 32}\n      size: 3\n"
    cells = "".join(
        f"  cell@quick-mnist_r-{name}:\n    params:\n      cells.json:\n"
        f"        cells.quick-mnist_r-{name}.code: {'0' * 16}\n"
        for name in "abc"
    )
    (tmp_path / "dvc.lock").write_text("stages:\n  table1:\n    deps:\n" + "".join([*entries, stale]) + cells)
    return tmp_path


def test_the_lock_follows_what_was_changed_and_vouches_for_nothing_else(project):
    before = (project / "dvc.lock").read_text()
    lock = adopt.Lock()
    path = project / "reports/results/quick/mnist/mnist_r-a.json"
    path.write_text("{}\n")
    (project / "reports/other.txt").write_text("changed\n")  # and was not as the lock says before
    assert lock.follow({}) == 4  # hash and size, of the file and of its folder
    lines = list(zip(before.splitlines(), (project / "dvc.lock").read_text().splitlines(), strict=True))
    assert [i for i, (old, new) in enumerate(lines) if old != new] == [5, 6, 9, 10]
    assert adopt.Lock().follow({}) == 0


def test_hashes_are_those_of_dvc():
    """Held against the committed `dvc.lock`, which DVC wrote: of files and of folders."""
    text = (ROOT / "dvc.lock").read_text()
    found = re.findall(r"- path: (reports/results/\S+)\n +hash: md5\n +md5: (\S+)\n +size: (\d+)\n", text)
    same = [path for path, md5, size in found if adopt.dvc_state(path) == (md5, int(size))]
    assert len(same) > 0.9 * len(found) and any(path.endswith("mnist") for path in same)


def test_adopting_adds_to_the_records_and_changes_nothing_else(project, monkeypatch, capsys):
    monkeypatch.setattr(adopt.codebase, "commit", lambda: HERE)
    monkeypatch.setattr(adopt, "Curves", lambda folder: Curves(now=(1.0, 3.0), then=(1.0, 3.0)))
    adopt.adopt(project)
    assert f"2 records adopted {HERE}; 8 lines of dvc.lock follow" in capsys.readouterr().out
    for found in adopt.read_records().values():
        (entry,) = found["adopted"]
        assert entry["commit"] == HERE and fault(found) is None and is_shown(found, training_digest("mnist"))
        assert found | {"adopted": []} == record() and list(found) == list(record())
    code = training_digest("mnist")
    values = re.findall(r"\.code: '?(\w+)'?\n", (project / "dvc.lock").read_text())
    assert values == [code, code, "0" * 16]  # the third has no record
    adopt.adopt(project)
    assert "0 records adopted" in capsys.readouterr().out


def test_nothing_is_adopted_while_files_differ_from_the_commit(monkeypatch):
    monkeypatch.setattr(adopt.codebase, "commit", lambda: f"{HERE}+changes")
    with pytest.raises(UserError, match="commit first"):
        adopt.adopt(ROOT)


def test_modules_of_a_commit_are_read_as_they_were():
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a clone: no commit to read")
    read = adopt.reader("HEAD")
    assert read("stn")[1] and not read("stn.config")[1] and read("stn.absent") is None
    assert training_digest("mnist", read=read)
