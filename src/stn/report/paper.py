"""The paper's tables: the values it prints, and what ours beside them are made of. Nothing here is measured by us."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    `paper` holds each row's printed values by column, rows in the paper's order; a column or row without any is ours.
    `baseline` names the row without transformer that a row is to beat, `controls` what an ST row is when its windows
    may not move, `sharing` when one trunk serves all its streams: rows shown where they were run, of the models
    `optional`, whose cells may be absent one by one. So is `ceiling`, the row that is told the true pose.
    `orders` are what the paper claims, each from worst to best; one with rows that are ours asks the same of them.
    `contest` is what the summary calls the comparison of a row with its baseline, `rival` what the legend calls the
    baselines where they are many. `by_size` says that rows stand in the order of their size: then small ST rows are
    held against larger others too, and what they cost is shown. Rows in `cited` are not the paper's own experiments:
    they show their source and are never run. `arrays` are what the NPZ of an ST row must hold for the figures. Above
    each row in `blocks` there is a gap. `notes` are sentences below the table, each where its column or row is shown.
    `split` is the array of a record's NPZ that names a row for each test image: the record then stands for those rows
    too, each with its own images, and its own row is over all of them.

    Records hold errors in %. A table that prints accuracy says so by `accuracy`: `metric`, `turned` and `arrows` are
    all that follows from it.
    """

    number: int
    title: str
    measure: str
    columns: tuple[str, ...]
    paper: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, str]
    arrays: tuple[str, ...]
    blocks: tuple[str, ...]
    cited: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    controls: Mapping[str, str] = field(default_factory=dict)
    sharing: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    ceiling: str = ""
    orders: tuple[tuple[str, ...], ...] = ()
    contest: str = "An ST network beats its baseline"
    rival: str = ""
    by_size: bool = False
    split: str | None = None
    accuracy: bool = False

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(self.paper)

    @property
    def entries(self) -> str:
        """What its rows are."""
        return "class" if self.split else "model"

    @property
    def name(self) -> str:
        """What its files, its README block and its LaTeX label are called."""
        return f"table{self.number}"

    @property
    def make(self) -> str:
        """The command that trains its cells."""
        return "make table" if self.number == 1 else f"make table TABLE={self.number}"

    @property
    def on_demand(self) -> set[str]:
        """The rows that are shown only where they were run."""
        return {*self.controls.values(), *self.sharing.values(), self.ceiling} - {""}

    @property
    def is_all_ours(self) -> bool:
        """Whether the paper has no such table."""
        return not any(self.paper.values())

    def has(self, order: tuple[str, ...]) -> bool:
        """Whether the paper has all rows of the order, so that it is the paper's own."""
        return all(self.paper[row] for row in order)

    def is_ours(self, column: str) -> bool:
        """Whether the paper has no value in this column."""
        return not any(column in values for values in self.paper.values())

    def transforms(self, row: str) -> bool:
        """Whether the row's network has a transformer: the names say so, or all of them have."""
        return "ST-" in row or self.split is not None

    def block(self, row: str) -> int:
        """Which block of rows, counted from the top, the row is in."""
        return sum(self.rows.index(first) <= self.rows.index(row) for first in self.blocks)

    @property
    def metric(self) -> str:
        return "accuracy %" if self.accuracy else "error %"

    def turned(self, percent: float) -> float:
        """An error as the value that the table prints, or such a value as an error: the way back is the same."""
        return 100 - percent if self.accuracy else percent

    @property
    def arrows(self) -> tuple[str, str]:
        """Where a better and where a worse value lies."""
        return ("↑", "↓") if self.accuracy else ("↓", "↑")


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
        "CNN, true pose": {},
    },
    ceiling="CNN, true pose",
    baseline={f"ST-{kind} {family}": kind for kind in ("FCN", "CNN") for family in ("Aff", "Proj", "TPS")},
    arrays=(
        *("theta", "example_input", "example_grid", "example_output", "example_label"),
        *("pose_true", "pose_found", "cloud_before", "cloud_after"),
    ),
    blocks=("ST-FCN Aff", "ST-CNN Aff", "CNN, true pose"),
    notes={
        "TC": "For TC the paper names no family: its ST numbers stand in the Aff rows.",
        "CNN, true pose": (
            "CNN, true pose is ours: the CNN on images undone by the true parameters of their distortion, the ceiling "
            "for a transformer."
        ),
    },
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
    blocks=("ST-CNN Single",),
    cited={
        "Maxout CNN (Goodfellow 2013)": "arXiv:1312.6082",
        "DRAM (Ba 2015)": "arXiv:1412.7755, with model and Monte Carlo averaging",
    },
    notes={"64 px strips": "The strips columns are ours: a derived set, not the paper's data."},
)
BIRDS = PaperTable(
    number=3,
    title="birds (CUB-200-2011)",
    measure="Test accuracy in %",
    accuracy=True,
    columns=("200 classes", "50 classes"),
    # Paper, Table 3.
    paper={
        "Cimpoi '15": {"200 classes": 66.7},
        "Zhang '14": {"200 classes": 74.9},
        "Branson '14": {"200 classes": 75.7},
        "Lin '15": {"200 classes": 80.9},
        "Simon '15": {"200 classes": 81.0},
        "CNN 224 px": {"200 classes": 82.3},
        "2xST-CNN 224 px": {"200 classes": 83.1},
        "2xST-CNN 448 px": {"200 classes": 83.9},
        "4xST-CNN 448 px": {"200 classes": 84.1},
        "Bilinear CNN 448 px": {},
        "2xST-CNN 224 px, fixed": {},
        "2xST-CNN 448 px, fixed": {},
        "4xST-CNN 448 px, fixed": {},
        "2xST-CNN 448 px, shared": {},
    },
    baseline=dict.fromkeys(
        ("2xST-CNN 224 px", "2xST-CNN 448 px", "4xST-CNN 448 px", "Bilinear CNN 448 px"), "CNN 224 px"
    ),
    controls={row: f"{row}, fixed" for row in ("2xST-CNN 224 px", "2xST-CNN 448 px", "4xST-CNN 448 px")},
    sharing={"2xST-CNN 448 px": "2xST-CNN 448 px, shared"},
    optional=("cub_2st_fixed", "cub_4st_fixed", "cub_2st_shared"),
    orders=(("CNN 224 px", "2xST-CNN 224 px", "2xST-CNN 448 px", "4xST-CNN 448 px"),),
    arrays=(
        *("example_input", "example_label", "example_said", "example_name", "example_said_name", "example_windows"),
        *("window_all", "parts", "part_names"),
    ),
    blocks=("CNN 224 px", "Bilinear CNN 448 px", "2xST-CNN 224 px, fixed"),
    cited={
        "Cimpoi '15": "arXiv:1411.6836",
        "Zhang '14": "arXiv:1407.3867",
        "Branson '14": "arXiv:1406.2952",
        "Lin '15": "arXiv:1504.07889",
        "Simon '15": "arXiv:1504.08289",
    },
    notes={
        "50 classes": "The column of 50 classes is ours: a part of the paper's data.",
        "Bilinear CNN 448 px": "The bilinear CNN is ours: the pooling of Lin '15 on the trunk of the other rows.",
        **{
            f"{row}, fixed": "Rows named fixed are ours: windows that stay at the tiles at which the others start."
            for row in ("2xST-CNN 224 px", "2xST-CNN 448 px", "4xST-CNN 448 px")
        },
        "2xST-CNN 448 px, shared": "In the row named shared one trunk serves both windows: the paper's simplification.",
    },
)
SUMS = PaperTable(
    number=4,
    title="MNIST addition",
    measure="Test error in % (19 classes)",
    columns=("RTS + RTS",),
    # Paper, Table 4 (appendix).
    paper={
        "FCN": {"RTS + RTS": 47.7},
        "CNN": {"RTS + RTS": 14.7},
        "ST-FCN Aff": {"RTS + RTS": 22.6},
        "ST-FCN Proj": {"RTS + RTS": 18.5},
        "ST-FCN TPS": {"RTS + RTS": 19.1},
        "2xST-FCN Aff": {"RTS + RTS": 9.0},
        "2xST-FCN Proj": {"RTS + RTS": 5.9},
        "2xST-FCN TPS": {"RTS + RTS": 5.8},
        **{f"{count}ST-CNN {family}": {} for count in ("", "2x") for family in ("Aff", "Proj", "TPS")},
    },
    baseline={
        f"{count}ST-{kind} {family}": kind
        for count in ("", "2x")
        for kind in ("FCN", "CNN")
        for family in ("Aff", "Proj", "TPS")
    },
    orders=tuple(
        (kind, f"ST-{kind} {family}", f"2xST-{kind} {family}")
        for kind in ("FCN", "CNN")
        for family in ("Aff", "Proj", "TPS")
    ),
    arrays=(
        *("theta", "example_input", "example_digits", "example_said", "example_grid", "example_output"),
        *("pair_before", "pair_after"),
    ),
    blocks=("ST-FCN Aff", "2xST-FCN Aff", "ST-CNN Aff", "2xST-CNN Aff"),
    notes=dict.fromkeys(
        (f"{count}ST-CNN {family}" for count in ("", "2x") for family in ("Aff", "Proj", "TPS")),
        "The rows ST-CNN and 2xST-CNN are ours: the paper has transformers before the FCN alone.",
    ),
)
COLOCALISATION = PaperTable(
    number=5,
    title="co-localisation",
    measure="Images whose window has an IoU greater than 0.5 with the digit's box, in %",
    accuracy=True,
    columns=("T", "TC"),
    # Paper, appendix A.2. Its mean is the mean of what it prints.
    paper={
        **{str(digit): {"T": 100, "TC": found} for digit, found in enumerate((81, 82, 88, 75, 94, 84, 93, 85, 89, 87))},
        "mean": {"T": 100, "TC": 85.8},
    },
    baseline={},
    arrays=("theta", "classes", "box", "example_input", "example_crop", "trace", "trace_steps"),
    blocks=("0", "mean"),
    split="classes",
    notes={
        "T": "T: the digit at a random place. The images are those that the windows were learned on, without labels.",
        "TC": "TC: with 16 patches of clutter.",
        "mean": "The paper's mean is that of the values it prints. Every class is learned by itself.",
    },
)
VOLUMES = PaperTable(
    number=6,
    title="digits in three dimensions",
    measure="Test error in %",
    columns=("60 voxels",),
    paper={"CNN": {}, "ST-CNN 3-D Aff": {}, "CNN, true pose": {}},
    baseline={"ST-CNN 3-D Aff": "CNN"},
    arrays=(
        "theta",
        "example_volume",
        "example_before",
        "example_after",
        "example_label",
        "example_theta",
        "pose_true",
    ),
    blocks=("CNN", "CNN, true pose"),
    notes={
        "CNN": "All rows classify the projection of a volume along its depth; the paper has a figure and no numbers.",
        "CNN, true pose": (
            "CNN, true pose: the CNN on volumes undone by their true pose, the ceiling for a transformer."
        ),
    },
)
KERNELS = PaperTable(
    number=7,
    title="sampling kernels (equation 3)",
    measure="Test error in %",
    columns=("R", "RTS"),
    paper={f"ST-CNN Aff, {kernel}": {} for kernel in ("integer", "bilinear", "bicubic", "learned")},
    baseline=dict.fromkeys(
        (f"ST-CNN Aff, {kernel}" for kernel in ("integer", "bicubic", "learned")), "ST-CNN Aff, bilinear"
    ),
    arrays=("theta",),
    blocks=("ST-CNN Aff, integer",),
    contest="A kernel beats bilinear sampling",
)
_SIZES = ("2.5k", "7k", "20k", "60k", "200k", "400k")
SIZES = PaperTable(
    number=8,
    title="tiny hardware",
    measure="Test error in %",
    columns=("R", "RTS"),
    paper={f"{kind} {size}": {} for size in _SIZES for kind in ("CNN", "ST-CNN")},
    baseline={f"ST-CNN {size}": f"CNN {size}" for size in _SIZES},
    arrays=("theta",),
    blocks=tuple(f"CNN {size}" for size in _SIZES),
    contest="An ST-CNN beats the CNN of its size",
    rival="the CNN of its size",
    by_size=True,
)
TABLES = {table.number: table for table in (DIGITS, NUMBERS, BIRDS, SUMS, COLOCALISATION, VOLUMES, KERNELS, SIZES)}

# The parts that CUB-200-2011 marks, by what the paper says its windows find: head and body.
BIRD = {
    "head": ("beak", "forehead", "crown", "left eye", "right eye", "nape", "throat"),
    "body": ("breast", "belly", "back", "left wing", "right wing", "left leg", "right leg", "tail"),
}
