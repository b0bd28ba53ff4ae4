"""The page of `python -m stn.play`, on which networks trained on RTS read a digit that the visitor draws.

`build` writes a folder of static files: the page (`web/`), a graph for each network, onnxruntime-web to run them, and
`facts.json`. Frames are those of `stn.geometry.transforms`, poses those of `stn.experiments.mnist.distortions.Pose`.
"""

import base64
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from stn.data.download import RemoteFile, download
from stn.data.draws import generator
from stn.data.progress import progress, writing
from stn.deployment import to_onnx
from stn.errors import UserError
from stn.experiments.mnist.data import Digits, distortion, undistorted
from stn.experiments.mnist.distortions import Pose
from stn.runs import CHECKPOINT, find_runs, read_run
from stn.training.run import load, quieten
from stn.weights import list_weights
from stn.weights import load as load_weights

WEB = Path(__file__).parents[2] / "web"
NETWORKS = {"cnn": "CNN", "st_cnn_affine": "Aff", "st_cnn_projective": "Proj", "st_cnn_tps": "TPS"}  # rows of Table 1
SIDE = 31  # points a side of the lattice that a graph maps; it spans the output from edge to edge
NINE = slice(6, 25, 9)  # indices, in x and y, of the points that give a pose: -0.6, 0, 0.6, as in Table 1's records
CALIBRATION = 1000  # validation digits, distorted again, from which the canonical pose of a network is estimated
SMALLEST = 1e-6  # the least share of the digit that a transformer must show
OPSET = 20  # of ONNX, as in conf/export/onnx.yaml

RUNTIME = "onnxruntime-web"
VERSION = "1.30.0"
MD5 = "7677e2cac4b2d0a14154aef901cdab13"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # npm's integrity


@dataclass
class Trained:
    """A network of the page: its row in Table 1, and facts of its training: `run` holds steps, batch, error, ..."""

    model: str
    network: nn.Module
    run: dict[str, Any]


def find_networks(data: str, budget: str | None = None) -> list[Trained]:
    """For each of `NETWORKS` the trained network that saw the most images.

    Candidates are the finished runs below outputs/ and the networks that come with the project (`stn.load`); on a tie
    the run is taken. `budget` selects one budget. Raises UserError if there is none or a weight file is damaged.
    """
    networks = []
    for model in NETWORKS:
        run, published = _longest_run(data, model, budget), _published(data, model, budget)
        images_seen = [trained.run["steps"] * trained.run["batch"] if trained else 0 for trained in (run, published)]
        trained = published if images_seen[1] > images_seen[0] else run
        if trained:
            networks.append(trained)
    if not networks:
        suffix = f" at budget {budget}" if budget else ""
        raise UserError(
            f"no finished run of {data} with {', '.join(NETWORKS)}{suffix} below outputs/runs: `python -m stn.train -m "
            f"data={data} model={','.join(NETWORKS)} budget={budget or 'quick'}` trains all, after `python -m "
            f"stn.distort data={data}`"
        )
    return networks


def _longest_run(data: str, model: str, budget: str | None) -> Trained | None:
    """The finished run of a network that saw the most images, of those that can still be loaded."""
    longest: Trained | None = None
    images_seen = 0
    for folder in find_runs(Path("outputs"), budget or "*", f"{data}-{model}"):  # on a tie the newest
        try:
            result, _ = read_run(folder)
            if result["images_seen"] > images_seen:
                learner = load(folder / CHECKPOINT)
                images_seen = result["images_seen"]
                longest = _trained(model, learner.network, result, learner.cfg.budget)
        except UserError:  # it is damaged, or of older code
            continue
    return longest


def _published(data: str, model: str, budget: str | None) -> Trained | None:
    """The network that comes with the project, if there is one at `budget` (None: at any)."""
    name = f"{data}/{model}"
    if name not in list_weights():
        return None
    try:
        network = load_weights(name)
    except ValueError as error:
        raise UserError(str(error)) from error
    card: dict[str, Any] = network.card  # type: ignore[assignment]
    if budget not in (None, card["budget"]):
        return None
    return _trained(model, network, card, OmegaConf.create(card["config"]["budget"]))


def _trained(model: str, network: nn.Module, facts: Mapping[str, Any], budget: DictConfig) -> Trained:
    """A network with the `facts` from its result or its card."""
    run = {key: facts[key] for key in ("seed", "steps", "error", "errors", "n_test")}
    run |= {"budget": budget.name, "batch": budget.batch_size}
    return Trained(model, network.eval().requires_grad_(False), run)


def build(folder: Path, data: DictConfig, networks: Sequence[Trained], runtime: Path) -> None:
    """Write the page of these networks to `folder`, which is replaced once all files are written.

    `data` is the config of a data set whose distortion is a pose, `runtime` the package of `RUNTIME`.
    """
    quieten()
    part = folder.with_name(f"{folder.name}.part")
    digits = undistorted(data)
    with writing(folder):
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(WEB, part)
        _unpack(runtime, part)
        facts = {
            "data": data.name,
            "canvas": data.canvas,
            "rotation": data.distortion.rotation,
            "scale": list(data.distortion.scale),
            "calibration": CALIBRATION,
            "digits": _first_of_each_class(digits["test"]),
            "networks": [],
        }
        with progress("building the page", len(networks), unit="networks") as tell:
            for done, trained in enumerate(networks, 1):
                file = f"{trained.model}.onnx"
                about = {"model": trained.model, "name": NETWORKS[trained.model], "file": file, **trained.run}
                about |= export(trained.network, data, part / file)
                about |= calibrate(trained.network, data, digits["validation"])
                facts["networks"].append(about)
                tell(done)
        (part / "facts.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)


def _first_of_each_class(digits: Digits) -> list[dict[str, Any]]:
    firsts = [(digits.labels == label).nonzero()[0, 0] for label in range(10)]
    pixels = [base64.b64encode(digits.images[first].numpy().tobytes()).decode() for first in firsts]
    return [{"label": label, "pixels": text} for label, text in enumerate(pixels)]


def watched(network: Any) -> nn.Module:
    """A `DigitNetwork` as the page runs it: images (B, 1, canvas, canvas) to scores (B, 10) or (scores, seen, grid).

    With a transformer, `seen` (B, 1, side, side) is the input of the classifier, and `grid` (B, SIDE, SIDE, 2) holds
    the canvas points (x, y) that the transformer samples for the points of `lattice` in its output.
    """

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.lattice = lattice()

        def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
            transformer = network.transformer
            if transformer is None:
                return network(images)
            output, theta = transformer(images, return_theta=True)
            seen = network.pool(output)
            grid = transformer.transformation.points(theta, self.lattice)
            return network.classifier(seen), seen, grid.unflatten(1, (SIDE, SIDE))

    return Watched().eval()


def lattice() -> Tensor:
    """SIDE x SIDE points (SIDE * SIDE, 2) that span the frame from edge to edge, row by row."""
    axis = torch.linspace(-1, 1, SIDE)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 2)


def export(network: Any, data: DictConfig, path: Path) -> dict[str, Any]:
    """Write the graph of `watched(network)`. Returns its size in `bytes` and how many `parameters` it has.

    Weights are stored in float16, which halves the file; `network` is rounded to match. All arithmetic is float32.
    """
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    outputs = ("scores",) if network.transformer is None else ("scores", "seen", "grid")
    to_onnx(watched(network), torch.zeros(2, 1, data.canvas, data.canvas), path, OPSET)
    _finish(path, outputs, {f"network.{name}" for name, _ in network.named_parameters()})
    return {"bytes": path.stat().st_size, "parameters": sum(p.numel() for p in network.parameters())}


def _finish(path: Path, outputs: Sequence[str], weights: set[str]) -> None:
    """Name the outputs of an ONNX file, and store `weights` in float16, each with a cast that runs once, at start."""
    import onnx  # installed, because `stn.deployment` was imported
    from onnx import numpy_helper

    model = onnx.load(path)
    for output, name in zip(model.graph.output, outputs, strict=True):
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [name if edge == output.name else edge for edge in names]
        output.name = name
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def calibrate(network: Any, data: DictConfig, digits: Digits) -> dict[str, Any]:
    """The pose to which a transformer brings digits, and how well it finds the poses of digits.

    `canonical` holds the rows of the affine map (2, 3) from points of the transformer's output to points of the digit:
    the median over `CALIBRATION` digits in poses drawn as in training. `rms` is the error of the estimated pose: angle
    in degrees, scale as a factor less 1, place in pixels of the canvas. Both are None without a transformer. Raises
    UserError if the transformer has collapsed.
    """
    if network.transformer is None:
        return {"canonical": None, "rms": None}
    warp = distortion(data)
    assert isinstance(warp, Pose)  # `build` requires it
    images = digits.images[:CALIBRATION]
    parameters = warp.draw(len(images), generator(data.seed, "play"))
    with torch.inference_mode():
        theta = torch.cat([network.transformer.theta(part) for part in warp.render(parameters, images).split(250)])
    maps = fitted(network.transformer.transformation.points(theta, _nine()))
    true = _square(warp.theta(parameters).view(-1, 2, 3))  # from canvas to digit
    canonical = (true @ maps).median(0).values
    if not canonical.det().abs() > SMALLEST:
        raise UserError("a transformer of these networks has shrunk its images to a line or a point: train it again")
    poses = read_poses(maps @ canonical.inverse(), data.canvas, warp.digit)
    angle = torch.remainder(poses[:, 0] - parameters[:, 0] + 180, 360) - 180
    errors = torch.stack([angle, poses[:, 1] / parameters[:, 1] - 1, *(poses[:, 2:4] - parameters[:, 2:4]).T], 1)
    angle, scale, x, y = errors.square().mean(0).sqrt().tolist()
    return {
        "canonical": canonical[:2].flatten().tolist(),
        "rms": {"angle": angle, "scale": scale, "place": (x * x + y * y) ** 0.5},
    }


def fitted(points: Tensor) -> Tensor:
    """The affine maps (n, 3, 3) from the points `_nine` of the output to `points` (n, 9, 2), by least squares."""
    nine = _nine().to(points)
    mean = points.mean(1)
    linear = (points - mean[:, None]).mT @ nine / nine.square().sum(0)  # the nine form a square about 0
    return _square(torch.cat([linear, mean[..., None]], 2))


def read_poses(maps: Tensor, canvas: int, digit: int) -> Tensor:
    """The poses (n, 5) of maps (n, 3, 3) from digit to canvas: angle, scale, x, y as `Pose` has them, and slant.

    A map slants first, then scales and rotates. The angle is the direction of the digit's horizontal lines, the slant
    how far its vertical lines lean to the right of their normal; both are in degrees.
    """
    (a, b, x), (c, d, y) = (row.unbind(1) for row in maps[:, :2].unbind(1))
    determinant = a * d - b * c
    angle = torch.atan2(-c, a).rad2deg()
    slant = torch.atan2(-(a * b + c * d), determinant).rad2deg()
    return torch.stack([angle, determinant.abs().sqrt() * canvas / digit, x * canvas / 2, y * canvas / 2, slant], 1)


def _nine() -> Tensor:
    return lattice().view(SIDE, SIDE, 2)[NINE, NINE].reshape(9, 2)


def _square(rows: Tensor) -> Tensor:
    """Rows (n, 2, 3) as matrices (n, 3, 3)."""
    return torch.cat([rows, rows.new_tensor([0, 0, 1]).expand(len(rows), 1, 3)], 1)


def fetch_runtime() -> Path:
    """The package of onnxruntime-web, verified: from `$STN_DATA_MIRROR/web` or from npm's registry."""
    name = f"{RUNTIME}-{VERSION}.tgz"
    folder = Path("outputs/downloads/web")
    urls = () if _is_package(folder / name) else _addresses()
    path = download(RemoteFile(name, urls, MD5), folder, "web")
    if not _is_package(path):
        raise UserError(f"{path} is not {RUNTIME} {VERSION}: delete it and run this again")
    return path


def _is_package(path: Path) -> bool:
    return path.is_file() and hashlib.sha512(path.read_bytes()).digest() == base64.b64decode(SHA512)


def _addresses() -> tuple[str, ...]:
    """The address of the package according to npm; none if npm fails but a mirror is set."""
    try:
        command = ["npm", "view", f"{RUNTIME}@{VERSION}", "dist.tarball"]
        return (subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=120).stdout.strip(),)
    except (OSError, subprocess.SubprocessError) as error:
        if os.environ.get("STN_DATA_MIRROR"):
            return ()
        if isinstance(error, FileNotFoundError):
            reason = "npm is not installed"
        else:
            lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            reason = f"npm says: {lines[0] if lines else 'nothing'}"
        raise UserError(
            f"the page needs {RUNTIME} {VERSION} of the npm registry, but {reason}; install npm (it comes with "
            f"Node.js), or set STN_DATA_MIRROR to a folder that holds web/{RUNTIME}-{VERSION}.tgz"
        ) from None


def _unpack(package: Path, folder: Path) -> None:
    """Write the runtime's module, and its WebAssembly gzipped: a third of the bytes, whatever the server supports."""
    with tarfile.open(package) as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(f"package/dist/{name}")
            assert file is not None  # the verified package has it
            return file.read()

        (folder / "onnxruntime.js").write_bytes(read("ort.wasm.bundle.min.mjs"))
        packed = gzip.compress(read("ort-wasm-simd-threaded.wasm"), 9, mtime=0)
        (folder / "onnxruntime.wasm.gz").write_bytes(packed)
