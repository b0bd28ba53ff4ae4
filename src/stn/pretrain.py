"""Train a classifier that other networks build on: `python -m stn.pretrain data=mnist_ts model=cnn budget=quick`.

An ordinary run that leaves its record and, beside it, the first seed's classifier: `<record>.weights.npz`.
"""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from stn.config import front_door
from stn.errors import UserError
from stn.files import write_whole


def pretrain(cfg: DictConfig) -> None:
    from stn.runs import CHECKPOINT
    from stn.training.run import load, scratch, train  # loads Lightning, so only after the config is checked

    if cfg.data.kind != "mnist" or cfg.model.transformation is not None:
        raise UserError(
            f"{cfg.data.name}/{cfg.model.name} is not a digit classifier: give data=mnist_ts model=cnn, for example"
        )
    cell = f"{cfg.data.name}-{cfg.model.name}"
    record = Path(cfg.record or f"reports/results/{cfg.budget.name}/classifier/{cell}")
    cfg = cfg.copy()
    cfg._set_flag("readonly", False)
    cfg.record = str(record)
    checkpoint = scratch(cfg, cfg.seeds[0]) / CHECKPOINT
    cfg.fresh = cfg.fresh or not checkpoint.exists()  # a record keeps its seeds, but has no weights
    train(cfg)
    classifier = load(checkpoint).network.get_submodule("classifier")
    path = record.with_name(f"{record.name}.weights.npz")
    weights = {name: weight.numpy() for name, weight in classifier.state_dict().items()}
    write_whole(path, lambda file: np.savez(file, **weights))
    print(f"weights -> {path}")


main = front_door(pretrain)

if __name__ == "__main__":
    main()
