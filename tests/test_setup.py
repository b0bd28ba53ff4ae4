"""`make setup`, and which code runs where: on real interpreters, with stand-ins for pip, uv and the packages."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dulwich.repo import Repo

from conftest import ROOT, one_error

NEEDED = ("Makefile", "setup.sh", "pyproject.toml", "requirements.lock", "requirements-bench.lock", ".dvc/config")
STAND_IN = f"""
import os, pathlib, subprocess, sys, sysconfig, time
name, words, site = pathlib.Path(__file__).stem, " ".join(sys.argv[1:]), pathlib.Path(sysconfig.get_path("purelib"))
with open(os.environ["LOG"], "a") as log:
    log.write(f"{{name}} {{words}}\\n")
if os.environ.get("FAILS", "nothing") in words:
    sys.exit("WARNING: Retrying\\n  Caused by: dns error\\nERROR: Could not find a version")
if os.environ.get("HANGS", "nothing") in words:
    time.sleep(60)
if words.startswith("venv"):
    pathlib.Path(sys.argv[-1], "bin/activate").write_text("")
if "--editable" in words:
    (site / "__editable__.stn-0.1.0.pth").write_text(os.path.abspath("src"))
if name == "dvc":
    sys.exit(subprocess.run([{sys.executable!r}, "-m", "dvc", *sys.argv[1:]]).returncode)
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """The files of a project that is to be set up, in a folder with a space in its name."""
    folder = tmp_path / "a project"
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    write_code(folder, "original")
    (folder / ".git").mkdir()
    return folder


def write_code(folder: Path, name: str) -> None:
    """The code of a project: `python -m stn.train` says its name."""
    package = folder / "src" / "stn"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(f"print({name!r})\n")
    shutil.copy(ROOT / "src/stn/checkout.py", package)


def interpreter(path: Path, version: str = "", ensurepip: bool = True) -> Path:
    """A Python that says it is of that version; what it makes environments with gets the stand-ins."""
    stand_ins = path.parent / "stand-ins"
    stand_ins.mkdir(parents=True, exist_ok=True)
    for name in ("pip", "uv", "dvc"):
        (stand_ins / f"{name}.py").write_text(STAND_IN)
    path.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f'*version_info*) [ "{version}" ] && echo {version} && exit ;;\n'
        f"*ensurepip*) {'' if ensurepip else 'echo No module named ensurepip >&2; exit 1'} ;;\n"
        f'"-m venv "*) "{sys.executable}" -m venv --without-pip "$3" &&\n'
        f'  cp "{stand_ins}"/*.py "$3"/lib/python*/site-packages/; exit ;;\n'
        f'esac\nexec "{sys.executable}" "$@"\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def python(tmp_path) -> Path:
    return interpreter(tmp_path / "programs" / "python3")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of a user whose `python3` is the stand-in."""
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHONPATH")}
    path = f"{folder.parent / 'programs'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    return clean | {"PATH": path, "LOG": str(folder.parent / "log")} | more


def setup(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    command = ["make", "--silent", "setup", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True)


def calls(folder: Path) -> list[str]:
    """What pip, uv and dvc were asked for since the last time."""
    log = folder.parent / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def refusal(result: subprocess.CompletedProcess) -> str:
    """The one line that the script leaves on stderr; make adds one of its own."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make: ")]
    assert result.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def is_made(folder: Path) -> bool:
    return (folder / ".venv/.placed").exists()


def code_run(python: Path, cwd: Path, **more: str) -> str:
    """The name of the code that `python -m stn.train` runs in that folder."""
    command = [python, "-m", "stn.train"]
    result = subprocess.run(command, cwd=cwd, env=environment(cwd, **more), capture_output=True, text=True)
    return result.stdout.strip() or result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("version", ["2.7.18", "3.6.15", "3.10.14", "3.13.0", "3.100.1", "4.0.0"])
def test_an_interpreter_that_the_project_does_not_support_is_refused_before_anything_is_made(project, python, version):
    other = interpreter(project.parent / "programs" / "python", version)
    line = refusal(setup(project, f"PYTHON={other}"))
    assert f"{other} is Python {version}, and this needs >=3.11,<3.13" in line
    assert f"`make setup PYTHON=python3` takes {python}" in line  # one that would do
    assert not (project / ".venv").exists() and not calls(project)


def test_the_supported_versions_are_those_of_pyproject_toml(project):
    text = (project / "pyproject.toml").read_text()
    for bounds, accepted in ((">=3.11,<3.13", ("3.11.0", "3.12.9")), (">=3.13,<3.15", ("3.13.1", "3.14.0"))):
        (project / "pyproject.toml").write_text(text.replace(">=3.11,<3.13", bounds))
        for version in ("3.10.9", "3.11.0", "3.12.9", "3.13.1", "3.14.0", "3.15.0"):
            other = interpreter(project.parent / "programs" / "python", version, ensurepip=False)
            assert ("has no ensurepip" in refusal(setup(project, f"PYTHON={other}"))) == (version in accepted)


def test_an_interpreter_that_is_not_there_or_does_not_run_is_one_line(project, python):
    assert "no interpreter python3.99, and this needs" in refusal(setup(project, "PYTHON=python3.99"))
    python.write_text("#!/bin/sh\necho 'pyenv: python3: command not found' >&2\nexit 127\n")
    assert f"python3 ({python}) does not run" in refusal(setup(project))
    assert not (project / ".venv").exists()


def test_after_a_python_without_ensurepip_a_good_one_makes_the_environment(project, python):
    poor = interpreter(project.parent / "programs" / "poor", ensurepip=False)
    assert "has no ensurepip" in refusal(setup(project, f"PYTHON={poor}"))
    (project / ".venv/bin").mkdir(parents=True)  # what `python -m venv` leaves that fails halfway
    (project / ".venv/bin/python").symlink_to(sys.executable)
    result = setup(project)
    assert result.returncode == 0, result.stderr
    assert is_made(project) and calls(project)
    version = ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(rf"environment ready: \.venv, Python {version}, in \d+ s", result.stdout.splitlines()[-1])
    assert setup(project).stdout == "" and not calls(project)  # nothing is left to do


@pytest.mark.parametrize("step", ["pip install", "uv pip install --python", "--editable"])
def test_a_set_up_that_fails_is_one_line_and_the_next_one_makes_it_whole(project, python, step):
    line = refusal(setup(project, FAILS=step.removeprefix("pip ").removeprefix("uv ")))
    assert "Caused by: dns error ERROR: Could not find a version; then run the same command again" in line
    assert not is_made(project) and not (project / ".venv.part").exists()
    assert setup(project).returncode == 0 and is_made(project)


def heed_interrupts() -> None:
    """Where tests run in the background, interrupts are ignored by all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("step", ["-r requirements.lock", "--editable"])
def test_a_set_up_that_is_interrupted_is_made_whole_by_the_next(project, python, step, end):
    command = ["make", "--silent", "setup"]
    heeding = {"start_new_session": True, "preexec_fn": heed_interrupts}
    process = subprocess.Popen(command, cwd=project, env=environment(project, HANGS=step), **heeding)
    log = project.parent / "log"
    while not (log.exists() and step in log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, end)
    assert process.wait() != 0 and not is_made(project)
    assert setup(project).returncode == 0 and is_made(project)
    assert not list(project.glob(".venv.*"))


def test_an_environment_is_made_anew_for_another_lock_and_the_old_one_stays_until_the_new_is_whole(project, python):
    assert setup(project).returncode == 0
    kept = project / ".venv/kept"
    kept.touch()
    with (project / "requirements.lock").open("a") as lock:
        lock.write("# another\n")
    refusal(setup(project, FAILS="requirements.lock"))
    assert kept.exists() and code_run(project / ".venv/bin/python", project) == "original"
    assert setup(project).returncode == 0 and not kept.exists()


def test_what_the_lock_does_not_say_makes_no_environment_anew(project, python):
    assert setup(project).returncode == 0 and calls(project)
    (project / ".venv/kept").touch()
    os.utime(project / "requirements.lock")
    assert setup(project).returncode == 0 and not calls(project)
    (project / "pyproject.toml").write_text((project / "pyproject.toml").read_text().replace("0.1.0", "0.2.0"))
    assert setup(project).returncode == 0 and "--editable" in calls(project)[-1]
    assert (project / ".venv/kept").exists()


def test_an_environment_of_another_python_is_made_anew_when_make_is_told_which(project, python):
    assert setup(project).returncode == 0
    (project / ".venv/kept").touch()
    version = ".".join(map(str, sys.version_info[:3]))
    same, newer = (interpreter(python.with_name(f"python-{v}"), v) for v in (version, "3.12.99"))
    assert setup(project, f"PYTHON={same}").returncode == 0 and (project / ".venv/kept").exists()
    result = setup(project, PYTHON=str(newer))  # in the shell's environment
    assert result.stdout == "" and "PYTHON in the environment is ignored: put it after make" in result.stderr
    assert (project / ".venv/kept").exists()
    refusal(setup(project, f"PYTHON={interpreter(python.with_name('python'), '3.13.0')}"))
    assert setup(project, f"PYTHON={newer}").returncode == 0 and not (project / ".venv/kept").exists()


def test_an_environment_serves_where_the_interpreter_of_the_path_is_of_no_use(project, python):
    assert setup(project).returncode == 0
    interpreter(python, "3.13.0")
    assert setup(project).returncode == 0
    python.unlink()
    assert setup(project).returncode == 0
    (project / ".venv/bin/python").unlink()
    (project / ".venv/bin/python").symlink_to("/nowhere/python3.11")  # the one that it was made with is gone
    assert setup(project, f"PYTHON={interpreter(python)}").returncode == 0
    assert code_run(project / ".venv/bin/python", project) == "original"


def test_packages_of_the_benchmarks_are_added_once_and_again_to_a_new_environment(project, python):
    for expected in (["requirements-bench.lock"], []):
        command = ["sh", "setup.sh", "bench"]
        assert subprocess.run(command, cwd=project, env=environment(project)).returncode == 0
        assert [line.split()[-1] for line in calls(project) if line.endswith("bench.lock")] == expected


def test_a_folder_that_is_no_environment_is_never_replaced(project, python):
    line = refusal(setup(project, "VENV=src"))
    assert "src is there and is no virtual environment" in line
    assert (project / "src/stn/train.py").exists()


def test_two_set_ups_at_once_make_one_environment(project, python):
    command = ["make", "--silent", "setup"]
    both = [subprocess.Popen(command, cwd=project, env=environment(project)) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert sum("-r requirements.lock" in line for line in calls(project)) == 1


def test_a_run_is_of_the_code_beside_it(project, python, tmp_path):
    assert setup(project).returncode == 0
    copy = tmp_path / "copy"
    shutil.copytree(project, copy, symlinks=True)
    (copy / "src/stn/train.py").write_text("print('copy')\n")
    workspace = project / ".dvc/tmp/exps/queued"  # as of `dvc exp run --queue`
    write_code(workspace, "queued")
    ours, theirs = (folder / ".venv/bin/python" for folder in (project, copy))
    assert code_run(ours, project) == code_run(ours, project / "src") == "original"
    assert code_run(theirs, copy) == code_run(theirs, copy / "src") == "copy"
    assert code_run(ours, copy) == "copy" and code_run(theirs, project) == "original"
    assert code_run(ours, workspace) == "queued"
    assert code_run(ours, tmp_path) == "original" and code_run(theirs, tmp_path) == "copy"
    assert code_run(theirs, copy, PYTHONPATH=str(project / "src")) == "original"  # refused by the real one: see below


def test_a_copy_runs_without_its_original_and_is_set_up_in_its_place(project, python, tmp_path):
    assert setup(project).returncode == 0
    moved = tmp_path / "moved 'there'"
    project.rename(moved)
    assert code_run(moved / ".venv/bin/python", moved) == "original"
    assert code_run(moved / ".venv/bin/python", tmp_path) == "original"
    calls(project)
    assert setup(moved, FAILS="requirements.lock").returncode == 0  # which packages would have to be fetched
    assert "--editable" in calls(moved)[-1] and not setup(moved).stdout and not calls(moved)
    shell = f'. "{moved}/.venv/bin/activate"; printf %s "$SCRIPT_PATH"'
    assert subprocess.check_output(["sh", "-c", shell], text=True) == f"{moved}/.venv/bin/activate"


def test_a_command_that_is_interrupted_while_it_starts_ends_in_one_line(project, python):
    assert setup(project).returncode == 0
    (project / "src/stn/train.py").write_text("raise KeyboardInterrupt\n")
    for outer, line in (({}, "interrupted; run the same command again\n"), ({"STN_FRONT_DOOR": "1"}, "")):
        command, around = [project / ".venv/bin/python", "-m", "stn.train"], environment(project, **outer)
        result = subprocess.run(command, cwd=project, env=around, capture_output=True, text=True)
        assert result.returncode == -signal.SIGINT and result.stderr == line
    (project / "src/stn/train.py").write_text("1 / 0\n")
    assert "ZeroDivisionError" in code_run(project / ".venv/bin/python", project)


def test_commands_started_by_the_environment_are_its_own(project, python):
    """So `.venv/bin/dvc repro` starts `python -m stn.train` with the Python of `.venv`, which is not activated."""
    assert setup(project).returncode == 0
    code = "import subprocess; print(subprocess.check_output('command -v python', shell=True, text=True))"
    command = [project / ".venv/bin/python", "-c", code]
    shown = subprocess.check_output(command, cwd=project, env=environment(project), text=True)
    assert shown.strip() == f"{project}/.venv/bin/python"


@pytest.mark.parametrize("module", ["stn.train", "stn.pipeline", "stn.table", "stn.figures", "stn.fetch", "stn.export"])
def test_a_front_door_refuses_to_run_code_that_is_not_that_beside_it(tmp_path, module):
    write_code(tmp_path, "beside")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", module]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    line = one_error(result)
    assert line == f"error: this Python runs the code in {ROOT}/src, not {tmp_path}/src: unset PYTHONPATH"


def test_the_installed_library_may_be_used_anywhere(tmp_path):
    write_code(tmp_path, "beside")
    shutil.copytree(ROOT / "src/stn", tmp_path / "library/stn", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import stn.config, stn; print(stn.__file__)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "library")}
    shown = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert shown.strip() == f"{tmp_path}/library/stn/__init__.py"


def test_dvc_works_in_an_unpacked_archive(project, python):
    """In a folder without git, whatever repository is around it, and without the program."""
    (project / ".git").rmdir()
    for name in ("dvc.yaml", "cells.json", "params.yaml"):
        shutil.copy(ROOT / name, project)
    Repo.init(str(project.parent))
    (project.parent / ".gitignore").write_text("*\n")
    assert setup(project).returncode == 0
    status = [sys.executable, "-m", "dvc", "status", "--json", "fetch"]
    programs = {"PATH": str(project / "no programs")}
    result = subprocess.run(status, cwd=project, env=environment(project, **programs), capture_output=True, text=True)
    assert result.returncode == 0 and "fetch" in result.stdout, result.stderr
    calls(project)
    assert setup(project).returncode == 0 and not calls(project)
    (project / ".git").mkdir()  # `git init`
    assert setup(project).returncode == 0 and not (project / ".dvc/config.local").exists()


@pytest.mark.parametrize("git", [True, False])
def test_what_the_user_says_to_dvc_about_git_stays(project, python, git):
    if not git:
        (project / ".git").rmdir()
    text = "[core]\n    no_scm = false\n    hardlink_lock = true\n"
    (project / ".dvc/config.local").write_text(text)
    assert setup(project).returncode == 0
    assert (project / ".dvc/config.local").read_text() == text
