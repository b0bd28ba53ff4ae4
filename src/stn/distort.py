"""Make the stored sets of a data set: `python -m stn.distort data=mnist_rts`."""

from pathlib import Path

from omegaconf import DictConfig

from stn.config import front_door


def distort(cfg: DictConfig) -> None:
    from stn.data.digits import store, stored_folder  # loads torch: not before the config stands

    about = store(cfg.data, Path(cfg.outputs) / "scratch")
    for split, facts in about["sets"].items():
        redrawn = f", {facts['redrawn']} drawn again" if "redrawn" in facts else ""
        print(f"{stored_folder(cfg.data)}/{split}: {facts['images']} images of {about['distortion']}{redrawn}")


main = front_door(distort, with_model=False)

if __name__ == "__main__":
    main()
