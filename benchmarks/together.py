"""Table 1 at the paper's budget on one GPU: eight cells at once, how many steps each makes, and what the table takes.

A small network leaves most of a GPU idle, so cells are trained in parallel, a process each, as by `make table JOBS=8`.
Here eight trainings of one network run at a time, on R, RTS, P and E with two seeds each. They start together, and
those that finish go on until all have finished, so that every counted step had seven others beside it.
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
SEEDS = 2  # trainings of each data set at once
TABLE_SEEDS = 3  # trainings of each cell in the table
START = 300  # seconds: how long a process waits for the others


def measure(bench: Bench, data: str, scratch: Path, *overrides: str) -> Iterator[dict]:
    """Steps per second of each cell, over 5,000 steps from step 500 on, with one validation and one checkpoint."""
    kinds = KINDS[:1] if bench.quick else KINDS
    warm, steps = (16, 8) if bench.quick else (500, 5000)
    keys = ["budget=paper", f"trainer={'gpu' if bench.device.type == 'cuda' else 'cpu'}", "logger=none", *overrides]
    keys += ["budget.batch_size=8"] if bench.quick else []
    cells = [[f"data={data}_{kind}", *keys, *stored([f"data={data}_{kind}", *keys], scratch)] for kind in kinds]
    places = [(cell, seed) for seed in range(SEEDS) for cell in cells]
    if bench.device.type == "cuda" and not gpu_is_shared():
        print("  no MPS here, so cells take turns: start it with `nvidia-cuda-mps-control -d`", flush=True)
    processes = multiprocessing.get_context("spawn")
    gate, counter = processes.Barrier(len(places)), processes.Value("q", 0)
    threads = max(1, cores() // len(places))
    with ProcessPoolExecutor(len(places), processes, _enter, (gate, counter, threads)) as pool:
        for model in MODELS[1:2] if bench.quick else MODELS:
            counter.value = 0
            work = [
                pool.submit(_train, [f"model={model}", *cell], seed, scratch / f"together/{i}", warm, steps)
                for i, (cell, seed) in enumerate(places)
            ]
            rates = _results(work)
            for i, cell in enumerate(cells):
                cfg = compose(f"model={model}", *cell)
                cell_rates = rates[i :: len(cells)]
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
                    "contestants": {OURS: measured(cell_rates)},
                }
                print(f"  {row['work']}: {statistics.median(cell_rates):,.0f} steps/s", flush=True)
                yield row


def grid(rows: list[dict]) -> list[list[str]]:
    """A head and lines: steps per second of each network on each data set."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    rates = {name: [figure(row, OURS) for row in rows if row["model"] == name] for name in names}
    kinds = [row["data"].split("_")[-1].upper() for row in rows if row["model"] == names[0]]
    return [["network", *(f"{kind}, steps/s" for kind in kinds)], *([name, *rates[name]] for name in names)]


def hour(rows: list[dict]) -> str:
    """The time of all cells of the table at these rates, with as many at once as were timed."""
    at_once = rows[0]["cells_at_once"]
    total = sum(TABLE_SEEDS * row["of_steps"] for row in rows)
    seconds = sum(TABLE_SEEDS * row["of_steps"] / row["contestants"][OURS]["rate"]["median"] for row in rows)
    return (
        f"{len(rows)} cells x {TABLE_SEEDS} seeds x {rows[0]['of_steps']:,} steps of {rows[0]['batch']}, {at_once} at "
        f"once with{'' if rows[0]['mps'] else 'out'} MPS: {total * at_once / seconds:,.0f} steps/s in all, "
        f"{seconds / at_once / 60:.0f} minutes for {total / 1e6:.1f} million; each rate over "
        f"{rows[0]['steps']:,} steps of {rows[0]['repeats']} seeds, starts and tests apart\n"
    )


def _enter(gate, counter, threads: int) -> None:
    """Initialise a process of the pool."""
    global GATE, DONE
    GATE, DONE = gate, counter
    torch.set_num_threads(threads)
    quieten()


def _results(work: list) -> list[float]:
    """The results of all futures. If one fails, the others fail at the barrier, so its error is the one to raise."""
    errors = [error for error in (future.exception() for future in work) if error]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    return [future.result() for future in work]


def _train(keys: list[str], seed: int, folder: Path, warm: int, steps: int) -> float:
    """Steps per second of one cell beside the others, under the trainer that `stn.train` makes."""
    try:
        cfg = compose(*keys)
        L.seed_everything(seed, verbose=False)
        data_module = DataModule(cfg.data, cfg.budget, seed, block=block(cfg))
        clock = _Clock(warm, steps)
        trainer = make_trainer(cfg, seed, folder, False, [clock])
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, ProgressBar)]
        trainer.fit(new_learner(cfg, BlockLearner), data_module)
        gc.collect()  # frees the captured step before the next network
        return clock.rate
    except BaseException:
        GATE.abort()
        raise


class _Clock(L.Callback):
    """Times `steps` steps once all cells have made `warm`; ends the run when all cells have been timed."""

    def __init__(self, warm: int, steps: int):
        self.warm, self.steps = warm, steps
        self.start = self.rate = None

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        step, synchronise = trainer.global_step, partial(wait, trainer.strategy.root_device)
        if self.start is None:
            if step >= self.warm:
                synchronise()
                GATE.wait(START)
                self.start, self.first = time.perf_counter(), step
        elif self.rate is None and step >= self.first + self.steps:
            self.rate = (step - self.first) / (synchronise() - self.start)
            with DONE.get_lock():
                DONE.value += 1
        if self.rate is not None and DONE.value == GATE.parties:
            trainer.should_stop = True
