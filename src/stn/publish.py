"""Write the weights of finished runs to `reports/weights`, each with a card, and the page of them.

python -m stn.publish
python -m stn.publish reports/results/quick/mnist/mnist_r-cnn.json
"""

from pathlib import Path

from stn.front_door import guard
from stn.messages import Parser


def main() -> None:
    parser = Parser(prog="python -m stn.publish", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "records",
        nargs="*",
        type=Path,
        metavar="RECORD.json",
        help="whose runs; by default the CNN and ST-CNNs of Table 1 on R, RTS, P and E that have a run here",
    )
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs are: outputs if not given")
    args = parser.parse_args()
    with guard():
        from stn.publishing import publish  # loads Lightning

        publish(args.records, args.outputs)


if __name__ == "__main__":
    main()
