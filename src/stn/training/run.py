"""Runs: train the seeds of one cell and write its record; test a checkpoint."""

import ctypes
import json
import logging
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from stn.codebase import commit, training_digest
from stn.config import experiment, leaves_parameters_out
from stn.errors import UserError
from stn.experiments import load as load_module
from stn.files import DAMAGED, alone, digest, write_whole
from stn.tracking import finish_run, make_logger
from stn.training.blocks import BlockLearner
from stn.training.callbacks import Pictures, ProgressBar, Trace
from stn.training.data_module import DataModule
from stn.training.learner import Learner, build_network, new_learner
from stn.training.record import provenance, read_result, results_to_extend, write_cell, write_result

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def train(cfg: DictConfig) -> list[dict]:
    """Train the unfinished seeds of `cfg.seeds`, then write the cell's record. Returns the result of each seed.

    Seeds that the record at `cfg.record` has already are kept if others are added to them, unless `cfg.fresh` or
    `make table FRESH=1` (the environment variable STN_FRESH) asks for all of them.
    """
    quieten()
    keep_memory()
    parts = cfg.trainer.accumulate
    total_parts = parts * cfg.trainer.devices * cfg.trainer.num_nodes
    if parts > 1 and cfg.budget.batch_size % total_parts:  # parts of unequal size would have unequal weights
        raise UserError(
            f"budget.batch_size={cfg.budget.batch_size} is no multiple of {total_parts}, trainer.accumulate={parts} "
            f"parts on each device: choose another trainer.accumulate"
        )
    is_fresh = cfg.fresh or bool(os.environ.get("STN_FRESH"))
    recorded = [] if is_fresh or not cfg.record else results_to_extend(Path(cfg.record), cfg)
    kept = {result["seed"]: (result, evidence) for result, evidence in recorded}
    results, arrays = [], {}
    for seed in cfg.seeds:
        if seed in kept:
            result, evidence = kept[seed]
            print(f"{title(cfg, seed)}: kept from {cfg.record}.json")
        else:
            waiting = f"{title(cfg, seed)}: waiting for another process that trains it"
            with _alone(cfg, scratch(cfg, seed).name, waiting):
                result, evidence = _finish(cfg, seed)
        results.append(result)
        arrays[f"correct_s{seed}"] = evidence.pop("correct")
        if len(results) == 1:  # the other arrays are large, and much the same for every seed
            arrays.update(evidence)
    _write(cfg, results, arrays)
    return results


def _finish(cfg: DictConfig, seed: int) -> tuple[dict, dict]:
    """The result and arrays of a seed: those of an earlier run with these settings, or of its training now."""
    folder = scratch(cfg, seed)
    if cfg.fresh:
        shutil.rmtree(folder, ignore_errors=True)  # another process of this run may be at it too
    try:
        finished = read_result(folder)
    except DAMAGED:
        print(f"{title(cfg, seed)}: the result in {folder} is damaged, so its run goes on, or starts again")
        finished = None
    if finished is not None:
        print(f"{title(cfg, seed)}: finished earlier with these settings, kept (fresh=true trains it again)")
        return finished
    return train_seed(cfg, seed, folder)


@contextmanager
def _alone(cfg: DictConfig, name: str, waiting: str) -> Iterator[None]:
    """Keeps other runs away from what `name` stands for; the processes of one run share it."""
    lock = Path(cfg.outputs) / "locks" / cfg.budget.name / f"{cfg.name}-{name}"
    with ExitStack() as stack:
        if not getattr(rank_zero_only, "rank", 0):
            try:
                stack.enter_context(alone(lock, waiting))
            except OSError as error:
                raise UserError(f"cannot write {lock}: {error.strerror}; set outputs=... elsewhere") from error
        yield


@rank_zero_only
def _write(cfg: DictConfig, results: list[dict], arrays: dict) -> None:
    settings = digest(json.dumps([experiment(cfg), list(cfg.seeds)], sort_keys=True))
    name = f"{cfg.data.name}-{cfg.model.name}-{settings}"  # a run with other settings writes another file
    record = Path(cfg.record or Path(cfg.outputs) / "results" / cfg.budget.name / name)
    network, shape = build_network(cfg).eval(), DataModule(cfg.data, cfg.budget, seed=0).source.shape
    with _alone(cfg, "record", f"{record}.json: waiting for another process that writes it"):
        write_cell(record, cfg, network, shape, results, arrays)
    errors = ", ".join(f"{result['error']:.2f}" for result in results)
    print(f"{title(cfg)}: test error {errors} % of {results[0]['n_test']} images -> {record}.json")


def train_seed(cfg: DictConfig, seed: int, folder: Path) -> tuple[dict, dict]:
    """Train one seed, from its last checkpoint if there is one, and test it. Returns its result and arrays."""
    L.seed_everything(seed, verbose=False)
    code = {"digest": training_digest(cfg.data.kind), "commit": commit()}  # now: it may change during a long run
    data_module = DataModule(cfg.data, cfg.budget, seed, cfg.trainer.accumulate, block(cfg))
    data_module.setup()  # first, so that a missing data set fails early
    last = folder / "last.ckpt"
    if last.exists() and not _is_whole(last):
        print(f"{title(cfg, seed)}: {last} is damaged, so it is trained from the start")
        last.unlink(missing_ok=True)
    kind = BlockLearner if data_module.block > 1 else Learner
    learner = kind(experiment(cfg), cfg.logger.every) if last.exists() else new_learner(cfg, kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; set outputs=... elsewhere") from error
    logger = make_logger(cfg, title(cfg), seed, folder)
    traces = [Trace(data_module.source.traced)] if hasattr(data_module.source, "traced") else []
    trainer = make_trainer(cfg, seed, folder, logger, traces)
    try:
        trainer.fit(learner, data_module, ckpt_path=last if last.exists() else None, weights_only=True)
    except SystemExit as error:  # Lightning turns an interrupt into this
        raise KeyboardInterrupt from error
    trainer.test(learner, data_module, verbose=False)
    arrays = learner.test_result()
    learner.to(trainer.strategy.root_device).eval()  # Lightning leaves it on the CPU and in training mode
    arrays |= data_module.source.evidence(learner.network, arrays)
    for trace in traces:
        arrays |= trace.arrays()
    arrays |= {name: value.astype("float16") for name, value in arrays.items() if name.startswith("theta")}
    wrong = int((~arrays["correct"]).sum())
    n = len(arrays["correct"])
    result = {
        "seed": seed,
        "error": 100 * wrong / n,
        "errors": wrong,
        "n_test": n,
        "steps": trainer.global_step,
        "images_seen": trainer.global_step * data_module.images_per_step,
        "seconds": round(learner.seconds, 1),
        "validation": learner.validation,
        "provenance": provenance(str(trainer.precision), learner.weights),
        "code": code,
    }
    if trainer.is_global_zero:
        write_result(folder, result, arrays)
        finish_run(logger, result, sum(parameter.numel() for parameter in learner.network.parameters()))
    return result, arrays


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint, which is a zip file, is complete and has the checksums that were written with it."""
    try:
        with zipfile.ZipFile(checkpoint) as file:
            return file.testzip() is None
    except DAMAGED:
        return False


def load(path: Path) -> Learner:
    """The learner of a checkpoint; UserError for a missing, damaged or foreign file."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; finished runs keep theirs below outputs/runs")
    try:
        return Learner.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (KeyError, TypeError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a checkpoint of this project, or damaged ({reason[:120]})") from error


def load_published(name: str) -> Learner:
    """The learner of a network that comes with the project, by its name or its file; UserError if it cannot be read."""
    from stn.weights import read

    try:
        card, tensors = read(name)
        learner = Learner(card["config"])
        learner.network.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    except (ValueError, RuntimeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    return learner


def answers(learner: Learner, data: DictConfig, budget: DictConfig, trainer: DictConfig) -> np.ndarray:
    """Which images (n,) of the stored test set of `data` a learner has right, at the precision of `budget`."""
    tester = L.Trainer(
        accelerator=trainer.accelerator,
        devices=1,
        precision=precision(OmegaConf.create({"budget": budget, "trainer": trainer})),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    tester.test(learner, DataModule(data, budget, seed=0), verbose=False)
    return learner.test_result()["correct"]


def make_trainer(cfg: DictConfig, seed: int, folder: Path | None, logger, more: Sequence[Callback] = ()) -> L.Trainer:
    """The Lightning trainer of one seed; without a folder it writes no checkpoint."""
    callbacks = [ProgressBar(title(cfg, seed)), *more]
    if folder:
        callbacks.append(ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False))
    if cfg.logger.name == "wandb" and cfg.logger.pictures:
        callbacks.append(Pictures(cfg.logger.pictures))
    if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu, but torch finds no GPU here: use trainer=cpu")
    return L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        num_nodes=cfg.trainer.num_nodes,
        strategy=_strategy(cfg),
        precision=precision(cfg),
        max_steps=cfg.budget.steps,
        max_epochs=-1,
        accumulate_grad_batches=cfg.trainer.accumulate,
        reload_dataloaders_every_n_epochs=1,  # an "epoch" is the stretch to the next validation
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # `DataModule` takes the slice of each process
        log_every_n_steps=1,  # the learner decides when to log
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=folder is not None,
        benchmark=cfg.trainer.accelerator == "gpu",  # shapes are constant, so cuDNN chooses algorithms once
        detect_anomaly=cfg.debug.detect_anomaly,
        profiler=cfg.debug.profiler,
    )


def _strategy(cfg: DictConfig) -> str:
    """`trainer.strategy`; under DDP the variant that tolerates parameters without a gradient, where a run has any."""
    tolerant = cfg.trainer.strategy == "ddp" and leaves_parameters_out(cfg)
    return "ddp_find_unused_parameters_true" if tolerant else str(cfg.trainer.strategy)


class WholeCheckpoints(TorchCheckpointIO):
    """Moves checkpoints into place when they are complete.

    Lightning writes them to the folder for temporary files. If that is on another file system, its move is a copy, and
    a kill can leave half a file.
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(path), lambda file: torch.save(checkpoint, file))


def block(cfg: DictConfig) -> int:
    """Steps of a block: `trainer.block` if the run allows blocks, else 1, which means the plain learner.

    The data source must support blocks (`stn.experiments.base.DataSource`). Several processes, or parts of a batch,
    would have to synchronise within a step, and the search for a NaN checks the result of every operation.
    """
    is_single = cfg.trainer.strategy == "auto" and cfg.trainer.devices * cfg.trainer.num_nodes == 1
    is_supported = getattr(load_module(cfg.data.kind, "data"), "IN_BLOCKS", False)
    is_plain = cfg.trainer.accumulate == 1 and not cfg.debug.detect_anomaly
    is_plain = is_plain and not (cfg.budget.random_share or cfg.budget.explore_share)
    return cfg.trainer.block if is_single and is_supported and is_plain else 1


def precision(cfg: DictConfig) -> Literal["32-true", "bf16-mixed"]:
    """Lightning's name for the budget's precision on this machine; float32 where bf16 would be emulated."""
    if cfg.budget.precision.name == "float32":
        return "32-true"
    if cfg.trainer.accelerator == "gpu":
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16-mixed" if fast else "32-true"


def scratch(cfg: DictConfig, seed: int) -> Path:
    """The folder of a seed's checkpoints. All that decides the result is in its name, so no other run uses it."""
    key = digest(json.dumps(experiment(cfg), sort_keys=True), training_digest(cfg.data.kind))
    return Path(cfg.outputs) / "runs" / cfg.budget.name / cfg.name / f"{key}-s{seed}"


def title(cfg: DictConfig, seed: int | None = None) -> str:
    """`<data>/<model>` or `<data>/<model>/s<seed>`, as runs are named everywhere; settings follow the model."""
    model = cfg.name.removeprefix(f"{cfg.data.name}-")
    return f"{cfg.data.name}/{model}" + ("" if seed is None else f"/s{seed}")


def keep_memory() -> None:
    """Make glibc keep the memory of large tensors for the next step instead of returning it to the kernel.

    Otherwise each step gets new pages for its feature maps: a quarter of the time of a step of Table 1's CNN.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, -1)  # never


def quieten() -> None:
    """Silence messages that a user cannot act on; each has its reason beside it."""
    for name in (
        "lightning.pytorch.utilities.rank_zero",  # GPU and TPU inventories, tips, "max_steps reached"
        "lightning.fabric.utilities.distributed",  # each process announces itself
        "lightning.fabric.utilities.seed",
        "lightning.pytorch",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",  # batches are index picks: there is no work for a worker
        ".*Checkpoint directory .* exists and is not empty.*",  # resuming is intended
        ".*The `srun` command is available.*",  # clusters go through submitit
        ".*lr_scheduler.step.*before.*optimizer.step.*",  # first step of mixed precision; a block's rates are set first
        ".*checkpoint that ended before the epoch ended.*",  # Lightning counts blocks as steps; the epoch did end
        ".*You are using a CUDA device .* that has Tensor Cores.*",  # precision is the budget's choice
        ".*when logging on epoch level in distributed setting.*",  # each process validates on all images
        ".*Total length of `DataLoader` across ranks is zero.*",  # a run is continued whose last step is done
        ".*Trying to infer the `batch_size`.*",  # errors are counted, not averaged over batches
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # between lightning and torch
    ):
        warnings.filterwarnings("ignore", message)
