import errno
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from scipy.stats import kstest

from conftest import one_error, run
from stn.config import compose
from stn.data.download import export_embedded
from stn.data.draws import generator
from stn.errors import UserError
from stn.experiments.mnist.config import POSE
from stn.experiments.mnist.data import distortion, read_distorted, store, undistorted
from stn.experiments.mnist.distortions import found_pose
from stn.geometry.transforms import CORNERS, pixel_centres

N = 4000


def drawn(name, n=N):
    warp = distortion(compose(f"data=mnist_{name}").data)
    return warp, dict(zip(warp.names, warp.draw(n, generator(0, "test"), torch.float64).T.numpy(), strict=True))


def uniform(values, low, high):
    """Whether values look like U(low, high), by Kolmogorov and Smirnov, and stay inside."""
    assert low <= values.min() and values.max() <= high
    assert kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


def normal(values, sigma):
    assert kstest(values / sigma, "norm").pvalue > 1e-3


def test_r_rotates_by_the_papers_range_and_does_nothing_else():
    _, draw = drawn("r")
    uniform(draw["angle"], -90, 90)
    assert (draw["scale"] == 1).all() and not draw["x"].any() and not draw["y"].any()


def test_rts_draws_the_papers_ranges_and_keeps_the_frame_on_the_canvas():
    warp, draw = drawn("rts")
    assert warp.canvas == 42
    uniform(draw["angle"], -45, 45)
    uniform(draw["scale"], np.float32(0.7), np.float32(1.2))
    for axis in "xy":
        uniform(draw[axis] / ((42 - 28 * draw["scale"]) / 2), -1 - 1e-5, 1 + 1e-5)


def test_p_moves_corners_by_5_pixels_and_redraws_what_is_not_convex():
    warp, draw = drawn("p")
    uniform(draw["scale"], 0.75, 1)
    for name in ("x0", "y3"):
        assert abs(draw[name].std() - 5) < 0.2 and abs(draw[name].mean()) < 0.3
    assert 0 < (draw["redraws"] > 0).mean() < 0.02
    parameters = torch.tensor(np.stack([draw[name] for name in warp.names], 1))
    corners = (torch.tensor(CORNERS) + 2 * parameters[:, 1:9].view(-1, 4, 2) / 28).numpy().astype(np.float32)
    assert all(cv2.isContourConvex(quadrilateral) for quadrilateral in corners)


def test_e_moves_16_control_points_by_1_5_pixels():
    _, draw = drawn("e")
    uniform(draw["scale"], 0.75, 1)
    assert len(draw) == 33
    normal(draw["x0"], 1.5)
    normal(draw["y15"], 1.5)


@pytest.mark.parametrize("name, axis", [("e", [-0.75, -0.25, 0.25, 0.75]), ("e_edge", [-1, -1 / 3, 1 / 3, 1])])
def test_e_is_the_spline_of_scipy_through_the_moved_control_points(name, axis):
    warp, _ = drawn(name, 1)
    parameters = warp.draw(3, generator(1, "test"), torch.float64).double()
    controls = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    pixels = pixel_centres((28, 28), torch.float64, torch.device("cpu"))
    for (scale, *moves), grid in zip(parameters.numpy(), warp.grid(parameters), strict=True):
        moved = (controls + 2 * np.reshape(moves, (-1, 2)) / 28) / scale
        expected = RBFInterpolator(controls, moved, kernel="thin_plate_spline", degree=1)(pixels)
        np.testing.assert_allclose(grid.view(-1, 2), expected, atol=1e-12)


def test_tc_places_digit_and_patches_anywhere():
    warp, draw = drawn("tc")
    assert warp.canvas == 60 and len(draw) == 2 + 6 * 5
    assert set(draw["x"]) == set(range(33)) and set(draw["put_x5"]) == set(range(55))
    assert set(draw["cut_y0"]) == set(range(23))
    uniform(draw["from3"], 0, 1)


@pytest.mark.parametrize("name", ["r", "rts"])
def test_a_pose_is_what_opencv_makes_of_it(name):
    """Forward: scale about the centre, rotate counter-clockwise, move; OpenCV maps pixel centres to pixel centres."""
    warp, _ = drawn(name, 1)
    rng = np.random.default_rng(0)
    digit = cv2.GaussianBlur((rng.random((28, 28)) * 255).astype(np.uint8), (0, 0), 3)
    parameters = warp.draw(20, generator(1, "test"), torch.float64)
    made = warp.render(parameters.double(), torch.from_numpy(digit).expand(20, -1, -1))[:, 0].numpy() * 255
    for image, (angle, scale, x, y) in zip(made, parameters.tolist(), strict=True):
        matrix = cv2.getRotationMatrix2D((13.5, 13.5), angle, scale)
        matrix[:, 2] += np.array([x, y]) + (warp.canvas - 28) / 2
        wanted = cv2.warpAffine(digit, matrix, (warp.canvas, warp.canvas), flags=cv2.INTER_LINEAR)
        assert np.abs(image - wanted).mean() < 0.7  # OpenCV's weights are in steps of 1/32 pixel


@pytest.mark.parametrize("canvas", [28, 42])
def test_a_projection_is_what_opencv_makes_of_it(canvas):
    """The digit's frame of 28 pixels is moved at its corners, whatever the canvas around it."""
    warp = distortion(compose("data=mnist_p", f"data.canvas={canvas}").data)
    parameters = warp.draw(20, generator(2, "test"), torch.float64).double()
    corners = np.array(CORNERS) * 28 / canvas
    moved = corners + 2 * parameters[:, 1:9].view(-1, 4, 2).numpy() / canvas
    inside = np.random.default_rng(2).dirichlet(np.ones(4), size=50)  # of the quadrilateral: beyond lies the horizon
    points = inside @ moved
    found = warp.digit_points(parameters, torch.from_numpy(points)).numpy()
    for row, quadrilateral, there, ours in zip(parameters.numpy(), moved, points, found, strict=True):
        matrix = cv2.getPerspectiveTransform(quadrilateral.astype(np.float32), corners.astype(np.float32))
        wanted = cv2.perspectiveTransform(there[None], matrix)[0] * (canvas / 28) / row[0]
        np.testing.assert_allclose(ours, wanted, atol=2e-4)


@pytest.mark.parametrize("name", ["r", "rts", "p", "e", "tc"])
def test_the_grid_is_the_digit_points_of_the_pixel_centres(name):
    from stn.geometry.transforms import pixel_centres

    warp, _ = drawn(name, 1)
    parameters = warp.draw(3, generator(3, "test"))
    centres = pixel_centres((warp.canvas, warp.canvas), torch.float32, torch.device("cpu"))
    points = warp.digit_points(parameters, centres).view(3, warp.canvas, warp.canvas, 2)
    torch.testing.assert_close(warp.grid(parameters), points, atol=1e-4, rtol=1e-4)


def test_clutter_is_the_digit_plus_six_patches_of_others():
    warp, _ = drawn("tc", 1)
    digits = torch.full((8, 28, 28), 100, dtype=torch.uint8)
    pool = torch.full((50, 28, 28), 40, dtype=torch.uint8)
    images = warp.render(warp.draw(8, generator(4, "test"), torch.float64).double(), digits, pool)
    assert images.max() <= 1 and images.shape == (8, 1, 60, 60)
    mass = (images * 255).sum((1, 2, 3))
    torch.testing.assert_close(mass, torch.full_like(mass, 784 * 100 + 6 * 36 * 40), atol=6 * 36 * 40 * 0.2, rtol=0)


@pytest.mark.parametrize("names", [["angle"], ["scale"], ["x", "y"], ["angle", "scale"], list(POSE)], ids="-".join)
def test_a_part_of_the_pose_is_undone_as_if_it_had_been_at_rest(names):
    """The image is that of a digit drawn without this part of its pose, but for resampling it twice."""
    warp, _ = drawn("rts", 1)
    parameters = warp.draw(20, generator(6, "test"))
    blob = torch.exp(-((torch.linspace(-2, 2, 28)[:, None] - 0.6) ** 2) - torch.linspace(-1.2, 1.2, 28) ** 2)
    digits = (255 * blob).round().to(torch.uint8).expand(20, 28, 28)
    rest = parameters.clone()
    for name, value in zip(POSE, (0.0, 1.0, 0.0, 0.0), strict=True):
        if name in names:
            rest[:, POSE.index(name)] = value
    undone = warp.partly_undone(parameters, warp.render(parameters, digits), names)
    expected = warp.render(rest, digits)
    inside = warp.render(rest, torch.full_like(digits, 255)) > 0.999  # resampling twice softens the digit's own edge
    shown = warp.partly_undone(parameters, torch.ones_like(expected), names) > 0.999  # a corner may leave the canvas
    difference = (undone - expected)[inside & shown].abs()
    assert difference.mean() < 0.01 and difference.quantile(0.99) < 0.06
    assert (warp.render(parameters, digits) - expected).abs().mean() > 3 * (undone - expected).abs().mean()


def test_a_transformer_that_undoes_the_pose_is_found_to():
    """If its target is the undistorted digit, the pose read off a transformer is the distortion's, to the unit."""
    warp, _ = drawn("rts", 1)
    parameters = warp.draw(50, generator(5, "test"), torch.float64).double()
    angle, scale, x, y = parameters.T
    points = torch.rand(9, 2, dtype=torch.float64) - 0.5
    cos, sin = torch.cos(angle.deg2rad()), torch.sin(angle.deg2rad())
    forward = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)  # counter-clockwise, y down
    canvas = scale[:, None, None] * points @ forward.mT + torch.stack([x, y], 1)[:, None] * 2 / 42
    torch.testing.assert_close(found_pose(canvas, points, 42), parameters, atol=1e-6, rtol=1e-6)


@pytest.fixture
def data(tmp_path):
    cfg = compose("data=digits_p", f"data.raw={tmp_path}/raw", f"data.stored={tmp_path}/stored").data
    export_embedded(tmp_path / "raw")
    return cfg


def test_stored_sets_have_the_same_bytes_on_every_run(data, tmp_path):
    def made():
        store(data, tmp_path / "scratch")
        return {path.name: path.read_bytes() for path in (tmp_path / "stored").iterdir()}

    first = made()
    torch.manual_seed(99)
    assert made() == first
    assert set(first) == {
        f"{s}_{w}.npy" for s in ("test", "validation") for w in ("images", "labels", "parameters")
    } | {"sets.json"}


def test_stored_sets_hold_labels_and_the_parameters_that_made_them(data, tmp_path):
    about = store(data, tmp_path / "scratch")
    test = read_distorted(data, repr(distortion(data)), "test")
    plain = undistorted(data)["test"]
    assert test.images.dtype == torch.uint8 and len(test.images) == 10 * len(plain.images)
    torch.testing.assert_close(test.labels, plain.labels.repeat_interleave(10))
    again = distortion(data).render(test.parameters.double(), plain.images.repeat_interleave(10, 0))
    torch.testing.assert_close(test.images, (again[:, 0] * 255).round().to(torch.uint8))
    assert about["columns"][-1] == "redraws" and "redrawn" in about["sets"]["test"]


@pytest.mark.parametrize(
    "kind, off, more",
    [
        ("r", 1e-4, ()),
        ("rts", 1e-4, ()),
        ("p", 1e-3, ()),
        ("p", 1e-3, ("data.canvas=42",)),
        ("e", 0.2, ()),
        ("e_edge", 0.1, ()),
        ("tc", 1e-4, ()),
    ],
)
def test_a_distortion_is_undone_by_its_own_parameters(kind, off, more):
    """`off` in pixels, of the points inside the canvas: beyond its edge there is nothing to undo."""
    warp = distortion(compose(f"data=mnist_{kind}", "model=cnn", *more).data)
    parameters = warp.draw(400, generator(3, "undone"))
    canvas = warp.inverse_grid(parameters)
    digit = pixel_centres((28, 28), torch.float32, torch.device("cpu"))
    distance = 14 * (warp.digit_points(parameters, canvas.flatten(1, 2)) - digit).norm(dim=2)
    inside = canvas.flatten(1, 2).abs().amax(2) < 1
    assert inside.float().mean() > 0.7 and distance[inside].quantile(0.99) < off


def test_undone_digits_look_like_those_before():
    digits = torch.zeros(50, 28, 28, dtype=torch.uint8)
    digits[:, 9:19, 11:17] = 255
    for kind in ("r", "rts", "p", "e"):
        warp = distortion(compose(f"data=mnist_{kind}", "model=cnn").data)
        parameters = warp.draw(50, generator(4, "undone"))
        shown = warp.render(parameters, digits)
        undone = warp.undone(parameters, shown)
        assert undone.shape == (50, 1, 28, 28)
        assert (undone[:, 0] - digits / 255).abs().mean() < 0.03 < (shown.mean() if kind == "rts" else shown.std())


def test_frozen_training_digits_are_stored_beside_not_instead(data, tmp_path):
    store(data, tmp_path / "scratch")
    frozen = compose("data=digits_p", f"data.raw={tmp_path}/raw", f"data.stored={tmp_path}/stored", "data.train=frozen")
    store(frozen.data, tmp_path / "scratch")
    assert len(read_distorted(frozen.data, repr(distortion(frozen.data)), "train").images) == 1097
    assert not (tmp_path / "stored" / "train_images.npy").exists()


def test_the_splits_share_no_digit(data):
    splits = undistorted(data)
    assert {name: len(split.labels) for name, split in splits.items()} == {
        "train": 1097,
        "validation": 200,
        "test": 500,
    }


def test_a_missing_or_damaged_set_names_the_command_that_makes_it(data, tmp_path):
    with pytest.raises(UserError, match=r"python -m stn\.distort data=digits_p"):
        read_distorted(data, repr(distortion(data)), "test")
    store(data, tmp_path / "scratch")
    images = tmp_path / "stored" / "test_images.npy"
    whole = images.read_bytes()
    for damage in (whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1]), b"none"):
        images.write_bytes(damage)
        with pytest.raises(UserError, match=r"stn\.distort"):
            read_distorted(data, repr(distortion(data)), "test")
    images.write_bytes(whole)
    sets = tmp_path / "stored" / "sets.json"
    sets.write_text(json.dumps(json.loads(sets.read_text()) | {"seed": 1}))
    with pytest.raises(
        UserError, match=r"seed=1 \(not 2015\): to replace it, run `python -m stn\.distort data=digits_p`"
    ):
        read_distorted(data, repr(distortion(data)), "test")


def test_sets_may_be_stored_on_another_disk_than_outputs(tmp_path, monkeypatch):
    assert run("stn.fetch", "data=digits_r", cwd=tmp_path).returncode == 0
    replace = os.replace

    def refused(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", refused)
    monkeypatch.setattr(os, "replace", lambda a, b: (replace if Path(a).parent == Path(b).parent else refused)(a, b))
    for _ in range(2):  # a folder that is there already must go first
        result = run("stn.distort", "data=digits_r", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert sorted(path.name for path in (tmp_path / "data/stored").iterdir()) == ["digits_r"]
        assert len(list((tmp_path / "data/stored/digits_r").iterdir())) == 7


def test_raw_data_that_is_not_there_is_one_line(tmp_path):
    assert "stn.fetch" in one_error(run("stn.distort", "data=digits_r", cwd=tmp_path))
    assert "stn.fetch" in one_error(run("stn.distort", "data=mnist_r", cwd=tmp_path))


def test_a_path_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot write" in one_error(run("stn.fetch", "data=digits_r", "data.raw=file/raw", cwd=tmp_path))
    run("stn.fetch", "data=digits_r", cwd=tmp_path)
    assert "cannot write" in one_error(run("stn.distort", "data=digits_r", "data.stored=file/x", cwd=tmp_path))
