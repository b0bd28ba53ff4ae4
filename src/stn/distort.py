"""Make the stored sets of a data set: `python -m stn.distort data=mnist_rts`."""

import importlib
from pathlib import Path

from omegaconf import DictConfig

from stn.config import ROOMS, front_door


def distort(cfg: DictConfig) -> None:
    room = importlib.import_module(ROOMS[cfg.data.table][0])  # loads torch: not before the config stands
    about = room.store(cfg.data, Path(cfg.outputs) / "scratch")
    for split, facts in about["sets"].items():
        redrawn = f", {facts['redrawn']} drawn again" if "redrawn" in facts else ""
        print(f"{room.stored_folder(cfg.data)}/{split}: {facts['images']} images of {about['distortion']}{redrawn}")


main = front_door(distort, with_model=False)

if __name__ == "__main__":
    main()
