"""Test a checkpoint on any data set: `python -m stn.evaluate checkpoint=outputs/runs/.../last.ckpt data=mnist_p`."""

from omegaconf import DictConfig

from stn.config import front_door


def evaluate(cfg: DictConfig) -> None:
    from stn.report.statistics import wilson
    from stn.training.run import test  # loads Lightning: ten seconds, which a misspelt key should not cost

    config, correct = test(cfg)
    wrong, n = int((~correct).sum()), len(correct)
    low, high = wilson(wrong, n)
    print(
        f"{config.model.name}, trained on {config.data.name} ({config.budget.name}), tested on {cfg.data.name}: "
        f"error {100 * wrong / n:.2f} % [{low:.2f}, {high:.2f}] ({wrong} of {n} images)"
    )


main = front_door(evaluate)

if __name__ == "__main__":
    main()
