"""Bring the raw data of a data set to `data.raw`: `python -m stn.fetch data=mnist_r`."""

from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from stn.config import front_door
from stn.data.download import export_embedded, fetch_birds, fetch_mnist, fetch_numbers
from stn.experiments.cub import archive


def fetch(cfg: DictConfig) -> None:
    raw = Path(cfg.data.raw)
    match cfg.data.source.name:
        case "digits":
            files = export_embedded(raw)
        case "mnist":
            files = fetch_mnist(raw)
        case "cub":
            files = fetch_birds(raw, partial(archive.fault, classes=cfg.data.classes))
        case source:
            files = fetch_numbers(raw, source, cfg.data.extra)
    print(f"{raw}: {', '.join(file.name for file in files)}")


main = front_door(fetch, with_model=False)

if __name__ == "__main__":
    main()
