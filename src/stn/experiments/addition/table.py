"""Table 4: MNIST addition."""

from stn.experiments.addition.attention import describe_attention
from stn.report.comparisons import WITH_AND_WITHOUT
from stn.report.table import Column, Figure, Row, Table

FAMILIES = {"Aff": "affine", "Proj": "projective", "TPS": "tps"}
RTS_RTS = Column("RTS + RTS", "mnist_addition", stand_ins=("digits_addition",))

FCN = Row("FCN", "fcn", paper={RTS_RTS: 47.7})
CNN = Row("CNN", "cnn", paper={RTS_RTS: 14.7})


def add_transformers(classifier: Row, parallel: int, papers: tuple[float, ...] = (), note: str = "") -> tuple[Row, ...]:
    """The rows of a classifier behind one or two transformers of each family; `papers` are the paper's values."""
    values = papers or (None,) * len(FAMILIES)
    return tuple(
        Row(
            f"{'2x' if parallel == 2 else ''}ST-{classifier.label} {family}",
            f"st_{classifier.model}_{name}",
            () if parallel == 1 else (f"model.parallel={parallel}",),
            {} if value is None else {RTS_RTS: value},
            baseline=classifier,
            transformer=True,
            short=family,
            note=note,
        )
        for (family, name), value in zip(FAMILIES.items(), values, strict=True)
    )


# Paper, Table 4 (appendix).
ST_FCN = add_transformers(FCN, 1, (22.6, 18.5, 19.1))
TWO_ST_FCN = add_transformers(FCN, 2, (9.0, 5.9, 5.8))
OURS = "The rows ST-CNN and 2xST-CNN are ours: the paper has transformers before the FCN alone."
ST_CNN = add_transformers(CNN, 1, note=OURS)
TWO_ST_CNN = add_transformers(CNN, 2, note=OURS)

ADDITION = Table(
    number=4,
    folder="addition",
    title="MNIST addition",
    measure="Test error in % (19 classes)",
    images="pairs",
    columns=(RTS_RTS,),
    blocks=((FCN, CNN), ST_FCN, TWO_ST_FCN, ST_CNN, TWO_ST_CNN),
    arrays=(
        *("theta", "example_input", "example_digits", "example_said", "example_grid", "example_output"),
        *("pair_before", "pair_after"),
    ),
    contests=(WITH_AND_WITHOUT,),
    orders=tuple(
        (single.baseline, single, double)
        for singles, doubles in ((ST_FCN, TWO_ST_FCN), (ST_CNN, TWO_ST_CNN))
        for single, double in zip(singles, doubles, strict=True)
        if single.baseline is not None
    ),
    sections=(describe_attention,),
    figures=(Figure("table4.png", "stn.experiments.addition.figures:draw_pairs"),),
)

TABLES = (ADDITION,)
