"""Bring the raw data of a data set to `data.raw`: `python -m stn.fetch data=mnist_r`."""

from omegaconf import DictConfig

from stn.config import front_door
from stn.experiments import load


def fetch(cfg: DictConfig) -> None:
    files = load(cfg.data.kind, "data").fetch(cfg.data)
    print(f"{cfg.data.raw}: {', '.join(file.name for file in files)}")


main = front_door(fetch, with_model=False)

if __name__ == "__main__":
    main()
