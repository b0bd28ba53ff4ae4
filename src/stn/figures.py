"""Draw the figures of Table 1 from the records: `python -m stn.figures`."""

from stn.errors import told
from stn.report import figures
from stn.table import REPORTS, records


def main() -> None:
    with told():
        found = records()
        for draw, name in ((figures.pictures, "table1.png"), (figures.poses, "table1_pose.png")):
            path = REPORTS / "figures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(found, path)
            print(path)


if __name__ == "__main__":
    main()
