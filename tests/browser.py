"""A Chromium without a window, for the page of `make play`; `python tests/browser.py` takes the pictures of it.

python tests/browser.py                     # docs/assets/play.png, of the page in outputs/play
python tests/browser.py --widths FOLDER     # at three widths, light and dark
"""

import argparse
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stn.play import FOLDER, server

PICTURE = Path(__file__).parents[1] / "docs/assets/play.png"
WIDTHS = {375: 812, 768: 1024, 1440: 900}  # and the heights of such screens
PATIENCE = 300_000  # ms: the machine may be busy


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which the folder is served."""
    with server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


@contextmanager
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without the sandbox, which a container's root has not; nothing but our own page is opened.
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser, address: str, width: int = 1440, still: bool = True, **options):
    """A page that has made its first prediction; `still` asks for no motion, so that the digit does not wander."""
    options = {"viewport": {"width": width, "height": WIDTHS[width]}, **options}
    context = browser.new_context(reduced_motion="reduce" if still else "no-preference", **options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.requests, page.faults = [], []
    page.on("request", lambda request: page.requests.append(request))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.faults.append(message.text))
    page.goto(address)
    page.evaluate("play.started")
    page.wait_for_function("play.state().frames > 0")
    return page


def rest(page) -> dict:
    """The page's state, once all that was done is shown."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_function("play.state().resting")
    return page.evaluate("play.state()")


def take(browser, address: str, path: Path, width: int, scheme: str = "light", whole: bool = True) -> None:
    """A picture of the page as it opens."""
    page = open_page(browser, address, width, color_scheme=scheme)
    rest(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, full_page=whole)
    page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=FOLDER, help="the page that was built")
    parser.add_argument("--widths", type=Path, metavar="FOLDER", help="pictures at three widths, light and dark")
    args = parser.parse_args()
    with served(args.page) as address, chromium() as browser:
        if args.widths:
            for width in WIDTHS:
                for scheme in ("light", "dark"):
                    take(browser, address, args.widths / f"{width}-{scheme}.png", width, scheme)
        else:
            take(browser, address, PICTURE, 1440)


if __name__ == "__main__":
    main()
