"""Test a checkpoint on any data set: `python -m stn.evaluate checkpoint=outputs/runs/.../last.ckpt data=mnist_p`."""

import pickle
from pathlib import Path

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from stn.config import front_door
from stn.errors import UserError
from stn.report.statistics import wilson
from stn.train import data_room, precision, quieten
from stn.training.learner import Learner


def load(path: Path) -> Learner:
    """The learner of a checkpoint; a missing, damaged or foreign file is a UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; finished runs keep theirs below outputs/runs")
    try:
        return Learner.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (KeyError, TypeError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a checkpoint of this project, or a damaged one ({reason[:120]})") from error


def evaluate(cfg: DictConfig) -> None:
    quieten()
    if cfg.checkpoint is None:
        raise UserError("no checkpoint: give one with checkpoint=outputs/runs/.../last.ckpt")
    learner = load(Path(cfg.checkpoint))
    made = learner.cfg
    asked = {override.split("=")[0] for override in HydraConfig.get().overrides.task}
    if "model" in asked and cfg.model.name != made.model.name:
        raise UserError(f"{cfg.checkpoint} is a checkpoint of {made.model.name}, not of {cfg.model.name}: drop model=")
    for key in ("table", "canvas"):
        if cfg.data[key] != made.data[key]:
            raise UserError(
                f"{cfg.checkpoint} was trained on {made.data.name} ({key} {made.data[key]}); "
                f"data={cfg.data.name} has {key} {cfg.data[key]}"
            )
    data = data_room(cfg.data.table).data_module(cfg.data, cfg.budget, seed=0)
    trainer = L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        precision=precision(cfg),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.test(learner, data, verbose=False)
    correct = learner.test_result()["correct"]
    wrong, n = int((~correct).sum()), len(correct)
    low, high = wilson(wrong, n)
    print(
        f"{made.model.name}, trained on {made.data.name} ({made.budget.name}), tested on {cfg.data.name}: "
        f"error {100 * wrong / n:.2f} % [{low:.2f}, {high:.2f}] ({wrong} of {n} images)"
    )


main = front_door(evaluate)

if __name__ == "__main__":
    main()
