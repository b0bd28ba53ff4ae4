"""Trunks: ImageNet classification models of torchvision and timm, cut at a map of features."""

import copy
import difflib
import hashlib
import itertools
import pickle
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from stn.data.download import find_in_mirror, find_mirror
from stn.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, torchvision's values
SIDE = 224  # side in pixels of the image on which the last map of features is determined
CLASSES = 1000  # of ImageNet: a map with this number of channels contains scores
REMEDY = (
    "set STN_DATA_MIRROR to a folder or URL that holds weights/{}, or start from nothing with model.pretrained=false"
)


class Trunk(nn.Module):
    """A model of torchvision or timm up to a map of features: normalised images (B, 3, H, W) to maps (B, C, h, w).

    It is built without pretrained weights: `load_pretrained` loads them. A deep copy has the same weights.

    Args:
        name: of torchvision's model, or of timm's if torchvision has none of that name.
        node: where a model of torchvision is cut, as `torchvision.models.feature_extraction` names it. None: at the
            last map of features, before global pooling, dropout and class scores. Models of timm are always cut there.
        frozen_norm: batch normalisation keeps its pretrained means and variances. It is then a linear map, and is
            folded into the convolution before it: the same function at a lower cost in training.
        frozen: the name of a part (`features.4`, `blocks.4`). This part and all before it keep their weights.

    Raises UserError: the model, the node or the part does not exist, or the model is timm's and timm is not installed.
    """

    def __init__(self, name: str, node: str | None = None, frozen_norm: bool = False, frozen: str | None = None):
        super().__init__()
        self.name, self.frozen_norm = name, frozen_norm
        self.node, self.body = _body(name, node)
        if frozen_norm:
            fold_norms(self.body)
        if frozen is not None:
            _freeze(self.body, frozen, name)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(images)
        return maps["map"] if isinstance(maps, dict) else maps

    def load_pretrained(self) -> "Weights":
        """Load ImageNet weights into the trunk and return them. Raises UserError if no source has them."""
        with torch.random.fork_rng(devices=[]):  # building a model must not change a run's random numbers
            body = _body(self.name, self.node)[1]
        weights = pretrained(self.name, self.node, body)
        body.load_state_dict(weights.state)
        if self.frozen_norm:
            fold_norms(body)
        self.body.load_state_dict(body.state_dict())
        return weights

    def map_shape(self, side: int) -> tuple[int, int, int]:
        """The shape (C, h, w) of the map of an image of `side` pixels. Raises UserError: too small, or not a map."""
        training, device = self.training, next(self.parameters()).device
        self.eval()
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, 3, side, side, device=device))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"model.trunk={self.name} cannot take images of {side} x {side} pixels ({_line(error)}): "
                "set model.size or data.canvas higher"
            ) from None
        finally:
            self.train(training)
        if getattr(features, "ndim", None) != 4:
            raise UserError(
                f"model.node={self.node} of {self.name} is not a map of features: name another node, or null for the "
                "last map"
            )
        return tuple(features.shape[1:])

    def train(self, mode: bool = True) -> "Trunk":
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = module.weight is not None and not module.weight.requires_grad
                module.train(mode and not self.frozen_norm and not frozen)
        return self


def fold_norms(body: nn.Module) -> None:
    """Fold each batch normalisation, in evaluation mode, into the convolution whose output it normalises.

    Of a module of timm that normalises and activates, the activation remains. Other normalisations are not changed.
    """
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # keeps the tensors alive, so that no id is used twice
    pairs: dict[nn.Module, nn.Module] = {}

    def remember(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[id(output)] = module, output

    def match(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in outputs:
            pairs[module] = outputs[id(inputs[0])][0]

    body.eval()
    with ExitStack() as stack, torch.no_grad():
        for module in body.modules():
            if isinstance(module, nn.Conv2d):
                stack.callback(module.register_forward_hook(remember).remove)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                stack.callback(module.register_forward_pre_hook(match).remove)
        body(torch.zeros(1, 3, SIDE, SIDE))
    places = {module: (parent, name) for parent in body.modules() for name, module in parent.named_children()}
    for norm, convolution in pairs.items():
        parent, name = places[convolution]
        folded = fuse_conv_bn_eval(convolution, norm)  # type: ignore[arg-type, type-var]
        setattr(parent, name, folded.requires_grad_())  # torch's folded bias has requires_grad=False
        parent, name = places[norm]
        setattr(parent, name, getattr(norm, "act", nn.Identity()))


def _freeze(body: nn.Module, last: str, name: str) -> None:
    """Freeze all parameters up to and including the part `last`."""
    names = [parameter for parameter, _ in body.named_parameters()]
    inside = [i for i, parameter in enumerate(names) if parameter.startswith(f"{last}.")]
    if not inside:
        parts = sorted({".".join(words[:i]) for words in (n.split(".") for n in names) for i in range(1, len(words))})
        closest = difflib.get_close_matches(last, parts, 3, cutoff=0.4) or parts[:3]
        raise UserError(f"model.frozen={last} is not a part of {name} with weights: did you mean {', '.join(closest)}?")
    for _, parameter in itertools.islice(body.named_parameters(), inside[-1] + 1):
        parameter.requires_grad_(False)


class Weights(NamedTuple):
    """Pretrained weights: the `state` of a trunk's body, and its normalisation of images, (x - mean) / std."""

    name: str
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def pretrained(name: str, node: str | None, body: nn.Module) -> Weights:
    """Weights for every parameter of the model `name`, cut at `node`.

    `$STN_DATA_MIRROR/weights` is tried first: torchvision's own file, or, if the mirror is a folder, any `<name>*.pth`
    that contains all entries that `body` needs. The normalisation of such a file is MEAN and STD, or timm's of its
    model. Then the library loads its weights, from its cache or the network.

    Raises UserError: no source has the weights, or a file is damaged.
    """
    if name not in list_models(module=torchvision.models):
        return _from_timm(name, body)
    official = get_model_weights(name).DEFAULT
    file = Path(urllib.parse.urlparse(official.url).path).name
    mirror = _mirror()
    remark = ""
    if isinstance(mirror, Path) and not (mirror / file).is_file():
        for path in _files(mirror, name):
            state, missing_key = _read(path, name, body)
            if not missing_key:
                return Weights(_signed(path), state, MEAN, STD)
            remark = f"; {path} has no {missing_key}: does model.node={node} fit it?"
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        if mirror and not (cache / file).exists():
            cache.mkdir(parents=True, exist_ok=True)
            _from_mirror(mirror, file, cache / file)
        model = get_model(name, weights=official, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        remedy = REMEDY.format(file)
        raise UserError(f"no pretrained weights of {name} ({_line(error)}){remark}; {remedy}") from None
    if remark:
        print(f"skipped{remark[1:]}", file=sys.stderr)
    preset = official.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if getattr(model, "transform_input", False):  # old ports convert ImageNet's normalisation to (x - 0.5) / 0.5
        mean = std = (0.5, 0.5, 0.5)
    state = model.state_dict()
    return Weights(str(official), {key: state[key] for key in body.state_dict()}, mean, std)


def _from_timm(name: str, body: nn.Module) -> Weights:
    """The weights of a model of timm, for `pretrained`: from a file of the mirror, else loaded by timm."""
    import timm

    facts = timm.get_pretrained_cfg(name)
    mean, std = (tuple(facts.mean), tuple(facts.std)) if facts else (MEAN, STD)
    mirror = _mirror()
    remark = ""
    for path in _files(mirror, name) if isinstance(mirror, Path) else []:
        state, missing_key = _read(path, name, body)
        if not missing_key:
            return Weights(_signed(path), state, mean, std)
        remark = f"; {path} has no {missing_key}"
    try:
        state = timm.create_model(name, pretrained=True, num_classes=0, global_pool="").state_dict()
    except Exception as error:  # the hub has many exception classes
        remedy = REMEDY.format(f"{name}.pth")
        raise UserError(f"no pretrained weights of {name} ({_line(error)}){remark}; {remedy}") from None
    return Weights(f"timm {name}.{facts.tag}" if facts and facts.tag else f"timm {name}", state, mean, std)


def _signed(path: Path) -> str:
    """The name of a file of weights with the first digits of its SHA-256."""
    return f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:8]})"


def _body(name: str, node: str | None) -> tuple[str | None, nn.Module]:
    """The node at which a model is cut (None for timm's), and the untrained model up to its map of features."""
    if name in list_models(module=torchvision.models):
        model = _model(name)
        node = _last_map(name) if node is None else _checked(node, name, model)
        return node, create_feature_extractor(model, {node: "map"}, suppress_diff_warning=True)
    if find_spec("timm") is None:
        closest = _nearest(name, list_models(module=torchvision.models))
        raise UserError(
            f"model.trunk={name} is not a classification model of torchvision (did you mean {closest}?), and timm, "
            "which may have it, is not installed: `sh setup.sh trunks`"
        )
    import timm

    if name not in timm.list_models():
        closest = _nearest(name, [*list_models(module=torchvision.models), *timm.list_models()])
        raise UserError(
            f"model.trunk={name} is not a classification model of torchvision or timm: did you mean {closest}?"
        )
    if node is not None:
        raise UserError(
            f"model.node={node}: {name} comes from timm and always ends at its last map of features; drop it"
        )
    return None, timm.create_model(name, num_classes=0, global_pool="")


def _nearest(name: str, names: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, names, 3) or ["googlenet", "resnet50", "squeezenet1_1"])


def _model(name: str) -> nn.Module:
    """The untrained model of torchvision."""
    # Without these options two old models build branches for their own training, and warn of their initial weights.
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return get_model(name, weights=None, **options)


def _checked(node: str, name: str, model: nn.Module) -> str:
    """`node`. Raises UserError if the model has no such node or module."""
    nodes, parts = get_graph_node_names(model, suppress_diff_warning=True)[1], set()
    for path in nodes:
        words = path.split(".")
        parts |= {".".join(words[:i]) for i in range(1, len(words) + 1)}
    if node not in parts:
        closest = difflib.get_close_matches(node, sorted(parts), 3, cutoff=0.4) or nodes[-3:]
        raise UserError(f"model.node={node} is not a node of {name}: did you mean {', '.join(closest)}?")
    return node


def _last_map(name: str) -> str:
    """The node with the last map of features of a model.

    Not cached: building a model draws random numbers, and those of a run must not depend on what was built before.
    """
    model = _model(name).eval()
    nodes = get_graph_node_names(model, suppress_diff_warning=True)[1]
    extractor = create_feature_extractor(copy.deepcopy(model), nodes, suppress_diff_warning=True).eval()
    with torch.no_grad():
        values = extractor(torch.zeros(1, 3, SIDE, SIDE))
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
    """The path or URL of the folder of weights in `$STN_DATA_MIRROR`, or None."""
    mirror = find_mirror()
    return find_in_mirror("weights", "") or (f"{mirror}/weights" if mirror else None)


def _files(folder: Path, trunk: str) -> list[Path]:
    """The files of a trunk, without those of trunks whose name starts with its name (vgg11, vgg11_bn)."""
    names = [trunk, *list_models(module=torchvision.models)]
    files = sorted(folder.glob(f"{trunk}*.pth"))
    return [file for file in files if max((name for name in names if file.name.startswith(name)), key=len) == trunk]


def _read(path: Path, trunk: str, body: nn.Module) -> tuple[dict[str, Tensor], str | None]:
    """The entries of a file that the body of a trunk needs, and the name of the first one that is missing."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        required = body.state_dict()
        state = {**{key: value for key, value in required.items() if key.endswith("num_batches_tracked")}, **state}
        missing_key = next((key for key in required if key not in state), None)
        bad_key = next((key for key in required if key in state and state[key].shape != required[key].shape), None)
    except (OSError, EOFError, RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} holds no weights ({_line(error)}): replace it, or correct STN_DATA_MIRROR") from None
    if bad_key:
        raise UserError(
            f"{path}: {bad_key} has shape {tuple(state[bad_key].shape)}, {trunk} has {tuple(required[bad_key].shape)}: "
            "replace it, or correct STN_DATA_MIRROR"
        )
    return {key: state[key] for key in required if key in state}, missing_key


def _from_mirror(mirror: Path | str, file: str, target: Path) -> None:
    """Download torchvision's own file to its cache, if the mirror has it."""
    if isinstance(mirror, Path):
        if not (mirror / file).is_file():
            return
        mirror = mirror.resolve().as_uri()
    hash_prefix = Path(file).stem.rpartition("-")[2]  # the first digits of the SHA-256, from the file's name
    try:
        torch.hub.download_url_to_file(f"{mirror}/{file}", target, hash_prefix, progress=sys.stderr.isatty())  # type: ignore[arg-type]
    except RuntimeError as error:
        raise UserError(f"{mirror}/{file}: {_line(error)}; replace it, or correct STN_DATA_MIRROR") from None
    except urllib.error.URLError as error:
        print(f"the mirror cannot give {file} ({_line(error)}): trying torchvision's own source", file=sys.stderr)


def _line(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return (str(reason).strip() or type(reason).__name__).splitlines()[0][:160]
