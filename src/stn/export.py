"""Export a network to ONNX, float32 and int8, test and time it: `python -m stn.export checkpoint=.../last.ckpt`.

Without a checkpoint it exports the finished cell: `python -m stn.export data=mnist_r model=st_cnn_tps budget=quick`.
"""

from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from stn.config import front_door
from stn.errors import UserError

NAMES = {"torch": "torch, eager", "float32": "ONNX float32", "int8": "ONNX int8"}


def export(cfg: DictConfig) -> None:
    if cfg.weights:
        raise UserError(f"weights={cfg.weights} is only for stn.evaluate: give stn.export a checkpoint=")
    if cfg.checkpoint is not None:
        _refuse_settings(cfg.checkpoint, HydraConfig.get().overrides.task)
    from stn.deployment import deploy  # loads Lightning, ten seconds, so only after the config is checked
    from stn.report.statistics import wilson

    facts = deploy(cfg)
    about, n = facts["provenance"], facts["n_test"]
    print(
        f"{facts['model']}, trained on {facts['data']}, {facts['parameters']:,} parameters; "
        f"tested on {facts['tested']}, {n:,} images; one thread of {about['cpu']}, onnxruntime {about['onnxruntime']}"
    )
    line = "{:14}{:>8}  {:16}{:>15}  {:>12}  {:18}{:>8}"
    print(line.format("", "error %", "95 % interval", "torch's answer", "ms an image", "5th to 95th %", "KB"))
    for name, run in facts["runs"].items():
        low, high = wilson(run["errors"], n)
        time = run["latency"]
        agreement = "" if name == "torch" else f"{run['agreement']:.2f} %"
        spread, size = (
            f"{time['low']:.3f} to {time['high']:.3f}",
            f"{run['bytes'] / 1000:.1f}" if "bytes" in run else "",
        )
        values = f"{run['error']:.2f}", f"{low:.2f} to {high:.2f}", agreement, f"{time['median']:.3f}", spread, size
        print(line.format(NAMES[name], *values).rstrip())
    print(f"-> {', '.join(facts['files'])}")


def _refuse_settings(checkpoint: str, overrides: Sequence[str]) -> None:
    """Raise UserError for a key of the training, which is over, or of its data; `data=...` chooses another data set."""
    keys = [override.split("=")[0].lstrip("+~") for override in overrides]
    for key in keys:
        group, _, rest = key.partition(".")
        if rest and (group in ("model", "budget") or (group == "data" and "data" not in keys)):
            others = "; data=... tests it on another data set" if group == "data" else ""
            raise UserError(f"{key}: checkpoint={checkpoint} has the {group} of its training: drop {key}={others}")


main = front_door(export)

if __name__ == "__main__":
    main()
