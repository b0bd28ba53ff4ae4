"""Tables 1, 7 and 8: distorted MNIST, sampling kernels, tiny networks."""

from dataclasses import replace
from functools import partial

from stn.experiments.mnist.costs import describe_costs, find_larger, tell_small_against_large
from stn.experiments.mnist.gains import describe_gains
from stn.report.comparisons import WITH_AND_WITHOUT, count_wins, find_baseline
from stn.report.table import Column, Contest, Figure, Row, Table

# ----------------------------------------------------------------------------------------------- Table 1

R = Column("R", "mnist_r", description="rotation", stand_ins=("digits_r",))
RTS = Column("RTS", "mnist_rts", description="rotation, translation, scale", stand_ins=("digits_rts",))
P = Column("P", "mnist_p", description="projective", stand_ins=("digits_p",))
E = Column("E", "mnist_e", description="elastic", stand_ins=("digits_e",))
E_EDGE = Column(
    "E edge",
    "mnist_e_edge",
    description="elastic, the other reading",
    stand_ins=("digits_e_edge",),
    note="The paper does not say where the control points of E stand: E has them at the centres of 4 x 4 tiles of the "
    "image, E edge on a grid from edge to edge.",
)
TC = Column(
    "TC",
    "mnist_tc",
    description="translation, clutter",
    stand_ins=("digits_tc",),
    note="For TC the paper names no family: its ST numbers stand in the Aff rows.",
)

# Paper, Table 1, and for TC the running text of section 4.1.
FCN = Row("FCN", "fcn", paper={R: 2.1, RTS: 5.2, P: 3.1, E: 3.2, TC: 13.2})
CNN = Row("CNN", "cnn", paper={R: 1.2, RTS: 0.8, P: 1.5, E: 1.4, TC: 3.5})
StFcnRow = partial(Row, baseline=FCN, transformer=True)
StCnnRow = partial(Row, baseline=CNN, transformer=True)
TRUE_POSE = Row(
    "CNN, true pose",
    "cnn",
    ("data.undo=true",),
    data={R: "mnist_r", RTS: "mnist_rts", P: "mnist_p", E: "mnist_e", E_EDGE: "mnist_e_edge"},
    on_demand=True,
    shown_where_run=True,
    absent="–",
    note="CNN, true pose is ours: the CNN on images undone by the true parameters of their distortion, the ceiling "
    "for a transformer.",
)

DISTORTED = Table(
    number=1,
    folder="mnist",
    title="distorted MNIST",
    measure="Test error in %",
    columns=(R, RTS, P, E, E_EDGE, TC),
    blocks=(
        (FCN, CNN),
        (
            StFcnRow("ST-FCN Aff", "st_fcn_affine", paper={R: 1.2, RTS: 0.8, P: 1.5, E: 2.7, TC: 2.0}, short="Aff"),
            StFcnRow("ST-FCN Proj", "st_fcn_projective", paper={R: 1.3, RTS: 0.9, P: 1.4, E: 2.6}, short="Proj"),
            StFcnRow("ST-FCN TPS", "st_fcn_tps", paper={R: 1.1, RTS: 0.8, P: 1.4, E: 2.4}, short="TPS"),
        ),
        (
            StCnnRow("ST-CNN Aff", "st_cnn_affine", paper={R: 0.7, RTS: 0.5, P: 0.8, E: 1.2, TC: 1.7}, short="Aff"),
            StCnnRow("ST-CNN Proj", "st_cnn_projective", paper={R: 0.8, RTS: 0.6, P: 0.8, E: 1.3}, short="Proj"),
            StCnnRow("ST-CNN TPS", "st_cnn_tps", paper={R: 0.7, RTS: 0.5, P: 0.8, E: 1.1}, short="TPS"),
        ),
        (TRUE_POSE,),
    ),
    arrays=(
        *("theta", "example_input", "example_grid", "example_output", "example_label"),
        *("pose_true", "pose_found", "cloud_before", "cloud_after"),
    ),
    contests=(WITH_AND_WITHOUT,),
    sections=(partial(describe_gains, baseline=CNN, ceiling=TRUE_POSE),),
    figures=(
        Figure("table1.png", "stn.experiments.mnist.figures:draw_pictures"),
        Figure("table1_pose.png", "stn.experiments.mnist.figures:draw_poses"),
    ),
)

# ----------------------------------------------------------------------------------------------- Table 7

# The paper's kernel: these cells are those of Table 1's ST-CNN Aff.
BILINEAR = Row("ST-CNN Aff, bilinear", "st_cnn_affine", transformer=True, short="bilinear", colour="#0072B2")


def sample_with(sampler: str, colour: str) -> Row:
    """The row of another kernel."""
    settings = (f"model.sampler={sampler}",)
    label = f"ST-CNN Aff, {sampler}"
    return Row(label, "st_cnn_affine", settings, baseline=BILINEAR, transformer=True, short=sampler, colour=colour)


LEARNED = sample_with("learned", "#D55E00")
KERNELS = Table(
    number=7,
    folder="kernels",
    title="sampling kernels (equation 3)",
    measure="Test error in %",
    columns=(Column("R", "mnist_r"), Column("RTS", "mnist_rts")),
    blocks=(
        (
            sample_with("integer", "#767676"),
            BILINEAR,
            sample_with("bicubic", "#009E73"),
            LEARNED,
        ),
    ),
    arrays=("theta",),
    check=lambda record: (
        "without phi_x and phi_y" if record.row is LEARNED and not {"phi_x", "phi_y"} <= set(record.arrays) else None
    ),
    contests=(
        Contest(
            "Against the baseline",
            ("baseline", "this", "baseline", "this", "beats its baseline"),
            find_baseline,
            count_wins("A kernel beats bilinear sampling"),
        ),
    ),
    figures=(Figure("table7.png", "stn.experiments.mnist.plots:draw_kernels"),),
)

# ----------------------------------------------------------------------------------------------- Table 8


def pair_networks(size: str, parameters: int, filters: int, features: int) -> tuple[Row, Row]:
    """A CNN and an ST-CNN of about as many parameters; `filters` and `features` are of the localisation network."""
    settings: tuple[str, ...] = (f"model.parameters={parameters}",)
    cnn = Row(f"CNN {size}", "cnn", settings, short=size)
    settings += (f"model.localisation.filters={filters}", f"model.localisation.features={features}")
    return cnn, Row(f"ST-CNN {size}", "st_cnn_affine", settings, baseline=cnn, transformer=True, short=size)


SIZES_SCHEDULE = ("schedule=sizes",)


SIZES: Table = Table(
    number=8,
    folder="sizes",
    title="tiny hardware",
    measure="Test error in %",
    columns=(
        Column("R", "mnist_r", SIZES_SCHEDULE, description=R.description),
        Column("RTS", "mnist_rts", SIZES_SCHEDULE, description=RTS.description),
    ),
    blocks=(  # in the order of their size
        pair_networks("2.5k", 2500, filters=4, features=6),
        pair_networks("7k", 7000, filters=4, features=6),
        pair_networks("20k", 20_000, filters=6, features=6),
        pair_networks("60k", 60_000, filters=11, features=11),
        pair_networks("200k", 200_000, filters=20, features=20),
        pair_networks("400k", 400_000, filters=28, features=28),
    ),
    arrays=("theta",),
    contests=(
        replace(WITH_AND_WITHOUT, tell=count_wins("An ST-CNN beats the CNN of its size")),
        Contest(
            "A small ST-CNN against a larger CNN",
            ("larger CNN", "smaller ST-CNN", "CNN", "ST-CNN", "beats the larger"),
            lambda row: find_larger(SIZES, row),
            tell_small_against_large,
            names_both=True,
        ),
    ),
    exported=True,
    rival="the CNN of its size",
    asides=(describe_costs,),
    figures=(Figure("table8.png", "stn.experiments.mnist.plots:draw_sizes"),),
)

TABLES = (DISTORTED, KERNELS, SIZES)
