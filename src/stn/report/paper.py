"""The paper's tables: the values it prints, and what ours beside them are made of. Nothing here is measured by us."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    `paper` holds each row's printed values by column, rows in the paper's order; a column without any is ours.
    `baseline` names the row without transformer that an ST row is to beat. Rows in `cited` are not the paper's own
    experiments: they show their source and are never run. `arrays` are what the NPZ of an ST row must hold for the
    figures. `notes` are sentences below the table, each where its column is shown.
    """

    number: int
    title: str
    measure: str
    columns: tuple[str, ...]
    paper: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, str]
    arrays: tuple[str, ...]
    cited: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(self.paper)

    @property
    def name(self) -> str:
        """What its files, its README block and its LaTeX label are called."""
        return f"table{self.number}"

    @property
    def make(self) -> str:
        """The command that trains its cells."""
        return "make table" if self.number == 1 else f"make table TABLE={self.number}"

    def is_ours(self, column: str) -> bool:
        """Whether the paper has no value in this column."""
        return not any(column in values for values in self.paper.values())


DIGITS = PaperTable(
    number=1,
    title="distorted MNIST",
    measure="Test error in %",
    columns=("R", "RTS", "P", "E", "TC"),
    # Paper, Table 1, and for TC the running text of section 4.1.
    paper={
        "FCN": {"R": 2.1, "RTS": 5.2, "P": 3.1, "E": 3.2, "TC": 13.2},
        "CNN": {"R": 1.2, "RTS": 0.8, "P": 1.5, "E": 1.4, "TC": 3.5},
        "ST-FCN Aff": {"R": 1.2, "RTS": 0.8, "P": 1.5, "E": 2.7, "TC": 2.0},
        "ST-FCN Proj": {"R": 1.3, "RTS": 0.9, "P": 1.4, "E": 2.6},
        "ST-FCN TPS": {"R": 1.1, "RTS": 0.8, "P": 1.4, "E": 2.4},
        "ST-CNN Aff": {"R": 0.7, "RTS": 0.5, "P": 0.8, "E": 1.2, "TC": 1.7},
        "ST-CNN Proj": {"R": 0.8, "RTS": 0.6, "P": 0.8, "E": 1.3},
        "ST-CNN TPS": {"R": 0.7, "RTS": 0.5, "P": 0.8, "E": 1.1},
    },
    baseline={f"ST-{kind} {family}": kind for kind in ("FCN", "CNN") for family in ("Aff", "Proj", "TPS")},
    arrays=(
        *("theta", "example_input", "example_grid", "example_output", "example_label"),
        *("pose_true", "pose_found", "cloud_before", "cloud_after"),
    ),
    notes={"TC": "For TC the paper names no family: its ST numbers stand in the Aff rows."},
)
NUMBERS = PaperTable(
    number=2,
    title="house numbers (SVHN)",
    measure="Whole-number error in % (a number is right when all its digits are)",
    columns=("64 px", "128 px", "64 px strips", "128 px strips"),
    # Paper, Table 2.
    paper={
        "Maxout CNN (Goodfellow 2013)": {"64 px": 4.0},
        "CNN": {"64 px": 4.0, "128 px": 5.6},
        "DRAM (Ba 2015)": {"64 px": 3.9, "128 px": 4.5},
        "ST-CNN Single": {"64 px": 3.7, "128 px": 3.9},
        "ST-CNN Multi": {"64 px": 3.6, "128 px": 3.9},
    },
    baseline={"ST-CNN Single": "CNN", "ST-CNN Multi": "CNN"},
    arrays=("example_input", "example_label", "example_said", "example_windows", "example_seen"),
    cited={
        "Maxout CNN (Goodfellow 2013)": "arXiv:1312.6082",
        "DRAM (Ba 2015)": "arXiv:1412.7755, with model and Monte Carlo averaging",
    },
    notes={"64 px strips": "The strips columns are ours: a derived set, not the paper's data."},
)
TABLES = {table.number: table for table in (DIGITS, NUMBERS)}
