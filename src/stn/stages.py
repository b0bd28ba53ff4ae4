"""Runs stages of `dvc.yaml` in parallel, as `dvc repro --single-item` runs them one by one.

`python -m stn.stages repro ...` is `dvc repro ...` that can be killed at any moment without harm to the next run.
"""

import json
import logging
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from stn.environment import share_cores
from stn.errors import UserError
from stn.front_door import guard

# Every cell imports these, which takes five seconds.
LOADED = ("stn.training.run", "wandb", "wandb.sdk.launch")
SHORT = ("/tmp", "/var/tmp", "/dev/shm")
LONGEST = 103 - len("/pymp-12345678/listener-12345678")  # bytes: a socket's path has at most 103 on macOS, 107 on Linux
ALONE = 0.5  # seconds after which a process notices that its parent is gone
ENTERED = 600  # seconds: how long a finished stage may wait for its entry in `dvc.lock`


class Stages:
    """The stages of the `dvc.yaml` of this folder.

    DVC decides which are stale, and keeps `dvc.lock`. But a process of DVC for each stage would spend five seconds on
    imports and six on that file, a quarter of a short cell's time. So stages are forks of one process that has imported
    everything, and they are entered in `dvc.lock` together: at the end, and every ten minutes. A fork does not see
    later edits of the code and configs that its stage depends on, so after such an edit the stage ends in an error.
    """

    def __init__(self, jobs: int):
        """Prepare to run `jobs` stages at a time. Their imports start in the background."""
        self.jobs = jobs
        self.telling = threading.Lock()
        self.state: dict[str, tuple[int, int]] = {}
        self.cells: dict[str, Any] = {}
        if jobs > 1:
            share_cores(jobs)
        self.forks = multiprocessing.get_context("forkserver")
        self.forks.set_forkserver_preload(list(LOADED))
        self.interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # would end the imports with a traceback
        with _short_temporary_folder():
            forkserver.ensure_running()
        signal.signal(signal.SIGINT, self.interrupt)

    def repro(self, names: list[str], force: Collection[str] = ()) -> bool:
        """Run those of these independent stages that are stale or in `force`, in this order.

        A stage that fails does not stop the others; the first UserError is raised at the end. Finished stages are
        entered in `dvc.lock`, also after an interrupt. Returns whether `dvc.yaml` has any of these stages.
        """
        from dvc.repo import Repo, lock_repo  # half a second, so only after the knobs are checked

        logging.getLogger("dvc").setLevel(logging.ERROR)
        logging.getLogger("dvc.progress").setLevel(logging.CRITICAL)  # no bars, as `dvc -q`
        asked = sum(name.startswith("cell@") and name not in force for name in names)
        if asked:
            print(f"comparing {asked} cell{'s' * (asked > 1)} with dvc.lock, about five seconds", flush=True)
        survive_kills()
        with _translate_errors(), Repo(_wait_for_lock=True) as repo:  # as `dvc --wait-for-lock`
            stages = {stage.addressing: stage for stage in repo.index.stages if stage.addressing in set(names)}
            are_declared = bool(stages)
            with lock_repo(repo):  # `repo.status` would read dvc.yaml again for each
                stages = {name: stage for name, stage in stages.items() if name in force or stage.status()}
            cells = sum(name.startswith("cell@") for name in stages)
            if cells:
                pace = f", {self.jobs} at a time" if min(self.jobs, cells) > 1 else ""
                print(f"training {cells} cell{'s' if cells > 1 else ''}{pace}", flush=True)
            files = _files()
            results, start, errors = [], time.monotonic(), []
            pool = ThreadPoolExecutor(self.jobs)
            work = [pool.submit(self._run, stages[name], files) for name in names if name in stages]
            try:
                for future in as_completed(work):
                    try:
                        results.append(future.result())
                    except UserError as error:
                        errors.append(error)
                    if time.monotonic() - start > ENTERED:
                        _enter(repo, results)
                        results, start = [], time.monotonic()
            finally:
                pool.shutdown(cancel_futures=True)  # after an interrupt, which the running stages received too
                _enter(repo, results)
        if errors:
            raise errors[0]
        return are_declared

    def _run(self, stage, files: dict[str, tuple[int, int]]):
        """Run one stage and return it. UserError if it fails, or if its code or config differs from `files`."""
        if not self._changed(stage, files):
            process = self.forks.Process(target=run_module, args=(stage.cmd, self.interrupt is signal.SIG_IGN))
            process.start()
            process.join()
            if process.exitcode:
                raise UserError(f"{stage.addressing} failed, see above; the same command resumes")
        if self._changed(stage, files):
            raise UserError(f"{stage.addressing}: its code or config changed while it ran; run the same command again")
        return stage

    def _changed(self, stage, files: dict[str, tuple[int, int]]) -> bool:
        """Whether the code or config of a cell has changed since `cells.json` was written.

        Always False for the stages of tables, which decide no result.
        """
        file_state = _files()
        if file_state == files or not stage.addressing.startswith("cell@"):
            return False
        with self.telling:
            if file_state != self.state:  # computed once for each state of the files: it takes seconds
                command = [sys.executable, "-m", "stn.cells", "--print"]
                answer = subprocess.run(command, capture_output=True, encoding="utf-8")
                self.state, self.cells = (
                    file_state,
                    json.loads(answer.stdout)["cells"] if answer.returncode == 0 else {},
                )
        key = stage.addressing.partition("@")[2]
        return self.cells.get(key) != json.loads(Path("cells.json").read_text(encoding="utf-8"))["cells"][key]


@contextmanager
def _short_temporary_folder():
    """Makes Python choose a temporary folder in which the path of a socket is short enough for the kernel."""
    default = tempfile.gettempdir()
    folders = (
        folder for folder in (default, *SHORT) if len(os.fsencode(folder)) <= LONGEST and os.access(folder, os.W_OK)
    )
    tempfile.tempdir = next(folders, None)
    if tempfile.tempdir is None:
        raise UserError(f"TMPDIR={default} is too long for a socket: set it to a folder of {LONGEST} bytes or fewer")
    try:
        yield
    finally:
        tempfile.tempdir = default


def gpu_is_shared() -> bool:
    """Whether NVIDIA's MPS runs here, with which several processes use a GPU at once; without it they take turns."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists()


def _files() -> dict[str, tuple[int, int]]:
    """The modification time, in nanoseconds, and the size of each file of code and configs."""
    files = [*Path("src").rglob("*.py"), *Path("conf").rglob("*.yaml")]
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file()}


def _enter(repo, stages: list) -> None:
    """Enter the stages in `dvc.lock` at once; `dvc commit` would rewrite that long file for each."""
    if stages:
        from dvc.repo import lock_repo

        with lock_repo(repo):
            for stage in stages:
                stage.save()
                stage.commit()
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)


@contextmanager
def _translate_errors():
    """Raises errors of DVC as UserError."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        raise UserError(f"dvc: {error}; the same command resumes") from error


def survive_kills() -> None:
    """Make DVC leave its files readable for its next run, whenever it is killed.

    DVC writes `dvc.lock` in place, which takes seconds. Here it writes a copy, and moves it into place when complete.
    """
    from dvc import dvcfile

    modify = dvcfile.modify_yaml

    @contextmanager
    def modify_whole(path: str, fs=None) -> Iterator[dict]:
        part = f"{path}.part"
        Path(part).unlink(missing_ok=True)
        if Path(path).exists():
            shutil.copyfile(path, part)
        with modify(part, fs=fs) as data:
            yield data
        Path(part).replace(path)

    if modify.__name__ != modify_whole.__name__:
        dvcfile.modify_yaml = modify_whole
    clear_leftovers(Path(".dvc/tmp"))


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed DVC left behind, unless a DVC runs here.

    These are its list of readers and writers, which may be truncated or name processes whose ids are in use again, and
    the files with which it tests links. The latter lie beside the linked files, and would count as part of a folder.
    """
    import psutil
    import zc.lockfile

    def is_gone(process: dict) -> bool:
        """Whether a process has ended; a later process may have its id."""
        try:
            owner = psutil.Process(int(process["pid"]))
            return owner.create_time() > changed or owner.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return True

    rwlock = folder / "rwlock"
    try:
        guard = zc.lockfile.LockFile(f"{rwlock}.lock")
    except (OSError, zc.lockfile.LockError):  # no folder yet, or a running DVC holds the lock
        return
    try:
        changed = rwlock.stat().st_mtime
        locks = json.loads(rwlock.read_bytes())
        readers = [process for processes in locks.get("read", {}).values() for process in processes]
        if not all(map(is_gone, [*readers, *locks.get("write", {}).values()])):
            return
        rwlock.unlink()
    except FileNotFoundError:
        pass
    except (ValueError, AttributeError, TypeError, KeyError):
        rwlock.unlink()
    finally:
        guard.close()
    for place in (".dvc/cache/files", "data", "reports"):
        for path in Path(place).rglob(".*.tmp"):
            if re.fullmatch(r"\.[\w-]{22}\.tmp", path.name):
                path.unlink(missing_ok=True)


def end_with_parent() -> None:
    """End this process and its children when its parent is gone; otherwise it would collide with the next run."""
    import psutil

    parent, current = os.getppid(), psutil.Process()

    def watch() -> None:
        creator = multiprocessing.parent_process()
        if creator:  # in a fork: its parent, the fork server, ends last
            creator.join()
        while not creator and os.getppid() == parent:
            time.sleep(ALONE)
        for process in current.children(recursive=True):
            process.kill()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def run_module(command: str, deaf: bool) -> None:
    """Run `python -m <module> <arguments>` in this process, which ignores interrupts if it is `deaf`."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.default_int_handler)
    _, _, module, *arguments = shlex.split(command)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # before its own frame catches it
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # else one more would end in a traceback of `multiprocessing`


def main() -> None:
    with guard():
        from dvc.cli import main as dvc

        end_with_parent()
        survive_kills()
        sys.exit(dvc(sys.argv[1:]))


if __name__ == "__main__":
    main()
