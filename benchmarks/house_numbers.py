"""What transformers cost on house numbers, and whether the input keeps up: `python -m benchmarks.house_numbers`.

Side by side in one process, in turn, medians of repeats: a training step (forward and backward, batch 128) of the CNN,
ST-CNN Single and ST-CNN Multi; and a whole step of the CNN on real batches against one on a repeated batch. Writes
`reports/bench/house_numbers-<device>-<data>-<width>.json`. A part of `make bench`, where the crops are.
"""

import json
import statistics
from functools import partial
from pathlib import Path

import torch

from benchmarks.timing import alternate, seconds
from stn.config import compose
from stn.data.draws import generator
from stn.front_door import guard
from stn.messages import Parser
from stn.training.data_module import DataModule
from stn.training.learner import new_learner
from stn.training.record import provenance

MODELS = ("svhn_cnn", "svhn_st_single", "svhn_st_multi")


def step_of(learner, images, labels, device: torch.device, precision: torch.dtype):
    def step() -> None:
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            scores = learner(images)
        loss = torch.nn.functional.cross_entropy(scores.float().flatten(0, -2), labels.flatten())
        loss.backward()
        for parameter in learner.parameters():
            parameter.grad = None

    return step


def measure(
    device: torch.device,
    data: str = "svhn_strips_64",
    width: float = 1.0,
    precision: str = "bfloat16",
    batch_size: int = 128,
    repeats: int = 7,
    calls: int = 2,
) -> dict:
    """Measure, and return the record. Raises UserError if the crops of `data` are not here.

    Args:
        width: factor of the paper's filters and units.
        calls: calls of the work in one measurement.
    """
    dtype = getattr(torch, precision)

    def learner(model: str):
        torch.manual_seed(0)
        filters = round(32 * width)  # of Single's localisation network: narrowed like the rest
        sizes = [f"model.width={width}", f"model.localisation.filters={filters}", "model.dropout=0"]
        sizes += [f"budget.batch_size={batch_size}"]
        cfg = compose(f"data={data}", f"model={model}", "budget=quick", *sizes)
        return cfg, new_learner(cfg).to(device)

    def timed(works: dict) -> dict[str, list[float]]:
        return alternate({name: partial(seconds, work, device, calls) for name, work in works.items()}, repeats)

    cfg, cnn = learner(MODELS[0])
    data_module = DataModule(cfg.data, cfg.budget, 0)
    data_module.source.load("train")

    def batch(step: int):
        draws = generator(0, "distortion", step, device=device)
        return data_module.source.train_batch(data_module.picks(step), draws, batch_size, slice(None), device)

    images, labels = batch(0)
    works = {MODELS[0]: step_of(cnn, images, labels, device, dtype)}
    works |= {model: step_of(learner(model)[1], images, labels, device, dtype) for model in MODELS[1:]}
    cost = timed(works)

    count = iter(range(1, 10**9))
    input_works = {
        "repeated batch": lambda: step_of(cnn, images, labels, device, dtype)(),
        "real batches": lambda: step_of(cnn, *batch(next(count)), device, dtype)(),
    }
    input_times = timed(input_works)

    def summary(durations: dict[str, list[float]], base: str) -> dict:
        medians = {name: statistics.median(times) for name, times in durations.items()}
        ratios = {name: [a / b for a, b in zip(durations[name], durations[base], strict=True)] for name in durations}
        return {
            name: {
                "milliseconds": round(1000 * medians[name], 2),
                "ratio": round(statistics.median(ratios[name]), 4),
                "ratios": [round(ratio, 4) for ratio in ratios[name]],
            }
            for name in durations
        }

    return {
        "provenance": provenance(precision),
        "data": data,
        "width": width,
        "batch": batch_size,
        "repeats": repeats,
        "calls": calls,
        "forward and backward": summary(cost, MODELS[0]),
        "step with input": summary(input_times, "repeated batch"),
    }


def write(about: dict, device: torch.device, folder: Path) -> Path:
    """Write the record below `folder`, and print its lines. Returns its path."""
    path = folder / f"house_numbers-{device.type}-{about['data']}-{about['width']:g}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for title in ("forward and backward", "step with input"):
        for name, row in about[title].items():
            print(f"{title:>22}  {name:<15} {row['milliseconds']:9.2f} ms  x {row['ratio']:.3f}", flush=True)
    return path


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", default="svhn_strips_64")
    parser.add_argument("--width", type=float, default=1.0, help="times the paper's filters and units")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--calls", type=int, default=2, help="of one measurement")
    args = parser.parse_args()
    device = torch.device(args.device)
    with guard():
        about = measure(device, args.data, args.width, args.precision, args.batch, args.repeats, args.calls)
    print(write(about, device, Path("reports/bench")))


if __name__ == "__main__":
    main()
