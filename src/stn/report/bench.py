"""Blocks on the records of `make bench`, which lie in reports/bench."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stn.errors import UserError
from stn.report.blocks import REPORTS, Sources, shorten

OURS, PLAIN_LOOP = "ours", "plain PyTorch loop"  # contestants, as its records call them


def speed_block(page: Path, sources: Sources) -> str:
    """Three figures, each with its hardware: training, the module alone, and the whole of Table 1 on a GPU."""
    training = [_against(name, sources, PLAIN_LOOP) for name in ("training-cpu", "training-cuda")]
    module = [_against(name, sources) for name in ("transformer-cpu", "transformer-cuda")]
    gpu = _machine(_bench("together-cuda", sources))
    *_, remark = bench_block("together-cuda", sources).split("\n\n")
    together = re.search(r"(?P<rate>[\d,]+) steps/s in all, (?P<minutes>\d+) minutes for ", remark)
    if together is None:
        raise UserError(f"reports/bench: cannot read {remark!r}")
    return "\n".join(
        [
            f"- **Training**, input included, against a plain PyTorch loop with a `DataLoader`: {'; '.join(training)}.",
            "- **The module alone** (affine, projective, spline; with and without backward) against the fastest of its "
            f"rivals, PyTorch's own functions included: {'; '.join(module)}.",
            f"- **All of Table 1 at budget `paper`**, three seeds: {together['minutes']} minutes without starts and "
            f"tests, from the {together['rate']} steps a second that eight cells at once make on {gpu}.",
        ]
    )


def _against(name: str, sources: Sources, rival: str | None = None) -> str:
    """How many times as fast ours is as `rival`, or as each row's fastest rival: the range of a record's medians."""
    record = _bench(name, sources)
    ratios = []
    for row in record["rows"]:
        rivals = {
            key: facts
            for key, facts in row["contestants"].items()
            if (key == rival if rival else key != OURS and facts["same_work"])
        }
        ratios += [min(facts["ours_is_times_as_fast"]["median"] for facts in rivals.values())] if rivals else []
    if not ratios:
        raise UserError(f"reports/bench/{name}.json: nothing is compared with {rival or 'ours'}")
    return f"{min(ratios):.2f} to {max(ratios):.2f} times as fast on {_machine(record)}"


def _bench(name: str, sources: Sources) -> dict[str, Any]:
    return dict(json.loads(sources.read(REPORTS / "bench" / f"{name}.json")))


def _machine(record: Mapping[str, Any]) -> str:
    provenance = record["provenance"]
    return shorten(
        f"an {provenance['gpu']}" if provenance["gpu"] else f"{provenance['cores_used']} cores ({provenance['cpu']})"
    )


def bench_block(name: str, sources: Sources) -> str:
    """The section of reports/bench/README.md on a record, without its heading."""
    record = _bench(name, sources)
    sign = f"`{record['command']}`" if "command" in record else f"`{record['data']}`, {record['width']:g} times"
    for part in sources.read(REPORTS / "bench" / "README.md").split("\n## ")[1:]:
        if sign in part:
            return (part if "command" not in record else part.partition("\n")[2]).strip()
    raise UserError(f"reports/bench/README.md says nothing of {name}.json; `make bench` writes it again")
