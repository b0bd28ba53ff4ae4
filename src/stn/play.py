"""Build a page on which the networks of RTS read what one draws, and serve it: `python -m stn.play`.

It runs in the browser alone (`web/`, `stn.playground`); the server hands out files.
"""

import os
import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from stn.config import compose
from stn.errors import UserError
from stn.front_door import guard
from stn.messages import Parser, one_line
from stn.params import BUDGETS

FOLDER = Path("outputs/play")


class Handler(SimpleHTTPRequestHandler):
    """Serves files without a log and without caching, so that a rebuilt page is loaded again."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript"}  # noqa: RUF012

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *args: object) -> None:
        pass


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of `folder` for this machine only, on a free port if `port` is 0; `serve_forever` runs it."""
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"PORT={port} cannot be used: {reason}; choose another, or leave it out for a free one"
        ) from None


def serve(running: ThreadingHTTPServer, show: bool) -> None:
    """Serve the page until Ctrl-C; `show` opens it in the browser of a desktop."""
    with running:
        address = f"http://127.0.0.1:{running.server_port}/"
        print(f"{address} (Ctrl-C ends it)", flush=True)
        # Without a desktop this would start a text browser.
        if show and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            webbrowser.open(address)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print("\nstopped")


def main() -> None:
    parser = Parser(prog="python -m stn.play", description=__doc__)
    parser.add_argument("--data", default="mnist_rts", help="the data set whose networks it shows: mnist_rts")
    parser.add_argument("--budget", help="of their training; that of the longest run of each if not given")
    parser.add_argument("--port", default="0", help="where it is served; a free one if not given")
    parser.add_argument("--no-browser", action="store_true", help="do not open it")
    parser.add_argument("--build", action="store_true", help="build it only")
    args = parser.parse_args()
    with guard():
        if args.budget is not None and args.budget not in BUDGETS:
            raise UserError(f"BUDGET={args.budget} is not one of {', '.join(BUDGETS)}")
        if not (args.port.isascii() and args.port.isdigit() and int(args.port) < 65536):
            raise UserError(
                f"PORT={args.port} is not a port: give a number from 1024 to 65535, or leave it out for a free one"
            )
        data = _config(args.data)
        running = None if args.build else server(FOLDER, int(args.port))  # first, so that a taken port fails early
        from stn.experiments.mnist.data import fetch  # these load Lightning, so only after the arguments are checked
        from stn.playground import NETWORKS, build, fetch_runtime, find_networks

        networks = find_networks(args.data, args.budget)
        for model, name in NETWORKS.items():
            if model not in {trained.model for trained in networks}:
                print(f"{name}: no trained {args.data}/{model}, so it is not on the page")
        runtime = fetch_runtime()
        fetch(data)
        print(f"building the page of {', '.join(NETWORKS[trained.model] for trained in networks)}", flush=True)
        build(FOLDER, data, networks, runtime)
        size = sum(file.stat().st_size for file in FOLDER.iterdir())
        print(f"-> {FOLDER}, {size / 1e6:.1f} MB: files that any web server can show")
        if running:
            serve(running, not args.no_browser)


def _config(name: str) -> DictConfig:
    """The config of a data set of digits in poses; UserError for any other."""
    try:
        data = compose(f"data={name}", "model=cnn").data
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"--data {name}: {one_line(error)}") from None
    if data.kind != "mnist" or data.distortion.kind.name != "pose":
        raise UserError(f"--data {name}: the page shows digits that are rotated, scaled and shifted, such as mnist_rts")
    return data


if __name__ == "__main__":
    main()
