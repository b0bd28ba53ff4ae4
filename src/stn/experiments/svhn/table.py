"""Table 2: house numbers."""

from stn.experiments.svhn.reading import check_positions, describe_moved, describe_positions, describe_windows
from stn.report.comparisons import WITH_AND_WITHOUT
from stn.report.table import Column, Figure, Row, Table

PX_64 = Column("64 px", "svhn_64")
PX_128 = Column("128 px", "svhn_128")
STRIPS_64 = Column(
    "64 px strips", "svhn_strips_64", note="The strips column is ours: a derived set, not the paper's data."
)
PHOTOGRAPHS = Column(
    "photographs, 128 px",
    "svhn_photos_128",
    note="The photographs column is ours: whole photographs and strips to train on, 256 originals with official labels "
    "to test on; not the paper's data.",
)

# Paper, Table 2.
MAXOUT = Row("Maxout CNN (Goodfellow 2013)", paper={PX_64: 4.0}, cited="arXiv:1312.6082")
CNN = Row("CNN", "svhn_cnn", paper={PX_64: 4.0, PX_128: 5.6})
DRAM = Row(
    "DRAM (Ba 2015)",
    paper={PX_64: 3.9, PX_128: 4.5},
    cited="arXiv:1412.7755, with model and Monte Carlo averaging",
)
SINGLE = Row(
    "ST-CNN Single", "svhn_st_single", paper={PX_64: 3.7, PX_128: 3.9}, baseline=CNN, transformer=True, short="Single"
)
MULTI = Row(
    "ST-CNN Multi",
    "svhn_st_multi",
    paper={PX_64: 3.6, PX_128: 3.9},
    baseline=CNN,
    transformer=True,
    short="Multi",
)

HOUSE_NUMBERS = Table(
    number=2,
    folder="svhn",
    title="house numbers (SVHN)",
    measure="Whole-number error in % (a number is right when all its digits are)",
    columns=(PX_64, PX_128, STRIPS_64, PHOTOGRAPHS),
    blocks=((MAXOUT, CNN, DRAM), (SINGLE, MULTI)),
    arrays=(
        *("example_input", "example_label", "example_said", "example_windows", "example_seen"),
        *("window_all", "box"),
    ),
    chosen_by="numbers",
    chosen_with={"svhn_photos": "svhn_strips"},  # both need a mirror
    check=check_positions,
    contests=(WITH_AND_WITHOUT,),
    sections=(describe_positions, describe_windows, describe_moved),
    figures=(Figure("table2.png", "stn.experiments.svhn.figures:draw_windows"),),
)

TABLES = (HOUSE_NUMBERS,)
