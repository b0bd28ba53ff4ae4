"""Table 3, birds, and Table 9, ways to train the windows."""

from functools import partial

from stn.experiments.cub.parts import describe_follows, describe_parts, describe_trunks
from stn.report.comparisons import WITH_AND_WITHOUT, count_wins, find_baseline, find_control, tell_each
from stn.report.table import Column, Contest, Figure, Row, Table

ALL = Column("200 classes")
FIRST_50 = Column("50 classes", note="The column of 50 classes is ours: a part of the paper's data.")
AT_224 = {ALL: "cub_224", FIRST_50: "cub50_224"}
AT_448 = {ALL: "cub_448", FIRST_50: "cub50_448"}

FixedRow = partial(
    Row,
    settings=("model.fixed=true",),
    transformer=True,
    shown_where_run=True,
    note="Rows named fixed are ours: windows that stay where the others start.",
)
TWO_224_FIXED = FixedRow("2xST-CNN 224 px, fixed", "cub_2st", data=AT_224, on_demand=True)
TWO_448_FIXED = FixedRow("2xST-CNN 448 px, fixed", "cub_2st", data=AT_448)
FOUR_448_FIXED = FixedRow("4xST-CNN 448 px, fixed", "cub_4st", data=AT_448, on_demand=True)

# Paper, Table 3.
CNN = Row("CNN 224 px", "cub_cnn", paper={ALL: 82.3}, data=AT_224)
StRow = partial(Row, baseline=CNN, transformer=True)
TWO_224 = StRow("2xST-CNN 224 px", "cub_2st", paper={ALL: 83.1}, data=AT_224, control=TWO_224_FIXED)
TWO_448 = StRow("2xST-CNN 448 px", "cub_2st", paper={ALL: 83.9}, data=AT_448, control=TWO_448_FIXED)
FOUR_448 = StRow("4xST-CNN 448 px", "cub_4st", paper={ALL: 84.1}, data=AT_448, control=FOUR_448_FIXED)

# Ours, trained on demand.
OnDemandRow = partial(Row, data=AT_448, on_demand=True, shown_where_run=True)
CNN_448 = OnDemandRow(
    "CNN 448 px",
    "cub_cnn",
    ("model.size=448",),
    baseline=CNN,
    note="The CNN at 448 px is ours: the trunk on the whole image at the resolution of the windows.",
)
BILINEAR = OnDemandRow(
    "Bilinear CNN 448 px",
    "cub_bilinear",
    baseline=CNN,
    note="The bilinear CNN is ours: the pooling of Lin '15 on the trunk of the other rows.",
)
ANNOTATED = OnDemandRow(
    "2 windows 448 px, annotated",
    "cub_2st",
    ("data.annotated=true",),
    baseline=CNN,
    note="The row named annotated is an oracle: its windows stand at the annotated head and body, in tests as well.",
)
TWO_448_OWN = OnDemandRow(
    "2xST-CNN 448 px, own trunks",
    "cub_2st",
    ("model.shared=false",),
    transformer=True,
    note="In the row named own trunks each window has its own trunk, as in the paper; in the others one serves all.",
)

BIRDS = Table(
    number=3,
    folder="cub",
    title="birds (CUB-200-2011)",
    measure="Test accuracy in %",
    accuracy=True,
    columns=(ALL, FIRST_50),
    blocks=(
        (
            Row("Cimpoi '15", paper={ALL: 66.7}, cited="arXiv:1411.6836"),
            Row("Zhang '14", paper={ALL: 74.9}, cited="arXiv:1407.3867"),
            Row("Branson '14", paper={ALL: 75.7}, cited="arXiv:1406.2952"),
            Row("Lin '15", paper={ALL: 80.9}, cited="arXiv:1504.07889"),
            Row("Simon '15", paper={ALL: 81.0}, cited="arXiv:1504.08289"),
        ),
        (CNN, TWO_224, TWO_448, FOUR_448),
        (CNN_448, BILINEAR),
        (TWO_224_FIXED, TWO_448_FIXED, FOUR_448_FIXED, TWO_448_OWN, ANNOTATED),
    ),
    arrays=(
        *("example_input", "example_label", "example_said", "example_name", "example_said_name", "example_windows"),
        *("window_all", "parts", "part_names", "trace", "trace_steps", "trace_input"),
    ),
    contests=(
        WITH_AND_WITHOUT,
        Contest(
            "Windows that move against windows that do not",
            ("fixed", "moving", "fixed", "moving", "beats its control"),
            find_control,
            count_wins("An ST network beats its control, whose windows do not move,"),
        ),
        Contest(
            "A rival without a transformer",
            ("baseline", "rival", "baseline", "rival", "beats its baseline"),
            lambda row: [] if row.transformer else find_baseline(row),
            tell_each,
        ),
        Contest(
            "Windows against the whole image at their resolution",
            ("CNN 448 px", "windows", "CNN", "windows", "beats CNN 448 px"),
            lambda row: [CNN_448] if row in (TWO_448, FOUR_448) else [],
        ),
        Contest(
            "A trunk for each window",
            ("one trunk", "own trunks", "one", "own", "beats one trunk"),
            lambda row: [TWO_448] if row is TWO_448_OWN else [],
        ),
    ),
    chosen_by="birds",
    rival="CNN 224 px",
    orders=((CNN, TWO_224, TWO_448, FOUR_448),),
    remarks=(describe_trunks,),
    sections=(describe_parts,),
    figures=(
        Figure("table3.png", "stn.experiments.cub.figures:draw_birds"),
        Figure("table3_parts.png", "stn.experiments.cub.figures:draw_parts"),
        Figure("table3.gif", "stn.experiments.cub.figures:draw_training"),
    ),
)

# ----------------------------------------------------------------------------------------------- Table 9

AT_112 = Column("50 classes, 112 px", "cub50_224", ("model.size=112",))
STILL = Row("windows stay", "cub_2st", ("model.fixed=true",), transformer=True)
MovedRow = partial(Row, model="cub_2st", baseline=STILL, transformer=True)
MOVED = (
    MovedRow("through pixels", settings=("schedule=cub50_pathwise", "model.reach=null")),
    MovedRow("through pixels, bounded", settings=("schedule=cub50_pathwise",)),
    MovedRow("through pixels, bounded, with noise", settings=("schedule=cub50_jittered",)),
    MovedRow("smoothed loss, bounded"),
)
GRADIENTS = Table(
    number=9,
    folder="gradients",
    title="what moves the windows of 2xST-CNN",
    measure="Test accuracy in %",
    entries="how windows learn where to look",
    accuracy=True,
    columns=(AT_112,),
    blocks=((STILL,), MOVED),
    arrays=BIRDS.arrays,
    contests=(
        Contest(
            "Against windows that stay",
            ("stay", "move", "stay", "move", "beats windows that stay"),
            find_baseline,
            count_wins("Windows that move beat windows that stay"),
        ),
        Contest(
            "The smoothed loss against the gradient through pixels",
            ("pixels", "smoothed", "pixels", "smoothed", "beats pixels"),
            lambda row: list(MOVED[:-1]) if row is MOVED[-1] else [],
            count_wins("The smoothed loss beats the gradient through pixels"),
        ),
    ),
    rival="windows stay",
    remarks=(describe_trunks,),
    asides=(describe_follows,),
)

TABLES = (BIRDS, GRADIENTS)
