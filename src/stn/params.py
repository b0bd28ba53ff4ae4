"""`params.yaml`, the few knobs of the pipeline, and the cells that they declare."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stn.config import CONF, check_seeds, one_line
from stn.errors import UserError

PARAMS = Path("params.yaml")
KNOBS = ("budget", "seeds", "columns", "numbers", "birds")
BUDGETS = ("smoke", "quick", "medium", "paper")
DEMO = "demo"  # a budget of the embedded digits alone
TABLES = (1, 2, 3, 4, 5, 6, 7, 8)
# The columns of Table 1; those that are no knob's are shown where all of their cells were run.
COLUMNS = ("mnist_r", "mnist_rts", "mnist_p", "mnist_e", "mnist_tc")
# What Table 1 takes the transformers' true poses for; shown where it was run.
CEILING = {f"undone_{name}": ("cnn_undone",) for name in ("r", "rts", "p", "e")}
NUMBERS = ("svhn", "svhn_strips")
BIRDS = ("cub", "cub50")
# The networks of Tables 2 and 3 by the side of the images in pixels.
READERS = dict.fromkeys((64, 128), ("svhn_cnn", "svhn_st_single", "svhn_st_multi"))
WATCHERS = {224: ("cub_cnn", "cub_2st"), 448: ("cub_2st", "cub_4st", "cub_bilinear", "cub_2st_fixed")}
ON_DEMAND = {224: ("cub_2st_fixed",), 448: ("cub_4st_fixed", "cub_2st_shared")}
SIZES = ("2k5", "7k", "20k", "60k", "200k", "400k")  # parameters
# The networks by data set of the tables that have no knob of their own.
PLAIN = {
    4: {
        "mnist_sum": (
            *("sum_fcn", "sum_cnn"),
            *(
                f"sum_{count}_{classifier}_{family}"
                for count, classifier, family in product(("st", "2st"), ("fcn", "cnn"), ("affine", "projective", "tps"))
            ),
        )
    },
    5: dict.fromkeys(("colocalise_t", "colocalise_tc"), ("colocaliser",)),
    6: {"volumes_60": ("volume_cnn", "volume_st"), "volumes_undone": ("volume_undone",)},
    7: dict.fromkeys(
        ("kernels_r", "kernels_rts"), tuple(f"kernel_{name}" for name in ("integer", "bilinear", "bicubic", "learned"))
    ),
    8: dict.fromkeys(
        ("sizes_r", "sizes_rts"), tuple(f"size_{kind}_{size}" for size in SIZES for kind in ("cnn", "st"))
    ),
}


@dataclass
class Params:
    """The knobs: see the comments in `params.yaml`."""

    budget: str
    seeds: str
    source: str
    columns: list[str]
    rows: list[str]
    numbers: str
    birds: str


def read_params() -> Params:
    """`params.yaml`, checked."""
    try:
        return check(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Params), OmegaConf.load(PARAMS))))
    except OSError as error:
        raise UserError(f"{PARAMS}: {error.strerror}; run this from the project's folder") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{PARAMS}: {one_line(error)}") from None


def check(params: Params) -> Params:
    """`params` if every knob means something; else a UserError that lists what would."""
    if params.budget not in BUDGETS and (params.budget, params.source) != (DEMO, "digits"):
        raise UserError(f"budget: no {params.budget!r}; there are {', '.join(BUDGETS)}")
    columns = [name.replace("mnist", params.source) for name in COLUMNS]
    for knob, known in (("columns", columns), ("rows", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))):
        values = getattr(params, knob)
        for value in values:
            if value not in known:
                raise UserError(f"{knob}: no {value!r}; there are {', '.join(known)}")
            if values.count(value) > 1:
                raise UserError(f"{knob}: {value} is there twice")
    for knob, known in (("numbers", NUMBERS), ("birds", BIRDS)):
        if getattr(params, knob) not in known:
            raise UserError(f"{knob}: no {getattr(params, knob)!r}; there are {', '.join(known)}")
    if not re.fullmatch(r"\d+(,\d+)*", params.seeds):
        raise UserError(f"seeds: {params.seeds!r} is no list of integers such as 0,1,2")
    check_seeds([int(seed) for seed in params.seeds.split(",")])
    return params


def write_params(**knobs: str) -> list[str]:
    """Turn knobs in `params.yaml`, comments kept. Returns a line for each that changed."""
    params = read_params()
    for knob, value in knobs.items():
        if knob not in KNOBS:
            raise UserError(f"no knob {knob!r}: there are {', '.join(KNOBS)}")
        setattr(params, knob, value.split(",") if knob == "columns" else value)
    check(params)
    text, told = PARAMS.read_text(), []
    for knob, value in knobs.items():
        quoted = {"seeds": f'"{value}"', "columns": f"[{value.replace(',', ', ')}]"}.get(knob, value)
        old = re.search(rf'^{knob}: ("[^"]*"|\[[^]]*\]|\S+)', text, re.MULTILINE).group(1)
        if old != quoted:
            text = text.replace(f"{knob}: {old}", f"{knob}: {quoted}")
            old, value = (said.strip('"') for said in (old, quoted))
            told.append(f"{PARAMS}: {knob} {old} -> {value}")
    PARAMS.write_text(text)
    return told


def declared(params: Params, table: int) -> dict[tuple[str, str], Path]:
    """The cells (data, model) -> record that the pipeline brings up to date for a table."""
    if table == 1:
        wanted = product(params.columns, params.rows)
    elif table in PLAIN:
        wanted = _pairs(PLAIN[table])
    else:
        wanted = _of(params.numbers) if table == 2 else _of(params.birds)
    return _records(params, f"table{table}", wanted)


def ceiling(params: Params) -> dict[tuple[str, str], Path]:
    """The cells (data, model) -> record whose networks are told the true pose, for Table 1."""
    return _records(params, "ceiling", _pairs(CEILING))  # in a folder of its own: `dvc repro table1` trains none of it


def cells(params: Params, table: int) -> tuple[dict[tuple[str, str], Path], dict[tuple[str, str], Path]]:
    """The cells (data, model) -> record that a table shows: those that must be there, and those that may."""
    if table == 1:
        if params.source != "mnist":
            return declared(params, table), {}
        more = product((data for data in COLUMNS if data not in params.columns), params.rows)
        return declared(params, table), _records(params, "table1", more) | ceiling(params)
    if table in PLAIN:
        return {}, declared(params, table)
    sources = NUMBERS if table == 2 else BIRDS
    return {}, _records(params, f"table{table}", chain.from_iterable(_of(source, on_demand=True) for source in sources))


def _of(source: str, on_demand: bool = False) -> list[tuple[str, str]]:
    """The cells of one source of house numbers or birds; `on_demand` with those that the pipeline leaves out."""
    models = READERS if source in NUMBERS else WATCHERS
    more = ON_DEMAND if on_demand and source in BIRDS else {}
    return [(f"{source}_{size}", model) for size, names in models.items() for model in (*names, *more.get(size, ()))]


def _pairs(networks: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    return [(data, model) for data, models in networks.items() for model in models]


def _records(params: Params, name: str, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    folder = Path("reports/results") / params.budget / name
    return {(data, model): folder / f"{data}-{model}.json" for data, model in wanted}
