"""Bring the raw data of a data set to `data.raw`: `python -m stn.fetch data=mnist_r`."""

from pathlib import Path

from omegaconf import DictConfig

from stn.config import front_door
from stn.data.download import export_embedded, fetch_mnist


def fetch(cfg: DictConfig) -> None:
    raw = Path(cfg.data.raw)
    files = export_embedded(raw) if cfg.data.source.name == "digits" else fetch_mnist(raw)
    print(f"{raw}: {', '.join(file.name for file in files)}")


main = front_door(fetch)

if __name__ == "__main__":
    main()
