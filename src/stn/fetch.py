"""Bring the raw data of a data set to `data.raw`: `python -m stn.fetch data=mnist_r`."""

from omegaconf import DictConfig

from stn.config import front_door
from stn.errors import UserError
from stn.experiments import load


def fetch(cfg: DictConfig) -> None:
    module = load(cfg.data.kind, "data")
    if not hasattr(module, "fetch"):
        raise UserError(f"data={cfg.data.name} has no raw data to fetch: train it without this step")
    files = module.fetch(cfg.data)
    print(f"{cfg.data.raw}: {', '.join(file.name for file in files)}")


main = front_door(fetch, with_model=False)

if __name__ == "__main__":
    main()
