"""Make the stored sets of a data set: `python -m stn.distort data=mnist_rts`."""

from pathlib import Path

from omegaconf import DictConfig

from stn.config import front_door
from stn.errors import UserError
from stn.experiments import load


def distort(cfg: DictConfig) -> None:
    module = load(cfg.data.kind, "data")  # loads torch: not before the config stands
    if not hasattr(module, "store"):
        raise UserError(f"data={cfg.data.name} has no sets to store: train it right away")
    if module.DOOR != "distort":
        name = cfg.data.name
        raise UserError(f"data={name} is cropped, not distorted: run `python -m stn.crop data={name}`")
    about = module.store(cfg.data, Path(cfg.outputs) / "scratch")
    for split, facts in about["sets"].items():
        redrawn = f", {facts['redrawn']} drawn again" if "redrawn" in facts else ""
        print(f"{module.stored_folder(cfg.data)}/{split}: {facts['images']} images of {about['distortion']}{redrawn}")


main = front_door(distort, with_model=False)

if __name__ == "__main__":
    main()
