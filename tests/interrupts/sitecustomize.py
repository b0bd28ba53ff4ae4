"""Python loads this first in every process of a run that `tests/interrupt.py` starts. It kills the run at some write.

INTERRUPT names a JSON file: `root` (events below this folder count), `log` (they are appended to it), and `at` (a
regular expression of events), `nth`, `delay` (seconds), `signal`: at the nth event that matches, or that delay after it
began, the signal goes to all processes of the run.
"""

import fcntl
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

SPEC = json.loads(Path(os.environ["INTERRUPT"]).read_bytes())
LOG = os.open(SPEC["log"], os.O_RDWR | os.O_CREAT | os.O_APPEND)
HITS = os.open(SPEC["log"] + ".hits", os.O_RDWR | os.O_CREAT | os.O_APPEND)
WRITES = os.O_WRONLY | os.O_RDWR


def hook(event: str, arguments: tuple) -> None:
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & WRITES:
            return
    elif event == "os.rename":
        path = arguments[1]
    elif event in ("os.remove", "os.rmdir"):
        path = arguments[0]
    else:
        return
    if isinstance(path, int):
        return
    path = str(Path.cwd() / os.fsdecode(path))
    if not path.startswith(SPEC["root"] + os.sep) or "__pycache__" in path:
        return
    event = f"{event.removeprefix('os.')} {path[len(SPEC['root']) + 1 :]}"
    os.write(LOG, f"{event}\n".encode())
    if SPEC.get("at") and re.search(SPEC["at"], event):
        fcntl.flock(HITS, fcntl.LOCK_EX)
        os.write(HITS, b".")
        hits = os.fstat(HITS).st_size
        fcntl.flock(HITS, fcntl.LOCK_UN)
        if hits == SPEC["nth"]:
            if SPEC["delay"]:
                threading.Thread(target=kill, args=(SPEC["delay"],), daemon=True).start()
            else:
                kill(0)


def kill(delay: float) -> None:
    time.sleep(delay)
    os.killpg(os.getpgrp(), SPEC["signal"])


sys.addaudithook(hook)
