"""Table 6: digits in three dimensions."""

from stn.experiments.volumes.poses import describe_poses
from stn.report.comparisons import WITH_AND_WITHOUT
from stn.report.table import Column, Figure, Row, Table

VOXELS_60 = Column("60 voxels", "volumes_60")

CNN = Row(
    "CNN",
    "volume_cnn",
    note="All rows classify the projection of a volume along its depth; the paper has a figure and no numbers.",
)
ST_CNN = Row("ST-CNN 3-D Aff", "volume_st", baseline=CNN, transformer=True, short="3-D Aff")
TRUE_POSE = Row(
    "CNN, true pose",
    "volume_cnn",
    ("data.undo=true",),
    note="CNN, true pose: the CNN on volumes undone by their true pose, the ceiling for a transformer.",
)

VOLUMES = Table(
    number=6,
    folder="volumes",
    title="digits in three dimensions",
    measure="Test error in %",
    images="volumes",
    columns=(VOXELS_60,),
    blocks=((CNN, ST_CNN), (TRUE_POSE,)),
    arrays=(
        *("theta", "example_volume", "example_before", "example_after", "example_label", "example_theta"),
        "pose_true",
    ),
    contests=(WITH_AND_WITHOUT,),
    sections=(describe_poses,),
    figures=(Figure("table6.png", "stn.experiments.volumes.figures:draw_volumes"),),
)

TABLES = (VOLUMES,)
