"""Store the images of a data set at the size that training needs: `python -m stn.crop data=svhn_64`, `data=cub_224`.

House numbers are cropped out of their images; birds are resized whole.
"""

from pathlib import Path

from omegaconf import DictConfig

from stn.config import front_door
from stn.errors import UserError
from stn.experiments import load


def crop(cfg: DictConfig) -> None:
    module = load(cfg.data.kind, "data")
    if not hasattr(module, "store"):
        raise UserError(f"data={cfg.data.name} has no sets to store: train it right away")
    if module.DOOR != "crop":
        name = cfg.data.name
        raise UserError(f"data={name} is distorted, not cropped: run `python -m stn.distort data={name}`")
    about = module.store(cfg.data, Path(cfg.outputs) / "scratch")
    side = cfg.data.get("side")
    size = f"{side} pixels on the shorter side" if side else f"{cfg.data.canvas} pixels a side"
    for split, facts in about["sets"].items():
        print(f"{cfg.data.stored}/{split}: {facts['images']} images of {size}")
    for part, reasons in about.get("left_out", {}).items():
        for reason, names in reasons.items():
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            print(f"{part}: {len(names)} left out, {reason}: {shown} (all in {cfg.data.stored}/sets.json)")


main = front_door(crop, with_model=False)

if __name__ == "__main__":
    main()
