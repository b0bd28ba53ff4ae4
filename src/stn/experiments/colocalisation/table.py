"""Table 5: co-localisation."""

from stn.report.table import Column, Figure, Row, Table

T = Column(
    "T",
    "colocalisation_t",
    note="T: the digit at a random place. The images are those that the windows were learned on, without labels.",
)
TC = Column("TC", "colocalisation_tc", note="TC: with 16 patches of clutter.")

# Paper, appendix A.2, in whole numbers. The mean is that of the values it prints.
CLASSES = tuple(
    Row(str(digit), "colocalisation", paper={T: 100, TC: share}, transformer=True, images=("classes", digit))
    for digit, share in enumerate((81, 82, 88, 75, 94, 84, 93, 85, 89, 87))
)
MEAN = Row(
    "mean",
    "colocalisation",
    paper={T: 100, TC: 85.8},
    transformer=True,
    note="The paper's mean is that of the values it prints. Every class is learned by itself.",
)

COLOCALISATION = Table(
    number=5,
    folder="colocalisation",
    title="co-localisation",
    measure="Images whose window has an IoU greater than 0.5 with the digit's box, in %",
    accuracy=True,
    decimals=0,
    columns=(T, TC),
    blocks=(CLASSES, (MEAN,)),
    entries="class",
    arrays=("theta", "classes", "box", "example_input", "example_crop", "trace", "trace_steps"),
    figures=(
        Figure("table5.png", "stn.experiments.colocalisation.figures:draw_classes"),
        Figure("table5.gif", "stn.experiments.colocalisation.figures:draw_search"),
    ),
)

TABLES = (COLOCALISATION,)
