"""Store the images of a data set at the size that training needs: `python -m stn.crop data=svhn_64`, `data=cub_224`.

House numbers are cropped out of their images; birds are resized whole.
"""

from pathlib import Path

from omegaconf import DictConfig

from stn.config import front_door
from stn.experiments import load_store


def crop(cfg: DictConfig) -> None:
    module = load_store(cfg.data.kind, cfg.data.name, "crop")  # loads torch, so only after the config is checked
    about = module.store(cfg.data, Path(cfg.outputs) / "scratch")
    side = cfg.data.get("side")
    size = f"{side} pixels on the shorter side" if side else f"{cfg.data.canvas} pixels a side"
    for split, facts in about["sets"].items():
        print(f"{cfg.data.stored}/{split}: {facts['images']} images of {size}")
    for part, reasons in about.get("left_out", {}).items():
        for reason, names in reasons.items():
            sample = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            print(f"{part}: {len(names)} left out, {reason}: {sample} (all in {cfg.data.stored}/sets.json)")


main = front_door(crop, with_model=False)

if __name__ == "__main__":
    main()
