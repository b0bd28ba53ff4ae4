"""What transformers cost on house numbers, and whether the input keeps up: `python benchmarks/house_numbers.py`.

Side by side in one process, in turn, medians of repeats: a training step (forward and backward, batch 128) of the CNN,
ST-CNN Single and ST-CNN Multi; and a whole step of the CNN on real batches against one on a repeated batch. Writes
`reports/bench/house_numbers-<device>-<data>-<width>.json`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from stn.config import compose
from stn.data.draws import generator
from stn.training.feed import Feed
from stn.training.learner import new_learner
from stn.training.record import provenance

MODELS = ("svhn_cnn", "svhn_st_single", "svhn_st_multi")


def seconds(work, device: torch.device, n: int) -> float:
    """Of one call, over n of them."""
    _wait(device)
    begun = time.perf_counter()
    for _ in range(n):
        work()
    _wait(device)
    return (time.perf_counter() - begun) / n


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def alternate(works: dict, device: torch.device, repeats: int, n: int) -> dict[str, list[float]]:
    """Seconds of each work, measured in turn so that the machine's moods fall on all alike."""
    for work in works.values():
        seconds(work, device, 2)
    found = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(seconds(work, device, n))
    return found


def step_of(learner, images, labels, device: torch.device, precision: torch.dtype):
    def step() -> None:
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            scores = learner(images)
        loss = torch.nn.functional.cross_entropy(scores.float().flatten(0, -2), labels.flatten())
        loss.backward()
        for parameter in learner.parameters():
            parameter.grad = None

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", default="svhn_strips_64")
    parser.add_argument("--width", type=float, default=1.0, help="times the paper's filters and units")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--calls", type=int, default=2, help="of one measurement")
    args = parser.parse_args()
    device, precision = torch.device(args.device), getattr(torch, args.precision)

    def learner(model: str):
        torch.manual_seed(0)
        filters = round(32 * args.width)  # of Single's localisation network: narrowed like the rest
        sizes = [f"model.width={args.width}", f"model.localisation.filters={filters}", "model.dropout=0"]
        sizes += [f"budget.batch_size={args.batch}"]
        cfg = compose(f"data={args.data}", f"model={model}", "budget=quick", *sizes)
        return cfg, new_learner(cfg).to(device)

    cfg, cnn = learner(MODELS[0])
    feed = Feed(cfg.data, cfg.budget, 0)
    feed.source.load("train")

    def batch(step: int):
        draws = generator(0, "distortion", step, device=device)
        return feed.source.train_batch(feed.picks(step), draws, args.batch, slice(None), device)

    images, labels = batch(0)
    works = {MODELS[0]: step_of(cnn, images, labels, device, precision)}
    works |= {model: step_of(learner(model)[1], images, labels, device, precision) for model in MODELS[1:]}
    cost = alternate(works, device, args.repeats, args.calls)

    count = iter(range(1, 10**9))
    feeding = {
        "repeated batch": lambda: step_of(cnn, images, labels, device, precision)(),
        "real batches": lambda: step_of(cnn, *batch(next(count)), device, precision)(),
    }
    fed = alternate(feeding, device, args.repeats, args.calls)

    def summary(found: dict[str, list[float]], base: str) -> dict:
        middle = {name: statistics.median(times) for name, times in found.items()}
        ratios = {name: [a / b for a, b in zip(found[name], found[base], strict=True)] for name in found}
        return {
            name: {
                "milliseconds": round(1000 * middle[name], 2),
                "ratio": round(statistics.median(ratios[name]), 4),
                "ratios": [round(ratio, 4) for ratio in ratios[name]],
            }
            for name in found
        }

    about = {
        "provenance": provenance(args.precision),
        "data": args.data,
        "width": args.width,
        "batch": args.batch,
        "repeats": args.repeats,
        "calls": args.calls,
        "forward and backward": summary(cost, MODELS[0]),
        "step with input": summary(fed, "repeated batch"),
    }
    path = Path("reports/bench") / f"house_numbers-{device.type}-{args.data}-{args.width:g}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=1) + "\n")
    for title in ("forward and backward", "step with input"):
        for name, row in about[title].items():
            print(f"{title:>20}  {name:<15} {row['milliseconds']:9.2f} ms  x {row['ratio']:.3f}")
    print(path)


if __name__ == "__main__":
    main()
