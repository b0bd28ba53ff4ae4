"""Store the images of a data set at the size that training needs: `python -m stn.crop data=svhn_64`, `data=cub_224`.

House numbers are cropped out of their images; birds are resized whole.
"""

from pathlib import Path

from omegaconf import DictConfig

from stn.config import front_door
from stn.experiments.cub import archive
from stn.experiments.svhn import crops


def crop(cfg: DictConfig) -> None:
    scratch = Path(cfg.outputs) / "scratch"
    if cfg.data.source.name == "cub":
        about, size = archive.store(cfg.data, scratch), f"{cfg.data.side} pixels on the shorter side"
    else:
        about, size = crops.store(cfg.data, scratch), f"{cfg.data.canvas} pixels a side"
    for split, facts in about["sets"].items():
        print(f"{cfg.data.stored}/{split}: {facts['images']} images of {size}")
    for part, reasons in about.get("left_out", {}).items():
        for reason, names in reasons.items():
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            print(f"{part}: {len(names)} left out, {reason}: {shown} (all in {cfg.data.stored}/sets.json)")


main = front_door(crop, with_model=False)

if __name__ == "__main__":
    main()
