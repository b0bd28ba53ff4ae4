"""Exports a trained network to ONNX, in float32 and int8, and tests and times it under onnxruntime.

A file holds the whole network: localisation, grid, sampler (ONNX's GridSample, in the frame of
`stn.geometry.transforms`) and classifier. It takes images (B, C, H, W), for any B, and returns the network's output.
"""

import io
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from stn import experiments
from stn.config import experiment
from stn.data.draws import generator
from stn.errors import UserError
from stn.training.learner import Learner
from stn.training.record import provenance
from stn.training.run import load, quieten, read_result, scratch, title

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  torch's exporter imports it
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ModuleNotFoundError as error:
    raise UserError(
        f"{error.name} is not installed: `make export` and `make table TABLE=8` install it, "
        "so does `uv pip install -r requirements-export.lock`"
    ) from None

SCHEMA = 1
FILES = {"float32": "float32.onnx", "int8": "int8.onnx"}
REGRESSION = "regression.weight"  # suffix of the name of the weights of a transformer's last layer
Run = Callable[[np.ndarray], np.ndarray]


def deploy(cfg: DictConfig) -> dict:
    """Export the network of `cfg.checkpoint`, or of the finished cell of `cfg`; test and time it on one thread.

    Returns these facts, and writes them as JSON to `cfg.record` if that is set:
        schema, data, model, tested (the name of the data set), config and trained (seed, date, errors) of the training,
        n_test, parameters, calibration (number of images), versions and hardware (`provenance`), and
        runs: for `torch`, `float32` and `int8` each `error` (%), `errors`, `agreement` (% of the test images with
        torch's answer), `latency` (ms for a single image: `median`, `low` and `high`, the 5th and 95th percentile, `n`)
        and, for a file, `bytes`.
    Raises UserError for a network that cannot be exported or whose float32 file does not give torch's scores.
    """
    quieten()
    torch.set_num_threads(1)
    learner, checkpoint = opened(cfg)
    config, network = learner.cfg, learner.network.eval().requires_grad_(False)
    trained_data = OmegaConf.merge(OmegaConf.structured(experiments.load(config.data.kind, "config").DATA), config.data)
    data = cfg.data if "data" in _asked() else trained_data
    source, train_source = (experiments.load(config.data.kind, "data").source(part) for part in (data, trained_data))
    source.load("test")
    train_source.load("train")
    folder = checkpoint.parent if cfg.export.folder is None else Path(cfg.export.folder)
    paths = {name: folder / file for name, file in FILES.items()}
    example = source.batch("test", torch.arange(2), torch.device("cpu"))[0]
    if not isinstance(example, Tensor):
        raise UserError(
            f"{config.model.name} cannot be exported to ONNX: it takes more than images and gives no scores"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        to_onnx(network, example, paths["float32"], cfg.export.opset)
        to_int8(paths["float32"], paths["int8"], calibration(train_source, cfg))
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}; set export.folder=...") from error
    runs = {"torch": eager(network), **{name: session(path) for name, path in paths.items()}}
    scores, right = tested(runs, source, learner.objective, cfg.export.batch)
    check_agreement(scores, cfg.export.tolerance)
    first = source.batch("test", torch.arange(1), torch.device("cpu"))[0].numpy()
    facts = {
        "schema": SCHEMA,
        "data": config.data.name,
        "model": config.model.name,
        "tested": data.name,
        "config": OmegaConf.to_container(config),
        "trained": _trained(checkpoint.parent),
        "n_test": source.count("test"),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "calibration": cfg.export.calibration,
        "runs": {
            name: {
                "error": 100 * float((~right[name]).mean()),
                "errors": int((~right[name]).sum()),
                "agreement": 100 * float((scores[name].argmax(-1) == scores["torch"].argmax(-1)).mean()),
                "latency": latency(run, first, cfg.export.warm_up, cfg.export.timed),
                **({"bytes": paths[name].stat().st_size} if name in paths else {}),
            }
            for name, run in runs.items()
        },
        "provenance": provenance("32-true")
        | {package: version(package) for package in ("onnx", "onnxruntime", "onnxscript")},
        "files": [str(path) for path in paths.values()],
    }
    if cfg.record:
        _write(Path(f"{cfg.record}.json"), {key: value for key, value in facts.items() if key != "files"})
    return facts


def opened(cfg: DictConfig) -> tuple[Learner, Path]:
    """The learner to export and its checkpoint: `cfg.checkpoint`, or that of the cell's first seed.

    Raises UserError if the checkpoint is missing, unfinished, or of another data set or network than requested.
    """
    if cfg.checkpoint is None:
        return _finished(cfg)
    learner = load(Path(cfg.checkpoint))
    config, keys = learner.cfg, _asked()
    if "model" in keys and cfg.model.name != config.model.name:
        raise UserError(
            f"{cfg.checkpoint} is a checkpoint of {config.model.name}, not of {cfg.model.name}: drop model="
        )
    for key in ("kind", "canvas") if "data" in keys else ():
        if cfg.data[key] != config.data[key]:
            raise UserError(
                f"{cfg.checkpoint} was trained on {config.data.name} ({key} {config.data[key]}); "
                f"data={cfg.data.name} has {key} {cfg.data[key]}"
            )
    return learner, Path(cfg.checkpoint)


def _finished(cfg: DictConfig) -> tuple[Learner, Path]:
    seed, config = cfg.seeds[0], experiment(cfg)
    current = scratch(cfg, seed)
    # The folder's name changes with the code. Runs of older code with the same config will do too.
    folders = sorted(current.parent.glob(f"*-s{seed}"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in (current, *folders):
        if read_result(folder) and (folder / "last.ckpt").is_file():
            learner = load(folder / "last.ckpt")
            if OmegaConf.to_container(learner.cfg) == config:
                return learner, folder / "last.ckpt"
    raise UserError(
        f"no checkpoint of {title(cfg, seed)} ({cfg.budget.name}) below {current.parent}: "
        f"`{_training_of(cfg)}` trains it, checkpoint=... names one elsewhere"
    )


def _training_of(cfg: DictConfig) -> str:
    """The command that trains the exported cell: that of its table, if a table shows its record."""
    cell = Path(cfg.record or "").name.removesuffix("-export")
    commands = [table.make for table in experiments.find_tables().values() if cell in table.places]
    return f"{commands[0]} FRESH=1" if commands else "python -m stn.train ..."


def to_onnx(network: nn.Module, images: Tensor, path: Path, opset: int) -> None:
    """Write the network in float32, for batches of any size of images shaped like these; UserError if that fails."""
    try:
        # Traced separately, because torch.onnx.export would fall back to a graph with a fixed batch size.
        with redirect_stderr(io.StringIO()):  # a failure would print the graph there
            traced = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        program = torch.onnx.export(
            traced,
            dynamo=True,
            dynamic_shapes=({0: "batch"},),  # only names the axis
            input_names=["images"],
            output_names=["scores"],
            opset_version=opset,
            verbose=False,
        )
    except Exception as error:  # torch's exporter raises errors of many types
        raise UserError(f"this network cannot be exported to ONNX: {_cause(error)}") from error
    assert program is not None  # it is one with dynamo=True
    program.save(path)
    _slim(path)


def _cause(error: BaseException) -> str:
    """The first line of the root cause of an exporter's error, whose own lines are coloured headings and advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    if "specialized it to be a constant" in text:
        return "its graph would take no number of images but the one it was traced with"
    return text.splitlines()[0] if text else type(error).__name__


def to_int8(float32: Path, int8: Path, images: np.ndarray) -> None:
    """Quantise a file of `to_onnx`: weights per channel, activations by their ranges on `images` (N, C, H, W).

    All nodes from the regression layer to the sampler stay float32: 8 bits would move theta in steps of 0.2 pixels.
    """
    prepared = int8.with_suffix(".part")
    level, root = logging.root.level, logging.getLogger()
    root.setLevel(logging.ERROR)  # silences advice to preprocess, which is done here
    try:
        quant_pre_process(float32, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantization.quantize_static(
            prepared,
            int8,
            _Images(images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # 7-bit weights: 8 bits saturate on processors without VNNI
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "MaxPool", "Relu"],
            nodes_to_exclude=sorted(sampling_nodes(graph)),
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},  # float scores do not tie
        )
    finally:
        root.setLevel(level)
        prepared.unlink(missing_ok=True)
    _slim(int8)


def _slim(path: Path) -> None:
    """Remove intermediate shapes and source locations from a file: half the size of a small one."""
    model = onnx.load(path)
    model.graph.ClearField("value_info")
    for part in (*model.graph.node, *model.graph.initializer):
        part.ClearField("metadata_props")
    onnx.save(model, path)


def sampling_nodes(graph) -> set[str]:
    """The names of the nodes of an ONNX graph from each regression layer to its sampler.

    A learned kernel has no sampler node: its nodes are those up to the one that gathers its pixels.
    """
    producers = {output: node for node in graph.node for output in node.output}
    names: set[str] = set()
    queue = [node.input[1] for node in graph.node if node.op_type in ("GridSample", "GatherElements")]
    while queue:
        node = producers.get(queue.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            if not any(name.endswith(REGRESSION) for name in node.input):
                queue += node.input
    return names


class _Images(quantization.CalibrationDataReader):
    """Calibration images, one at a time."""

    def __init__(self, images: np.ndarray):
        self.images = iter(images)

    def get_next(self) -> dict | None:
        image = next(self.images, None)
        return None if image is None else {"images": image[None]}


def calibration(source, cfg: DictConfig) -> np.ndarray:
    """Training images (N, C, H, W), distorted or augmented as in training."""
    n = cfg.export.calibration
    picks = torch.randint(source.count("train"), (n,), generator=generator(cfg.seeds[0], "calibration picks"))
    draws = generator(cfg.seeds[0], "calibration")
    return source.train_batch(picks, draws, n, slice(None), torch.device("cpu"))[0].contiguous().numpy()


def eager(network: nn.Module) -> Run:
    """The network run by torch, without a graph."""

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return run


def session(path: Path) -> Run:
    """A file run by onnxruntime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    runner = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: runner.run(None, {"images": images})[0]


def tested(runs: dict[str, Run], source, objective, batch: int) -> tuple[dict, dict]:
    """On the test set, by name of the run: the scores (n, ..., classes), and which images (n,) are right."""
    scores: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    right: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    for index in torch.arange(source.count("test")).split(batch):
        images, labels = source.batch("test", index, torch.device("cpu"))
        for name, run in runs.items():
            scores[name].append(run(images.contiguous().numpy()))
            right[name].append(objective.right(torch.from_numpy(scores[name][-1]), labels).all(1).numpy())
    return _joined(scores), _joined(right)


def _joined(parts: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def latency(run: Run, image: np.ndarray, warm_up: int, n: int) -> dict:
    """The time for one image in ms: `median`, `low` and `high` (5th and 95th percentile) of `n` runs."""
    for _ in range(warm_up):
        run(image)
    times = []
    for _ in range(n):
        start = time.perf_counter()
        run(image)
        times.append(1000 * (time.perf_counter() - start))
    low, median, high = np.quantile(times, [0.05, 0.5, 0.95])
    return {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4), "n": n}


def check_agreement(scores: dict[str, np.ndarray], tolerance: float) -> None:
    """UserError if the scores "float32" differ from those of "torch" by more than `tolerance` times the largest."""
    largest = float(np.abs(scores["torch"]).max())
    worst = float(np.abs(scores["float32"] - scores["torch"]).max()) / (largest or 1.0)
    if not math.isfinite(worst) or worst > tolerance:
        raise UserError(
            f"the float32 file does not give torch's scores: they differ by up to {worst:.1e} of the largest, "
            f"more than export.tolerance={tolerance}"
        )


def _trained(folder: Path) -> dict | None:
    """The training that left the checkpoint in this folder, or None if it is unfinished."""
    finished = read_result(folder)
    if finished is None:
        return None
    result = finished[0]
    return {"seed": result["seed"], "date": result["provenance"]["date"], "errors": result["errors"]}


def _write(path: Path, facts: dict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or path}: {error.strerror}; set record=... elsewhere") from error


def _asked() -> Iterable[str]:
    """The keys on the command line."""
    return {override.split("=")[0] for override in HydraConfig.get().overrides.task}
