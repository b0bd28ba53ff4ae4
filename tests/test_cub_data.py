"""Birds from archive to batch, on small archives in the exact form of CUB-200-2011; on real images where there are."""

import hashlib
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from scipy.ndimage import map_coordinates
from torch import nn

from conftest import one_error, run
from cub_archive import PARTS, pack, ramp, write_cub
from stn.config import compose
from stn.data.draws import generator
from stn.errors import UserError
from stn.experiments.cub import archive as cub
from stn.experiments.cub import data as data_module
from stn.experiments.cub.archive import store
from stn.experiments.cub.data import CubSource
from stn.experiments.cub.regions import REGIONS
from stn.experiments.cub.table import BIRDS as TABLE
from stn.report.records import load_records
from stn.training.data_module import DataModule

CLASSES, TRAINING, TEST, VALIDATION = 4, 5, 3, 2
SIDE, CANVAS = 64, 48
SETTINGS = (f"data.classes={CLASSES}", f"data.side={SIDE}", f"data.canvas={CANVAS}", f"data.validation={VALIDATION}")
BIRDS = ("data=cub_224", *SETTINGS)
SETS = {"train": CLASSES * (TRAINING - VALIDATION), "validation": CLASSES * VALIDATION, "test": CLASSES * TEST}
CUB, STORED = Path("data/raw/cub/CUB_200_2011"), Path("data/stored/cub_224")
CPU = torch.device("cpu")
MIRROR = os.environ.get("STN_DATA_MIRROR", "")
REAL = Path(MIRROR, "cub/CUB_200_2011").resolve() if MIRROR and "://" not in MIRROR else None
real = pytest.mark.skipif(REAL is None or not REAL.is_dir(), reason="STN_DATA_MIRROR has no cub/CUB_200_2011")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with `CUB_200_2011` and the mirror `mirror/cub/CUB_200_2011.tgz`."""
    root = tmp_path_factory.mktemp("made")
    pack(write_cub(root, CLASSES, TRAINING, TEST), root / "mirror/cub/CUB_200_2011.tgz")
    return root


@pytest.fixture(scope="module")
def base():
    return compose("model=cub_cnn", *BIRDS).data


@pytest.fixture(scope="module")
def stored(made, tmp_path_factory):
    """A folder in which the archive is fetched and stored through the front doors."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STN_DATA_MIRROR", str(made / "mirror"))
        official(patch, made / "mirror/cub/CUB_200_2011.tgz")
        for command in ("stn.fetch", "stn.crop"):
            result = run(command, *BIRDS, cwd=folder)
            assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STN_DATA_MIRROR", raising=False)


def official(patch, archive: Path) -> None:
    """Take an archive for the official one."""
    patch.setattr(data_module, "CUB_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    patch.setattr(data_module, "CUB_BYTES", archive.stat().st_size)
    patch.setattr(data_module, "CUB_URLS", ())


def changed(data: DictConfig, **changes) -> DictConfig:
    return OmegaConf.merge(data, changes)


def birds(folder, base, **changes) -> CubSource:
    """The opened sets of a folder."""
    source = CubSource(changed(base, stored=str(folder / STORED), **changes))
    for split in SETS:
        source.load(split)
    return source


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def last_line(result) -> str:
    """The error of a command that may have told of its progress before."""
    assert result.returncode == 2, result.stderr
    *notices, line = result.stderr.splitlines()
    assert line.startswith("error: ") and not any(notice.startswith(("error", "Trace")) for notice in notices)
    return line


def edited(path: Path, change) -> None:
    """The lines of a text file, changed."""
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


# Fetch


def test_the_archive_comes_from_the_mirror_and_stays_packed(stored, made):
    assert contents(stored / "data/raw/cub") == contents(made / "mirror/cub")


def test_the_official_archive_is_known_by_its_checksum():
    assert (data_module.CUB_MD5, data_module.CUB_BYTES) == ("97eceeb196236b17998738112f37df78", 1_150_585_339)
    assert data_module.CUB_URLS[0] == "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"


def test_a_folder_of_the_mirror_is_copied_whole_and_stored_alike(made, stored, monkeypatch, tmp_path):
    shutil.copytree(made / "CUB_200_2011", "mirror/cub/CUB_200_2011")
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    for _ in "once", "again":
        assert run("stn.fetch", *BIRDS, cwd=tmp_path).returncode == 0
    copied, there = contents(CUB), contents(made / "CUB_200_2011")
    assert copied == {name: there[name] for name in there if name.startswith("images/") or name in cub.TEXTS}
    assert [path.name for path in CUB.parent.iterdir()] == ["CUB_200_2011"]
    assert run("stn.crop", *BIRDS, cwd=tmp_path).returncode == 0
    assert contents(STORED) == contents(stored / STORED)


def test_the_archive_of_a_mirror_goes_before_its_folder(made, monkeypatch, tmp_path):
    shutil.copytree(made / "CUB_200_2011", "mirror/cub/CUB_200_2011")
    shutil.copy(made / "mirror/cub/CUB_200_2011.tgz", "mirror/cub")
    official(monkeypatch, Path("mirror/cub/CUB_200_2011.tgz"))
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    assert run("stn.fetch", *BIRDS, cwd=tmp_path).returncode == 0
    assert [path.name for path in CUB.parent.iterdir()] == ["CUB_200_2011.tgz"]


def test_a_mirror_that_holds_a_part_says_how_many_classes_it_has(made, monkeypatch, tmp_path):
    shutil.copytree(made / "CUB_200_2011", "mirror/cub/CUB_200_2011")
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    line = last_line(run("stn.fetch", *BIRDS, "data.classes=200", cwd=tmp_path))
    assert "cub/CUB_200_2011 holds 4 classes, not data.classes=200 (data.classes=4 takes these)" in line
    assert not CUB.exists()
    assert run("stn.fetch", *BIRDS, cwd=tmp_path).returncode == 0
    line = one_error(run("stn.crop", *BIRDS, "data.classes=5", cwd=tmp_path))
    assert "data/raw/cub/CUB_200_2011 holds 4 classes, not data.classes=5" in line


def test_images_of_fewer_classes_than_the_text_files_name_are_counted(made):
    shutil.copytree(made / "CUB_200_2011", CUB)
    shutil.rmtree(next(CUB.glob("images/003.*")))
    assert cub.fault(CUB, 4).startswith("holds 2 classes, not data.classes=4") and cub.fault(CUB, 2) is None


def test_a_folder_of_too_few_classes_is_fetched_again(made, monkeypatch, tmp_path):
    write_cub(CUB.parent, 2)
    shutil.copytree(made / "CUB_200_2011", "mirror/cub/CUB_200_2011")
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    assert run("stn.fetch", *BIRDS, cwd=tmp_path).returncode == 0
    assert len(list(CUB.glob("images/*"))) == CLASSES


def test_an_interrupted_copy_leaves_nothing_that_looks_whole(made, monkeypatch, tmp_path):
    shutil.copytree(made / "CUB_200_2011", "mirror/cub/CUB_200_2011")
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    copyfile, calls = shutil.copyfile, itertools.count()

    def interrupted(*paths):
        if next(calls) == 9:
            raise KeyboardInterrupt
        copyfile(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", interrupted)
        assert run("stn.fetch", *BIRDS, cwd=tmp_path).returncode == 130
    assert not CUB.exists()
    assert run("stn.fetch", *BIRDS, cwd=tmp_path).returncode == 0
    assert cub.fault(CUB, CLASSES) is None


HARMS = {
    "no text file": (lambda of: (of / "parts/part_locs.txt").unlink(), "holds no parts/part_locs.txt"),
    "no image": (lambda of: next(of.glob("images/002.*/*")).unlink(), "lacks 1 of 32 images, such as images/002."),
    "no test image": (
        lambda of: edited(of / "train_test_split.txt", lambda lines: [f"{i + 1} 1" for i in range(8)] + lines[8:]),
        "has no test image of class 001.Black_footed_Albatross in train_test_split.txt",
    ),
    "lines cut short": (
        lambda of: edited(of / "bounding_boxes.txt", lambda lines: lines[:-1]),
        "holds text files that are not CUB's or do not fit together",
    ),
    "other words": (
        lambda of: edited(of / "image_class_labels.txt", lambda lines: ["<html>", *lines]),
        "holds text files that are not CUB's or do not fit together",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_faulty_folder_is_refused_by_fetching_and_by_storing(made, monkeypatch, tmp_path, harm):
    spoil, told = HARMS[harm]
    for folder in (Path("mirror/cub/CUB_200_2011"), CUB):
        shutil.copytree(made / "CUB_200_2011", folder)
        spoil(folder)
    line = one_error(run("stn.crop", *BIRDS, cwd=tmp_path))
    assert f"error: {CUB} {told}" in line and "delete it and run `python -m stn.fetch` again" in line
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    line = last_line(run("stn.fetch", *BIRDS, cwd=tmp_path))
    assert f"mirror/cub/CUB_200_2011 {told}" in line and "replace it, or correct STN_DATA_MIRROR" in line
    assert not STORED.exists()


def test_a_truncated_archive_is_refused_by_fetching_and_by_storing(made, monkeypatch, tmp_path):
    whole = (made / "mirror/cub/CUB_200_2011.tgz").read_bytes()
    official(monkeypatch, made / "mirror/cub/CUB_200_2011.tgz")
    for folder in (Path("mirror/cub"), CUB.parent):
        folder.mkdir(parents=True)
        (folder / "CUB_200_2011.tgz").write_bytes(whole[:-1000])
    line = one_error(run("stn.crop", *BIRDS, cwd=tmp_path))
    assert "data/raw/cub/CUB_200_2011.tgz is not a complete tar.gz (Compressed file ended" in line
    assert "delete it and run `python -m stn.fetch` again" in line
    assert not STORED.exists() and not list(Path("outputs/scratch").glob("*"))
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    line = last_line(run("stn.fetch", *BIRDS, cwd=tmp_path))
    assert f"cub/CUB_200_2011.tgz is {len(whole) - 1000} bytes long, expected {len(whole)}; replace it" in line


def test_an_archive_that_lacks_an_image_is_named_by_its_own_name(made, tmp_path):
    shutil.copytree(made / "CUB_200_2011", "CUB_200_2011")
    next(Path("CUB_200_2011").glob("images/001.*/*")).unlink()
    pack(Path("CUB_200_2011"), CUB.with_suffix(".tgz"))
    line = one_error(run("stn.crop", *BIRDS, cwd=tmp_path))
    assert "data/raw/cub/CUB_200_2011.tgz lacks 1 of 32 images, such as images/001." in line


# Store


def test_the_sets_are_the_official_split_with_images_of_each_class_held_out(stored, made, base):
    source, table = birds(stored, base), cub.table_of(made / "CUB_200_2011", CLASSES)
    assert {split: source.count(split) for split in SETS} == SETS
    names = {split: source.sets[split].names.tolist() for split in SETS}
    assert names["test"] == table.names[~table.train].tolist()
    assert sorted(names["train"] + names["validation"]) == sorted(table.names[table.train])
    for split in SETS:
        expected = [int(name[:3]) - 1 for name in names[split]]
        assert source.sets[split].labels.tolist() == expected
    assert source.sets["validation"].labels.tolist() == [*range(CLASSES)] * VALIDATION


def test_what_is_held_out_of_a_class_depends_on_no_other(made, stored, base, tmp_path):
    shutil.copytree(made / "CUB_200_2011", CUB)
    store(changed(base, classes=2), Path("outputs/scratch"))
    fewer, all_of_them = birds(Path(), base, classes=2), birds(stored, base)
    for split in SETS:
        names = all_of_them.sets[split].names
        assert fewer.sets[split].names.tolist() == [name for name in names if name < "003"]


def test_images_keep_their_aspect_and_their_shorter_side_is_as_asked(stored, made, base):
    source = birds(stored, base)
    for split in SETS:
        made_of_it = source.sets[split]
        assert isinstance(made_of_it.pixels, np.memmap)
        for i, name in enumerate(made_of_it.names):
            with Image.open(made / "CUB_200_2011/images" / name) as image:
                (width, height), grey = image.size, image.mode != "RGB"
            pixels = made_of_it.image(i)
            assert min(pixels.shape[:2]) == SIDE
            assert abs(max(pixels.shape[:2]) - SIDE * max(width, height) / min(width, height)) <= 0.5
            inner = np.asarray(ramp(pixels.shape[1], pixels.shape[0], 0))[4:-4, 4:-4].astype(int)
            if not grey:
                np.testing.assert_allclose(pixels[4:-4, 4:-4, :2], inner[..., :2], atol=4)


@pytest.mark.parametrize(("mode", "label"), [("L", 1), ("CMYK", 2)])
def test_images_in_other_colours_become_rgb(stored, made, base, mode, label):
    source = birds(stored, base)
    found = 0
    for split, i in [(name, row) for name in SETS for row in range(source.count(name))]:
        path = made / "CUB_200_2011/images" / source.sets[split].names[i]
        with Image.open(path) as image:
            if image.mode != mode:
                continue
            red, green, _ = np.asarray(image.convert("RGB")).mean((0, 1))
        pixels, found = source.sets[split].image(i), found + 1
        assert source.sets[split].labels[i] == label - 1 and pixels.shape[2] == 3
        np.testing.assert_allclose(pixels.mean((0, 1))[:2], [red, green], atol=3)
        if mode == "L":
            assert (pixels[..., 0] == pixels[..., 1]).all()
    assert found == 1


def test_parts_and_boxes_stand_where_they_stood_in_the_image(stored, made, base):
    source, table = birds(stored, base), cub.table_of(made / "CUB_200_2011", CLASSES)
    rows = {name: row for row, name in enumerate(table.names)}
    assert source.part_names == PARTS and source.classes[1] == "Laysan Albatross"
    for split in SETS:
        its = source.sets[split]
        for i, name in enumerate(its.names):
            size = np.array(Image.open(made / "CUB_200_2011/images" / name).size)
            parts, (x, y, width, height) = table.parts[rows[name]], table.boxes[rows[name]]
            np.testing.assert_array_equal(its.parts[i, :, 2], parts[:, 2])
            visible = parts[:, 2] == 1
            assert 0 < visible.sum() < len(PARTS)
            np.testing.assert_allclose((its.parts[i, :, :2] + 1) / 2 * size, parts[:, :2], atol=1e-3)
            box = (its.boxes[i].reshape(2, 2) + 1) / 2 * size
            np.testing.assert_allclose(box, [[x, y], [x + width, y + height]], atol=1e-3)


@pytest.mark.parametrize("workers", [1, 3])
def test_stored_sets_have_the_same_bytes_whatever_the_number_of_workers(made, stored, base, workers):
    shutil.copytree(made / "CUB_200_2011", CUB)
    store(base, Path("outputs/scratch"), workers)
    assert contents(STORED) == contents(stored / STORED)


def test_interrupted_storing_leaves_nothing_and_ends_with_the_same_bytes(made, stored, monkeypatch, tmp_path):
    shutil.copytree(made / "mirror/cub", CUB.parent)
    resized, calls = cub._resized, itertools.count()

    def interrupted(*given, **named):
        if next(calls) == 20:
            raise KeyboardInterrupt
        return resized(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(cub, "_resized", interrupted)
        assert run("stn.crop", *BIRDS, cwd=tmp_path).returncode == 130
    assert not STORED.exists()
    assert run("stn.crop", *BIRDS, cwd=tmp_path).returncode == 0
    assert contents(STORED) == contents(stored / STORED)
    assert not list(Path("outputs/scratch").glob("*"))


@pytest.mark.parametrize("content", [b"<html>", None])
def test_an_image_that_is_none_is_named(made, tmp_path, content):
    shutil.copytree(made / "CUB_200_2011", CUB)
    image = sorted(CUB.glob("images/003.*/*"))[2]
    image.write_bytes(image.read_bytes()[:1500] if content is None else content)
    line = one_error(run("stn.crop", *BIRDS, cwd=tmp_path))
    assert f"{CUB} holds {image.relative_to(CUB)}, which is not a complete image (" in line
    assert "delete it and run `python -m stn.fetch` again" in line and not STORED.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.canvas=65", "data.canvas=65 is larger than data.side=64"),
        ("data.validation=5", "data.validation=5 leaves none of the 5 training images of 001.Black_footed_Albatross"),
        ("data.raw=data/none", "data/none/CUB_200_2011.tgz is missing: run `python -m stn.fetch data=cub_224`"),
    ],
)
def test_a_config_that_cannot_be_stored_is_one_line(made, tmp_path, change, told):
    shutil.copytree(made / "CUB_200_2011", CUB)
    assert told in one_error(run("stn.crop", *BIRDS, change, cwd=tmp_path))


# Training starts


def test_sets_that_are_missing_damaged_or_of_another_config_name_the_command(stored, base):
    mend = "run `python -m stn.crop data=cub_224`"

    def refused(**changes) -> str:
        with pytest.raises(UserError) as caught:
            CubSource(changed(base, **changes)).load("train")
        assert mend in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert f"{STORED}/sets.json is missing" in refused()
    shutil.copytree(stored / STORED, STORED)
    assert "was stored with classes=4 (not 3), validation=2 (not 1)" in refused(classes=3, validation=1)
    for name in ("train_images.bin", "train.npz"):
        path = STORED / name
        whole = path.read_bytes()
        for harmed in (whole[:-100], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], b""):
            path.write_bytes(harmed)
            told = refused()
            assert f"{STORED}: its train set is not what was written there" in told or f"{STORED} is damaged (" in told
        path.unlink()
        assert f"{name} is missing" in refused()
        path.write_bytes(whole)
    (STORED / "sets.json").write_text("{")
    assert f"{STORED} is damaged" in refused()


def test_a_canvas_larger_than_the_stored_images_is_refused(base):
    with pytest.raises(UserError, match=r"data.canvas=65 is larger than data.side=64"):
        CubSource(changed(base, canvas=65))


# Batches


def test_test_batches_are_central_crops_of_the_stored_pixels(stored, base):
    source = birds(stored, base)
    assert source.shape == (3, CANVAS, CANVAS)
    index = torch.tensor([5, 0, 5, 3])
    images, labels = source.batch("test", index, CPU)
    assert images.dtype == torch.float32 and images.is_contiguous(memory_format=torch.channels_last)
    for image, i in zip(images, index.tolist(), strict=True):
        pixels = source.sets["test"].image(i)
        top, left = (pixels.shape[0] - CANVAS) // 2, (pixels.shape[1] - CANVAS) // 2
        expected = torch.from_numpy(pixels[top : top + CANVAS, left : left + CANVAS].copy()).permute(2, 0, 1) / 255
        assert torch.equal(image, expected)
    assert labels.dtype == torch.int64 and labels.tolist() == source.sets["test"].labels[index.numpy()].tolist()


def test_training_crops_stand_everywhere_and_half_of_them_are_mirrored(stored, base):
    source, n = birds(stored, base), 1000
    height, width = source.sets["train"].sizes[2]
    where = np.zeros((height, width, 3), np.uint8)
    where[..., 0], where[..., 1] = np.arange(width), np.arange(height)[:, None]
    source.sets["train"].image = lambda i: where
    images, _ = source.train_batch(torch.full((n,), 2), generator(0, "x"), n, slice(None), CPU)
    assert images.is_contiguous(memory_format=torch.channels_last)
    images = (images * 255).round().long()
    mirrored = images[:, 0, 0, 0] > images[:, 0, 0, 1]
    left, top = images[:, 0].amin((1, 2)), images[:, 1].amin((1, 2))
    across = torch.arange(CANVAS)
    columns = torch.where(mirrored[:, None], across.flip(0), across) + left[:, None]
    assert (images[:, 0] == columns[:, None]).all() and (images[:, 1] == (across + top[:, None])[..., None]).all()
    assert set(left.tolist()) == set(range(width - CANVAS + 1)) and set(top.tolist()) == set(range(height - CANVAS + 1))
    assert 0.45 < mirrored.float().mean() < 0.55


@pytest.mark.parametrize("split", ["train", "test"])
def test_annotated_windows_are_cut_at_the_mean_of_the_parts_of_head_and_body(split, stored, base):
    plain, source = birds(stored, base), birds(stored, base, annotated=True)
    n, side = min(8, plain.count(split)), base.canvas
    index = torch.arange(n)
    if split == "train":  # crops anywhere, half of them mirrored
        crops, windows = (s.train_batch(index, generator(0, "x"), n, slice(None), CPU)[0] for s in (plain, source))
        down, right, mirrored = torch.rand(3, n, generator=generator(0, "x")).double().numpy()
        room = plain.sets["train"].sizes[:n] - side + 1
        corners = (np.stack([down, right], 1) * room).astype(int)
    else:
        crops, windows = (s.batch(split, index, CPU)[0] for s in (plain, source))
        corners, mirrored = (plain.sets[split].sizes[:n] - side) // 2, np.ones(n)
    assert windows.shape == (n, 2, 3, side // 2, side // 2) == (n, *source.shape)
    for i in range(n):
        height, width = plain.sets[split].sizes[i]
        x, y, visible = plain.sets[split].parts[i].T
        x, y = (x + 1) / 2 * width - corners[i][1], (y + 1) / 2 * height - corners[i][0]
        x = side - x if mirrored[i] < 0.5 else x
        inside = (visible > 0) & (x >= 0) & (x <= side) & (y >= 0) & (y <= side)
        for k, names in enumerate(REGIONS.values()):
            of = inside & np.isin(PARTS, names)
            of = of if of.any() else inside
            centre = np.array([y[of].mean(), x[of].mean()] if of.any() else [side / 2] * 2)
            first = np.clip(centre, side / 4, side * 3 / 4) - side / 4  # the window's upper left corner, in pixels
            grid = first[:, None, None] + np.indices((side // 2, side // 2))
            expected = [map_coordinates(channel.numpy(), grid, order=1, mode="nearest") for channel in crops[i]]
            np.testing.assert_allclose(windows[i, k, :, 1:-1, 1:-1], np.stack(expected)[:, 1:-1, 1:-1], atol=2e-3)


def test_a_batch_is_a_function_of_the_draws_and_processes_share_it(stored, base):
    source, index = birds(stored, base), torch.arange(8)

    def batch(step, part=slice(None)):
        return source.train_batch(index[part], generator(3, "distortion", step), 8, part, CPU)

    images, labels = batch(1)
    assert torch.equal(images, batch(1)[0]) and not torch.equal(images, batch(2)[0])
    for rank in range(2):
        part = slice(rank, None, 2)
        of_part, its_labels = batch(1, part)
        assert torch.equal(of_part, images[part]) and torch.equal(its_labels, labels[part])


def test_test_batches_are_no_larger_than_the_source_says(stored, base):
    cfg = compose("model=cub_cnn", *BIRDS)
    feed = DataModule(changed(base, stored=str(stored / STORED)), cfg.budget, seed=0)
    feed.setup("test")
    feed.source.chunk = 5
    assert [len(index) for _, _, index in feed.test_dataloader()] == [5, 5, 2]


# What the report shows


class Looker(nn.Module):
    """Says class 1 everywhere and looks at the left half, then at the upper part of it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.largest = 0

    def forward(self, images):
        return nn.functional.one_hot(torch.ones(len(images), dtype=torch.long), CLASSES).float()

    def windows(self, images):
        self.largest = max(self.largest, len(images))
        left = torch.tensor([[-1.0, -1.0], [0.0, -1.0], [0.0, 1.0], [-1.0, 1.0]])
        return torch.stack([left, left * torch.tensor([1.0, 0.5])]).expand(len(images), 2, 4, 2)


def test_evidence_shows_windows_parts_and_names(stored, base):
    source, looker, n = birds(stored, base), Looker(), SETS["test"]
    source.chunk = 5
    arrays = {"theta": np.zeros((n, 4)), "correct": np.ones(n, bool)}
    found = source.evidence(looker, arrays)
    assert {name: (array.shape, str(array.dtype)) for name, array in found.items() if array.dtype.kind != "U"} == {
        "trace_input": ((6, 128, 128, 3), "uint8"),
        "example_input": ((8, 128, 128, 3), "uint8"),
        "example_label": ((8,), "int64"),
        "example_said": ((8,), "int64"),
        "example_windows": ((8, 2, 4, 2), "float16"),
        "window_all": ((n, 2, 4, 2), "float16"),
        "parts": ((n, 15, 2), "float16"),
    }
    assert found["part_names"].tolist() == PARTS and looker.largest == 5
    chosen = np.linspace(0, n - 1, 8).round().astype(int)
    labels = source.sets["test"].labels[chosen]
    assert found["example_label"].tolist() == labels.tolist() and len(set(labels)) == CLASSES
    assert found["example_name"].tolist() == [source.classes[label] for label in labels]
    assert set(found["example_said_name"]) == {"Laysan Albatross"} and (found["example_said"] == 1).all()
    crops = source.batch("test", torch.from_numpy(chosen), CPU)[0].permute(0, 2, 3, 1).numpy() * 255
    np.testing.assert_allclose(found["example_input"].mean((1, 2)), crops.mean((1, 2)), atol=1)
    assert source.evidence(looker, {"correct": arrays["correct"]}) == {}


def test_parts_in_evidence_point_at_the_pixels_of_the_crop(stored, made, base):
    """Red and green tell where in the image a pixel stands, so they tell which part is meant."""
    source = birds(stored, base)
    parts = source.evidence(Looker(), {"theta": np.zeros(1)})["parts"].astype(float)
    its = source.sets["test"]
    crops, _ = source.batch("test", torch.arange(len(parts)), CPU)
    checked = 0
    for i, name in enumerate(its.names):
        with Image.open(made / "CUB_200_2011/images" / name) as image:
            grey = image.mode != "RGB"
        height, width = its.sizes[i]
        for part, (x, y, visible) in zip(parts[i], its.parts[i], strict=True):
            reach_x, reach_y = CANVAS / width, CANVAS / height
            inside = visible and abs(x) < reach_x - 0.05 and abs(y) < reach_y - 0.05
            outside = not visible or abs(x) > reach_x + 0.05 or abs(y) > reach_y + 0.05
            assert not (inside and np.isnan(part).any()) and not (outside and not np.isnan(part).all())
            if inside and not grey:
                column, row = ((part + 1) / 2 * CANVAS).astype(int)
                expected = (np.array([x, y]) + 1) / 2 * 255
                np.testing.assert_allclose(crops[i, :2, row, column].numpy() * 255, expected, atol=8)
                checked += 1
    assert checked > 20


# Real images


@real
def test_real_images_are_fetched_and_stored(monkeypatch, tmp_path):
    mirror = Path("mirror/cub/CUB_200_2011")
    (mirror / "images").mkdir(parents=True)
    for path in [*REAL.glob("*.txt"), REAL / "parts", *sorted(REAL.glob("images/*"))[:2]]:
        (mirror / path.relative_to(REAL)).symlink_to(path)
    monkeypatch.setenv("STN_DATA_MIRROR", "mirror")
    cub_224 = ("data=cub_224", "data.classes=2")
    assert "holds 2 classes, not data.classes=200" in last_line(run("stn.fetch", *cub_224[:1], cwd=tmp_path))
    for command in ("stn.fetch", "stn.crop"):
        result = run(command, *cub_224, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    source = CubSource(compose("model=cub_cnn", *cub_224).data)
    for split, n in {"train": 56, "validation": 4, "test": 60}.items():
        source.load(split)
        assert source.count(split) == n and (source.sets[split].sizes.min(1) == 256).all()
    assert source.classes == ["Black footed Albatross", "Laysan Albatross"]
    images, labels = source.train_batch(torch.arange(32), generator(0, "x"), 32, slice(None), CPU)
    assert images.shape == (32, 3, 224, 224) and images.std() > 0.1 and len(labels) == 32
    its = source.sets["test"]
    visible = its.parts[..., 2] > 0
    assert visible.mean() > 0.5 and (np.abs(its.parts[visible][:, :2]) <= 1).all()
    centre = (its.boxes[:, :2] + its.boxes[:, 2:]) / 2
    middle = np.nanmean(np.where(visible[..., None], its.parts[..., :2], np.nan), 1)
    assert np.abs(centre - middle).mean() < 0.25  # a bird's parts lie in its box
    assert json.loads((STORED / "sets.json").read_text())["recipe"]["classes"] == 2


# Training


def test_a_run_leaves_a_record_with_windows_and_parts(stored, tmp_path):
    record = tmp_path / "cub_224-cub_2st"
    small = ("model.trunk=squeezenet1_1", "model.pretrained=false", "model.size=32")
    steps = ("budget=smoke", "budget.steps=2", "budget.batch_size=4", "budget.validate_every=2")
    places = ("logger=none", f"record={record}", f"outputs={tmp_path}")
    result = run("stn.train", *BIRDS, "model=cub_2st", *small, *steps, *places, cwd=stored)
    assert result.returncode == 0, result.stderr
    facts, arrays = json.loads(record.with_suffix(".json").read_text()), np.load(record.with_suffix(".npz"))
    (shown,) = load_records(TABLE, [record.with_suffix(".json")])
    assert (shown.row.label, shown.column.label) == ("2xST-CNN 224 px", "200 classes")
    assert facts["config"]["data"]["classes"] == CLASSES and facts["n_test"] == SETS["test"]
    assert arrays["window_all"].shape == (SETS["test"], 2, 4, 2)
    assert arrays["parts"].shape == (SETS["test"], 15, 2) and arrays["part_names"].tolist() == PARTS
