"""The record of a cell: a self-contained JSON and a small NPZ. The report reads nothing else.

`<record>.json`
    schema, budget, data, model, metric, complete, part: what was run.
    parameters, multiply_adds (of convolutions and matrix products, one image), n_test.
    config: the groups data, model and budget, resolved.
    seeds: for each its error (%), errors, n_test, steps, images_seen (inputs of the network in these steps: an image is
        a pair of digits in addition and a volume in three dimensions; in co-localisation the images of all ten classes
        count), seconds of training, validation [[step, error %, loss], ...] and provenance (date, machine, versions,
        and `weights`: the pretrained weights that it started from, if any).
    pose_names: columns of the NPZ's poses.
    code: the code that trained the first seed: its `digest` (`stn.codebase`) and `commit`, with "+changes" if files
        differed from the commit. Unknown values are null; without a digest, `note` says why. A seed that was added
        later and by other code has a `code` of its own, whose digest is the first seed's or one of those in `adopted`.
    adopted: later code that is shown to give the same numbers, oldest first: its `commit`, its `digest` and the
        `evidence`.
`<record>.npz`
    correct_s<seed>: (n_test,) bool, which test images were right.
    For the first seed also:
    positions: (n_test, K) bool, which of K labels of each test image were right, if an image has several.
    theta: float16, of every test image (n_test, P), or of those that the data source's `evidence` takes; theta1, ... if
        there are several transformers.
    trace (T, n, P), trace_steps (T,): theta of the first n validation images during training, if the source has it.
    What `evidence` adds: example images with their grids, true and estimated poses.
"""

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from stn.codebase import is_shown, training_digest
from stn.config import experiment
from stn.environment import cores
from stn.errors import UserError
from stn.files import DAMAGED, write_whole
from stn.schema import deliberate

SCHEMA = 1


def write_cell(
    record: Path,
    cfg: DictConfig,
    network: torch.nn.Module,
    shape: tuple[int, ...],
    results: list[dict],
    arrays: dict,
) -> None:
    """Write `<record>.json` and `<record>.npz`, each atomically. `shape` is that of one image."""
    facts = {
        "schema": SCHEMA,
        "budget": cfg.budget.name,
        "data": cfg.data.name,
        "model": cfg.model.name,
        "metric": "error %",
        "complete": all(result["steps"] == cfg.budget.steps for result in results),
        "part": cfg.data.part,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "multiply_adds": multiply_adds(network, shape),
        "n_test": results[0]["n_test"],
        "config": experiment(cfg),
        "seeds": [_without_code(result, results[0]["code"]) for result in results],
        "pose_names": [str(name) for name in arrays.pop("pose_names", [])],
        "code": results[0]["code"],
        "adopted": results[0].get("adopted", []),
    }
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_whole(record.with_name(f"{record.name}.npz"), lambda file: np.savez_compressed(file, **arrays))
        text = json.dumps(facts, indent=1, allow_nan=False) + "\n"
        write_whole(record.with_name(f"{record.name}.json"), lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or record}: {error.strerror}; set record=... elsewhere"
        ) from error


def _without_code(result: dict, first: dict) -> dict:
    """A seed as its record has it: with its code only if that is not the first seed's."""
    apart = {"adopted"} | ({"code"} if result["code"] == first else set())
    return {name: value for name, value in result.items() if name not in apart}


def results_to_extend(record: Path, cfg: DictConfig) -> list[tuple[dict, dict]]:
    """The results and arrays of a record's seeds, if the present run adds seeds to them; otherwise an empty list.

    The record must be of the same config and of code that is shown to give the numbers of the present code, and its
    seeds must be the first of `cfg.seeds`, but not all of them: those who ask for the same seeds want them trained.
    """
    try:
        facts = json.loads(record.with_name(f"{record.name}.json").read_text(encoding="utf-8"))
        seeds = [seed["seed"] for seed in facts["seeds"]]
        is_same = deliberate(facts["config"]) == deliberate(experiment(cfg)) and facts["complete"]
        if not is_same or not is_shown(facts, training_digest(cfg.data.kind)):
            return []
        if len(seeds) >= len(cfg.seeds) or seeds != list(cfg.seeds[: len(seeds)]):
            return []
        with np.load(record.with_name(f"{record.name}.npz")) as file:
            arrays = dict(file)
        correct = [arrays.pop(f"correct_s{seed}") for seed in seeds]
    except (*DAMAGED, TypeError, AttributeError):  # no record, or a damaged one
        return []
    results = [{"code": facts["code"]} | seed for seed in facts["seeds"]]
    results[0]["adopted"] = facts["adopted"]
    evidence = arrays | ({"pose_names": np.array(facts["pose_names"])} if facts["pose_names"] else {})
    return [(results[0], evidence | {"correct": correct[0]})] + [
        (result, {"correct": right}) for result, right in zip(results[1:], correct[1:], strict=True)
    ]


def write_result(folder: Path, result: dict, arrays: dict) -> None:
    """Write the result of a finished seed to its scratch folder. The JSON comes last and marks the seed as finished."""
    write_whole(folder / "result.npz", lambda file: np.savez_compressed(file, **arrays))
    write_whole(folder / "result.json", lambda file: file.write(json.dumps(result, allow_nan=False).encode()))


def read_result(folder: Path) -> tuple[dict, dict] | None:
    """The result and arrays of `write_result`; None if the seed is not finished. Damaged ones raise `DAMAGED`."""
    if not (folder / "result.json").exists():
        return None
    with np.load(folder / "result.npz") as arrays:
        return json.loads((folder / "result.json").read_text(encoding="utf-8")), dict(arrays)


def provenance(precision: str, weights: str | None = None) -> dict:
    """The date, machine and versions of a training, and the pretrained weights that it started from, if any."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "precision": precision,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "lightning", "stn")},
        **({"weights": weights} if weights else {}),
    }


def multiply_adds(network: torch.nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and matrix products for one image of that shape; sampling itself is not counted."""
    image = torch.zeros(1, *shape, device=next(network.parameters()).device)
    with torch.inference_mode():
        network(image)  # constants that are computed once, as a spline's, must not be counted
        with FlopCounterMode(display=False) as counter:
            network(image)
    return counter.get_total_flops() // 2


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
