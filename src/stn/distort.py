"""Make the stored sets of a data set: `python -m stn.distort data=mnist_rts`."""

from pathlib import Path

from omegaconf import DictConfig

from stn.config import front_door
from stn.experiments import load_store


def distort(cfg: DictConfig) -> None:
    module = load_store(cfg.data.kind, cfg.data.name, "distort")  # loads torch, so only after the config is checked
    about = module.store(cfg.data, Path(cfg.outputs) / "scratch")
    sides = module.source(cfg.data).shape[1:]
    size = f"{' x '.join(map(str, sides))} {'pixels' if len(sides) == 2 else 'voxels'}"
    for split, facts in about["sets"].items():
        redrawn = f", {facts['redrawn']} drawn again" if "redrawn" in facts else ""
        print(f"{module.stored_folder(cfg.data)}/{split}: {facts['images']} images of {size}{redrawn}")


main = front_door(distort, with_model=False)

if __name__ == "__main__":
    main()
