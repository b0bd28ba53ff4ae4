"""Trunks: classification models of torchvision and timm, cut at a map of features, trained on ImageNet."""

import copy
import difflib
import hashlib
import itertools
import os
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

from stn.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, as torchvision has them
SIDE = 224  # pixels of the image on which the last map is looked for
CLASSES = 1000  # of ImageNet: a map of so many channels is one of scores
REMEDY = (
    "set STN_DATA_MIRROR to a folder or URL that holds weights/{}, or start from nothing with model.pretrained=false"
)


class Trunk(nn.Module):
    """A model of torchvision or timm up to a map of features: images (B, 3, H, W), normalised, to maps (B, C, h, w).

    Built without weights: `load_pretrained` fetches them. A deep copy is another stream with the same weights.

    Args:
        name: of torchvision's model, or of timm's where torchvision has none of that name.
        node: where torchvision's is cut, as `torchvision.models.feature_extraction` names it. None: at the last map of
            features, before pooling over all positions, dropout and class scores; timm's are always cut there.
        frozen_norm: batch normalisation keeps the means and variances that it came with. It is then a linear map, and
            is folded into the convolution before it: the same function, with less work in training.
        frozen: the name of a part (`features.4`, `blocks.4`). It and all before it keep the weights they came with.

    Raises UserError: no such model, no such node, no such part; a model of timm where timm is not installed.
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
        """Give the trunk its ImageNet weights; returns what they are. Raises UserError: nobody has them."""
        with torch.random.fork_rng(devices=[]):  # a run's random numbers do not depend on where its weights came from
            body = _body(self.name, self.node)[1]
        weights = pretrained(self.name, self.node, body)
        body.load_state_dict(weights.state)
        if self.frozen_norm:
            fold_norms(body)
        self.body.load_state_dict(body.state_dict())
        return weights

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
        for module in self.body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = module.weight is not None and not module.weight.requires_grad
                module.train(mode and not self.frozen_norm and not frozen)
        return self


def fold_norms(body: nn.Module) -> None:
    """Put each batch normalisation whose input is a convolution's output into its weights, as it is in evaluation.

    A module that normalises and activates (timm's) leaves its activation. Other normalisations stay.
    """
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensors are kept, so that no other takes their place
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
        setattr(parent, name, folded.requires_grad_())  # torch makes a bias that does not learn
        parent, name = places[norm]
        setattr(parent, name, getattr(norm, "act", nn.Identity()))


def _freeze(body: nn.Module, last: str, name: str) -> None:
    """Take all parameters up to the part `last` from what learns."""
    names = [parameter for parameter, _ in body.named_parameters()]
    inside = [i for i, parameter in enumerate(names) if parameter.startswith(f"{last}.")]
    if not inside:
        parts = sorted({".".join(words[:i]) for words in (n.split(".") for n in names) for i in range(1, len(words))})
        near = difflib.get_close_matches(last, parts, 3, cutoff=0.4) or parts[:3]
        raise UserError(f"model.frozen={last} is no part of {name} with weights: did you mean {', '.join(near)}?")
    for _, parameter in itertools.islice(body.named_parameters(), inside[-1] + 1):
        parameter.requires_grad_(False)


class Weights(NamedTuple):
    """What ImageNet taught a trunk: the `state` of its body, and how it wants images normalised, (x - mean) / std."""

    name: str
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def pretrained(name: str, node: str | None, body: nn.Module) -> Weights:
    """Weights for every parameter of the model `name`, cut at `node`.

    First comes `$STN_DATA_MIRROR/weights`: torchvision's own file there (a URL is asked for no other), or in a folder
    any `<name>*.pth` that holds what `body` needs, whatever else it holds or lacks. Such a file takes ImageNet's MEAN
    and STD, or what timm says of its model. Then the library's own loading, from its cache or the network.

    Raises UserError: nobody has them, or a file is damaged.
    """
    if name not in list_models(module=torchvision.models):
        return _from_timm(name, body)
    official = get_model_weights(name).DEFAULT
    file = Path(urllib.parse.urlparse(official.url).path).name
    mirror = _mirror()
    lacking = ""
    if isinstance(mirror, Path) and not (mirror / file).is_file():
        for path in _files(mirror, name):
            state, lacks = _read(path, name, body)
            if not lacks:
                return Weights(_signed(path), state, MEAN, STD)
            lacking = f"; {path} has no {lacks}: does model.node={node} fit it?"
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        if mirror and not (cache / file).exists():
            cache.mkdir(parents=True, exist_ok=True)
            _from_mirror(mirror, file, cache / file)
        model = get_model(name, weights=official, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        remedy = REMEDY.format(file)
        raise UserError(f"no pretrained weights of {name} ({_line(error)}){lacking}; {remedy}") from None
    if lacking:
        print(f"passed over{lacking[1:]}", file=sys.stderr)
    preset = official.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if getattr(model, "transform_input", False):  # the old ports turn ImageNet's normalisation into (x - 0.5) / 0.5
        mean = std = (0.5, 0.5, 0.5)
    state = model.state_dict()
    return Weights(str(official), {key: state[key] for key in body.state_dict()}, mean, std)


def _from_timm(name: str, body: nn.Module) -> Weights:
    """What `pretrained` returns of a model of timm: from a file of the mirror, or by timm's own loading."""
    import timm

    facts = timm.get_pretrained_cfg(name)
    mean, std = (tuple(facts.mean), tuple(facts.std)) if facts else (MEAN, STD)
    mirror = _mirror()
    lacking = ""
    for path in _files(mirror, name) if isinstance(mirror, Path) else []:
        state, lacks = _read(path, name, body)
        if not lacks:
            return Weights(_signed(path), state, mean, std)
        lacking = f"; {path} has no {lacks}"
    try:
        state = timm.create_model(name, pretrained=True, num_classes=0, global_pool="").state_dict()
    except Exception as error:  # the hub has many of its own
        remedy = REMEDY.format(f"{name}.pth")
        raise UserError(f"no pretrained weights of {name} ({_line(error)}){lacking}; {remedy}") from None
    return Weights(f"timm {name}.{facts.tag}" if facts and facts.tag else f"timm {name}", state, mean, std)


def _signed(path: Path) -> str:
    """The name of a file of weights, with the beginning of its SHA-256."""
    return f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:8]})"


def _body(name: str, node: str | None) -> tuple[str | None, nn.Module]:
    """The untrained model up to its map of features, and the node where it is cut; of timm's None."""
    if name in list_models(module=torchvision.models):
        model = _model(name)
        node = _last_map(name) if node is None else _checked(node, name, model)
        return node, create_feature_extractor(model, {node: "map"}, suppress_diff_warning=True)
    if find_spec("timm") is None:
        near = _nearest(name, list_models(module=torchvision.models))
        raise UserError(
            f"model.trunk={name} is no classification model of torchvision (did you mean {near}?), and timm, which may "
            "have it, is not installed: `sh setup.sh trunks`"
        )
    import timm

    if name not in timm.list_models():
        near = _nearest(name, [*list_models(module=torchvision.models), *timm.list_models()])
        raise UserError(f"model.trunk={name} is no classification model of torchvision or timm: did you mean {near}?")
    if node is not None:
        raise UserError(f"model.node={node}: {name} is timm's, which is cut at its last map of features; drop it")
    return None, timm.create_model(name, num_classes=0, global_pool="")


def _nearest(name: str, names: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, names, 3) or ["googlenet", "resnet50", "squeezenet1_1"])


def _model(name: str) -> nn.Module:
    """torchvision's model, untrained."""
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
    names = [trunk, *list_models(module=torchvision.models)]
    files = sorted(folder.glob(f"{trunk}*.pth"))
    return [file for file in files if max((name for name in names if file.name.startswith(name)), key=len) == trunk]


def _read(path: Path, trunk: str, body: nn.Module) -> tuple[dict[str, Tensor], str | None]:
    """From a file what the body of a trunk needs, and the first name that is not in it."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        needed = body.state_dict()
        held = {**{key: value for key, value in needed.items() if key.endswith("num_batches_tracked")}, **held}
        lacks = next((key for key in needed if key not in held), None)
        wrong = next((key for key in needed if key in held and held[key].shape != needed[key].shape), None)
    except (OSError, EOFError, RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} holds no weights ({_line(error)}): replace it, or correct STN_DATA_MIRROR") from None
    if wrong:
        raise UserError(
            f"{path}: {wrong} has shape {tuple(held[wrong].shape)}, {trunk} has {tuple(needed[wrong].shape)}: "
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
