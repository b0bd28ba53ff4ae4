"""Run stages of `dvc.yaml` side by side, as `dvc repro --single-item` runs them one by one."""

import logging
import multiprocessing
import os
import runpy
import shlex
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

from stn.config import digest
from stn.errors import UserError

# What every cell loads, and takes five seconds over.
LOADED = ("stn.training.run", "wandb", "wandb.sdk.launch")
ENTERED = 600  # seconds: how long a finished stage may wait for its entry in `dvc.lock`


class Stages:
    """The stages of the `dvc.yaml` of this folder.

    DVC says which are stale, and keeps `dvc.lock`. But a process of its own for each would spend five seconds on
    imports and six on that file, a quarter of a short cell's time. So stages are forks of one process that has loaded
    all, and are entered together: at the end, and every ten minutes. That process would not see an edit of what a stage
    depends on, so there the stage ends in an error.
    """

    def __init__(self, jobs: int):
        """Side by side: `jobs` stages. Begins to load, in the background, what they need."""
        self.jobs = jobs
        if jobs > 1:
            os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        self.forks = multiprocessing.get_context("forkserver")
        self.forks.set_forkserver_preload(list(LOADED))
        self.interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # would cut the loading short, with a traceback
        forkserver.ensure_running()
        signal.signal(signal.SIGINT, self.interrupt)

    def repro(self, names: list[str], force: bool = False) -> None:
        """Run these stages, none of which needs another, in this order: those that are stale, or all.

        A stage that fails costs no other; the UserError of the first is raised at the end. What is finished is entered
        in `dvc.lock`, after an interrupt too.
        """
        from dvc.repo import Repo, lock_repo  # half a second, which a wrong knob should not cost

        logging.getLogger("dvc").setLevel(logging.ERROR)  # as `dvc -q`
        with _told_by_dvc(), Repo(_wait_for_lock=True) as repo:  # as `dvc --wait-for-lock`
            stages = {stage.addressing: stage for stage in repo.index.stages if stage.addressing in set(names)}
            if not force:
                with lock_repo(repo):  # `repo.status` would read dvc.yaml anew for each
                    stages = {name: stage for name, stage in stages.items() if stage.status()}
            files = {name: _files(stage) for name, stage in stages.items()}
            finished, entered, failed = [], time.monotonic(), []
            pool = ThreadPoolExecutor(self.jobs)
            work = [pool.submit(self._run, stages[name], files[name]) for name in names if name in stages]
            try:
                for future in as_completed(work):
                    try:
                        finished.append(future.result())
                    except UserError as error:
                        failed.append(error)
                    if time.monotonic() - entered > ENTERED:
                        _enter(repo, finished)
                        finished, entered = [], time.monotonic()
            finally:
                pool.shutdown(cancel_futures=True)  # after an interrupt, which those running have had too
                _enter(repo, finished)
        if failed:
            raise failed[0]

    def _run(self, stage, files: str):
        """Run one stage, unless what it depends on is no longer what `files` stands for; returns it."""
        if _files(stage) == files:
            process = self.forks.Process(target=_module, args=(stage.cmd, self.interrupt is signal.SIG_IGN))
            process.start()
            process.join()
            if process.exitcode:
                raise UserError(f"{stage.addressing} failed, see above; the same command resumes")
        if _files(stage) != files:
            raise UserError(
                f"{stage.addressing}: its code or config changed meanwhile; the same command runs what is stale"
            )
        return stage


def gpu_is_shared() -> bool:
    """Whether NVIDIA's MPS runs here, under which kernels of several processes share a GPU; else they take turns."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists()


def _files(stage) -> str:
    """Stands for the contents of all files that a stage depends on, data sets apart."""
    files = sorted(path for dep in stage.deps if (path := Path(dep.fs_path)).is_file())
    return digest(*(path.read_bytes() for path in files))


def _enter(repo, finished: list) -> None:
    """The stages in `dvc.lock`, at once: `dvc commit` would write that long file anew for each."""
    if finished:
        from dvc.repo import lock_repo

        with lock_repo(repo):
            for stage in finished:
                stage.save()
                stage.commit()
            finished[0].dvcfile.dump_stages(finished, update_pipeline=False)


@contextmanager
def _told_by_dvc():
    """What DVC has to say, as a UserError."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        raise UserError(f"dvc: {error}; the same command resumes") from error


def _module(command: str, deaf: bool) -> None:
    """Run `python -m <module> <arguments>` in this process; `deaf` to interrupts, or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.default_int_handler)
    _, _, module, *arguments = shlex.split(command)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
