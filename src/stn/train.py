"""Train the seeds of one cell and write its record: `python -m stn.train data=mnist_r model=st_cnn_tps seed=3`."""

import os
import sys

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from stn.config import front_door
from stn.errors import UserError

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # of several processes, only the first speaks


def train(cfg: DictConfig) -> float | None:
    """Train a cell. Returns the last validation error in percent, mean over seeds, which a sweeper minimises."""
    if cfg.weights:
        raise UserError(f"weights={cfg.weights} is only for stn.evaluate: training starts from random weights")
    search = HydraConfig.get().runtime.choices.get("search")
    if search and HydraConfig.get().mode != RunMode.MULTIRUN:
        raise UserError(f"search={search} tries several settings: `python -m stn.train -m search={search} ...`")
    if all(os.environ.get(rank, "0") == "0" for rank in RANKS):
        seeds = ", ".join(map(str, cfg.seeds))
        wait = "starts" if "stn.training.run" in sys.modules else "loading, about ten seconds"
        print(f"{cfg.data.name}/{cfg.model.name}, budget {cfg.budget.name}, seed {seeds}: {wait}", flush=True)
    from stn.training import run  # loads Lightning, ten seconds, so only after the config is checked

    errors = [result["validation"][-1][1] for result in run.train(cfg) if result["validation"]]
    return sum(errors) / len(errors) if errors else None


main = front_door(train)

if __name__ == "__main__":
    main()
