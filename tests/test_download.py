"""Downloads against a host on 127.0.0.1 that can be told to misbehave; nothing here reaches the network."""

import errno
import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from stn.data import download as module
from stn.data.download import RemoteFile, download, fetch_mnist
from stn.data.reading import read_idx
from stn.errors import UserError

BODY = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
NAME = "digits.bin"
CLOSED_PORT = "http://127.0.0.1:9"
MIRROR = os.environ.get("STN_DATA_MIRROR", "")
if MIRROR and "://" not in MIRROR:
    MIRROR = str(Path(MIRROR).resolve())


class Host:
    """Answers each request with the next of `answers`, the last one for ever, and notes (path, Range) of each."""

    def __init__(self):
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                host.requests.append((self.path, self.headers.get("Range")))
                answer = host.answers.pop(0) if len(host.answers) > 1 else host.answers[0]
                answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.answers, self.requests = [whole()], []

    @property
    def ranges(self):
        return [asked for _, asked in self.requests]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def send(handler, status, body, headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, str(value))
    handler.end_headers()
    handler.wfile.write(body)


def whole(body=BODY, ignore_range=False, stop=None, tell_length=True):
    """A good server. `stop`: it goes silent and closes after so many bytes of the answer."""

    def answer(handler):
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(asked[1]) if asked and not ignore_range else 0
        if start >= len(body):
            return send(handler, 416, b"", {"Content-Range": f"bytes */{len(body)}"})
        headers = {"Content-Length": len(body) - start} if tell_length else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        send(handler, 206 if start else 200, body[start:][:stop], headers)

    return answer


def status(code):
    return lambda handler: send(handler, code, b"sorry", {"Content-Length": 5})


@pytest.fixture
def host():
    host = Host()
    yield host
    host.close()


@pytest.fixture
def second_host():
    host = Host()
    yield host
    host.close()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STN_DATA_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "PAUSE", 0.0)


def remote(*urls, body=BODY, **kwargs):
    return RemoteFile(NAME, tuple(f"{url}/{NAME}" for url in urls), hashlib.md5(body).hexdigest(), **kwargs)


def fetch(file):
    return download(file, Path("raw"), "things")


def leave_part(content):
    part = Path("outputs/downloads/things") / f"{NAME}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


def the_one_line(caught):
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def make_mirror(root, content=BODY):
    (root / "things").mkdir(parents=True)
    (root / "things" / NAME).write_bytes(content)
    return root


# From the official hosts


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_download_gives_the_bytes_of_the_host_and_leaves_no_scratch(host, size):
    path = fetch(remote(host.url, size=size))
    assert path == Path("raw") / NAME and path.read_bytes() == BODY
    assert [p.name for p in Path("raw").iterdir()] == [NAME]
    assert not list(Path("outputs").rglob("*.part"))


def test_a_good_file_is_not_fetched_again(host):
    path = fetch(remote(host.url))
    before = path.stat()
    assert fetch(remote(host.url)) == path
    assert len(host.requests) == 1 and path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("bad", [b"", BODY[:-1], BODY + b"x", bytes(len(BODY))])
def test_a_bad_file_is_replaced(host, bad):
    Path("raw").mkdir()
    (Path("raw") / NAME).write_bytes(bad)
    assert fetch(remote(host.url)).read_bytes() == BODY


def test_replacing_a_link_leaves_what_it_pointed_at(host):
    Path("raw").mkdir()
    Path("cache").write_bytes(b"old")
    (Path("raw") / NAME).symlink_to(Path("cache").resolve())
    assert fetch(remote(host.url)).read_bytes() == BODY
    assert Path("cache").read_bytes() == b"old"


def test_a_bad_file_stays_until_a_good_one_is_there():
    Path("raw").mkdir()
    (Path("raw") / NAME).write_bytes(b"old")
    with pytest.raises(UserError):
        fetch(remote(CLOSED_PORT))
    assert (Path("raw") / NAME).read_bytes() == b"old"


@pytest.mark.parametrize("refusal", [status(404), status(403), status(503), whole(b"<html>log in</html>")])
def test_a_host_that_refuses_or_sends_something_else_is_followed_by_the_next(host, second_host, refusal):
    host.answers = [refusal]
    assert fetch(remote(CLOSED_PORT, host.url, second_host.url)).read_bytes() == BODY
    assert host.requests and len(second_host.requests) == 1


def test_a_missing_file_is_not_asked_for_twice_and_a_busy_host_is(host):
    host.answers = [status(404)]
    with pytest.raises(UserError, match="404"):
        fetch(remote(host.url))
    assert len(host.requests) == 1
    host.answers = [status(503), status(429), whole()]
    assert fetch(remote(host.url)).read_bytes() == BODY


def test_a_silent_host_is_given_up(host, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    done = threading.Event()
    host.answers = [lambda handler: done.wait(5)]
    with pytest.raises(UserError, match="timed out"):
        fetch(remote(host.url))
    done.set()
    assert len(host.requests) == module.ATTEMPTS


# Interrupted


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_dropped_connection_is_resumed_where_it_broke(host, size):
    host.answers = [whole(stop=100_000), whole(stop=100_000), whole()]
    assert fetch(remote(host.url, size=size)).read_bytes() == BODY
    assert host.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_a_reset_connection_is_resumed(host):
    def reset(handler):
        whole(stop=200_000)(handler)
        handler.wfile.flush()
        handler.connection.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: RST instead of FIN
        handler.connection.close()

    host.answers = [reset, whole()]
    assert fetch(remote(host.url)).read_bytes() == BODY


def test_a_line_that_drops_often_but_moves_on_is_not_given_up(host):
    host.answers = [whole(stop=30_000)]
    assert fetch(remote(host.url)).read_bytes() == BODY
    assert len(host.requests) == 10 > module.ATTEMPTS


def test_the_part_of_an_earlier_run_is_continued(host):
    part = leave_part(BODY[:123_456])
    assert fetch(remote(host.url)).read_bytes() == BODY
    assert host.ranges == ["bytes=123456-"] and not part.exists()


def test_a_run_that_gave_up_leaves_its_part_for_the_next(host):
    host.answers = [whole(stop=1000), status(404)]
    with pytest.raises(UserError):
        fetch(remote(host.url))
    host.answers = [whole()]
    assert fetch(remote(host.url)).read_bytes() == BODY
    assert host.ranges[-1] == "bytes=1000-"


def test_a_whole_part_needs_no_host():
    leave_part(BODY)
    assert fetch(remote(CLOSED_PORT)).read_bytes() == BODY


def test_a_host_without_ranges_is_read_from_the_start(host):
    leave_part(BODY[:123_456])
    host.answers = [whole(ignore_range=True)]
    assert fetch(remote(host.url)).read_bytes() == BODY
    assert host.ranges == ["bytes=123456-"]


def test_a_host_without_ranges_that_always_drops_is_given_up(host):
    host.answers = [whole(ignore_range=True, stop=1000)]
    with pytest.raises(UserError, match="closed after 1000 of 300000 bytes"):
        fetch(remote(host.url))
    assert len(host.requests) == module.ATTEMPTS


@pytest.mark.parametrize("part", [BODY + b"longer", bytes(len(BODY)), bytes(1000)])
def test_a_part_of_something_else_is_thrown_away(host, part):
    leave_part(part)
    assert fetch(remote(host.url)).read_bytes() == BODY
    assert host.ranges[-1] is None


def test_a_body_from_another_place_than_asked_is_refused(host, second_host):
    leave_part(BODY[:1000])
    host.answers = [lambda h: send(h, 206, BODY[2000:], {"Content-Range": f"bytes 2000-{len(BODY) - 1}/{len(BODY)}"})]
    assert fetch(remote(host.url, second_host.url)).read_bytes() == BODY
    assert second_host.ranges == ["bytes=1000-"]


def test_a_page_of_another_length_does_not_cost_the_part(host, second_host):
    leave_part(BODY[:1000])
    host.answers = [whole(b"<html>log in</html>", ignore_range=True)]
    assert fetch(remote(host.url, second_host.url, size=len(BODY))).read_bytes() == BODY
    assert second_host.ranges == ["bytes=1000-"]


def test_a_download_of_the_wrong_length_is_named_with_both_lengths(host):
    host.answers = [whole(BODY[:1000], tell_length=False)]
    with pytest.raises(UserError, match="is 1000 bytes long, expected 300000"):
        fetch(remote(host.url, size=len(BODY)))


@pytest.mark.parametrize("tell_length", [True, False])
def test_a_truncated_download_is_never_taken_for_a_good_one(host, tell_length):
    host.answers = [whole(BODY[:1000], tell_length=tell_length)]
    with pytest.raises(UserError):
        fetch(remote(host.url))
    assert not (Path("raw") / NAME).exists()


def test_two_processes_do_not_write_to_one_part(host, capsys):
    arrived, gate = threading.Event(), threading.Event()

    def slow(handler):
        arrived.set()
        gate.wait(5)
        whole()(handler)

    host.answers = [slow]
    both = [threading.Thread(target=fetch, args=(remote(host.url),)) for _ in range(2)]
    both[0].start()
    assert arrived.wait(5)
    both[1].start()
    both[1].join(0.1)
    assert both[1].is_alive()
    gate.set()
    for thread in both:
        thread.join(5)
    assert len(host.requests) == 1 and (Path("raw") / NAME).read_bytes() == BODY
    assert "waiting for another process" in capsys.readouterr().err


def test_outputs_and_data_may_lie_on_different_disks(host, monkeypatch):
    def rename(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", rename)
    assert fetch(remote(host.url)).read_bytes() == BODY
    assert [p.name for p in Path("raw").iterdir()] == [NAME]


# The mirror


@pytest.mark.parametrize("form", ["folder", "relative folder", "file URL", "http URL", "http URL with a slash"])
def test_the_mirror_is_asked_first_and_the_official_host_never(host, second_host, monkeypatch, tmp_path, form):
    root = make_mirror(tmp_path / "a mirror")
    forms = {
        "folder": str(root),
        "relative folder": "a mirror",
        "file URL": root.as_uri(),
        "http URL": f"{second_host.url}/pub",
        "http URL with a slash": f"{second_host.url}/pub/",
    }
    monkeypatch.setenv("STN_DATA_MIRROR", forms[form])
    path = fetch(remote(host.url))
    assert path.read_bytes() == BODY and not path.is_symlink() and path.stat().st_nlink == 1
    assert not host.requests
    assert [path for path, _ in second_host.requests] == ["/pub/things/" + NAME] * form.startswith("http")
    assert (root / "things" / NAME).read_bytes() == BODY


def test_a_read_only_mirror_gives_a_writable_file(monkeypatch, tmp_path):
    root = make_mirror(tmp_path / "mirror")
    (root / "things" / NAME).chmod(0o444)
    monkeypatch.setenv("STN_DATA_MIRROR", str(root))
    assert fetch(remote(CLOSED_PORT)).stat().st_mode & 0o200


def test_a_folder_mirror_overrides_an_unfinished_part(monkeypatch, tmp_path):
    leave_part(bytes(5000))
    monkeypatch.setenv("STN_DATA_MIRROR", str(make_mirror(tmp_path / "mirror")))
    assert fetch(remote(CLOSED_PORT)).read_bytes() == BODY


@pytest.mark.parametrize("size", [None, len(BODY)])
@pytest.mark.parametrize("content", [BODY[:1000], bytes(len(BODY))])
@pytest.mark.parametrize("over_http", [False, True])
def test_a_mirror_with_wrong_content_is_an_error_and_nothing_is_used(
    host, second_host, monkeypatch, tmp_path, content, over_http, size
):
    second_host.answers = [whole(content)]
    root = make_mirror(tmp_path / "mirror", content)
    monkeypatch.setenv("STN_DATA_MIRROR", second_host.url if over_http else str(root))
    with pytest.raises(UserError, match="STN_DATA_MIRROR") as caught:
        fetch(remote(host.url, size=size))
    message = the_one_line(caught)
    expected = remote().md5, hashlib.md5(content).hexdigest()
    if size and len(content) != size:
        expected = str(size), str(len(content))
    assert all(part in message for part in (NAME, *expected))
    assert not host.requests and not (Path("raw") / NAME).exists()


@pytest.mark.parametrize("form", ["folder", "http URL", "host that refuses", "not quite a URL"])
def test_a_mirror_without_the_file_is_passed_over_with_a_notice(host, second_host, monkeypatch, capsys, form):
    Path("empty").mkdir()
    second_host.answers = [status(404)]
    forms = {
        "folder": "empty",
        "http URL": second_host.url,
        "host that refuses": CLOSED_PORT,
        "not quite a URL": "http://[oops",
    }
    monkeypatch.setenv("STN_DATA_MIRROR", forms[form])
    assert fetch(remote(host.url)).read_bytes() == BODY
    assert f"the mirror cannot give {NAME}" in capsys.readouterr().err


@pytest.mark.parametrize("mirror", ["no/such/folder", "ftp://example.org/pub"])
def test_a_mirror_that_is_no_mirror_is_named(host, monkeypatch, mirror):
    monkeypatch.setenv("STN_DATA_MIRROR", mirror)
    with pytest.raises(UserError, match=f"STN_DATA_MIRROR={mirror}") as caught:
        fetch(remote(host.url))
    the_one_line(caught)
    assert not host.requests


def test_an_empty_mirror_variable_is_no_mirror(host, monkeypatch, capsys):
    monkeypatch.setenv("STN_DATA_MIRROR", "")
    assert fetch(remote(host.url)).read_bytes() == BODY
    assert "mirror" not in capsys.readouterr().err


# Errors


def test_no_network_and_no_mirror_says_what_to_set():
    with pytest.raises(UserError) as caught:
        fetch(remote(CLOSED_PORT, CLOSED_PORT))
    message = the_one_line(caught)
    assert message.startswith(f"could not download {NAME} from any of 2 sources (last: {CLOSED_PORT}/{NAME}: ")
    assert message.endswith(f"set STN_DATA_MIRROR to a folder or URL that holds things/{NAME}")


def test_a_checksum_mismatch_is_named_with_both_checksums(host):
    host.answers = [whole(b"something else")]
    with pytest.raises(UserError) as caught:
        fetch(remote(host.url))
    message = the_one_line(caught)
    assert remote().md5 in message and hashlib.md5(b"something else").hexdigest() in message
    assert not (Path("raw") / NAME).exists() and not list(Path("outputs").rglob("*.part"))


@pytest.mark.parametrize("in_the_way", ["raw", "outputs", "outputs/downloads/things"])
def test_a_file_where_a_folder_should_be_is_named(host, in_the_way):
    Path(in_the_way).parent.mkdir(parents=True, exist_ok=True)
    Path(in_the_way).write_text("")
    with pytest.raises(UserError, match=f"cannot write {in_the_way}.*move away the file") as caught:
        fetch(remote(host.url))
    the_one_line(caught)


def test_a_file_where_a_parent_folder_should_be_is_named(host):
    Path("data").write_text("")
    with pytest.raises(UserError, match=r"cannot write data/raw.*Not a directory") as caught:
        download(remote(host.url), Path("data/raw/mnist"), "things")
    the_one_line(caught)


def test_a_folder_where_the_file_should_be_is_named(host):
    (Path("raw") / NAME).mkdir(parents=True)
    with pytest.raises(UserError, match=f"raw/{NAME}: Is a directory") as caught:
        fetch(remote(host.url))
    the_one_line(caught)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(host):
    part = leave_part(b"")
    part.unlink()
    part.symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device; make room") as caught:
        fetch(remote(host.url, size=len(BODY)))
    assert part.name in the_one_line(caught)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission_is_named(host):
    Path("raw").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"cannot write raw.*Permission denied") as caught:
        fetch(remote(host.url))
    the_one_line(caught)


# Progress


def test_a_long_download_says_how_far_it_is_and_how_long_it_takes(host, monkeypatch, capsys):
    body = BODY * 4
    monkeypatch.setattr("stn.data.progress.SECONDS_BETWEEN_LINES", 0.0)
    host.answers = [whole(body)]
    fetch(remote(host.url, body=body))
    assert re.search(rf"{NAME}: \d of 1 MB, ETA \d+:\d\d\n", capsys.readouterr().err)


def test_a_small_download_is_told_in_one_line(host, monkeypatch, capsys):
    monkeypatch.setattr("stn.data.progress.SECONDS_BETWEEN_LINES", 0.0)
    fetch(remote(host.url))
    assert capsys.readouterr().err == f"raw/{NAME} is missing: fetching it\n"


def test_a_terminal_gets_a_bar(host, monkeypatch, capsys):
    body = BODY * 4
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    host.answers = [whole(body)]
    assert fetch(remote(host.url, body=body)).read_bytes() == body
    assert "━" in capsys.readouterr().err


# Archives without a published checksum


def packed(*names):
    """A tar.gz with such files, too large for a reader's buffer."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=0) as tar:
        for name in names:
            member = tarfile.TarInfo(f"train/{name}")
            member.size = len(BODY)
            tar.addfile(member, io.BytesIO(BODY))
    return content.getvalue()


def unchecked(url, body, holds="b.mat"):
    return RemoteFile(NAME, (f"{url}/{NAME}",), None, len(body), holds)


ARCHIVE = packed("a.png", "b.mat", "c.png")


def test_an_archive_without_a_checksum_is_resumed_and_read_to_its_end(host):
    part = leave_part(ARCHIVE[:123_456])
    host.answers = [whole(ARCHIVE, stop=400_000), whole(ARCHIVE)]
    assert fetch(unchecked(host.url, ARCHIVE)).read_bytes() == ARCHIVE and not part.exists()
    assert host.ranges == ["bytes=123456-", "bytes=523456-"]
    assert fetch(unchecked(CLOSED_PORT, ARCHIVE)).read_bytes() == ARCHIVE


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (packed("a.png"), "holds no b.mat"),
        (
            ARCHIVE[:-400_000],
            "is not a complete tar.gz (Compressed file ended before the end-of-stream marker was reached)",
        ),
        (ARCHIVE[:-8] + bytes(8), "is not a complete tar.gz (CRC check failed"),
        (BODY, "is not a complete tar.gz (Not a gzipped file"),
        (gzip.compress(BODY, mtime=0), "is not a complete tar.gz ("),
    ],
)
def test_a_broken_archive_of_the_right_size_is_refused_with_the_reason(host, body, fault):
    host.answers = [whole(body)]
    with pytest.raises(UserError) as caught:
        fetch(unchecked(host.url, body))
    assert f"{NAME} {fault}" in the_one_line(caught) and not (Path("raw") / NAME).exists()


def test_files_of_an_archive_can_be_read_in_their_order(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(ARCHIVE)
    heard = []
    with module.archive(tmp_path / "x.tar.gz", heard.append) as files:
        assert [(name, stream.read() == BODY) for name, stream in files] == [
            (name, True) for name in ("a.png", "b.mat", "c.png")
        ]
    assert heard == sorted(heard) and 0 < heard[-1] <= len(ARCHIVE)


# MNIST


def idx(array):
    magic = (0x0800 | array.ndim).to_bytes(4, "big")
    return gzip.compress(magic + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes(), mtime=0)


IMAGES = np.random.default_rng(1).integers(0, 256, (5, 28, 28), np.uint8)


@pytest.mark.parametrize("array", [IMAGES, IMAGES[:, 0, 0], IMAGES[:0]])
def test_idx_files_are_read_exactly(tmp_path, array):
    path = tmp_path / "x.gz"
    path.write_bytes(idx(array))
    read = read_idx(path)
    assert read.dtype == np.uint8 and read.shape == array.shape and read.flags.writeable
    np.testing.assert_array_equal(read, array)


PLAIN = gzip.decompress(idx(IMAGES))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            gzip.compress(b"\0\0\x0d\x03" + PLAIN[4:], mtime=0),
            "starts with 0x00000d03, expected 0x00000801 or 0x00000803",
        ),
        (gzip.compress(b"GIF89a", mtime=0), "starts with 0x47494638"),
        (gzip.compress(PLAIN[:9], mtime=0), "starts with 0x00000803"),
        (gzip.compress(b"", mtime=0), "starts with 0x"),
        (idx(IMAGES)[:-500], "not a complete gzip file"),
        (idx(IMAGES)[:-8] + bytes(8), "not a complete gzip file"),
        (idx(IMAGES)[:100] + bytes(100) + idx(IMAGES)[200:], "not a complete gzip file"),
        (b"<html>not found</html>", "not a complete gzip file"),
        (gzip.compress(PLAIN[:-1], mtime=0), "holds 3919 bytes of data, its header promises 5 x 28 x 28 = 3920"),
        (gzip.compress(PLAIN + b"\0", mtime=0), "holds 3921 bytes of data"),
    ],
)
def test_a_broken_idx_file_is_named_with_what_was_found(tmp_path, content, found):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_idx(path)
    message = the_one_line(caught)
    assert str(path) in message and found in message
    assert "delete it and run `python -m stn.fetch data=mnist_r`" in message and "STN_DATA_MIRROR" in message


def test_a_missing_idx_file_says_how_to_fetch_it():
    with pytest.raises(UserError, match=r"x.gz is missing; run `python -m stn.fetch data=mnist_r`"):
        read_idx(Path("x.gz"))


def test_an_idx_file_that_cannot_be_read_is_named():
    Path("x.gz").mkdir()
    with pytest.raises(UserError, match=r"cannot read x.gz: Is a directory"):
        read_idx(Path("x.gz"))


def test_mnist_falls_back_from_one_official_host_to_the_next(host, monkeypatch):
    from torchvision.datasets import MNIST

    names = [name for name, _ in MNIST.resources]
    monkeypatch.setattr(MNIST, "resources", [(name, remote().md5) for name in names])
    monkeypatch.setattr(MNIST, "mirrors", [f"{CLOSED_PORT}/", f"{host.url}/mnist/"])
    paths = fetch_mnist(Path("data/raw/mnist"))
    assert paths == [Path("data/raw/mnist") / name for name in names]
    assert [path for path, _ in host.requests] == [f"/mnist/{name}" for name in names]


@pytest.mark.skipif(not MIRROR, reason="STN_DATA_MIRROR is not set")
def test_real_mnist_comes_from_the_mirror_whole(monkeypatch):
    monkeypatch.setenv("STN_DATA_MIRROR", MIRROR)
    paths = fetch_mnist(Path("data/raw/mnist"))
    shapes = {path.name: read_idx(path).shape for path in paths}
    assert shapes == {
        "train-images-idx3-ubyte.gz": (60_000, 28, 28),
        "train-labels-idx1-ubyte.gz": (60_000,),
        "t10k-images-idx3-ubyte.gz": (10_000, 28, 28),
        "t10k-labels-idx1-ubyte.gz": (10_000,),
    }
    assert np.bincount(read_idx(paths[1])).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(read_idx(paths[3])).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_importing_the_module_loads_neither_torch_nor_rich():
    code = "import sys, stn.data.download; print({'torch', 'torchvision', 'rich'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
