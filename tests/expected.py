"""What the files of `conf/experiment` say on top: commands, expected number and cost, from the record that each names.

`python tests/expected.py` writes these lines anew, as is needed after a record has changed.
"""

import json
import re
from pathlib import Path

from stn.config import CONF
from stn.experiments import find_tables, load

ROOT = Path(__file__).parents[1]
FILES = sorted((CONF / "experiment").glob("*.yaml"))
LINE = re.compile(r"^# (Data|Command|Expected|Cost):.*$", re.MULTILINE)


def record_of(path: Path) -> tuple[Path, dict]:
    """The record that an experiment's file names, and its place."""
    place = Path(re.search(r"^# Record: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)[1])
    return place, json.loads((ROOT / place).read_text(encoding="utf-8"))


def paper_of(place: Path) -> float | None:
    """The paper's value of the cell whose record lies there, if it has one."""
    for table in find_tables().values():
        for row in table.rows:
            for column in table.columns:
                if column in row.paper and place.stem in {cell.key for cell in row.cells(column)[:1]}:
                    return row.paper[column]
    return None


def lines(path: Path) -> dict[str, str]:
    """The lines of an experiment's file by what they begin with."""
    place, record = record_of(path)
    door = load(record["config"]["data"]["kind"], "data").DOOR
    fetch, store, train = (f"python -m stn.{module} experiment={path.stem}" for module in ("fetch", door, "train"))
    seeds, paper = record["seeds"], paper_of(place)
    error = sum(seed["error"] for seed in seeds) / len(seeds)
    expected = f"test error {error:.2f} % of {record['n_test']} images at {record['budget']}"
    expected += f", mean of {len(seeds)} seeds" if len(seeds) > 1 else f", seed {seeds[0]['seed']}"
    if paper is not None and not record["part"]:
        expected += f"; the paper has {paper} %"
    typical = sorted(seeds, key=lambda seed: seed["seconds"])[len(seeds) // 2]  # some ran on a busy machine
    seconds, machine = typical["seconds"], typical["provenance"]
    time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    cost = f"{time} of training a seed on {machine['gpu'] or machine['cpu']}"
    cost += "" if machine["gpu"] else f", {machine['cores']} cores"
    cost += "; median of the seeds" if len(seeds) > 1 else ""
    return {"Data": f"{fetch} && {store}", "Command": train, "Expected": expected, "Cost": cost}


def renewed(path: Path) -> str:
    """The text of an experiment's file as its record has it."""
    values = lines(path)
    return LINE.sub(lambda line: f"# {line[1]}: {values[line[1]]}", path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for path in FILES:
        path.write_text(renewed(path), encoding="utf-8")
        print(path.relative_to(ROOT))
