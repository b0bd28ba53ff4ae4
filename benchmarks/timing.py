"""Times contestants in one process, in turn, and takes the medians of repeats."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

OURS = "ours"


def seconds(work: Callable[[], Any], device: torch.device, n: int) -> float:
    """The seconds of one call, the mean over n calls."""
    start = wait(device)
    for _ in range(n):
        work()
    return (wait(device) - start) / n


def wait(device: torch.device) -> float:
    """Wait until the device is idle. Returns the time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def alternate(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The values of all measures, in turn so that fluctuations of the machine affect all. Drops the first round."""
    durations = {name: [] for name in measures}
    for _ in range(1 + repeats):
        for name, measure in measures.items():
            durations[name].append(measure())
    return {name: values[1:] for name, values in durations.items()}


@dataclass
class Work:
    """One contestant of a comparison.

    Attributes:
        call: does the work.
        amount: the number of units (images, steps, ...) in one call.
        other: whether it is known to do other work at a similar cost, as its name must say: it is timed whatever its
            result, and is never the best rival.
        result: a tensor, or a tuple of them, for the comparison with ours; what `call` returns if not given.
        measure: seconds of one call, where a call does more than what is timed.
    """

    call: Callable[[], Any]
    amount: int = 1
    other: bool = False
    result: Callable[[], Any] | None = None
    measure: Callable[[], float] | None = None


@dataclass
class Bench:
    """The device and the effort of a run of benchmarks, and what was left out.

    Attributes:
        device: the device of our work; the names of rivals that cannot use a GPU say so.
        quick: sizes for a smoke test, whose numbers mean nothing.
    """

    device: torch.device
    quick: bool = False
    left_out: list[str] = field(default_factory=list)

    @property
    def repeats(self) -> int:
        return 2 if self.quick else 7

    @property
    def span(self) -> float:
        """The seconds that one measurement should take (a single call may take longer)."""
        return 0.002 if self.quick else 0.1

    def skip(self, line: str) -> None:
        """Print once what is left out, and why."""
        if line not in self.left_out:
            self.left_out.append(line)
            print(f"  left out: {line}", flush=True)

    def compare(
        self, work: str, unit: str, contestants: dict[str, Work], tolerance: float | None = None, **facts
    ) -> dict:
        """Time `contestants`, one of which is `OURS`. Returns a row of a record.

        A rival whose result differs from ours by more than `tolerance` (mean absolute difference over the common part,
        in units of our mean absolute value) does other work, and is not timed.

        Args:
            facts: further entries of the row: sizes, threads, precision.
        """
        differences = {}
        if tolerance is not None:
            reference = _results(contestants[OURS])
            for name, rival in list(contestants.items()):
                if name == OURS:
                    continue
                differences[name] = _difference(reference, _results(rival))
                if not (rival.other or differences[name] <= tolerance):
                    self.skip(f"{name} in {work}: its result is not ours (off by {100 * differences[name]:.2g} %)")
                    del contestants[name]
        measures = {
            name: contestant.measure or self._timed(contestant.call) for name, contestant in contestants.items()
        }
        durations = alternate(measures, self.repeats)
        per_unit = {name: [s / contestants[name].amount for s in durations[name]] for name in durations}
        rows = {
            name: {
                "rate": _spread([1 / s for s in per_unit[name]]),
                "seconds_per_call": _spread(durations[name]),
                "amount_per_call": contestants[name].amount,
                "same_work": not contestants[name].other,
                "ours_is_times_as_fast": _spread(
                    [rival_s / own_s for rival_s, own_s in zip(per_unit[name], per_unit[OURS], strict=True)]
                ),
                **({"relative_difference_from_ours": differences[name]} if name in differences else {}),
            }
            for name in durations
        }
        row = {"work": work, "unit": unit, "repeats": self.repeats, **facts, "contestants": rows}
        print(f"  {told(row)}", flush=True)
        return row

    def _timed(self, call: Callable[[], Any]) -> Callable[[], float]:
        """A measure over enough calls to fill `span`."""
        call()
        n = max(1, min(10_000, round(self.span / seconds(call, self.device, 1))))
        return partial(seconds, call, self.device, n)


def rivals(row: dict) -> list[str]:
    """The rivals of a row, the fastest first; those that do other work come last."""
    facts = row["contestants"]
    names = [name for name in facts if name != OURS]
    return sorted(names, key=lambda name: (not facts[name]["same_work"], -facts[name]["rate"]["median"]))


def figure(row: dict, name: str) -> str:
    """The value of one contestant of a row, in the row's unit: a rate, or seconds."""
    facts = row["contestants"][name]
    return shown(facts["seconds_per_call" if row["unit"] == "s" else "rate"]["median"])


def ratio(row: dict, name: str) -> str:
    """How many times as fast as this rival ours is."""
    return f"{row['contestants'][name]['ours_is_times_as_fast']['median']:.2f}"


def told(row: dict) -> str:
    """Ours and the best rival in one line."""
    line = f"{row['work']}: {figure(row, OURS)} {row['unit']}"
    for best in rivals(row)[:1]:
        line += f", {ratio(row, best)} x {best} ({figure(row, best)})"
    return line


def shown(number: float) -> str:
    """A number with three digits, the precision of a median of a few repeats."""
    digits = float(f"{number:.3g}")
    return f"{digits:,.0f}" if digits >= 100 else f"{digits:g}"


def measured(rates: list[float]) -> dict:
    """The entry of a contestant without rivals, whose rates were measured elsewhere."""
    return {"rate": _spread(rates), "amount_per_call": 1, "same_work": True, "ours_is_times_as_fast": _spread([1, 1])}


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartiles": [low, high]}


def _results(work: Work) -> tuple[torch.Tensor, ...]:
    result = (work.result or work.call)()
    parts = result if isinstance(result, tuple) else (result,)
    return tuple(part.detach().float().cpu() for part in parts)


def _difference(results: tuple[torch.Tensor, ...], references: tuple[torch.Tensor, ...]) -> float:
    """The largest relative difference of the results; infinite if their shapes differ by more than the length."""
    differences = []
    for a, b in zip(results, references, strict=True):
        n = min(len(a), len(b))
        a, b = a[:n], b[:n]
        difference = ((a - b).abs().sum() / a.abs().sum().clamp_min(1e-12)).item() if a.shape == b.shape else math.inf
        differences.append(math.inf if math.isnan(difference) else difference)
    return max(differences)
