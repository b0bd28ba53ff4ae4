"""Table 1 at the paper's budget on one GPU: eight cells at once, how many steps each makes, and what the table takes.

A small network leaves most of a GPU idle, so cells are trained side by side, a process each, as `make table JOBS=8`
has it. Here eight of one network run at a time, on R, RTS, P and E with two seeds each: they start together, and who is
done goes on till all are, so that every step counted had seven others beside it.
"""

import gc
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from threading import BrokenBarrierError

import lightning as L
import torch

from benchmarks.timing import OURS, Bench, figure, measured, wait
from benchmarks.training import MODELS, stored
from stn.config import compose
from stn.environment import cores
from stn.stages import gpu_is_shared
from stn.training.blocks import BlockLearner
from stn.training.callbacks import ProgressBar
from stn.training.data_module import DataModule
from stn.training.learner import new_learner
from stn.training.run import block, make_trainer, precision, quieten

KINDS = ("r", "rts", "p", "e")
SEEDS = 2  # of each, at once
TABLE_SEEDS = 3  # the paper's
START = 300  # seconds: how long one waits for the others


def measure(bench: Bench, data: str, scratch: Path, *overrides: str) -> Iterator[dict]:
    """Steps per second of each cell, from step 500 on for 5,000, with one validation and one checkpoint in them."""
    kinds = KINDS[:1] if bench.quick else KINDS
    warm, steps = (16, 8) if bench.quick else (500, 5000)
    keys = ["budget=paper", f"trainer={'gpu' if bench.device.type == 'cuda' else 'cpu'}", "logger=none", *overrides]
    keys += ["budget.batch_size=8"] if bench.quick else []
    here = [[f"data={data}_{kind}", *keys, *stored([f"data={data}_{kind}", *keys], scratch)] for kind in kinds]
    places = [(which, seed) for seed in range(SEEDS) for which in here]
    if bench.device.type == "cuda" and not gpu_is_shared():
        print("  no MPS here, so cells take turns: start it with `nvidia-cuda-mps-control -d`", flush=True)
    processes = multiprocessing.get_context("spawn")
    gate, counter = processes.Barrier(len(places)), processes.Value("q", 0)
    threads = max(1, cores() // len(places))
    with ProcessPoolExecutor(len(places), processes, _enter, (gate, counter, threads)) as pool:
        for model in MODELS[1:2] if bench.quick else MODELS:
            counter.value = 0
            work = [
                pool.submit(_train, [f"model={model}", *which], seed, scratch / f"together/{i}", warm, steps)
                for i, (which, seed) in enumerate(places)
            ]
            rates = _results(work)
            for i, which in enumerate(here):
                cfg = compose(f"model={model}", *which)
                of_cell = rates[i :: len(here)]
                row = {
                    "work": f"{model} on {kinds[i].upper()}",
                    "unit": "steps/s",
                    "repeats": SEEDS,
                    "data": cfg.data.name,
                    "model": model,
                    "batch": cfg.budget.batch_size,
                    "steps": steps,
                    "of_steps": cfg.budget.steps,
                    "cells_at_once": len(places),
                    "mps": gpu_is_shared(),
                    "precision": precision(cfg),
                    "threads": threads,
                    "contestants": {OURS: measured(of_cell)},
                }
                print(f"  {row['work']}: {statistics.median(of_cell):,.0f} steps/s", flush=True)
                yield row


def grid(rows: list[dict]) -> list[list[str]]:
    """A head and lines: steps per second of each network on each data set."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    rates = {name: [figure(row, OURS) for row in rows if row["model"] == name] for name in names}
    kinds = [row["data"].split("_")[-1].upper() for row in rows if row["model"] == names[0]]
    return [["network", *(f"{kind}, steps/s" for kind in kinds)], *([name, *rates[name]] for name in names)]


def hour(rows: list[dict]) -> str:
    """What all cells of the table would take at these rates, as many at once as were timed."""
    at_once = rows[0]["cells_at_once"]
    total = sum(TABLE_SEEDS * row["of_steps"] for row in rows)
    busy = sum(TABLE_SEEDS * row["of_steps"] / row["contestants"][OURS]["rate"]["median"] for row in rows)
    return (
        f"{len(rows)} cells x {TABLE_SEEDS} seeds x {rows[0]['of_steps']:,} steps of {rows[0]['batch']}, {at_once} at "
        f"once with{'' if rows[0]['mps'] else 'out'} MPS: {total * at_once / busy:,.0f} steps/s in all, "
        f"{busy / at_once / 60:.0f} minutes for {total / 1e6:.1f} million; each rate over {rows[0]['steps']:,} steps "
        f"of {rows[0]['repeats']} seeds, starts and tests apart\n"
    )


def _enter(gate, counter, threads: int) -> None:
    """Begin a process of the pool."""
    global GATE, DONE
    GATE, DONE = gate, counter
    torch.set_num_threads(threads)
    quieten()


def _results(work: list) -> list[float]:
    """Of all futures; where one fails the others only miss it, so its error is the one to tell."""
    errors = [error for error in (future.exception() for future in work) if error]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    return [future.result() for future in work]


def _train(keys: list[str], seed: int, folder: Path, warm: int, steps: int) -> float:
    """Steps per second of one cell among the others, under the trainer that `stn.train` makes."""
    try:
        cfg = compose(*keys)
        L.seed_everything(seed, verbose=False)
        feed = DataModule(cfg.data, cfg.budget, seed, block=block(cfg))
        clock = _Clock(warm, steps)
        trainer = make_trainer(cfg, seed, folder, False, [clock])
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, ProgressBar)]
        trainer.fit(new_learner(cfg, BlockLearner), feed)
        gc.collect()  # the captured step's memory, before the next network comes
        return clock.rate
    except BaseException:
        GATE.abort()
        raise


class _Clock(L.Callback):
    """Counts steps from the moment when all cells have made `warm`; ends the run when all have counted theirs."""

    def __init__(self, warm: int, steps: int):
        self.warm, self.steps = warm, steps
        self.start = self.rate = None

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        step, now = trainer.global_step, partial(wait, trainer.strategy.root_device)
        if self.start is None:
            if step >= self.warm:
                now()
                GATE.wait(START)
                self.start, self.first = time.perf_counter(), step
        elif self.rate is None and step >= self.first + self.steps:
            self.rate = (step - self.first) / (now() - self.start)
            with DONE.get_lock():
                DONE.value += 1
        if self.rate is not None and DONE.value == GATE.parties:
            trainer.should_stop = True
