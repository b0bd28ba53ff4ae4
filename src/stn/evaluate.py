"""Test a checkpoint on any data set: `python -m stn.evaluate checkpoint=outputs/runs/.../last.ckpt data=mnist_p`.

It also tests a network that comes with the project: `python -m stn.evaluate weights=mnist_rts/st_cnn_tps`.
"""

from omegaconf import DictConfig

from stn.config import front_door
from stn.errors import UserError


def evaluate(cfg: DictConfig) -> None:
    card = _card(cfg.weights) if cfg.weights and not cfg.checkpoint else None
    from stn.report.statistics import wilson
    from stn.training.run import test  # loads Lightning, ten seconds, so only after the config is checked

    config, data, correct = test(cfg)
    wrong, n = int((~correct).sum()), len(correct)
    low, high = wilson(wrong, n)
    print(
        f"{config.model.name}, trained on {config.data.name} ({config.budget.name}), tested on {data.name}: "
        f"error {100 * wrong / n:.2f} % [{low:.2f}, {high:.2f}] ({wrong} of {n} images)"
    )
    if card and data.name == card["data"]:
        rounded = ", before its weights were rounded to float16" if card["stored"]["dtype"] == "float16" else ""
        images = f"{card['errors']} of {card['n_test']} images"
        print(f"its record, {card['record']}: error {card['error']:.2f} % ({images}){rounded}")


def _card(name: str) -> dict:
    """The card of a network that comes with the project; UserError if it is missing or its record is of another run."""
    from stn.weights import conflict, read

    try:
        card, _ = read(name)
    except ValueError as error:
        raise UserError(str(error)) from error
    if reason := conflict(card):
        raise UserError(
            f"{name} is not from the training of {card['record']} ({reason}): "
            f"`python -m stn.publish {card['record']}` writes it again"
        )
    return card


main = front_door(evaluate)

if __name__ == "__main__":
    main()
