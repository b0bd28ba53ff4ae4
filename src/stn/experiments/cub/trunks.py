"""Trunks: torchvision's classification models, cut at a map of features, with weights trained on ImageNet."""

import copy
import difflib
import hashlib
import os
import pickle
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from stn.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, as torchvision has them
SIDE = 224  # pixels of the image on which the last map is looked for
CLASSES = 1000  # of ImageNet: a map of so many channels is one of scores
REMEDY = (
    "set STN_DATA_MIRROR to a folder or URL that holds weights/{}, or start from nothing with model.pretrained=false"
)


class Trunk(nn.Module):
    """A torchvision model up to one of its nodes: images (B, 3, H, W), normalised, to maps (B, C, h, w).

    Built without weights: `pretrained` fetches them. A deep copy is another stream with the same weights.

    Args:
        name: of torchvision's model.
        node: where it is cut, as `torchvision.models.feature_extraction` names it. None: at the last map of features,
            before pooling over all positions, dropout and class scores.
        frozen_norm: batch normalisation keeps the means and variances that it came with, also in training. Its factors
            and offsets still learn, as a layer's weights do.

    Raises UserError: no such model, no such node.
    """

    def __init__(self, name: str, node: str | None = None, frozen_norm: bool = False):
        super().__init__()
        self.name, self.frozen_norm = name, frozen_norm
        model = _model(name)
        self.node = _last_map(name) if node is None else _checked(node, name, model)
        self.body = create_feature_extractor(model, {self.node: "map"}, suppress_diff_warning=True)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)["map"]

    def map_shape(self, side: int) -> tuple[int, int, int]:
        """(C, h, w) of the map of an image of `side` pixels; a UserError if that is too small, or `node` has no map."""
        training, device = self.training, next(self.parameters()).device
        self.eval()
        try:
            with torch.no_grad():
                found = self(torch.zeros(1, 3, side, side, device=device))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"model.trunk={self.name} cannot take images of {side} x {side} pixels ({_line(error)}): "
                "set model.size or data.canvas higher"
            ) from None
        finally:
            self.train(training)
        if getattr(found, "ndim", None) != 4:
            raise UserError(
                f"model.node={self.node} of {self.name} gives no map of features: cut it elsewhere, or at null"
            )
        return tuple(found.shape[1:])

    def train(self, mode: bool = True) -> "Trunk":
        super().train(mode)
        if self.frozen_norm:
            for module in self.body.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class Weights(NamedTuple):
    """What ImageNet taught a trunk: the `state` of its body, and how it wants images normalised, (x - mean) / std."""

    name: str
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def pretrained(trunk: Trunk) -> Weights:
    """Weights for every parameter of a trunk.

    First comes `$STN_DATA_MIRROR/weights`: torchvision's own file there (a URL is asked for no other), or in a folder
    any `<trunk>*.pth` that holds what the trunk needs, whatever else it holds or lacks. Such a file takes ImageNet's
    MEAN and STD. Then torchvision's own loading: its default weights, from its cache or the network, checked by hash.

    Raises UserError: nobody has them, or a file is damaged.
    """
    official = get_model_weights(trunk.name).DEFAULT
    file = Path(urllib.parse.urlparse(official.url).path).name
    mirror = _mirror()
    lacking = ""
    if isinstance(mirror, Path) and not (mirror / file).is_file():
        for path in _files(mirror, trunk.name):
            state, lacks = _read(path, trunk)
            if not lacks:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
                return Weights(f"{path.name} (sha256 {digest})", state, MEAN, STD)
            lacking = f"; {path} has no {lacks}: does model.node={trunk.node} fit it?"
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        if mirror and not (cache / file).exists():
            cache.mkdir(parents=True, exist_ok=True)
            _from_mirror(mirror, file, cache / file)
        model = get_model(trunk.name, weights=official, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        remedy = REMEDY.format(file)
        raise UserError(f"no pretrained weights of {trunk.name} ({_line(error)}){lacking}; {remedy}") from None
    if lacking:
        print(f"passed over{lacking[1:]}", file=sys.stderr)
    preset = official.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if getattr(model, "transform_input", False):  # the old ports turn ImageNet's normalisation into (x - 0.5) / 0.5
        mean = std = (0.5, 0.5, 0.5)
    state = model.state_dict()
    return Weights(str(official), {key: state[key] for key in trunk.body.state_dict()}, mean, std)


def _model(name: str) -> nn.Module:
    """torchvision's model, untrained."""
    names = list_models(module=torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, names, 3) or ["googlenet", "resnet50", "squeezenet1_1"]
        raise UserError(
            f"model.trunk={name} is no classification model of torchvision: did you mean {', '.join(near)}?"
        )
    # Two old models would build branches that only their own training uses, and warn of their initial weights.
    own = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return get_model(name, weights=None, **own)


def _checked(node: str, name: str, model: nn.Module) -> str:
    """`node`, if the model has it or a module of that name."""
    nodes, parts = get_graph_node_names(model, suppress_diff_warning=True)[1], set()
    for path in nodes:
        words = path.split(".")
        parts |= {".".join(words[:i]) for i in range(1, len(words) + 1)}
    if node not in parts:
        near = difflib.get_close_matches(node, sorted(parts), 3, cutoff=0.4) or nodes[-3:]
        raise UserError(f"model.node={node} is no node of {name}: did you mean {', '.join(near)}?")
    return node


def _last_map(name: str) -> str:
    """The node with the last map of features of a model.

    Not cached: building a model draws random numbers, and a run's are not to depend on what was built before it.
    """
    model = _model(name).eval()
    nodes = get_graph_node_names(model, suppress_diff_warning=True)[1]
    every = create_feature_extractor(copy.deepcopy(model), nodes, suppress_diff_warning=True).eval()
    with torch.no_grad():
        values = every(torch.zeros(1, 3, SIDE, SIDE))
    modules, last, tokens = dict(model.named_modules()), None, False
    for node in nodes:
        value = values[node]
        if not isinstance(value, Tensor) or isinstance(modules.get(node), nn.AdaptiveAvgPool2d | nn.Dropout):
            continue
        if value.ndim == 4 and min(value.shape[2:]) > 1 and value.shape[1] != CLASSES:
            last, tokens = node, False
        elif value.ndim == 3:
            tokens = True
    if last is None or tokens:
        raise UserError(f"model.trunk={name} ends in tokens, not in a map of features: choose another trunk")
    return last


def _mirror() -> Path | str | None:
    """The folder of weights in `$STN_DATA_MIRROR`, or its URL."""
    mirror = os.environ.get("STN_DATA_MIRROR")
    if not mirror:
        return None
    if mirror.startswith("file://"):
        return Path(urllib.request.url2pathname(urllib.parse.urlparse(mirror).path)) / "weights"
    return f"{mirror.rstrip('/')}/weights" if "://" in mirror else Path(mirror).expanduser() / "weights"


def _files(folder: Path, trunk: str) -> list[Path]:
    """The files of that trunk, and not of one whose name begins alike (vgg11 and vgg11_bn)."""
    names = list_models(module=torchvision.models)
    files = sorted(folder.glob(f"{trunk}*.pth"))
    return [file for file in files if max((name for name in names if file.name.startswith(name)), key=len) == trunk]


def _read(path: Path, trunk: Trunk) -> tuple[dict[str, Tensor], str | None]:
    """From a file what the body of a trunk needs, and the first name that is not in it."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        needed = trunk.body.state_dict()
        held = {**{key: value for key, value in needed.items() if key.endswith("num_batches_tracked")}, **held}
        lacks = next((key for key in needed if key not in held), None)
        wrong = next((key for key in needed if key in held and held[key].shape != needed[key].shape), None)
    except (OSError, EOFError, RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} holds no weights ({_line(error)}): replace it, or correct STN_DATA_MIRROR") from None
    if wrong:
        raise UserError(
            f"{path}: {wrong} has shape {tuple(held[wrong].shape)}, {trunk.name} has {tuple(needed[wrong].shape)}: "
            "replace it, or correct STN_DATA_MIRROR"
        )
    return {key: held[key] for key in needed if key in held}, lacks


def _from_mirror(mirror: Path | str, file: str, target: Path) -> None:
    """torchvision's own file, if the mirror has it, into torchvision's cache."""
    if isinstance(mirror, Path):
        if not (mirror / file).is_file():
            return
        mirror = mirror.resolve().as_uri()
    start = Path(file).stem.rpartition("-")[2]  # of the SHA-256: torchvision's files bear it in their names
    try:
        torch.hub.download_url_to_file(f"{mirror}/{file}", target, start, progress=sys.stderr.isatty())  # type: ignore[arg-type]
    except RuntimeError as error:
        raise UserError(f"{mirror}/{file}: {_line(error)}; replace it, or correct STN_DATA_MIRROR") from None
    except urllib.error.URLError as error:
        print(f"the mirror cannot give {file} ({_line(error)}): trying torchvision's own source", file=sys.stderr)


def _line(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return (str(reason).strip() or type(reason).__name__).splitlines()[0][:160]
