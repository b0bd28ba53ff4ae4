"""House numbers from archive to batch, on small archives in the exact form of SVHN; on real images where there are."""

import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from scipy.ndimage import uniform_filter
from torch import nn

from conftest import one_error, run
from stn.config import compose
from stn.data.draws import generator
from stn.errors import UserError
from stn.experiments.svhn import archive as svhn
from stn.experiments.svhn import crops
from stn.experiments.svhn import data as data_module
from stn.experiments.svhn.archive import digits_in, table_of
from stn.experiments.svhn.crops import recipe, store
from stn.experiments.svhn.data import StoredSvhn, SvhnSource
from stn.experiments.svhn.figures import draw_windows
from stn.experiments.svhn.table import HOUSE_NUMBERS
from stn.report.records import load_records
from svhn_archive import pack, ramp, write_digit_struct, write_part, write_photographs

COUNTS = {"train": 20, "test": 7, "extra": 16}
VALIDATION = 6
SVHN = ("data=svhn_64", "model=svhn_cnn", f"data.validation={VALIDATION}")
CPU = torch.device("cpu")
MIRROR = os.environ.get("STN_DATA_MIRROR", "")
STRIPS = Path(MIRROR, "svhn_strips").resolve() if MIRROR and "://" not in MIRROR else None
real = pytest.mark.skipif(STRIPS is None or not STRIPS.is_dir(), reason="STN_DATA_MIRROR has no svhn_strips")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the folders `parts/train` ... and the mirror `mirror/svhn/train.tar.gz` ...; what is in them."""
    root = tmp_path_factory.mktemp("made")
    entries = {}
    for seed, (part, n) in enumerate(COUNTS.items()):
        entries[part] = write_part(root / "parts" / part, n, seed)
        pack(root / "parts" / part, root / "mirror/svhn" / f"{part}.tar.gz")
    return root, entries


@pytest.fixture(scope="module")
def base():
    return compose(*SVHN).data


@pytest.fixture(scope="module")
def cropped(made, base, tmp_path_factory):
    """A folder in which the archives are fetched and cropped through the front doors."""
    root, _ = made
    folder = tmp_path_factory.mktemp("cropped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STN_DATA_MIRROR", str(root / "mirror"))
        patch.setattr(data_module, "SVHN_BYTES", sizes(root / "mirror/svhn"))
        for command in ("stn.fetch", "stn.crop"):
            result = run(command, *SVHN, cwd=folder)
            assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STN_DATA_MIRROR", raising=False)


def sizes(folder):
    return {part: (folder / f"{part}.tar.gz").stat().st_size for part in COUNTS}


def changed(data: DictConfig, **changes) -> DictConfig:
    return OmegaConf.merge(data, changes)


def numbers(folder, base, **changes) -> SvhnSource:
    """The opened sets of a folder."""
    source = SvhnSource(changed(base, stored=str(folder / "data/stored/svhn_64"), **changes))
    for split in ("train", "validation", "test"):
        source.load(split)
    return source


def raw(root, *parts) -> Path:
    """`data/raw/svhn` with copies of these archives or folders."""
    folder = Path("data/raw/svhn")
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        source = root / part
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / source.name)
    return folder


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(data_module, "SVHN_IMAGES", COUNTS)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# digitStruct.mat


ENTRIES = [
    ("1.png", [(10.0, 2.5, 7.0, 20.0, 10.0)]),
    ("22.png", [(1.0, 2.0, 3.0, 4.0, 1.0), (5.0, -1.0, 7.0, 8.0, 9.0), (0.0, 1.0, 2.0, 3.0, 5.0)]),
    ("202353.png", [(1.0, 2.0, 3.0, 4.0, 2.0), (5.0, 6.0, 7.0, 8.0, 10.0)]),
]


@pytest.mark.parametrize("written", [{}, {"times": False}, {"chunks": (1, 1)}])
def test_digit_struct_is_read_as_written(tmp_path, written):
    write_digit_struct(tmp_path / "digitStruct.mat", ENTRIES, **written)
    table = digits_in(tmp_path / "digitStruct.mat")
    assert table.names.tolist() == [name for name, _ in ENTRIES]
    assert table.start.tolist() == [0, 1, 4, 6]
    digits = np.array([digit for _, digits in ENTRIES for digit in digits])
    np.testing.assert_array_equal(table.boxes, digits[:, :4])
    np.testing.assert_array_equal(table.labels, digits[:, 4])


def test_what_is_no_digit_struct_is_named(tmp_path):
    path = tmp_path / "digitStruct.mat"
    for content in (b"", b"MATLAB 5.0 MAT-file", bytes(2000)):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"digitStruct.mat is not a digitStruct.mat of SVHN \(.*\); delete it and run"
        ):
            digits_in(path)
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(UserError, match=r"is not a digitStruct.mat of SVHN"):
        digits_in(path)
    write_digit_struct(path, ENTRIES)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"is not a digitStruct.mat of SVHN"):
        digits_in(path)


# Fetch


def test_archives_come_from_the_mirror_and_stay_packed(cropped, made):
    root, _ = made
    fetched = contents(cropped / "data/raw/svhn")
    assert fetched == contents(root / "mirror/svhn") and len(fetched) == 3


def test_extra_can_be_left_out(made, monkeypatch, tmp_path):
    root, _ = made
    monkeypatch.setenv("STN_DATA_MIRROR", str(root / "mirror"))
    monkeypatch.setattr(data_module, "SVHN_BYTES", sizes(root / "mirror/svhn"))
    for command in ("stn.fetch", "stn.crop"):
        result = run(command, *SVHN, "data.extra=false", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert sorted(contents(Path("data/raw/svhn"))) == ["test.tar.gz", "train.tar.gz"]
    about = json.loads(Path("data/stored/svhn_64/sets.json").read_text())
    assert about["sets"]["train"]["images"] == COUNTS["train"] - VALIDATION


def test_folders_of_the_mirror_are_copied_whole_and_crop_alike(made, cropped, base, monkeypatch, tmp_path):
    root, _ = made
    shutil.copytree(root / "parts", "mirror/svhn")
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    for _ in "once", "again":
        assert run("stn.fetch", *SVHN, cwd=tmp_path).returncode == 0
    for part in COUNTS:
        assert contents(Path("data/raw/svhn", part)) == contents(root / "parts" / part)
    assert {path.name for path in Path("data/raw/svhn").iterdir()} == set(COUNTS)
    store(base, Path("outputs/scratch"))
    assert contents(Path("data/stored/svhn_64")) == contents(cropped / "data/stored/svhn_64")


def test_a_folder_of_the_mirror_that_lacks_images_is_refused(made, monkeypatch, tmp_path):
    root, _ = made
    shutil.copytree(root / "parts", "mirror/svhn")
    next(Path("mirror/svhn/train").glob("*.png")).unlink()
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    line = one_error_after_notices(run("stn.fetch", *SVHN, cwd=tmp_path))
    assert "svhn/train holds 19 PNG images, not 20; replace it, or correct STN_DATA_MIRROR" in line
    assert not Path("data/raw/svhn/train").exists()


def test_a_folder_of_the_mirror_without_its_boxes_is_refused(made, monkeypatch, tmp_path):
    root, _ = made
    shutil.copytree(root / "parts", "mirror/svhn")
    Path("mirror/svhn/test/digitStruct.mat").unlink()
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    line = one_error_after_notices(run("stn.fetch", *SVHN, cwd=tmp_path))
    assert "svhn/test holds no digitStruct.mat; replace it, or correct STN_DATA_MIRROR" in line
    assert not Path("data/raw/svhn/test").exists()


def test_an_interrupted_copy_leaves_nothing_that_looks_whole(made, monkeypatch, tmp_path):
    root, _ = made
    shutil.copytree(root / "parts", "mirror/svhn")
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    copyfile, copied = shutil.copyfile, []

    def interrupted(*paths):
        copied.append(paths)
        if len(copied) == 5:
            raise KeyboardInterrupt
        copyfile(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", interrupted)
        assert run("stn.fetch", *SVHN, cwd=tmp_path).returncode == 130
    assert not Path("data/raw/svhn/train").exists()
    assert run("stn.fetch", *SVHN, cwd=tmp_path).returncode == 0
    assert contents(Path("data/raw/svhn/train")) == contents(root / "parts/train")


@pytest.mark.parametrize("harm", ["truncated", "without its boxes"])
def test_an_archive_of_the_right_size_that_is_broken_is_refused(made, monkeypatch, tmp_path, harm):
    root, _ = made
    shutil.copytree(root / "mirror/svhn", "mirror/svhn")
    broken = Path("mirror/svhn/train.tar.gz")
    if harm == "truncated":
        broken.write_bytes(broken.read_bytes()[:-2000])
    else:
        shutil.copytree(root / "parts/train", "train", ignore=shutil.ignore_patterns("*.mat"))
        pack(Path("train"), broken)
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    monkeypatch.setattr(data_module, "SVHN_BYTES", sizes(Path("mirror/svhn")))
    line = one_error_after_notices(run("stn.fetch", *SVHN, cwd=tmp_path))
    fault = "is not a complete tar.gz (Compressed file ended" if harm == "truncated" else "holds no digitStruct.mat"
    assert f"svhn/train.tar.gz {fault}" in line and "replace it, or correct STN_DATA_MIRROR" in line


def test_strips_without_a_mirror_are_one_line(tmp_path):
    line = one_error(run("stn.fetch", "data=svhn_strips_64", "model=svhn_cnn", cwd=tmp_path))
    assert line.endswith("set STN_DATA_MIRROR to a folder that holds svhn_strips/train")


def one_error_after_notices(result):
    """The error of a command that has told of its progress before."""
    assert result.returncode == 2, result.stderr
    *notices, line = result.stderr.splitlines()
    assert line.startswith("error: ") and not any(notice.startswith(("error", "Trace")) for notice in notices)
    return line


# Crop


def test_each_number_is_cropped_once_with_its_label(cropped, made, base):
    _, entries = made
    source, seen = numbers(cropped, base), {}
    for split, stored in source.sets.items():
        names = np.load(cropped / f"data/stored/svhn_64/{split}_names.npy")
        assert len(names) == source.count(split)
        for name, label, image in zip(names.tolist(), stored.labels.tolist(), stored.images, strict=True):
            assert name not in seen
            seen[name] = split
            part, file = name.split("/")
            digits = dict(entries[part])[file]
            assert label == [int(digit[4]) % 10 for digit in digits] + [10] * (5 - len(digits))
            assert (image[..., 2] == int(file.removesuffix(".png"))).all()  # blue tells which image it is
    assert len(seen) == sum(COUNTS.values()) and source.count("validation") == VALIDATION
    assert {name for name, split in seen.items() if split == "test"} == {f"test/{i + 1}.png" for i in range(7)}


@pytest.mark.parametrize("expand", [0.3, 1.0])
def test_the_crop_is_the_box_round_all_digits_grown_and_the_images_edge_goes_on(made, cropped, base, expand):
    root, entries = made
    source = numbers(cropped, base) if expand == 0.3 else None
    if source is None:
        raw(root / "parts", *COUNTS)
        store(changed(base, expand=expand), Path("outputs/scratch"))
        source = numbers(Path(), base, expand=expand)
    for name, image, box in zip(*named(source, "test"), strict=True):
        digits = np.array(dict(entries["test"])[name])
        x0, y0 = digits[:, 0].min(), digits[:, 1].min()
        x1, y1 = (digits[:, 0] + digits[:, 2]).max(), (digits[:, 1] + digits[:, 3]).max()
        width, height = Image.open(root / "parts/test" / name).size
        left, right = x0 - expand / 2 * (x1 - x0), x1 + expand / 2 * (x1 - x0)
        top, bottom = y0 - expand / 2 * (y1 - y0), y1 + expand / 2 * (y1 - y0)
        centre = (np.arange(64) + 0.5) / 64
        inner = slice(9, -9)  # near the border the filter meets the image's end
        red = np.clip(left + centre * (right - left) - 0.5, 0, width - 1)
        green = np.clip(top + centre * (bottom - top) - 0.5, 0, height - 1)
        np.testing.assert_allclose(image[32, inner, 0], red[inner], atol=0.75)
        np.testing.assert_allclose(image[inner, 32, 1], green[inner], atol=0.75)
        side = 1 / (1 + expand)
        np.testing.assert_allclose(box, [-side, -side, side, side], atol=1e-5)


def named(source, split):
    stored = source.sets[split]
    names = np.load(Path(source.data.stored) / f"{split}_names.npy").tolist()
    return [name.split("/")[1] for name in names], stored.images, stored.boxes


@pytest.mark.parametrize("workers", [1, 2])
def test_crops_have_the_same_bytes_whatever_the_number_of_workers(made, cropped, base, workers):
    root, _ = made
    raw(root / "mirror/svhn", *(f"{part}.tar.gz" for part in COUNTS))
    store(base, Path("outputs/scratch"), workers)
    assert contents(Path("data/stored/svhn_64")) == contents(cropped / "data/stored/svhn_64")


def test_an_interrupted_crop_leaves_nothing_and_ends_with_the_same_bytes(made, cropped, base, monkeypatch, tmp_path):
    root, _ = made
    raw(root / "mirror/svhn", *(f"{part}.tar.gz" for part in COUNTS))
    crop, calls = crops.crop, itertools.count()

    def interrupted(*given):
        if next(calls) == 25:
            raise KeyboardInterrupt
        return crop(*given)

    with monkeypatch.context() as patch:
        patch.setattr(crops, "crop", interrupted)
        assert run("stn.crop", *SVHN, cwd=tmp_path).returncode == 130
    assert not Path("data/stored").exists()
    assert run("stn.crop", *SVHN, cwd=tmp_path).returncode == 0
    assert contents(Path("data/stored/svhn_64")) == contents(cropped / "data/stored/svhn_64")


def test_the_boxes_are_read_once_and_again_when_the_archive_changes(made, base, monkeypatch):
    root, _ = made
    folder = raw(root / "mirror/svhn", *(f"{part}.tar.gz" for part in COUNTS))
    store(base, Path("outputs/scratch"))
    read = []
    monkeypatch.setattr(svhn, "digits_in", lambda path: read.append(path) or digits_in(path))
    store(changed(base, canvas=128), Path("outputs/scratch"))
    assert not read
    shutil.copyfile(root / "mirror/svhn/test.tar.gz", folder / "extra.tar.gz")
    store(base, Path("outputs/scratch"))
    assert len(read) == 1


BAD = {
    "2.png": "more than five digits",
    "3.png": "a box of size zero",
    "4.png": "its box outside the image",
    "5.png": "unreadable",
    "6.png": "unreadable",
    "7.png": "without an image",
    "9.png": "a label that is not 1 to 10",
    "99.png": "without an entry in digitStruct.mat",
}


def spoilt(root, folder):
    """A training part with every fault there is, and one box that the image only cuts (8.png)."""
    entries = dict(write_part(folder, 20, seed=0))
    for name, digits in {
        "2.png": [(1.0, 1.0, 2.0, 5.0, 1.0)] * 6,
        "3.png": [(5.0, 5.0, 0.0, 9.0, 1.0)],
        "4.png": [(250.0, 5.0, 9.0, 9.0, 1.0), (260.0, 5.0, 9.0, 9.0, 1.0)],
        "8.png": [(-6.0, 3.0, 12.0, 20.0, 4.0)],
        "9.png": [(5.0, 5.0, 9.0, 9.0, 11.0)],
    }.items():
        entries[name] = digits
    write_digit_struct(folder / "digitStruct.mat", list(entries.items()))
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:200])
    (folder / "6.png").write_text("<html>")
    (folder / "7.png").unlink()
    ramp(30, 30, 99).save(folder / "99.png")
    return entries


@pytest.mark.parametrize("packed", [True, False])
def test_what_cannot_be_cropped_is_named_counted_and_left_out(made, base, tmp_path, packed):
    root, _ = made
    raw(root / "mirror/svhn", "test.tar.gz")
    spoilt(root, tmp_path / "train")
    if packed:
        pack(tmp_path / "train", Path("data/raw/svhn/train.tar.gz"))
    else:
        shutil.move(tmp_path / "train", "data/raw/svhn/train")
    result = run("stn.crop", *SVHN, "data.extra=false", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    about = json.loads(Path("data/stored/svhn_64/sets.json").read_text())
    expected = {}
    for name, reason in BAD.items():
        expected.setdefault(reason, []).append(f"train/{name}")
        assert f"left out, {reason}: " in result.stdout and f"train/{name}" in result.stdout
    assert about["left_out"] == {"train": expected, "test": {}}
    source = numbers(Path(), base, extra=False)
    assert sum(source.count(split) for split in ("train", "validation")) == 20 + 1 - len(BAD)
    for split in ("train", "validation"):  # the gaps are closed: each row still is the image of its name
        names, images, boxes = named(source, split)
        assert [f"{image[0, 0, 2]}.png" for image in images] == names
        assert (np.abs(boxes) <= 1).all()


def test_a_closed_gap_leaves_the_file_as_if_the_row_had_never_been(tmp_path):
    rows = np.arange(7 * 4 * 4 * 3, dtype=np.uint8).reshape(7, 4, 4, 3)
    kept = np.array([1, 0, 1, 1, 0, 1, 0], bool)
    for name, shown in (("all", rows), ("some", rows[kept])):
        stored = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, shown.shape)
        stored[:] = shown
        stored.flush()
    crops._close_gaps(tmp_path / "all.npy", kept)
    assert (tmp_path / "all.npy").read_bytes() == (tmp_path / "some.npy").read_bytes()


def test_a_truncated_archive_is_named(made, tmp_path):
    root, _ = made
    folder = raw(root / "mirror/svhn", *(f"{part}.tar.gz" for part in COUNTS))
    (folder / "extra.tar.gz").write_bytes((folder / "extra.tar.gz").read_bytes()[:-3000])
    line = one_error(run("stn.crop", *SVHN, cwd=tmp_path))
    assert "data/raw/svhn/extra.tar.gz is not a complete tar.gz (Compressed file ended" in line
    assert "delete it and run `python -m stn.fetch` again" in line and not Path("data/stored").exists()


@pytest.mark.parametrize("packed", [True, False])
def test_a_part_without_its_boxes_is_named(made, tmp_path, packed):
    root, _ = made
    folder = raw(root / "parts", *COUNTS)
    (folder / "test/digitStruct.mat").unlink()
    if packed:
        pack(folder / "test", folder / "test.tar.gz")
    line = one_error(run("stn.crop", *SVHN, cwd=tmp_path))
    assert f"data/raw/svhn/test{'.tar.gz' * packed} holds no digitStruct.mat and no labels.json; delete it" in line


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.canvas=96", "data.canvas=96: house numbers are cropped to 64 or 128 pixels"),
        ("data.validation=36", "data.validation=36 leaves none of the 36 numbers to train on"),
        ("data.raw=data/none", "data/none/train.tar.gz is missing: run `python -m stn.fetch data=svhn_64`"),
    ],
)
def test_a_config_that_cannot_be_cropped_is_one_line(made, tmp_path, change, told):
    root, _ = made
    raw(root / "parts", *COUNTS)
    assert told in one_error(run("stn.crop", *SVHN, change, cwd=tmp_path))


def test_a_missing_extra_says_that_it_can_be_left_out(made, base):
    root, _ = made
    raw(root / "parts", "train", "test")
    with pytest.raises(UserError, match=r"svhn/extra.tar.gz is missing.* or leave it out with data.extra=false"):
        store(base, Path("outputs/scratch"))


def test_a_disk_without_room_is_told_before_anything_is_cropped(made, base, monkeypatch):
    root, _ = made
    raw(root / "parts", *COUNTS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 100_000))
    with pytest.raises(UserError, match=r"the crops need 0.0 GB, outputs/scratch has 0.0 GB: make room"):
        store(base, Path("outputs/scratch"))


def test_a_placed_number_stands_whole_on_the_canvas_at_a_random_place(made, base):
    root, entries = made
    raw(root / "parts", *COUNTS)
    place = {"place": [0.3, 0.7], "canvas": 128}
    for folder in ("once", "again"):
        store(changed(base, **place, stored=f"{folder}/data/stored/svhn_64"), Path("outputs/scratch"))
    assert contents(Path("once/data/stored/svhn_64")) == contents(Path("again/data/stored/svhn_64"))
    source = numbers(Path("once"), base, **place)
    names, images, boxes = named(source, "train")
    shares = (boxes[:, 2:] - boxes[:, :2]).max(1) / 2
    assert (shares > 0.28).all() and (shares < 0.72).all() and shares.std() > 0.05
    assert (np.abs(boxes) <= 1 + 1e-6).all() and (((boxes[:, :2] + boxes[:, 2:]) / 2).std(0) > 0.15).all()
    parts = [name.split("/")[0] for name in np.load("once/data/stored/svhn_64/train_names.npy").tolist()]
    for part, name, image, box in zip(parts, names, images, boxes, strict=True):
        digits = np.array(dict(entries[part])[name])
        x0, x1 = digits[:, 0].min(), (digits[:, 0] + digits[:, 2]).max()
        left, top, right, bottom = (box + 1) * 64
        column, row = int((left + right) / 2), int((top + bottom) / 2)
        expected = x0 + (column + 0.5 - left) / (right - left) * (x1 - x0) - 0.5  # red is the image's column
        assert abs(float(image[row, column, 0]) - expected) < 1.5
        assert (image[..., 2] == int(name.removesuffix(".png"))).all()  # surroundings of the image's own colour


# Whole photographs


NUMBERS = {"000000.png": "159", "000001.png": "20", "000003.png": "7", "000004.png": "00123", "000007.png": "88"}
PHOTOGRAPHS = ("data=svhn_photos_128", "model=svhn_cnn", "data.validation=2")


def photograph_mirror(root) -> None:
    """The folder `mirror`: photographs, and strips of which the test part is tested on."""
    write_photographs(Path("mirror/svhn_photos/train"), NUMBERS)
    shutil.copytree(root / "parts/train", "mirror/svhn_strips/train")
    shutil.copytree(root / "parts/test", "mirror/svhn_strips/test")


def test_photographs_and_strips_come_from_two_folders_of_the_mirror(made, monkeypatch, tmp_path):
    root, _ = made
    photograph_mirror(root)
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    assert run("stn.fetch", *PHOTOGRAPHS, cwd=tmp_path).returncode == 0
    places = {"train": "svhn_photos/train", "extra": "svhn_strips/train", "test": "svhn_strips/test"}
    for part, place in places.items():
        assert contents(Path("data/raw/svhn_photos", part)) == contents(Path("mirror", place))
    shutil.rmtree("data/raw")
    assert run("stn.fetch", *PHOTOGRAPHS, "data.extra=false", cwd=tmp_path).returncode == 0
    assert sorted(contents(Path("data/raw/svhn_photos/train"))) == sorted([*NUMBERS, "labels.json"])
    assert not Path("data/raw/svhn_photos/extra").exists()


def test_photographs_without_labels_or_a_mirror_are_one_line(made, monkeypatch, tmp_path):
    root, _ = made
    line = one_error(run("stn.fetch", *PHOTOGRAPHS, cwd=tmp_path))
    assert line.endswith("set STN_DATA_MIRROR to a folder that holds svhn_photos/train")
    photograph_mirror(root)
    shutil.rmtree("mirror/svhn_strips")
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    line = one_error_after_notices(run("stn.fetch", *PHOTOGRAPHS, cwd=tmp_path))
    assert line.endswith("set STN_DATA_MIRROR to a folder that holds svhn_strips/test")
    shutil.rmtree("data/raw")
    Path("mirror/svhn_photos/train/labels.json").unlink()
    line = one_error_after_notices(run("stn.fetch", *PHOTOGRAPHS, cwd=tmp_path))
    assert "svhn_photos/train holds no labels.json; replace it, or correct STN_DATA_MIRROR" in line


@pytest.fixture(scope="module")
def photographs(made, tmp_path_factory):
    """The config, and the stored sets, of whole photographs with strips to train on."""
    root, folder = made[0], tmp_path_factory.mktemp("photographs")
    raw_data = folder / "raw"
    write_photographs(raw_data / "train", NUMBERS)
    shutil.copytree(root / "parts/train", raw_data / "extra")
    shutil.copytree(root / "parts/test", raw_data / "test")
    data = changed(compose(*PHOTOGRAPHS).data, raw=str(raw_data), stored=str(folder / "stored"))
    store(data, folder / "scratch")
    return data


def opened(data) -> dict:
    """(names, images, boxes, labels) of each stored set."""
    source = SvhnSource(data)
    for split in ("train", "validation", "test"):
        source.load(split)
    return {
        split: (
            np.load(Path(data.stored, f"{split}_names.npy")).tolist(),
            stored.images,
            stored.boxes,
            stored.labels.tolist(),
        )
        for split, stored in source.sets.items()
    }


def test_a_whole_image_becomes_the_canvas_and_boxes_lie_in_its_frame(photographs, made):
    root, entries = made
    sets = opened(photographs)
    shown = [(split, *row) for split, rows in sets.items() for row in zip(*rows, strict=True)]
    whole = [row for row in shown if not row[1].startswith("extra/")]
    assert len(whole) == len(NUMBERS) + COUNTS["test"]
    folders = {"train": Path(photographs.raw, "train"), "test": root / "parts/test"}
    for _, name, image, box, label in whole:
        part, file = name.split("/")
        width, height = Image.open(folders[part] / file).size
        centre, inner = (np.arange(128) + 0.5) / 128, slice(9, -9)  # near the border the filter meets the image's end
        np.testing.assert_allclose(image[64, inner, 0], (centre * width - 0.5)[inner], atol=0.75)
        np.testing.assert_allclose(image[inner, 64, 1], (centre * height - 0.5)[inner], atol=0.75)
        if part == "train":
            digits = [int(digit) for digit in NUMBERS[file]]
            np.testing.assert_array_equal(box, [-1, -1, 1, 1])
        else:
            boxes = np.array(dict(entries["test"])[file])
            digits = [int(digit) % 10 for digit in boxes[:, 4]]
            corners = [boxes[:, 0].min(), boxes[:, 1].min()]
            corners += [(boxes[:, 0] + boxes[:, 2]).max(), (boxes[:, 1] + boxes[:, 3]).max()]
            np.testing.assert_allclose(box, 2 * np.array(corners) / [width, height, width, height] - 1, atol=1e-5)
        assert label == digits + [10] * (5 - len(digits))


def test_strips_beside_whole_photographs_are_placed_and_none_validates(photographs):
    sets = opened(photographs)
    assert len(sets["validation"][0]) == 2 and all(name.startswith("train/") for name in sets["validation"][0])
    names, _, boxes, _ = sets["train"]
    assert sorted(name.split("/")[0] for name in names) == ["extra"] * COUNTS["train"] + ["train"] * 3
    strips = boxes[[name.startswith("extra/") for name in names]]
    sides = (strips[:, 2:] - strips[:, :2]) / 2
    assert (sides > [0.13, 0.33]).all() and (sides < [0.62, 0.87]).all() and (sides.std(0) > 0.1).all()
    assert abs(np.corrcoef(sides.T)[0, 1]) < 0.5  # each side by itself
    assert (((strips[:, :2] + strips[:, 2:]) / 2).std(0) > 0.1).all()


def test_photographs_and_strips_have_the_same_bytes_whenever_they_are_stored(photographs, tmp_path):
    again = changed(photographs, stored=str(tmp_path / "again"))
    store(again, tmp_path / "scratch", workers=2)
    assert contents(Path(again.stored)) == contents(Path(photographs.stored))


def test_photographs_are_read_from_an_archive_alike(photographs, tmp_path):
    pack(Path(photographs.raw, "train"), tmp_path / "train.tar.gz")
    table, images = table_of(tmp_path / "train.tar.gz", tmp_path)
    expected, listed = table_of(Path(photographs.raw, "train"), tmp_path)
    assert images == listed == set(NUMBERS) and table.labels[:3].tolist() == [1, 5, 9]
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(vars(table)[name], value)


def test_photographs_need_no_h5py(photographs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert len(table_of(Path(photographs.raw, "train"), tmp_path)[0].names) == len(NUMBERS)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("{", "labels.json is not a labels.json of photographs (Expecting property name"),
        (b"\xff{}", "labels.json is not a labels.json of photographs ("),
        ("[1, 2]", "labels.json is not a labels.json of photographs (not a JSON object); delete it and run"),
        ('{"a.png": {"number": "1"}, "a.png": {"number": "2"}}', "(a.png appears twice)"),
        ({"000001.png": None}, 'labels.json says null of 000001.png, not a number of 1 to 5 digits such as {"number"'),
        ({"000001.png": {"number": "123456"}}, 'says {"number": "123456"} of 000001.png, not a number of 1 to 5'),
        ({"000001.png": {"number": ""}}, 'says {"number": ""} of 000001.png'),
        ({"000001.png": {"number": "1O"}}, 'says {"number": "1O"} of 000001.png'),
        ({"000001.png": {"number": 20}}, 'says {"number": 20} of 000001.png'),
        ({"000001.png": {"agree": "A3"}}, 'says {"agree": "A3"} of 000001.png'),
        ({"000001.png": "20"}, 'says "20" of 000001.png'),
        ({"000009.png": {"number": "9"}}, "has a label for 000009.png, which is not there: delete the entry, or add"),
        ("000003.png", "has no label for 000003.png: add its number, or delete the photograph"),
    ],
)
def test_photographs_and_labels_that_do_not_fit_are_one_line(photographs, tmp_path, harm, told):
    shutil.copytree(photographs.raw, "raw")
    path = Path("raw/train/labels.json")
    labels = json.loads(path.read_text())
    if isinstance(harm, dict):
        path.write_text(json.dumps(labels | harm))
    elif harm in labels:
        del labels[harm]
        path.write_text(json.dumps(labels))
    else:
        path.write_bytes(harm if isinstance(harm, bytes) else harm.encode())
    line = one_error(run("stn.crop", *PHOTOGRAPHS, "data.raw=raw", cwd=tmp_path))
    assert "raw/train/labels.json" in line and told in line
    assert not Path("data/stored").exists()


def test_a_validation_set_larger_than_the_photographs_is_one_line(photographs):
    with pytest.raises(UserError, match=r"data.validation=5 leaves none of the 5 numbers to train on"):
        store(changed(photographs, validation=5), Path("outputs/scratch"))


def test_only_whole_images_have_another_recipe(photographs, base):
    assert recipe(photographs)["whole"] is True
    assert list(recipe(base)) == ["source", "extra", "canvas", "expand", "place", "validation", "seed"]
    with pytest.raises(UserError, match="was stored with whole=True"):
        SvhnSource(changed(photographs, whole=False)).load("test")


# Training starts


def test_crops_that_are_missing_damaged_or_of_another_config_name_the_command(cropped, base):
    folder = Path("data/stored/svhn_64")
    mend = "run `python -m stn.crop data=svhn_64`"

    def refused(**changes) -> str:
        with pytest.raises(UserError) as caught:
            SvhnSource(changed(base, **changes)).load("train")
        assert mend in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "data/stored/svhn_64/sets.json is missing" in refused()
    shutil.copytree(cropped / folder, folder)
    assert "was stored with expand=0.3 (not 1.0), validation=6 (not 7)" in refused(expand=1.0, validation=7)
    images = folder / "train_images.npy"
    whole = images.read_bytes()
    images.write_bytes(whole[:-100])
    assert "data/stored/svhn_64 is damaged" in refused()
    images.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    assert "data/stored/svhn_64: its train set is not what was written there" in refused()
    images.unlink()
    assert "train_images.npy is missing" in refused()
    (folder / "sets.json").write_text("{")
    assert "data/stored/svhn_64 is damaged" in refused()


def test_a_window_larger_than_the_crop_is_refused(base):
    with pytest.raises(UserError, match=r"data.window=65 is not a part of a crop of 64 pixels"):
        SvhnSource(changed(base, window=65))


# Batches


def test_batches_are_the_stored_pixels_and_images_stay_on_the_disk(cropped, base):
    source = numbers(cropped, base)
    assert source.shape == (3, 64, 64)
    index = torch.tensor([5, 0, 5, 3])
    images, labels = source.batch("train", index, CPU)
    stored = source.sets["train"]
    assert isinstance(stored.images, np.memmap)
    assert images.dtype == torch.float32 and images.is_contiguous(memory_format=torch.channels_last)
    expected = torch.from_numpy(stored.images[index.numpy()]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(images, expected, rtol=0, atol=0)
    assert labels.dtype == torch.int64 and torch.equal(labels, stored.labels[index])
    drawn, _ = source.train_batch(index, generator(0, "x"), 4, slice(None), CPU)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)


def test_windows_are_random_in_training_and_central_in_tests(cropped, base):
    source = numbers(cropped, base, window=54)
    assert source.shape == (3, 54, 54)
    index = torch.zeros(400, dtype=torch.long)
    stored = torch.from_numpy(np.array(source.sets["train"].images[0])).permute(2, 0, 1) / 255
    windows = stored.unfold(1, 54, 1).unfold(2, 54, 1).permute(1, 2, 0, 3, 4)  # (11, 11, 3, 54, 54)
    assert torch.equal(source.batch("train", index[:1], CPU)[0][0], windows[5, 5])
    drawn, _ = source.train_batch(index, generator(0, "x"), 400, slice(None), CPU)
    found = {divmod((windows.flatten(0, 1) == image).flatten(1).all(1).nonzero()[0, 0].item(), 11) for image in drawn}
    assert {y for y, _ in found} == {x for _, x in found} == set(range(11))


def test_centred_images_have_a_mean_of_zero(cropped, base):
    index = torch.arange(4)
    plain, centred = numbers(cropped, base).batch("test", index, CPU)[0], numbers(cropped, base, centred=True)
    images = centred.batch("test", index, CPU)[0]
    torch.testing.assert_close(images, plain - plain.mean((1, 2, 3), keepdim=True))
    drawn = centred.train_batch(index, generator(0, "x"), 4, slice(None), CPU)[0]
    assert drawn.mean((1, 2, 3)).abs().max() < 1e-5


AUGMENT = {"scale": 0.1, "shift": 0.06, "contrast": 0.3, "blur": 0.5}


def test_augmentation_zooms_shifts_and_changes_contrast_within_its_bounds(cropped, base):
    ramps = np.asarray(ramp(64, 64, blue=127))[None] * 2
    drawn = {}
    for kind, size in AUGMENT.items():
        source = numbers(cropped, base, augment=dict.fromkeys(AUGMENT, 0) | {kind: size})
        source.sets["train"].images = ramps
        index = torch.zeros(300, dtype=torch.long)
        images, _ = source.train_batch(index, generator(0, "x"), 300, slice(None), CPU)
        assert images.min() >= 0 and images.max() <= 1
        drawn[kind] = images * 255 / 2  # red is the column, green the row

    def between(values, low, high):
        """Drawn from all of U(low, high), and from nothing else."""
        assert (
            low - 1e-3 < values.min() < low + (high - low) / 30
            and high - (high - low) / 30 < values.max() < high + 1e-3
        )

    for channel in 0, 1:
        between(drawn["shift"][:, channel, 32, 32] - 32, -0.06 * 64, 0.06 * 64)
    for kind, low, high in (("scale", 0.9, 1.1), ("contrast", 0.7, 1.3)):
        between((drawn[kind][:, 0, 32, 40] - drawn[kind][:, 0, 32, 24]) / 16, low, high)


def test_random_windows_of_training_images_hold_their_numbers(cropped, base):
    source = numbers(cropped, base, augment=dict.fromkeys(AUGMENT, 0), held=[0.5, 0.8])
    source.sets["train"].images = np.asarray(ramp(64, 64, blue=127))[None] * 2
    source.sets["train"].boxes = np.array([[-0.2, -0.5, 0.3, 0.4]], np.float32)
    index = torch.zeros(1000, dtype=torch.long)
    images, _ = source.random_batch(index, generator(0, "x"), 1000, slice(None), CPU)
    shown = images[:, :2] * 255 / 2  # red is the column, green the row
    columns, rows = shown[:, 0, 32], shown[:, 1, :, 32]
    sides = torch.stack([columns[:, -1] - columns[:, 0], rows[:, -1] - rows[:, 0]], 1) / 63
    shares = torch.tensor([0.25, 0.45]) / sides
    assert (shares > 0.5 - 1e-2).all() and (shares < 0.8 + 1e-2).all() and (shares.std(0) > 0.05).all()
    box = torch.tensor([-0.2, -0.5, 0.3, 0.4]) * 32 + 31.5  # the centre of pixel 0 is half a pixel from the edge
    for values, low, high in ((columns, box[0], box[2]), (rows, box[1], box[3])):
        assert (values[:, 0] < low + 1).all() and (values[:, -1] > high - 1).all() and values[:, 0].std() > 2
    source.sets["train"].boxes = np.array([[-1, -1, 1, 1]], np.float32)  # of a photograph
    whole, _ = source.random_batch(index[:4], generator(0, "x"), 4, slice(None), CPU)
    torch.testing.assert_close(whole, source.train_batch(index[:4], generator(0, "x"), 4, slice(None), CPU)[0])


def test_blur_goes_towards_the_mean_of_five_by_five_pixels(cropped, base):
    source = numbers(cropped, base, augment=dict.fromkeys(AUGMENT, 0) | {"blur": 0.5})
    spots = np.zeros((1, 64, 64, 3), np.uint8)
    spots[0, ::9, ::7] = 255
    source.sets["train"].images = spots
    images, _ = source.train_batch(torch.zeros(300, dtype=torch.long), generator(0, "x"), 300, slice(None), CPU)
    sharp = spots[0, :, :, 0] / 255.0
    blurred = uniform_filter(sharp, 5, mode="constant") / uniform_filter(np.ones_like(sharp), 5, mode="constant")
    amount = (1 - images[:, 0, 9, 7].numpy()) / (1 - blurred[9, 7])
    assert 0 <= amount.min() < 0.02 and 0.48 < amount.max() <= 0.5
    expected = sharp + amount[:, None, None] * (blurred - sharp)
    np.testing.assert_allclose(images[:, 0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("window", [None, 54])
def test_a_batch_is_a_function_of_the_draws_and_processes_share_it(cropped, base, window):
    source = numbers(cropped, base, window=window, augment=AUGMENT)
    index = torch.arange(8)

    def batch(step, part=slice(None)):
        return source.train_batch(index[part], generator(3, "distortion", step), 8, part, CPU)

    whole, labels = batch(1)
    assert torch.equal(whole, batch(1)[0]) and not torch.equal(whole, batch(2)[0])
    for rank in range(2):
        part = slice(rank, None, 2)
        images, of_part = batch(1, part)
        torch.testing.assert_close(images, whole[part])
        assert torch.equal(of_part, labels[part])
    assert whole.is_contiguous(memory_format=torch.channels_last)


# What the report shows


class Looker(nn.Module):
    """Says zeros everywhere and looks at the left half, then at the upper part of it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return nn.functional.one_hot(torch.zeros(len(images), 5, dtype=torch.long), 11).float()

    def windows(self, images):
        left = torch.tensor([[-1.0, -1.0], [0.0, -1.0], [0.0, 1.0], [-1.0, 1.0]])
        return torch.stack([left, left * torch.tensor([1.0, 0.5])]).expand(len(images), 2, 4, 2)

    def seen(self, images):
        return images.flip(3)


@pytest.mark.parametrize("changes", [{}, {"window": 54, "centred": True}])
def test_evidence_shows_windows_boxes_and_wrongly_read_numbers(cropped, base, changes):
    source = numbers(cropped, base, **changes)
    side = source.side
    correct = np.ones(7, bool)
    found = source.evidence(Looker(), {"theta1": np.zeros((7, 6)), "correct": correct})
    assert {name: (array.shape, str(array.dtype)) for name, array in found.items()} == {
        "example_input": ((7, side, side, 3), "uint8"),
        "example_label": ((7, 5), "uint8"),
        "example_said": ((7, 5), "uint8"),
        "example_seen": ((7, side, side, 3), "uint8"),
        "example_windows": ((7, 2, 4, 2), "float16"),
        "window_all": ((7, 2, 4, 2), "float16"),
        "box": ((7, 4), "float16"),
    }
    start = (64 - side) // 2
    stored = source.sets["test"]
    np.testing.assert_array_equal(found["example_input"], stored.images[:, start : start + side, start : start + side])
    np.testing.assert_allclose(found["example_seen"], found["example_input"][:, :, ::-1], atol=1)
    assert (found["example_said"] == 0).all() and (found["window_all"][:, 0, 1, 0] == 0).all()
    left = (stored.boxes[:, 0] + 1) * 32 - start  # in pixels of the window
    np.testing.assert_allclose(found["box"][:, 0], 2 * left / side - 1, atol=2e-3)
    assert source.evidence(Looker(), {"correct": correct}) == {}


def test_evidence_adds_four_wrongly_read_numbers(cropped, base):
    source = numbers(cropped, base)
    source.sets["test"] = source.sets["train"]
    correct = np.arange(source.count("test")) % 2 == 0
    found = source.evidence(Looker(), {"theta1": np.zeros(1), "correct": correct})
    chosen = [*range(8), 9, 11, 13, 15]
    np.testing.assert_array_equal(found["example_label"], source.sets["test"].labels[chosen])


def test_evidence_of_whole_images_moves_each_number_as_far_as_it_stays_inside(cropped, base):
    """Numbers are red: where the red is in a moved image is measured without the source."""
    source, side, n = numbers(cropped, base), 64, 60
    source.data = OmegaConf.merge(source.data, {"whole": True})
    draws = np.random.RandomState(0)
    images, boxes = np.full((n, side, side, 3), 90, np.uint8), np.zeros((n, 4))
    for image, box in zip(images, boxes, strict=True):
        left, top = draws.randint(1, side - 5, 2)  # the outermost pixels go on, and are not red
        right, bottom = draws.randint((left + 4, top + 4), side)
        image[top:bottom, left:right] = 255, 0, 0
        box[:] = np.array([left, top, right, bottom]) * 2 / side - 1
    labels = torch.full((n, 5), 10)
    labels[::2] = 0  # what Looker says
    source.sets["test"] = StoredSvhn(images, labels, boxes)
    evidence = source.evidence(Looker(), {"theta1": np.zeros((n, 6)), "correct": np.ones(n, bool)})
    np.testing.assert_array_equal(evidence["moved_correct"], np.arange(n) % 2 == 0)
    np.testing.assert_array_equal(evidence["moved_said"], np.zeros((8, 5)))
    np.testing.assert_allclose(evidence["moved_seen"], evidence["moved_input"][:, :, ::-1], atol=1)
    assert evidence["moved_window_all"].shape == (n, 2, 4, 2)
    moved = evidence["moved_box"].astype(float)
    assert (np.abs(moved) <= 1 + 1e-3).all()
    np.testing.assert_allclose(moved[:, 2:] - moved[:, :2], boxes[:, 2:] - boxes[:, :2], atol=4e-3)
    for image, box in zip(evidence["moved_input"].astype(float), moved[:8], strict=True):
        red = np.clip((image[..., 0] - image[..., 1]) / 255, 0, 1)
        inner = (box + 1) * side / 2
        for axis, (low, high) in enumerate((inner[[0, 2]], inner[[1, 3]])):
            place = np.flatnonzero(red.max(axis) > 0.5)
            assert abs(place[0] - low) <= 1 and abs(place[-1] + 1 - high) <= 1
    # The places are uniform in the room that there is: not all at one side, nor in the middle.
    room = 2 - (boxes[:, 2:] - boxes[:, :2])
    share = (moved[:, :2] + 1) / room
    assert (share.min(0) < 0.15).all() and (share.max(0) > 0.85).all()


def test_evidence_of_whole_images_is_there_for_a_network_without_a_transformer(cropped, base):
    source = numbers(cropped, base)
    source.data = OmegaConf.merge(source.data, {"whole": True})
    evidence = source.evidence(Looker(), {"correct": np.ones(7, bool)})
    assert {name: array.shape for name, array in evidence.items()} == {"moved_correct": (7,), "moved_said": (7, 5)}


# Real images


@real
def test_a_real_digit_struct_is_read():
    table = digits_in(STRIPS / "train/digitStruct.mat")
    assert len(table.names) == 5033 and len(table.labels) == table.start[-1] == 10_000


@real
def test_real_images_are_fetched_and_cropped(monkeypatch, tmp_path, base):
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    mirror = Path("mirror/svhn_strips")
    mirror.mkdir(parents=True)
    (mirror / "train").symlink_to(STRIPS / "test")  # whole original images, few enough for a test
    (mirror / "test").symlink_to(STRIPS / "test")
    overrides = (
        "data=svhn_strips_64",
        "model=svhn_cnn",
        "data.canvas=128",
        "data.place=[0.3,0.7]",
        "data.validation=56",
    )
    for command in ("stn.fetch", "stn.crop"):
        result = run(command, *overrides, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    data = compose(*overrides).data
    source = SvhnSource(data)
    for split, n in {"train": 200, "validation": 56, "test": 256}.items():
        source.load(split)
        assert source.count(split) == n
    images, labels = source.train_batch(torch.arange(32), generator(0, "x"), 32, slice(None), CPU)
    assert images.shape == (32, 3, 128, 128) and images.std() > 0.1
    assert ((labels[:, 1:] == 10) >= (labels[:, :-1] == 10)).all() and (labels[:, 0] < 10).all()
    assert (np.abs(source.sets["test"].boxes) <= 1 + 1e-6).all()
    assert json.loads(Path(data.stored, "sets.json").read_text())["left_out"] == {"train": {}, "test": {}}


@real
def test_real_images_crop_alike_from_a_folder_and_from_an_archive(base):
    for name in ("folder", "archive"):
        folder = Path(name)
        folder.mkdir()
        for part in ("train", "test"):
            if name == "folder":
                (folder / part).symlink_to(STRIPS / "test")
            else:
                pack(STRIPS / "test", folder / f"{part}.tar.gz")
        data = changed(base, raw=name, stored=f"{name}/cropped", extra=False)
        store(data, Path("outputs/scratch"))
    assert contents(Path("folder/cropped")) == contents(Path("archive/cropped"))


# Training


@pytest.mark.parametrize(("model", "transformers"), [("svhn_cnn", 0), ("svhn_st_single", 1), ("svhn_st_multi", 4)])
def test_a_run_leaves_a_record_with_windows(cropped, tmp_path, model, transformers):
    record = tmp_path / f"svhn_64-{model}"
    sizes = ("model.width=0.05", "budget.steps=3", "budget.batch_size=4", "budget.validate_every=3")
    command = (*SVHN[::2], f"model={model}", "budget=smoke", "logger=none", f"record={record}", f"outputs={tmp_path}")
    result = run("stn.train", *command, *sizes, cwd=cropped)
    assert result.returncode == 0, result.stderr
    facts, arrays = json.loads(record.with_suffix(".json").read_text()), np.load(record.with_suffix(".npz"))
    (shown,) = load_records(HOUSE_NUMBERS, [record.with_suffix(".json")])
    assert (shown.row.model, shown.column.label) == (model, "64 px")
    assert facts["n_test"] == COUNTS["test"] and facts["multiply_adds"] > 0
    np.testing.assert_array_equal(arrays["positions"].all(1), arrays["correct_s0"])
    assert [name for name in arrays.files if name.startswith("theta")] == [
        f"theta{i}" for i in range(1, transformers + 1)
    ]
    if transformers:
        assert arrays["window_all"].shape == (COUNTS["test"], transformers, 4, 2)
        assert arrays["box"].shape == (COUNTS["test"], 4) and arrays["example_seen"].shape[1:] == (64, 64, 3)
        draw_windows([shown]).save(tmp_path / "table2.png")
        assert (tmp_path / "table2.png").stat().st_size > 1000


def test_data_needs_no_network_of_its_table(tmp_path):
    assert "stn.fetch" in one_error(run("stn.crop", "data=svhn_64", cwd=tmp_path))
