"""Reference loss curves: a few steps of every experiment, trained by `stn.train` as its table trains it, on small data.

They are the evidence that a change of code left results alone. `test_reference.py` computes them with every run of the
tests and holds them against `reference_curves.json`. `python tests/reference.py --write` writes that file anew, after
a change that is meant to give other numbers: then the records of the experiments whose curves moved are to be trained
again. `--out FILE` writes the curves of whichever `stn` Python finds, say of an older commit, to another file.
"""

import argparse
import csv
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from conftest import run
from stn.report.table import Cell

CURVES = Path(__file__).with_name("reference_curves.json")
FIRST, LATER = 1e-5, 2e-4  # the smallest tolerances of a curve's first loss, which no step precedes, and of the others
NOISES = 3
# What older processors can: torch's own loops, oneDNN's convolutions and MKL's products.
INSTRUCTIONS = {
    name: {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}
    for name, aten, onednn, mkl in (("sse", "default", "SSE41", "SSE4_2"), ("avx2", "avx2", "AVX2", "AVX2"))
}
STEPS = (
    *("budget.steps=6", "budget.validate_every=3", "budget.batch_size=16", "budget.precision=float32"),
    *("trainer=cpu", "logger=csv", "logger.every=1"),
)
EMBEDDED = ("data.source=digits", "data.raw=data/raw/digits", "data.validation=200")


def embedded_digits() -> None:
    front("stn.fetch", "data=digits_r")


def house_numbers() -> None:
    """Folders in the form of what SVHN's archives hold."""
    import svhn_archive

    for seed, (part, n) in enumerate({"train": 40, "test": 24, "extra": 32}.items()):
        svhn_archive.write_part(Path("data/raw/svhn", part), n, seed)


def photographs() -> None:
    """Folders of whole photographs, of strips and of images to test on."""
    import svhn_archive

    svhn_archive.write_photographs(
        Path("data/raw/svhn_photos/train"), {f"{i:06d}.png": str(7 * i + 1) for i in range(12)}
    )
    for seed, (part, n) in enumerate({"extra": 40, "test": 24}.items()):
        svhn_archive.write_part(Path("data/raw/svhn_photos", part), n, seed)


def birds() -> None:
    """A folder in the form of what CUB's archive holds, and weights of a trunk, of NumPy's frozen stream."""
    import torchvision

    import cub_archive

    cub_archive.write_cub(Path("data/raw/cub"))
    draws, state = np.random.RandomState(0), torchvision.models.squeezenet1_1(weights=None).state_dict()
    for name, tensor in state.items():
        spread = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.01
        state[name] = torch.from_numpy(draws.normal(0, spread, tensor.shape).astype(np.float32))
    Path("mirror/weights").mkdir(parents=True)
    torch.save(state, "mirror/weights/squeezenet1_1_made.pth")


def classifier() -> None:
    """Weights of what a co-localiser looks at its windows with, of NumPy's frozen stream."""
    draws, arrays = np.random.RandomState(0), {}
    for layer, shape in {"0": (16, 1, 9, 9), "3": (16, 16, 7, 7), "7": (10, 64)}.items():
        arrays[f"{layer}.weight"] = draws.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
        arrays[f"{layer}.bias"] = draws.normal(0, 0.01, shape[0]).astype(np.float32)
    np.savez("classifier.npz", **arrays)


@dataclass(frozen=True)
class Kind:
    """Experiments on small data of one kind: what makes it, and what is otherwise than in `conf/`.

    Attributes:
        raw: called once in the folder of the data.
        door: the front door that makes the stored sets of a run.
        settings: of every run.
    """

    raw: tuple[Callable[[], None], ...]
    door: str
    settings: tuple[str, ...]


KINDS = {
    "digits": Kind((embedded_digits,), "stn.distort", (*EMBEDDED, "data.draws=1", "model.match_filters=16")),
    "classifier": Kind((embedded_digits,), "stn.distort", (*EMBEDDED, "data.draws=1")),
    "addition": Kind((embedded_digits,), "stn.distort", (*EMBEDDED, "data.draws=1", "model.match_filters=16")),
    "colocalisation": Kind(
        (embedded_digits, classifier),
        "stn.distort",
        (*EMBEDDED, "data.images=6", "model.pretrained=classifier.npz", "budget.batch_size=4"),
    ),
    "volumes": Kind(
        (embedded_digits,),
        "stn.distort",
        (*EMBEDDED, "data.canvas=28", "data.projection=28", "model.localisation.downsample=2", "model.match_filters=8"),
    ),
    "svhn": Kind((house_numbers,), "stn.crop", ("data.validation=12", "model.width=0.125")),
    "photographs": Kind((photographs,), "stn.crop", ("data.validation=4", "model.width=0.125")),
    "cub": Kind(
        (birds,),
        "stn.crop",
        (
            *("data.classes=4", "data.side=64", "data.canvas=48", "model.localisation.filters=16"),
            *("model.trunk=squeezenet1_1", "model.frozen=features.3"),
        ),
    ),
}


@dataclass(frozen=True)
class Case:
    """A curve: the kind of its data, the data set, the network, the budget, and what else is otherwise than there.

    `cell` are settings that its cell in the table has, `settings` those of the small data.
    """

    kind: str
    data: str
    model: str
    budget: str = "quick"
    settings: tuple[str, ...] = ()
    cell: tuple[str, ...] = ()
    door: str = "stn.train"
    moved: bool = False  # its transformer does not start at the identity

    @property
    def name(self) -> str:
        return "/".join(
            (Cell(self.data, self.model, self.cell).key, *([] if self.budget == "quick" else [self.budget]))
        )


SIZES = ("schedule=sizes",)
WIDE = ("model.match_filters=64",)  # else an ST-FCN's localisation leaves its classifier a single unit
PAPER = {"budget": "paper", "settings": ("budget.decay_every=3",)}  # the rate falls within the curve
CASES = (
    # Table 1, and what the true pose is worth
    Case("digits", "mnist_r", "cnn"),
    Case("digits", "mnist_r", "cnn", **PAPER),
    Case("digits", "mnist_r", "fcn"),
    Case("digits", "mnist_tc", "st_cnn_affine"),
    Case("digits", "mnist_p", "st_cnn_projective", moved=True),
    Case("digits", "mnist_p", "st_cnn_tps", moved=True),
    Case("digits", "mnist_e", "st_cnn_tps", moved=True),
    Case("digits", "mnist_e_edge", "st_cnn_tps", moved=True),
    Case("digits", "mnist_r", "st_fcn_affine", settings=WIDE),
    Case("digits", "mnist_p", "st_fcn_projective", settings=WIDE, moved=True),
    Case("digits", "mnist_rts", "st_fcn_tps", "paper", (*WIDE, *PAPER["settings"]), moved=True),
    *(Case("digits", f"mnist_{name}", "cnn", cell=("data.undo=true",)) for name in ("r", "rts", "p", "e")),
    # Table 2
    Case("svhn", "svhn_64", "svhn_cnn"),
    Case("svhn", "svhn_64", "svhn_st_single"),
    Case("svhn", "svhn_64", "svhn_st_multi"),
    Case("svhn", "svhn_128", "svhn_st_multi", moved=True),
    Case("photographs", "svhn_photos_128", "svhn_cnn"),
    Case("photographs", "svhn_photos_128", "svhn_st_single", moved=True),
    # Tables 3 and 9
    Case("cub", "cub_224", "cub_cnn"),
    Case("cub", "cub_224", "cub_2st", settings=("model.size=32",)),
    Case("cub", "cub_224", "cub_2st", settings=("model.size=32",), cell=("model.shared=false",), moved=True),
    Case("cub", "cub_448", "cub_bilinear"),
    Case("cub", "cub_224", "cub_2st", settings=("model.size=32",), cell=("schedule=cub50_jittered",), moved=True),
    Case("cub", "cub_224", "cub_2st", settings=("model.size=32",), cell=("schedule=cub50_pathwise",), moved=True),
    # Table 4
    Case("addition", "mnist_addition", "cnn"),
    Case("addition", "mnist_addition", "st_fcn_tps", settings=WIDE),
    Case("addition", "mnist_addition", "st_cnn_affine", cell=("model.parallel=2",), moved=True),
    # Table 5, and its classifier
    Case("classifier", "mnist_ts", "cnn", door="stn.pretrain"),
    Case("colocalisation", "colocalisation_t", "colocalisation"),
    Case("colocalisation", "colocalisation_tc", "colocalisation", settings=("model.race=3",)),
    # Table 6
    Case("volumes", "volumes_60", "volume_cnn"),
    Case("volumes", "volumes_60", "volume_st", moved=True),
    Case("volumes", "volumes_60", "volume_cnn", cell=("data.undo=true",)),
    # Table 7
    Case("digits", "mnist_r", "st_cnn_affine", cell=("model.sampler=integer",)),
    Case("digits", "mnist_r", "st_cnn_affine", moved=True),
    *(
        Case("digits", "mnist_r", "st_cnn_affine", cell=(f"model.sampler={name}",), moved=True)
        for name in ("bicubic", "learned")
    ),
    # Table 8
    Case("digits", "mnist_r", "cnn", cell=(*SIZES, "model.parameters=2500")),
    Case(
        "digits",
        "mnist_rts",
        "st_cnn_affine",
        cell=(*SIZES, "model.parameters=7000", "model.localisation.filters=4", "model.localisation.features=6"),
        moved=True,
    ),
)


class Workshop:
    """A folder in which curves are computed; data is made there when a curve first needs it."""

    def __init__(self, place: Path):
        self.place = place
        self.done: set[object] = set()
        self.runs = 0

    def curve(self, case: Case, more: Iterable[str] = (), wanted: dict | None = None, noise: int | None = None) -> dict:
        """Train a case, with `more` settings. Returns `train` and `validation`, the losses of each, and `config`.

        `wanted` is a config of which an older commit may have other defaults: it is set as far as that has its keys.
        `noise` seeds a change of the first weights by their last bit, as another order of sums would change them soon.
        """
        settings = self.prepared(case, more, wanted)
        self.runs += 1
        folder = f"{case.name}/{self.runs}"
        with self._inside(), first_weights(case.moved, noise):
            forget()
            front(case.door, *settings, f"outputs={folder}", f"record={folder}/record")
            (log,) = Path(folder).rglob("metrics.csv")
            rows = list(csv.DictReader(log.read_text().splitlines()))
            losses = {name: [float(row[f"{name}/loss"]) for row in rows if row.get(f"{name}/loss")] for name in SPLITS}
            return losses | {"config": composed(settings)}

    def prepared(self, case: Case, more: Iterable[str] = (), wanted: dict | None = None) -> list[str]:
        """The settings of a case, whose data is there afterwards."""
        kind = KINDS[case.kind]
        settings = [f"data={case.data}", f"model={case.model}", f"budget={case.budget}", *case.cell, *STEPS]
        settings += [*kind.settings, *case.settings, *more]
        with self._inside():
            settings += other_values(composed(settings), wanted) if wanted else []
            for make in kind.raw:
                self._once(make, make)
            self._once(composed(settings)["data"]["stored"], lambda: front(kind.door, *settings))
        return settings

    @contextmanager
    def _inside(self):
        variables = {"STN_DATA_MIRROR": str(self.place / "mirror"), "OMP_NUM_THREADS": "1"}
        with chdir(self.place), patch.dict(os.environ, variables):
            yield

    def _once(self, key: object, work: Callable[[], None]) -> None:
        if key not in self.done:
            work()
            self.done.add(key)


SPLITS = ("train", "validation")


def forget() -> None:
    """Empty the project's caches, so that a run is as in a process of its own: filling one may draw random numbers."""
    for name, module in list(sys.modules.items()):
        if name.startswith("stn.") and name != "stn.codebase":
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


@contextmanager
def first_weights(moved: bool, noise: int | None):
    """Within it the first weights of a run are changed: by their last bits, and to a transformer off the identity.

    At the identity every point lies on a pixel's centre, where all kernels agree, and bilinear sampling has a kink, so
    that a point's last bit decides its gradient.
    """
    if not moved and noise is None:
        yield
        return
    from stn.training import run as runs

    make = runs.new_learner

    def changed(*arguments):
        learner = make(*arguments)
        draws = None if noise is None else torch.Generator().manual_seed(noise)
        for name, weights in learner.named_parameters():
            if moved and name.endswith("regression.bias"):
                weights.data += torch.linspace(-0.1, 0.1, len(weights))
            if draws is not None:
                weights.data *= 1 + torch.finfo(weights.dtype).eps * torch.randn(weights.shape, generator=draws)
        return learner

    with patch.object(runs, "new_learner", changed):
        yield


def front(door: str, *arguments: str) -> None:
    """Run a front door here."""
    result = run(door, *arguments, cwd=Path.cwd())
    if result.returncode:
        raise RuntimeError(f"{door} {' '.join(arguments)}: {result.stdout[-500:]}{result.stderr[-2000:]}")


def composed(settings: Iterable[str]) -> dict:
    """The config that a run would have."""
    from stn.config import compose, experiment

    return experiment(compose(*settings))


def other_values(config: dict, wanted: dict) -> list[str]:
    """The settings that give the keys of a config the wanted values."""
    ours, theirs = leaves(config), leaves(wanted)
    return [
        f"{key}={json.dumps(theirs[key])}"
        for key in ours
        if key in theirs and theirs[key] != ours[key] and not key.endswith(".name")
    ]


def leaves(tree: dict, prefix: str = "") -> dict:
    """The values of a config by dotted key."""
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def differences(curve: dict, other: dict) -> dict[str, list[float]]:
    """The relative differences of the losses of two curves, of each split in turn."""
    return {
        name: [abs(one - two) / max(abs(one), 1e-9) for one, two in zip(curve[name], other[name], strict=True)]
        for name in SPLITS
    }


def tolerances(curve: dict) -> dict[str, list[float]]:
    """How far each loss may lie from that of a committed curve, relatively.

    `rounding`, the largest differences that rounding alone makes, was measured with the curve. Adam, ReLU and
    max-pooling make a difference in a weight's last bit larger with every step, some suddenly, so that no few trials
    find the largest: ten times as much is allowed, and after the first step no less than `LATER`.
    """
    worst, allowed = 0.0, {}
    for name in SPLITS:
        allowed[name] = []
        for step, rounding in enumerate(curve["rounding"][name]):
            worst = max(worst, rounding)
            first = name == "train" and step == 0
            allowed[name].append(max(FIRST if first else LATER, 10 * (rounding if first else worst)))
    return allowed


def machine() -> dict:
    """Where and with what curves are computed."""
    facts = {name: version(name) for name in ("torch", "torchvision", "lightning", "numpy", "pillow")}
    with suppress(OSError):
        (cpu, *_) = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        facts["cpu"] = cpu.partition(":")[2].strip()
    facts |= {"instructions": torch.backends.cpu.get_cpu_capability(), "python": platform.python_version()}
    return facts


def compute(cases: Iterable[Case], strict: bool = True, **options) -> dict:
    """The curves of the cases by name; unless `strict`, the `error` of those that cannot be computed."""
    curves = {}
    with tempfile.TemporaryDirectory() as place:
        workshop = Workshop(Path(place))
        for case in cases:
            like = options.get("wanted", {}).get(case.name, {}).get("config")
            try:
                curves[case.name] = workshop.curve(case, **(options | {"wanted": like}))
            except Exception as error:  # of an older commit's, whatever it lacks
                if strict:
                    raise
                curves[case.name] = {"error": f"{type(error).__name__}: {error}"}
    return curves


def write(cases: list[Case], path: Path) -> None:
    """Compute the curves, and how much rounding changes them: with other instructions, and other last bits."""
    curves = compute(cases)
    others = [compute(cases, noise=seed) for seed in range(NOISES)]
    with tempfile.TemporaryDirectory() as folder:
        for name, limits in INSTRUCTIONS.items():
            file = Path(folder, f"{name}.json")
            command = [sys.executable, __file__, "--out", file, "--only", *(case.name for case in cases)]
            subprocess.run(command, check=True, env={**os.environ, **limits})
            others.append(json.loads(file.read_text())["curves"])
    for name, curve in curves.items():
        found = [differences(curve, other[name]) for other in others]
        curve["rounding"] = {
            split: [float(f"{max(each):.1e}") for each in zip(*(one[split] for one in found), strict=True)]
            for split in SPLITS
        }
    known = (json.loads(path.read_text())["curves"] if path.exists() else {}) | curves
    kept = {case.name: known[case.name] for case in CASES if case.name in known}
    text = json.dumps({"machine": machine(), "curves": kept}, indent=1)
    text = re.sub(r"\[\s*([^][{}]*?)\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    path.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/reference.py", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--write", action="store_true", help=f"write {CURVES.name}, with what rounding changes")
    where.add_argument("--out", type=Path, metavar="FILE", help="write the curves alone to a file")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these curves, such as mnist_r/cnn")
    parser.add_argument("--like", type=Path, metavar="FILE", help="with the configs of that file's curves")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings of every run")
    args = parser.parse_args()
    cases = [case for case in CASES if not args.only or case.name in args.only]
    if args.write:
        write(cases, CURVES)
    else:
        wanted = json.loads(args.like.read_text())["curves"] if args.like else {}
        curves = compute(cases, strict=False, more=args.set, wanted=wanted)
        args.out.write_text(json.dumps({"machine": machine(), "curves": curves}) + "\n")


if __name__ == "__main__":
    main()
