"""Any encoding, any number of cores, any home and any folder."""

import ast
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from conftest import ROOT, one_error, run
from stn import environment, table
from stn.environment import CACHES, check_folder, cores, settle, share_cores
from stn.errors import UserError

FRONT_DOORS = sorted(
    f"stn.{path.stem}"
    for path in (ROOT / "src/stn").glob("*.py")
    if "\nif __name__ ==" in path.read_text(encoding="utf-8")
)
CODE = [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]


@pytest.fixture
def shell(monkeypatch):
    """A shell whose variables a test may set; what `settle` sets is taken back."""
    with monkeypatch.context() as patch:
        for name in (*CACHES, "TMPDIR", "TEMP", "TMP", "HOME", "USER", "LOGNAME", "OMP_NUM_THREADS"):
            patch.setenv(name, os.environ.get(name, ""))  # so that it is restored, whoever changes it
        for name in CACHES:
            patch.delenv(name)
        patch.setattr(tempfile, "tempdir", None)
        yield patch


# Output and files


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "koi8-r", "cp1252", "cp437", "euc-jp", "utf-8", "utf-16"])
def test_no_encoding_refuses_output(encoding, shell):
    text = "5 ± 1 ≈ 4 – ↓ ↑ † ‡ ≥ × ─ größe 鳥 \udce9"
    for name in ("stdout", "stderr"):
        shell.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    settle()
    print(text)
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue() == sys.stderr.buffer.getvalue()
    written = sys.stdout.buffer.getvalue().decode(encoding).rstrip()
    expected = {"ascii": "5 +/- 1 ~ 4 - v ^ * # >= x - gro?e ? ?", "latin-1": "5 ± 1 ~ 4 - v ^ * # >= × - größe ? ?"}
    assert written == expected.get(encoding, written) and len(written) >= len(text)
    assert not encoding.startswith("utf") or written == text.replace("\udce9", "?")


@pytest.fixture(scope="module")
def records() -> list[dict]:
    """Those of Table 1."""
    with contextlib.chdir(ROOT):
        return table.records(1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_table_in_another_encoding_keeps_its_columns_its_marks_and_their_legend(encoding, records, monkeypatch):
    monkeypatch.setattr(table, "records", lambda _: records)
    monkeypatch.setattr(table, "others", lambda _: [])
    monkeypatch.setattr(sys, "argv", ["stn.table", "--print"])
    shown = {}
    for used in ("utf-8", encoding):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=used))
        table.main()
        shown[used] = sys.stdout.buffer.getvalue().decode(used)
    marks = {"↓": "v", "≈": "~", "↑": "^", "†": "*", "‡": "#", "–": "-", "≥": ">=", "─": "-", "…": "..."}
    if encoding == "ascii":
        marks["±"] = "+/-"
    expected = re.sub("|".join(marks), lambda mark: marks[mark[0]], shown["utf-8"])
    words = [re.sub(r"[+|]|--+", " ", text).split() for text in (expected, shown[encoding])]  # without the lines
    assert words[0] == words[1]
    rows = [line for line in shown[encoding].splitlines() if line.startswith(("ST-", "FCN"))]
    assert len(rows) >= 7 and all(len({row.find("|", start) for row in rows[:7]}) == 1 for start in (0, 20, 30))


def test_files_are_utf_8_whatever_the_locale():
    """Every text file is opened with its encoding, and what programs print is decoded without an error."""
    missing = []
    for path in CODE:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
            given = {keyword.arg for keyword in call.keywords}
            modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            text = name in ("read_text", "write_text") or (
                name == "open" and any(set(mode) <= set("rwax+t") for mode in modes)
            )
            if (text and not given & {"encoding"}) or ("text" in given and not given & {"encoding", "errors"}):
                missing.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not missing


def test_output_into_a_pipe_that_is_closed_ends_quietly():
    code = "from stn.front_door import guard\nwith guard():\n    for i in range(100_000): print(i)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_an_interrupt_while_a_checkpoint_is_written_is_an_interrupt(tmp_path):
    """PyTorch then raises a RuntimeError, since its zip file is cut short."""
    code = """
import torch
from stn.front_door import guard

class File:
    def write(self, part): raise KeyboardInterrupt
    def flush(self): pass

with guard(): torch.save(torch.rand(10_000), File())
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (130, "interrupted; run the same command again\n")


@pytest.mark.parametrize("work", ["torch.empty(10**15)", "bytearray(10**15)", "raise torch.OutOfMemoryError('CUDA')"])
def test_too_little_memory_is_one_line(work):
    code = f"import torch\nfrom stn.front_door import guard\nwith guard(): {work}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("error: not enough memory: lower budget.batch_size")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "work, line", [("pass", ""), ("raise KeyboardInterrupt", "interrupted; run the same command again\n")]
)
def test_an_interrupt_of_the_end_of_a_command_adds_no_line(work, line):
    code = f"""
import atexit, os, signal, time
from stn.front_door import guard

def once_more():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)

atexit.register(once_more)
signal.signal(signal.SIGINT, signal.default_int_handler)
with guard(): {work}
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (130, line)


def test_an_interrupt_is_reported_once_where_one_front_door_starts_another():
    inner = "from stn.front_door import guard\nwith guard(): raise KeyboardInterrupt"
    outer = f"import subprocess, sys\nwith guard():\n    code = subprocess.call([sys.executable, '-c', {inner!r}])"
    outer = f"from stn.front_door import guard\n{outer}\n    print(code, flush=True)\n    raise KeyboardInterrupt"
    result = subprocess.run([sys.executable, "-c", outer], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 130 and result.stdout == "130\n"
    assert result.stderr == "interrupted; run the same command again\n"


# Cores


def cgroups(folder: Path, membership: str, **quotas: str):
    """Files as below /sys/fs/cgroup, and as /proc/self/cgroup."""
    (folder / "membership").write_text(membership)
    for name, text in quotas.items():
        path = folder / "cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V1 = "4:memory:/pod/box\n3:cpuset:/\n2:cpu,cpuacct:/pod/box\n0::/\n"


@pytest.mark.parametrize(
    "membership, files, expected",
    [
        ("0::/\n", {}, 64),
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000"}, 1),
        ("0::/\n", {"cpu.max": "12800000 100000"}, 64),
        ("0::/\n", {"cpu.max": "200000"}, 64),  # not what the kernel writes
        ("0::/a.slice/b.scope\n", {"a.slice/b.scope/cpu.max": "300000 100000"}, 3),
        ("0::/a.slice/b.scope\n", {"a.slice/b.scope/cpu.max": "max 100000", "a.slice/cpu.max": "400000 100000"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "500000 100000", "cpu.max": "max 100000"}, 5),
        ("0::/a/b\n", {"a/c/cpu.max": "100000 100000"}, 64),  # a neighbour's
        ("0::/../../a\n", {"cpu.max": "600000 100000"}, 6),
        (V1, {"cpu/pod/box/cpu.cfs_quota_us": "-1", "cpu/pod/box/cpu.cfs_period_us": "100000"}, 64),
        (V1, {"cpu/pod/box/cpu.cfs_quota_us": "250000\n", "cpu/pod/box/cpu.cfs_period_us": "100000\n"}, 3),
        (V1, {"cpu,cpuacct/pod/cpu.cfs_quota_us": "200000", "cpu,cpuacct/pod/cpu.cfs_period_us": "50000"}, 4),
        (V1, {"cpu/cpu.cfs_quota_us": "700000", "cpu/cpu.cfs_period_us": "100000"}, 7),  # Docker: mounted is its own
        ("", {"cpu.max": "100000 100000"}, 64),
        ("nonsense\n", {}, 64),
    ],
)
def test_cores_respect_every_quota_of_the_cgroups(membership, files, expected, tmp_path, monkeypatch):
    cgroups(tmp_path, membership, **{name.replace("/", "__"): text for name, text in files.items()})
    monkeypatch.setattr(environment, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(environment, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert cores() == expected


def test_cores_respect_the_affinity(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "MEMBERSHIP", tmp_path / "of no cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()


@pytest.mark.skipif(not shutil.which("taskset"), reason="no taskset here")
def test_cores_respect_taskset():
    core = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(core), sys.executable, "-c", "from stn.environment import cores; print(cores())"]
    assert subprocess.check_output(command, text=True) == "1\n"


def test_nothing_asks_for_the_cores_of_the_machine_but_cores():
    asking = {path.name for path in CODE if "cpu_count" in path.read_text(encoding="utf-8")}
    assert asking == {"environment.py"}


def test_threads_are_a_share_of_the_cores_but_the_users_number_goes_before(shell):
    shell.setattr(environment, "cores", lambda: 6)
    for given, processes, expected in ((False, 2, "3"), (False, 4, "1"), (False, 9, "1"), (True, 2, "5")):
        shell.setattr(environment, "THREADS_GIVEN", given)
        shell.setenv("OMP_NUM_THREADS", "5")
        share_cores(processes)
        assert os.environ["OMP_NUM_THREADS"] == expected


def test_torch_and_joblib_heed_a_quota(tmp_path):
    cgroups(tmp_path, "0::/a/b\n", a__cpu__max="")
    code = (
        "import os; from pathlib import Path; from stn import environment as e\n"
        "e.CGROUPS, e.MEMBERSHIP, os.sched_getaffinity = Path('cgroup'), Path('membership'), lambda _: range(64)\n"
        "e.settle(); import torch, joblib; print(torch.get_num_threads(), os.environ['LOKY_MAX_CPU_COUNT'])"
    )
    (tmp_path / "cgroup/a").mkdir(parents=True, exist_ok=True)
    (tmp_path / "cgroup/a/cpu.max").write_text("100000 100000")
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT")}
    assert subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=clean, text=True) == "1 1\n"


# Folders


@pytest.mark.parametrize("folder", ["missing", "file", "x" * 120])
def test_a_temporary_folder_that_cannot_be_used_is_passed_over(folder, shell, tmp_path):
    (tmp_path / "file").touch()
    shell.setenv("TMPDIR", str(tmp_path / folder))
    settle()
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == "/tmp"


def test_without_any_temporary_folder_there_is_one_below_outputs(shell, tmp_path):
    shell.chdir(tmp_path)
    shell.setattr(os, "access", lambda path, mode: Path(path).is_relative_to(tmp_path))
    settle()
    assert os.environ["TMPDIR"] == str(tmp_path / "outputs/home/tmp") == tempfile.gettempdir()
    assert Path(os.environ["TMPDIR"]).is_dir()
    shell.setattr(os, "access", lambda path, mode: False)
    shell.delenv("TMPDIR")
    with pytest.raises(UserError, match="set TMPDIR"):
        settle()


@pytest.mark.parametrize("name", [b"x" * 90, "é".encode() * 45])
def test_stages_run_whatever_the_length_of_the_temporary_folder(name, tmp_path):
    """The socket of the process that they are forked from must fit into what the kernel takes, 108 bytes."""
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    code = (
        "import stn.stages as s; s.LOADED = (); forks = s.Stages(1).forks\n"
        "process = forks.Process(target=print, args=('forked',)); process.start(); process.join()\n"
        "import tempfile; print(ascii(tempfile.gettempdir()))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True
    )
    assert result.stdout.splitlines() == ["forked", ascii(str(folder))], result.stderr


@pytest.mark.parametrize("home", [None, "", "relative", "/nonexistent/home"])
def test_a_missing_home_is_that_of_the_list_of_users_or_ours(home, shell, tmp_path):
    shell.chdir(tmp_path)
    for listed, expected in (
        ("/", "/"),
        ("/nonexistent", f"{tmp_path}/outputs/home"),
        (None, f"{tmp_path}/outputs/home"),
    ):
        shell.setattr(environment, "_listed_home", lambda listed=listed: listed if listed == "/" else None)
        shell.delenv("HOME") if home is None else shell.setenv("HOME", home)
        settle()
        assert os.environ["HOME"] == expected


def test_caches_that_cannot_be_written_to_move_below_outputs(shell, tmp_path):
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    shell.chdir(project)
    shell.setenv("HOME", str(home))
    shell.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    before = dict(os.environ)
    settle()
    assert {name: os.environ.get(name) for name in CACHES} == {name: before.get(name) for name in CACHES}
    shell.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(home) and str(path) != "/var/tmp/dvc")
    settle()
    assert os.environ["HOME"] == str(home) and os.environ["XDG_DATA_HOME"] == str(tmp_path / "data")
    ours = project / "outputs/home"
    moved = {"XDG_CACHE_HOME": ours / ".cache", "MPLCONFIGDIR": ours / "matplotlib", "TRITON_HOME": ours}
    assert {name: Path(os.environ[name]) for name in moved} == moved
    assert not list(project.iterdir())  # who writes there makes it


def test_a_user_without_an_entry_in_the_list_of_users_has_a_name(shell, monkeypatch):
    import getpass
    import pwd

    def unlisted(uid):
        raise KeyError(uid)

    shell.setattr(pwd, "getpwuid", unlisted)
    shell.setattr(os, "getuid", lambda: 1234)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        shell.delenv(name, raising=False)
    settle()
    assert getpass.getuser() == "1234"


def test_a_run_without_a_home_makes_no_noise(workplace, tmp_path):
    gone = ("HOME", "USER", "LOGNAME", *(name for name in os.environ if name.startswith(("XDG_", "WANDB_"))))
    clean = {name: value for name, value in os.environ.items() if name not in gone}
    command = [sys.executable, "-m", "stn.train", "data=digits_r", "model=cnn", "budget=smoke", "budget.steps=10"]
    result = subprocess.run(
        [*command, f"outputs={tmp_path}"],
        cwd=workplace,
        env={**clean, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    told = [line.partition(": ")[2].split(",")[0] for line in result.stdout.splitlines()]
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert told[0] == "loading" and told[1].startswith("step 10/10") and told[2].startswith("test error"), told
    assert len(told) == 3


# The project's folder


@pytest.mark.parametrize("module", FRONT_DOORS)
def test_a_front_door_in_another_folder_is_one_line_that_names_the_right_one(module, tmp_path, monkeypatch):
    monkeypatch.delenv("STN_HERE")
    line = one_error(run(module, cwd=tmp_path))
    assert f"{tmp_path} is not the project's folder: run this in {ROOT} " in line and not list(tmp_path.iterdir())
    (tmp_path / "dvc.yaml").touch()
    inner = tmp_path / "conf" / "data"
    inner.mkdir(parents=True)
    assert f"run this in {tmp_path} " in one_error(run(module, cwd=inner)) and not list(inner.iterdir())


def test_help_is_given_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("STN_HERE")
    for module in ("stn.train", "stn.table"):
        result = run(module, "--help", cwd=tmp_path)
        assert result.returncode == 0 and result.stderr == "" and result.stdout


def test_a_sweep_in_another_folder_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("STN_HERE")
    assert "not the project's folder" in one_error(run("stn.train", "-m", "seed=0,1", cwd=tmp_path))
    assert not list(tmp_path.iterdir())


def test_any_folder_will_do_where_the_user_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value, refused in (("1", False), ("0", True), ("", True)):
        monkeypatch.setenv("STN_HERE", value)
        if refused:
            with pytest.raises(UserError, match="STN_HERE=1"):
                check_folder()
        else:
            check_folder()


def test_a_folder_that_was_removed_is_one_line(tmp_path):
    code = "import os, sys; os.rmdir(os.getcwd()); from stn.table import main; main()"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "the current folder was removed" in one_error(result)
