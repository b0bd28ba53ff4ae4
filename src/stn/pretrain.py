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
    train(cfg)
    classifier = load(scratch(cfg, cfg.seeds[0]) / "last.ckpt").network.get_submodule("classifier")
    path = record.with_name(f"{record.name}.weights.npz")
    weights = {name: weight.numpy() for name, weight in classifier.state_dict().items()}
    write_whole(path, lambda file: np.savez(file, **weights))
    print(f"weights -> {path}")


main = front_door(pretrain)

if __name__ == "__main__":
    main()
