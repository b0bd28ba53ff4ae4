"""Train the seeds of one cell and write its record: `python -m stn.train data=mnist_r model=st_cnn_tps seed=3`."""

from omegaconf import DictConfig

from stn.config import front_door
from stn.errors import UserError


def train(cfg: DictConfig) -> None:
    if cfg.weights:
        raise UserError(f"weights={cfg.weights} is for stn.evaluate: a training starts from its seed")
    from stn.training.run import train  # loads Lightning: ten seconds, which a misspelt key should not cost

    train(cfg)


main = front_door(train)

if __name__ == "__main__":
    main()
