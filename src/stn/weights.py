"""Trained networks that come with the project: `stn.load("mnist_rts/st_cnn_tps")`.

Each is a safetensors file `<data>/<model>.safetensors`, in `reports/weights` of a clone or inside an installed package.
Its metadata are a card, JSON that explains the file; the file beside it with the same text is for readers. A card holds

    schema, name, data, model, budget: which network this is.
    seed, steps, error (%), errors, n_test, validation ([step, error %, loss], the last): what its record says of it.
    stored: `dtype` of the tensors, and `error`, `errors`: of these tensors, on the same stored test set.
    parameters, record (its path), code (digest and commit that trained it), provenance (when, on what, with which
        versions), licence (of the weights and of the data).
    config: the groups data, model and budget, so that the network is built without conf/.
    sha256: of all this and the tensors.

Nothing heavy is imported here before it is needed: `load` imports torch, and neither Lightning, Hydra nor wandb.
`python -m stn.publish` writes the files.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

SCHEMA = 1
SUFFIX = ".safetensors"
CLONE = Path("reports/weights")  # where they lie in a clone
SAME = ("budget", "data", "model", "n_test", "parameters", "config")  # what a card and its record both say
OWN = ("schema", "name", "seed", "steps", "error", "errors", "validation", "stored", "record", "code", "licence")


def load(name: str | os.PathLike[str], map_location: "str | torch.device | None" = None) -> "torch.nn.Module":
    """A trained network, in eval mode, with float32 weights; its `card` says what it is and how well it does.

    The digit networks map images (B, 1, side, side) in [0, 1], black background, to class scores (B, 10); `side` is
    `card["config"]["data"]["canvas"]`. Images of another shape are a ValueError that names the right one. No random
    numbers are drawn from torch's generators.

    Args:
        name: one of `list_weights()`, or the path of a weight file, which ends in `.safetensors`.
        map_location: the device to put it on; the CPU if None.

    Raises:
        ValueError: of one line, for an unknown name, and for a file that is damaged or of another network.
    """
    card, tensors = read(name)
    import torch
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from stn import experiments
    from stn.schema import filled, typed

    try:
        config: Any = OmegaConf.create(filled(card["config"]))
        with torch.random.fork_rng(devices=[]):
            network = experiments.load(config.data.kind, "networks").network(config.model, config.data)
            shape = experiments.load(config.data.kind, "data").source(typed(card["config"])["data"]).shape
        network.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    except (RuntimeError, KeyError, TypeError, ModuleNotFoundError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{card['name']}: no network of this version of stn fits its weights ({reason})") from error
    network.card = card
    network.register_forward_pre_hook(partial(_check_shape, card["name"], shape), with_kwargs=True)
    return network.eval().to(map_location or "cpu")


def _check_shape(
    name: str, shape: tuple[int, ...], network: "torch.nn.Module", positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Raise ValueError if a network is given images of a shape (B, ...) that it was not trained on."""
    import torch

    images = positional[0] if positional else named.get("images")
    if isinstance(images, torch.Tensor) and not torch.jit.is_tracing() and tuple(images.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} takes images (B, {wanted}), not {tuple(images.shape)}")


def list_weights() -> list[str]:
    """The names that `load` takes, in alphabetical order."""
    root = folder()
    return sorted(path.relative_to(root).as_posix().removesuffix(SUFFIX) for path in root.glob(f"*/*{SUFFIX}"))


def folder() -> Path:
    """Where the weight files lie: inside the package if it was built into a wheel, else in the clone around it."""
    package = Path(__file__).parent
    inside = package / "trained"
    return inside if inside.is_dir() else package.parents[1] / CLONE


def read(name: str | os.PathLike[str]) -> "tuple[dict[str, Any], dict[str, np.ndarray]]":
    """The card and the tensors of a weight file, by its name or path, checked against the checksum.

    Anything wrong with the file is a ValueError of one line.
    """
    path, text = _locate(name)
    card = read_card(path)
    if text is not None and card["name"] != text:
        raise ValueError(f"{path} holds the weights of {card['name']}, not of {text}: restore the file")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if checksum(card, tensors) != card["sha256"]:
        raise _damaged(path, "its checksum is another")
    return card, tensors


def read_card(path: Path) -> dict[str, Any]:
    """The card of a weight file; only `read` compares it with the checksum. ValueError if there is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if "card" not in metadata:
        raise ValueError(f"{path} is not a weight file of this project: it has no card")
    try:
        card = json.loads(metadata["card"])
        gaps = [key for key in (*SAME, *OWN, "sha256") if key not in card]
    except (ValueError, TypeError) as error:
        raise _damaged(path, "its card is no JSON") from error
    if isinstance(card, dict) and card.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"{path}: a card of schema {card['schema']}, this version of stn reads {SCHEMA}: update stn")
    if gaps or not isinstance(card, dict):
        raise _damaged(path, f"a card without {', '.join(gaps)}")
    return card


def write(path: Path, card: Mapping[str, Any], tensors: "Mapping[str, np.ndarray]") -> dict[str, Any]:
    """Write a weight file, whole or not at all, with the same bytes for the same contents. Returns its card.

    OSError if it cannot be written.
    """
    from safetensors.numpy import save

    from stn.files import write_whole

    whole = {**card, "sha256": checksum(card, tensors)}
    # In C's order, which safetensors assumes and the weights of convolutions here do not have. Only one key of
    # metadata, because safetensors does not keep the order of several.
    content = save({key: value.copy(order="C") for key, value in tensors.items()}, {"card": json.dumps(whole)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))
    return whole


def checksum(card: Mapping[str, Any], tensors: "Mapping[str, np.ndarray]") -> str:
    """SHA-256 of a card without its own `sha256`, and of the names, types, shapes and bytes of the tensors."""
    facts = {key: value for key, value in card.items() if key != "sha256"}
    hashed = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for key in sorted(tensors):
        hashed.update(f"\n{key} {tensors[key].dtype} {tensors[key].shape}\n".encode())
        hashed.update(tensors[key].tobytes())
    return hashed.hexdigest()


def conflict(card: Mapping[str, Any], root: Path = Path()) -> str | None:
    """How the record that a card names contradicts the card; None if it does not, or is not below `root`."""
    try:
        record = json.loads((root / card["record"]).read_text(encoding="utf-8"))
        (seed,) = (seed for seed in record["seeds"] if seed["seed"] == card["seed"])
        pairs = {key: (record[key], card[key]) for key in SAME}
        pairs |= {key: (seed[key], card[key]) for key in ("errors", "steps")}
        pairs["validation curve"] = seed["validation"][-1], card["validation"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return f"no seed {card['seed']} that can be read"
    for key, (value, own) in pairs.items():
        if value != own:
            return f"{key} {value}, not {own}" if isinstance(value, int | str) else f"another {key}"
    return None


def _locate(name: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """The path of a weight file, and its name if `name` is not a path."""
    text = os.fspath(name)
    if text.endswith(SUFFIX):
        path = Path(text)
        if not path.is_file():
            raise ValueError(f"{path}: no such weight file")
        return path, None
    names = list_weights()
    if text in names:
        return folder() / f"{text}{SUFFIX}", text
    if not names:
        raise ValueError(f"no trained network {text!r}: none is here; `python -m stn.publish` writes those of runs")
    near = difflib.get_close_matches(text, names, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"no trained network {text!r}: {hint}stn.list_weights() names all, such as {names[0]}")


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is damaged ({' '.join(reason.split())}): restore it, by git or by installing stn again")
