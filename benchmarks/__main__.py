"""One command, a table at the end, a record of each part in `reports/bench/`: `make bench`, `python -m benchmarks`.

python -m benchmarks --only distortion,training --device cuda
python -m benchmarks --quick      # does everything run? Its numbers mean nothing and go to outputs/bench/
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import compiled, distortion, house_numbers, startup, together, training, transformer
from benchmarks.timing import OURS, Bench, figure, ratio, rivals
from stn.config import compose
from stn.data.download import export_embedded
from stn.environment import cores
from stn.errors import UserError
from stn.experiments.mnist.data import undistorted
from stn.front_door import guard
from stn.messages import Parser
from stn.training.record import provenance
from stn.training.run import precision

PARTS: dict[str, tuple[str, Callable[["Run"], Iterator[dict]]]] = {
    "distortion": (
        "Distorting digits, from parameters drawn beforehand",
        lambda run: distortion.measure(run.bench, *run.digits()),
    ),
    "transformer": ("The transformer alone, batches of Table 1", lambda run: transformer.families(run.bench)),
    "growth": ("How its cost grows, forward and backward", lambda run: transformer.growth(run.bench)),
    "training": (
        "Training steps of Table 1's networks on R, budget quick, input included",
        lambda run: training.measure(run.bench, run.digits()[0], run.scratch, *run.digits()[1:]),
    ),
    "convolutions": (
        "Training steps on a GPU at the paper's budget, input included",
        lambda run: training.convolutions(run.bench, run.digits()[0], run.scratch, *run.digits()[1:]),
    ),
    "together": (
        "Table 1 at the paper's budget, eight cells at once on a GPU",
        lambda run: together.measure(run.bench, run.digits()[0], run.scratch, *run.digits()[1:]),
    ),
    "compiled": (
        "The module from Python against PyTorch's functions, also compiled; forward and backward",
        lambda run: compiled.modules(run.bench),
    ),
    "compiled_training": (
        "Training steps of Table 1's networks on R, budget quick, against plain loops, also compiled",
        lambda run: compiled.loops(run.bench, run.digits()[0], run.scratch, *run.digits()[1:]),
    ),
    "startup": ("Start-up", lambda run: startup.measure(run.bench)),
    "house_numbers": ("House numbers: what transformers cost, and whether the input keeps up", None),
}
NEED_GPU = ("convolutions", "together")
LONG = ("compiled", "compiled_training")  # measured only if they are named
BUDGETS = {"training": "quick", "compiled_training": "quick", "convolutions": "paper", "together": "paper"}
WORDS = ("work", "network", "rivals, the best first")  # columns of text
RIVALS = ("torchvision", "kornia", "opencv-python-headless")


class Run:
    """The bench and the folders of one call of this command."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.scratch = Path("outputs/bench")
        self.folder = self.scratch if bench.quick else Path("reports/bench")
        self._digits: list[str] | None = None

    def digits(self) -> list[str]:
        """The data set, `mnist` if it is here and else `digits`, and the overrides that locate its raw data."""
        if self._digits is None:
            try:
                undistorted(compose("data=mnist_r", "model=cnn").data)
                self._digits = ["mnist"]
            except (OSError, UserError):
                print("  MNIST is not here (`python -m stn.fetch data=mnist_r`): scikit-learn's digits instead")
                export_embedded(self.scratch / "raw/digits")
                self._digits = ["digits", f"data.raw={self.scratch / 'raw/digits'}"]
        return self._digits

    def write(self, part: str, rows: list[dict]) -> Path:
        """Write the record of a part. Returns its path."""
        trainer = "gpu" if self.bench.device.type == "cuda" else "cpu"
        budget = BUDGETS.get(part)
        precision_name = precision(compose(f"budget={budget}", f"trainer={trainer}")) if budget else "float32"
        quick = " --quick" if self.bench.quick else ""
        about = {
            "part": part,
            "title": PARTS[part][0],
            "command": f"python -m benchmarks --only {part} --device {self.bench.device}{quick}",
            "provenance": {**provenance(precision_name), "cores_used": cores(), "rivals": versions()},
            "device": str(self.bench.device),
            "quick": self.bench.quick,
            "repeats": rows[0]["repeats"],
            "left_out": self.bench.left_out,
            "rows": rows,
        }
        path = self.folder / f"{part}-{self.bench.device.type}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return path


def versions() -> dict[str, str | None]:
    """The versions of the rivals; None for one that is not installed."""
    result = {}
    for package in RIVALS:
        try:
            result[package] = version(package)
        except PackageNotFoundError:
            result[package] = None
    return result


def chosen(only: str | None) -> list[str]:
    """The parts that `--only` names, in the order of `PARTS`; without it all but `LONG`."""
    names = [part for part in PARTS if part not in LONG] if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in PARTS:
            raise UserError(f"--only={name}: no such part; there are {', '.join(PARTS)}")
    return [part for part in PARTS if part in names]


def usable(name: str) -> torch.device:
    """The device of that name; UserError if it cannot be used."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device={name}: choose cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device={name}, but torch finds no GPU here: use --device=cpu")
    return device


def compared(rows: list[dict]) -> list[list[str]]:
    """A head and lines: work, ours, and for each rival, the best first, its value and the ratio."""
    lines = [["work", "ours", "rivals, the best first", "theirs", "ratio"]]
    for row in rows:
        value = f"{figure(row, OURS)} {row['unit']}"
        lines += [[row["work"], value, name, figure(row, name), ratio(row, name)] for name in rivals(row)]
        if not rivals(row):
            lines.append([row["work"], value, "–", "–", "–"])
    return lines


def table(title: str, lines: list[list[str]]) -> Table:
    """A head and lines as a grid for the terminal; the first two cells of a line are blank where they repeat."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name in lines[0]:
        grid.add_column(name, **({"overflow": "fold"} if name in WORDS else {"justify": "right", "no_wrap": True}))
    previous_cells = None
    for line in lines[1:]:
        grid.add_row(*(["", "", *line[2:]] if line[:2] == previous_cells else line))
        previous_cells = line[:2]
    return grid


def markdown(lines: list[list[str]]) -> str:
    """A head and lines as a table of markdown."""
    rule = ["---" if name in WORDS else "---:" for name in lines[0]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def page(folder: Path) -> str:
    """The records of a folder as one page of markdown, a section for each part and device."""
    text = [
        "# How fast it is",
        "Written by `make bench` from the records beside it. Each comparison ran in one process on the same work, in "
        "turn; medians of repeats. The ratio is how many times as fast ours is: the median of the ratios within each "
        "repeat, not the ratio of the two medians.",
    ]
    for part in PARTS:
        for path in sorted(folder.glob(f"{part}-*.json")):
            about = json.loads(path.read_text(encoding="utf-8"))
            if "rows" not in about:
                text += houses_page(about)
                continue
            place = about["provenance"]
            machine = place["gpu"] or f"{place['cpu']} with {place['cores_used']} cores"
            text.append(f"## {about['title']}")
            text.append(
                f"{machine}; {place['precision']}; torch {place['torch']}, Python {place['python']}; "
                f"{about['repeats']} repeats. `{about['command']}`"
            )
            text.append(markdown(VIEWS.get(part, compared)(about["rows"])))
            if part in REMARKS:
                text.append(REMARKS[part](about["rows"]).strip() + ".")
    return "\n\n".join(text) + "\n"


def houses_page(about: dict) -> list[str]:
    """The section of a record of house numbers, which has its own form."""
    place = about["provenance"]
    machine = place["gpu"] or f"{place['cpu']} with {place['cores']} cores"
    facts = f"`{about['data']}`, {about['width']:g} times the paper's width, batches of {about['batch']}"
    lines = ["| work | milliseconds | ratio |", "|---|---:|---:|"]
    for work in ("forward and backward", "step with input"):
        lines += [
            f"| {work}, {name} | {row['milliseconds']:,.0f} | {row['ratio']:.2f} |" for name, row in about[work].items()
        ]
    return [
        f"## {PARTS['house_numbers'][0]}: {facts}",
        f"{machine}; {place['precision']}; torch {place['torch']}, Python {place['python']}; "
        f"{about['repeats']} repeats. The ratio is to the first of its kind.",
        "\n".join(lines),
    ]


def share(rows: list[dict]) -> str:
    """How close our steps come to the rate of the machine's matrix products."""
    shares = sorted(100 * row["of_matmul_rate"] for row in rows)
    rate = f"{2e-9 * rows[0]['matmul_rate']:.0f} GFLOP/s, {rows[0]['precision']}"
    return f"Ours reach {shares[0]:.0f} to {shares[-1]:.0f} % of the rate of a large matrix product here ({rate})\n"


VIEWS = {"together": together.grid}  # of parts without a comparison
REMARKS = {
    "training": share,
    "together": together.hour,
    "compiled": compiled.describe_compiling,
    "compiled_training": compiled.describe_compiling,
}  # a sentence on all rows of a part


def main() -> None:
    parser = Parser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", metavar="PART,...", help=f"of {', '.join(PARTS)}; all but {' and '.join(LONG)} if not given"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a smoke test: its numbers mean nothing")
    args = parser.parse_args()
    with guard():
        parts, device = chosen(args.only), usable(args.device)
        torch.set_num_threads(cores())
        bench = Bench(device, args.quick)
        run(Run(bench), parts)


def run(here: Run, parts: list[str]) -> None:
    """Measure, write and show the parts."""
    start = time.monotonic()
    tables, paths = [], []
    for i, part in enumerate(parts, 1):
        title, measure = PARTS[part]
        print(f"[{i}/{len(parts)}, {time.monotonic() - start:.0f} s] {part}: {title}", flush=True)
        here.bench.left_out.clear()
        if measure is None:
            paths += houses(here)
            continue
        if part in NEED_GPU and here.bench.device.type != "cuda":
            here.bench.skip(f"{part}: needs a GPU")
            continue
        rows = list(measure(here))
        paths.append(here.write(part, rows))
        tables.append(table(title, VIEWS.get(part, compared)(rows)))
        if part in REMARKS:
            tables.append(REMARKS[part](rows))
    here.folder.mkdir(parents=True, exist_ok=True)  # it is missing if all parts were left out
    (here.folder / "README.md").write_text(page(here.folder), encoding="utf-8")
    console = Console(width=None if Console().is_terminal else 100)
    for grid in tables:
        console.print(grid)
    print("ratio: how many times as fast ours is, the median over repeats taken in turn")
    print(f"{time.monotonic() - start:.0f} s; {', '.join(map(str, paths))}")


def houses(here: Run) -> list[Path]:
    """Measure house numbers, whose record has its own form. Returns the paths of the records."""
    sizes = {"batch_size": 2, "width": 0.1, "repeats": 2} if here.bench.quick else {"repeats": 5}
    try:
        about = house_numbers.measure(here.bench.device, calls=1, **sizes)
    except (UserError, OSError) as error:
        here.bench.skip(f"house_numbers: {error}")
        return []
    return [house_numbers.write(about, here.bench.device, here.folder)]


if __name__ == "__main__":
    main()
