"""Test a checkpoint on any data set: `python -m stn.evaluate checkpoint=outputs/runs/.../last.ckpt data=mnist_p`.

It also tests a network that comes with the project: `python -m stn.evaluate weights=mnist_rts/st_cnn_tps`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from stn.config import front_door
from stn.errors import UserError
from stn.experiments import load as load_module
from stn.schema import filled, typed

if TYPE_CHECKING:
    import numpy as np


def evaluate(cfg: DictConfig) -> None:
    card = _card(cfg.weights) if cfg.weights and not cfg.checkpoint else None
    from stn.report.statistics import wilson

    config, data, correct = test(cfg)
    wrong, n = int((~correct).sum()), len(correct)
    low, high = wilson(wrong, n)
    print(
        f"{config.model.name}, trained on {config.data.name} ({config.budget.name}), tested on {data.name}: "
        f"error {100 * wrong / n:.2f} % [{low:.2f}, {high:.2f}] ({wrong} of {n} images)"
    )
    if card and OmegaConf.to_container(data, enum_to_str=True) == filled(card["config"])["data"]:
        rounded = ", before its weights were rounded to float16" if card["stored"]["dtype"] == "float16" else ""
        images = f"{card['errors']} of {card['n_test']} images"
        print(f"its record, {card['record']}: error {card['error']:.2f} % ({images}){rounded}")


def test(cfg: DictConfig) -> "tuple[DictConfig, DictConfig, np.ndarray]":
    """Test the network of `cfg.checkpoint`, or of `cfg.weights`.

    The data set and the budget, which gives the precision, are those of its training unless the command line names
    others. Returns the network's config, the data config, and which images (n,) are right.
    """
    from stn.training.run import answers, load, load_published, quieten  # loads Lightning, ten seconds

    quieten()
    name = cfg.checkpoint or cfg.weights
    if name is None:
        raise UserError(
            "no checkpoint: give one with checkpoint=outputs/runs/.../last.ckpt, or weights=mnist_rts/st_cnn_tps"
        )
    if cfg.checkpoint and cfg.weights:
        raise UserError(f"checkpoint={cfg.checkpoint} and weights={cfg.weights}: give one of the two")
    learner = load(Path(name)) if cfg.checkpoint else load_published(name)
    trained_cfg = learner.cfg
    keys = {override.split("=")[0].lstrip("+") for override in HydraConfig.get().overrides.task}
    if "model" in keys and cfg.model.name != trained_cfg.model.name:
        raise UserError(f"{name} is a checkpoint of {trained_cfg.model.name}, not of {cfg.model.name}: drop model=")
    groups = typed(trained_cfg)
    trained_data = groups["data"].copy()
    for group in ("data", "budget"):
        if group in keys:
            groups[group] = cfg[group]
            continue
        for key in (key for key in keys if key.startswith(f"{group}.")):
            OmegaConf.update(groups[group], key.removeprefix(f"{group}."), OmegaConf.select(cfg, key))
    data = groups["data"]
    _check_images(name, trained_data, data)
    return trained_cfg, data, answers(learner, data, groups["budget"], cfg.trainer)


def _check_images(name: str, trained: DictConfig, tested: DictConfig) -> None:
    """Raise UserError if a network was trained on images of another kind, or of another shape, than it is tested on."""
    for key in ("kind", "canvas"):
        if tested[key] != trained[key]:
            raise UserError(
                f"{name} was trained on {trained.name} ({key} {trained[key]}); "
                f"data={tested.name} has {key} {tested[key]}"
            )
    shapes = [tuple(load_module(data.kind, "data").source(data).shape) for data in (trained, tested)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{name} was trained on images {shapes[0]} of {trained.name}; these settings of data={tested.name} give "
            f"images {shapes[1]}: change or drop them"
        )


def _card(name: str) -> dict:
    """The card of a network that comes with the project; UserError if it is missing or its record is of another run."""
    from stn.weights import conflict, read

    try:
        card, _ = read(name)
    except ValueError as error:
        raise UserError(str(error)) from error
    if reason := conflict(card):
        raise UserError(
            f"{name} is not from the training of {card['record']} ({reason}): "
            f"`python -m stn.publish {card['record']}` writes it again"
        )
    return card


main = front_door(evaluate)

if __name__ == "__main__":
    main()
