"""Rows and columns of tables, the cells where they meet, and the records of what these cells measured.

This module reads no file and is quick to import, because the pipeline reads the cells to train from the tables too.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

LONGEST = 150  # characters of a cell's key, which names files: a longer key is cut and ends in a checksum


@dataclass(frozen=True)
class Cell:
    """What is trained and recorded once: a data set, a model, and settings such as "model.sampler=integer".

    The names are those of conf/data/<data>.yaml and conf/model/<model>.yaml.
    """

    data: str
    model: str
    settings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of its record: `<data>-<model>`, then `-<key>_<value>` for each setting."""
        settings = (setting.partition("=") for setting in self.settings)
        names = (f"{key.rpartition('.')[2]}_{re.sub('[^A-Za-z0-9_.]+', '_', value)}" for key, _, value in settings)
        key = "-".join((self.data, self.model, *names))
        return key if len(key) <= LONGEST else f"{key[: LONGEST - 9]}-{zlib.crc32(key.encode()):08x}"


@dataclass(frozen=True, eq=False)
class Column:
    """A data set, as the column of a table.

    `data` names its config; rows may have data sets of their own in the column (`Row.data`). `settings` are deviations
    of its cells from their configs. `stand_ins` are data sets that replace the paper's; their records are shown in the
    same column. `description` is the column's name in figures, `note` a sentence below the table.
    """

    label: str
    data: str = ""
    settings: tuple[str, ...] = ()
    note: str = ""
    description: str = ""
    stand_ins: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Row:
    """A network, as the row of a table: its `model` config, and the `settings` that deviate from it.

    `paper` holds the values that the paper prints; a row without any is ours. A row that is only `cited` names its
    source and is never run. `transformer` says that the network has one, so that its record must hold the table's
    arrays. `baseline` is the row to beat, `control` the same network with fixed windows. `data` gives the row data sets
    of its own, by column; other columns then have no such cell.

    A row `on_demand` is trained only when asked for. A row `shown_where_run` is shown, and required, only where it has
    a record. `absent` is the text of a place without a record. `images`, such as ("classes", 3), restricts the row to
    test images: those for which this array of the record has this value. `short` and `colour` are for figures, `note`
    is a sentence below the table.
    """

    label: str
    model: str = ""
    settings: tuple[str, ...] = ()
    paper: Mapping[Column, float] = field(default_factory=dict)
    baseline: "Row | None" = None
    control: "Row | None" = None
    transformer: bool = False
    data: Mapping[Column, str] | None = None
    cited: str = ""
    on_demand: bool = False
    shown_where_run: bool = False
    absent: str = "not run"
    images: tuple[str, int] | None = None
    short: str = ""
    colour: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """The row's name in figures."""
        return self.short or self.label

    def cells(self, column: Column) -> tuple[Cell, ...]:
        """The cells whose records the row shows in a column: first its own, then stand-ins.

        Empty if the row has nothing in the column, or is only cited.
        """
        data = column.data if self.data is None else self.data.get(column, "")
        if not self.model or not data:
            return ()
        names = (data, *(column.stand_ins if self.data is None else ()))
        return tuple(Cell(name, self.model, column.settings + self.settings) for name in names)


@dataclass(frozen=True)
class Seed:
    """One training of a cell: its `error` in percent, that is `errors` of `n_test` test images.

    `seconds` are of training; `validation` is the curve [step, error in percent, loss]; `provenance` holds the date,
    machine and versions, and in `weights` the pretrained weights that it started from, if any.
    """

    seed: int
    error: float
    errors: int
    n_test: int
    steps: int
    images_seen: int
    seconds: float
    provenance: Mapping[str, Any]
    validation: Sequence[Sequence[float]] = ()

    @property
    def array(self) -> str:
        """The name of the record's array that says which test images this seed has right."""
        return f"correct_s{self.seed}"


@dataclass(frozen=True)
class Run:
    """One way to run an exported network: errors as in `Seed`, `agreement` with torch's answers in percent.

    `latency` is of one image, in ms: median, low, high, and n, the number of runs. `bytes` is the size of its file.
    """

    error: float
    errors: int
    agreement: float
    latency: Mapping[str, float]
    bytes: int = 0


@dataclass(frozen=True)
class Export:
    """The measurements of a record's first network as ONNX files: `runs` by torch, float32 and int8."""

    tested: str
    n_test: int
    trained: Mapping[str, Any]
    config: Mapping[str, Any]
    runs: Mapping[str, Run]
    provenance: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Record:
    """What a cell's training measured, at the `row` and `column` of the table that shows it.

    `part` names what replaces the paper's data, if anything does; `parameters` and `multiply_adds` (of one image) are
    the network's; `config` is that of the training. `arrays` are read-only facts about test images, such as
    `correct_s0`, bool (n_test,). `code` identifies the code that trained the cell, and `adopted` lists later code that
    was shown to give the same numbers, with the evidence; older records have neither.
    """

    row: Row
    column: Column
    data: str
    model: str
    budget: str
    part: str | None
    parameters: int
    multiply_adds: int
    n_test: int
    config: Mapping[str, Any]
    seeds: tuple[Seed, ...]
    pose_names: Sequence[str]
    path: Path
    arrays: "Mapping[str, np.ndarray]"
    export: Export | None = None
    code: Mapping[str, Any] = field(default_factory=dict)
    adopted: Sequence[Mapping[str, Any]] = ()

    @property
    def error(self) -> float:
        """The error in percent, the mean over seeds."""
        import numpy as np  # here, because to read the cells of tables it is not needed

        return float(np.mean([seed.error for seed in self.seeds]))

    @property
    def correct(self) -> "np.ndarray":
        """Which test images the first seed has right, bool (n_test,)."""
        return self.arrays[self.seeds[0].array].astype(bool)
