"""Crop the house numbers of a data set out of their images: `python -m stn.crop data=svhn_64`."""

from pathlib import Path

from omegaconf import DictConfig

from stn.config import front_door
from stn.data.crops import store


def crop(cfg: DictConfig) -> None:
    about = store(cfg.data, Path(cfg.outputs) / "scratch")
    for split, facts in about["sets"].items():
        print(f"{cfg.data.stored}/{split}: {facts['images']} images of {cfg.data.canvas} pixels a side")
    for part, reasons in about["left_out"].items():
        for reason, names in reasons.items():
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            print(f"{part}: {len(names)} left out, {reason}: {shown} (all in {cfg.data.stored}/sets.json)")


main = front_door(crop, with_model=False)

if __name__ == "__main__":
    main()
