"""Digits in three dimensions (Table 6): geometry against scipy, poses, networks, and the way to table and figure."""

import json
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from conftest import one_error, run
from stn import SpatialTransformer
from stn.cells import config
from stn.config import CONF, compose
from stn.data.draws import generator
from stn.errors import UserError
from stn.experiments.mnist.networks import n_parameters
from stn.experiments.volumes.data import DIGIT, SolidPose, Volumes, load_poses, pose, rotation, store
from stn.experiments.volumes.figures import draw_volumes
from stn.experiments.volumes.poses import pose_left, solid_pose
from stn.experiments.volumes.table import VOLUMES
from stn.geometry.sampling import trilinear
from stn.geometry.transforms import Affine3D, pixel_centres
from stn.report import tables
from stn.training.learner import Learner, build_network

SIZES = [(6, 6, 6), (4, 7, 5)]
SMALL = SolidPose(canvas=32, thickness=8, rotation=90, scale=(0.7, 1.0), roam=True)
LITTLE = ("data.canvas=30", "model.localisation.downsample=2")
EMBEDDED = ("data.source=digits", "data.raw=data/raw/digits", "data.validation=200")


def voxels(points, size):
    """Points (..., 3) = (x, y, z) in the frame [-1, 1] as scipy's indices (3, ...) = (z, y, x)."""
    return np.stack([(points[..., 2 - i] + 1) * n / 2 - 0.5 for i, n in enumerate(size)])


def turned(n=5, seed=0):
    """Thetas (n, 12) with rotation, shear, scale and translation."""
    torch.manual_seed(seed)
    return Affine3D().identity().double() + 0.4 * torch.randn(n, 12, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("size", SIZES)
def test_identity_theta_returns_the_volume(size):
    U = torch.rand(2, 3, *size)
    torch.testing.assert_close(trilinear(U, Affine3D().grid(Affine3D().identity().expand(2, -1), size)), U)


@pytest.mark.parametrize("size", SIZES)
def test_the_grid_of_a_volume_is_x_y_z_at_the_voxels_centres(size):
    grid = Affine3D().grid(Affine3D().identity().double()[None], size)[0]
    assert grid.shape == (*size, 3)
    for axis in range(3):
        for k in range(size[axis]):
            np.testing.assert_allclose(
                grid.movedim(axis, 0)[k, ..., 2 - axis], (2 * k + 1) / size[axis] - 1, atol=1e-12
            )


@pytest.mark.parametrize("size", SIZES)
def test_trilinear_matches_scipy_inside_and_outside_the_volume(size):
    torch.manual_seed(1)
    U = torch.rand(1, 1, *size, dtype=torch.float64)
    grid = torch.rand(1, 3, 4, 200, 3, dtype=torch.float64) * 4 - 2
    expected = ndimage.map_coordinates(U[0, 0].numpy(), voxels(grid[0].numpy(), size), order=1, mode="grid-constant")
    np.testing.assert_allclose(trilinear(U, grid)[0, 0], expected, rtol=0, atol=1e-12)


def test_an_affine_warp_of_a_volume_matches_scipy():
    size, U = (7, 7, 7), torch.rand(5, 1, 7, 7, 7, dtype=torch.float64)
    theta = turned()
    V = trilinear(U, Affine3D().grid(theta, size))
    matrices = Affine3D().matrix(theta).numpy()
    assert matrices.shape == (5, 4, 4) and (matrices[:, 3] == [0, 0, 0, 1]).all()
    for u, v, matrix in zip(U[:, 0].numpy(), V[:, 0].numpy(), matrices, strict=True):
        linear = matrix[:3, :3][::-1, ::-1]  # of (z, y, x); one frame for input and output, so scale drops out
        offset = 3.5 * (matrix[:3, 3][::-1] + 1) - 0.5 - linear @ np.full(3, 3.0)
        expected = ndimage.affine_transform(u, linear, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(v, expected, rtol=0, atol=1e-12)


def test_gradcheck_of_a_warped_volume():
    torch.manual_seed(2)
    U = torch.rand(2, 2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    theta = turned(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda U, t: trilinear(U, Affine3D().grid(t, (2, 3, 3))), (U, theta))


def test_a_transformer_takes_volumes_alone_and_in_parallel():
    U = torch.rand(2, 1, 6, 6, 6)
    features = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(216, 4))
    V, theta = SpatialTransformer(features, 4, Affine3D(), trilinear)(U, return_theta=True)
    assert theta.shape == (2, 12)
    torch.testing.assert_close(V, U)
    one = Affine3D().identity()
    starts = torch.stack([one, one + 0.1])
    V = SpatialTransformer(features, 4, Affine3D(), trilinear, size=(2, 3, 4), starts=starts)(U)
    assert V.shape == (2, 2, 1, 2, 3, 4)
    for k, start in enumerate(starts):
        torch.testing.assert_close(V[:, k], trilinear(U, Affine3D().grid(start.expand(2, -1), (2, 3, 4))))


# ------------------------------------------------------------------------------------------------- poses


def test_rotation_vectors_match_scipy():
    turns = torch.randn(20, 3, dtype=torch.float64) * 60
    expected = Rotation.from_rotvec(turns.numpy(), degrees=True).as_matrix()
    np.testing.assert_allclose(rotation(turns), expected, rtol=0, atol=1e-12)


def test_poses_are_drawn_as_the_config_says():
    poses = pose(compose("data=volumes_60", "model=volume_cnn").data)
    drawn = poses.draw(20000, generator(1, "poses")).double().numpy()
    angle = np.linalg.norm(drawn[:, :3], axis=1)
    axis = drawn[:, :3] / angle[:, None]
    assert stats.kstest(angle / 90, "uniform").pvalue > 0.01
    for side in axis.T:  # of a point that lies anywhere on the sphere each coordinate is uniform (Archimedes)
        assert stats.kstest((side + 1) / 2, "uniform").pvalue > 0.001
    assert stats.kstest((drawn[:, 3] - 0.7) / 0.5, "uniform").pvalue > 0.01
    room = (60 - 28 * drawn[:, 3]) / 2
    for place in drawn[:, 4:].T:
        assert stats.kstest((place / room + 1) / 2, "uniform").pvalue > 0.001


def extruded(digit):
    """The digit's own volume (28, 28, 28), in [0, 1]."""
    volume = np.zeros((DIGIT,) * 3)
    volume[10:18] = digit.numpy() / 255
    return volume


def test_a_rendered_volume_is_the_extruded_digit_sampled_by_scipy():
    torch.manual_seed(3)
    digits = torch.randint(0, 256, (6, DIGIT, DIGIT), dtype=torch.uint8)
    parameters = SMALL.draw(6, generator(2, "poses")).double()
    centres = pixel_centres((32,) * 3, torch.float64, torch.device("cpu")).view(32, 32, 32, 3).numpy()
    turns = Rotation.from_rotvec(parameters[:, :3].numpy(), degrees=True).as_matrix()
    for volume, digit, p, turn in zip(SMALL.render(parameters, digits), digits, parameters.numpy(), turns, strict=True):
        on_digit = (16 * centres - p[4:]) @ turn / p[3] / 14  # location, then rotation, then scale undone
        expected = ndimage.map_coordinates(
            extruded(digit), voxels(on_digit, (DIGIT,) * 3), order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(volume[0], expected, rtol=0, atol=1e-6)


def test_the_true_pose_undoes_itself():
    parameters = SMALL.draw(50, generator(4, "poses")).double()
    there, back = (Affine3D().matrix(made(parameters)) for made in (SMALL.theta, SMALL.inverse_theta))
    torch.testing.assert_close(there @ back, torch.eye(4, dtype=torch.float64).expand(50, -1, -1))
    digits = torch.zeros(50, DIGIT, DIGIT, dtype=torch.uint8)
    digits[:, 8:20, 12:15] = 255
    volumes = SMALL.render(parameters.float(), digits)
    seen = SMALL.undone(parameters.float(), volumes, DIGIT).mean((1, 2)) * DIGIT / 8
    assert (seen - digits / 255).abs().mean() < 0.02 < (volumes.mean(2) * 4).std()


@pytest.fixture(scope="module")
def small(workplace):
    """The config of small volumes of the embedded digits, with their poses stored."""
    command = ("data=volumes_60", *EMBEDDED, f"data.stored={workplace}/solid", f"data.raw={workplace}/data/raw/digits")
    assert run("stn.distort", *command, cwd=workplace).returncode == 0
    return compose(*command, "model=volume_st", "budget=smoke")


def test_stored_poses_are_those_of_their_seed_and_nothing_else(small, tmp_path):
    again = store(small.data, tmp_path / "scratch")
    drawn = pose(small.data).draw(500, generator(2015, "test"), torch.float64)
    torch.testing.assert_close(load_poses(small.data, "test"), drawn, rtol=0, atol=0)
    assert drawn.dtype == torch.float32 and again["sets"]["test"]["images"] == 500
    assert not list((tmp_path / "scratch").iterdir())


def test_missing_damaged_and_foreign_poses_are_one_line_that_names_the_command(small, tmp_path):
    def told(*overrides):
        with pytest.raises(UserError) as caught:
            load_poses(
                compose("data=volumes_60", "model=volume_cnn", f"data.stored={tmp_path}", *overrides).data, "test"
            )
        assert "\n" not in str(caught.value) and "`python -m stn.distort data=volumes_60`" in str(caught.value)
        return str(caught.value)

    assert "is missing" in told()
    about = (CONF.parent / small.data.stored / "sets.json").read_text()
    values = np.load(f"{small.data.stored}/test_parameters.npy")
    (tmp_path / "sets.json").write_text(about)
    np.save(tmp_path / "test_parameters.npy", values + np.float32(1e-3))
    assert "is not what was written there" in told()
    np.save(tmp_path / "test_parameters.npy", values)
    assert "rotation=90.0" in told("data.rotation=45")
    (tmp_path / "test_parameters.npy").write_bytes(b"short")
    assert "is damaged" in told()
    (tmp_path / "sets.json").write_text(json.dumps({"seed": 2015}))
    assert "is damaged" in told()


def test_poses_of_other_digits_are_refused(small):
    data = compose("data=volumes_60", *EMBEDDED, "model=volume_cnn", f"data.stored={small.data.stored}").data
    with pytest.raises(UserError, match="has poses for 200 validation digits"):
        Volumes(compose_with(data, validation=100, raw=small.data.raw)).load("validation")


def compose_with(data, **changes):
    """A data config with other values."""
    copy = data.copy()
    for key, value in changes.items():
        copy._set_flag("readonly", False)
        copy[key] = value
    return copy


def test_a_training_batch_is_a_function_of_its_draws_and_parts_make_it_whole(small):
    feed, cpu = Volumes(small.data), torch.device("cpu")
    feed.load("train")
    index = torch.arange(6)

    def batch(part, index):
        return feed.train_batch(index, generator(0, "distortion", 5), 6, part, cpu)[0]

    whole = batch(slice(None), index)
    assert whole.shape == (6, 1, 60, 60, 60) and whole.min() >= 0 and whole.max() <= 1
    torch.testing.assert_close(whole, batch(slice(None), index), rtol=0, atol=0)
    halves = [batch(slice(k, None, 2), index[k::2]) for k in range(2)]
    torch.testing.assert_close(whole, torch.stack(halves, 1).flatten(0, 1), rtol=0, atol=0)
    other = feed.train_batch(index, generator(0, "distortion", 6), 6, slice(None), cpu)[0]
    assert (whole - other).abs().max() > 0.5


def test_undone_volumes_are_the_same_ones_seen_in_one_pose(small):
    feeds = [Volumes(compose_with(small.data, undo=undo)) for undo in (False, True)]
    index, cpu = torch.arange(8), torch.device("cpu")
    for feed in feeds:
        feed.load("test")
    (posed, labels), (undone, same) = (feed.batch("test", index, cpu) for feed in feeds)
    assert torch.equal(labels, same) and feeds[1].shape == undone.shape[1:] == (1, 30, 30, 30)
    digits = torch.nn.functional.interpolate(feeds[0].images["test"][index, None] / 255, (30, 30), mode="bilinear")
    shown = undone.mean(2) * DIGIT / 8
    assert (shown - digits).abs().mean() < 0.03 < (posed.mean(2) * 60 / 8).std()


# ------------------------------------------------------------------------------------------------- networks


def test_networks_have_equal_parameters_within_3_percent():
    totals = [n_parameters(build_network(config("quick", cell))) for cell in VOLUMES.cells()]
    assert len(totals) == 3 and max(totals) / min(totals) < 1.03


def test_what_is_seen_is_one_where_a_digit_faces_the_viewer():
    poses = SolidPose(60, 8, 0, (1, 1), roam=False)
    digits = torch.full((2, DIGIT, DIGIT), 255, dtype=torch.uint8)
    volumes = poses.render(poses.draw(2, generator(0, "one")), digits)
    for model in ("volume_cnn", "volume_st"):  # untrained, a transformer samples what is there
        seen = build_network(compose("data=volumes_60", f"model={model}")).seen(volumes)
        assert seen.shape == (2, 1, 30, 30)
        torch.testing.assert_close(seen[:, :, 9:21, 9:21], torch.ones(2, 1, 12, 12), rtol=0, atol=1e-4)
        assert not seen[:, :, :7].any()


def test_a_learner_takes_volumes_and_keeps_image_convolutions_channels_last(small):
    learner = Learner({group: small[group] for group in ("data", "model", "budget")})
    weights = [p for p in learner.network.parameters() if p.ndim == 4]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@pytest.mark.parametrize(
    "override, named",
    [
        ("data.scale=[1.2,0.7]", "data.scale"),
        ("data.scale=[0,1]", "data.scale"),
        ("data.rotation=200", "data.rotation"),
        ("data.thickness=7", "data.thickness"),
        ("data.thickness=30", "data.thickness"),
        ("data.projection=0", "data.projection"),
        ("model.localisation.downsample=0", "model.localisation.downsample"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_that_names_it(override, named, tmp_path):
    line = one_error(run("stn.train", "data=volumes_60", "model=volume_st", "budget=smoke", override, cwd=tmp_path))
    assert f"{named}=" in line


@pytest.mark.parametrize(
    "override", ["data.projection=40", "data.projection=20", "model.localisation.downsample=5", "data.canvas=61"]
)
def test_sizes_that_do_not_fit_are_one_line_that_names_them(override):
    with pytest.raises(UserError, match=override) as caught:
        build_network(compose("data=volumes_60", "model=volume_st", override))
    assert "\n" not in str(caught.value)


def test_volumes_have_budgets_of_their_own():
    schedule = OmegaConf.load(CONF / "schedule/volumes.yaml")
    for budget in ("smoke", "quick", "medium", "paper"):
        own = schedule[budget].budget
        first, *others = (config(budget, cell).budget for cell in VOLUMES.cells())
        assert own and {key: first[key] for key in own} == own and len(others) == 2
        assert all(other == first for other in others)


# ------------------------------------------------------------------------------------------------- report


def test_a_true_pose_leaves_neither_tilt_nor_turn():
    parameters = SMALL.draw(200, generator(5, "poses")).double()
    tilt, turn = solid_pose(SMALL.inverse_theta(parameters).numpy(), parameters[:, :3].numpy())
    assert np.abs(tilt).max() < 1e-3 and np.abs(turn).max() < 1e-3
    left = pose_left(SMALL.inverse_theta(parameters).numpy(), parameters[:, :3].numpy())
    normal = Rotation.from_rotvec(parameters[:, :3], degrees=True).as_matrix()[:, 2, 2]
    np.testing.assert_allclose(left["tilt_before"], np.degrees(np.arccos(normal)), atol=1e-6)
    assert left["turn_before"].std() > 10 and left["turn_after"].max() < 1e-3


def test_a_turn_is_counted_from_the_pose_that_the_network_prefers_and_zoom_is_none():
    turns = np.array([[0.0, 0, angle] for angle in (-80, -20, 10, 60)])
    preferred = Rotation.from_euler("z", 130, degrees=True)
    linear = [0.4 * (Rotation.from_rotvec(turn, degrees=True) * preferred).as_matrix() for turn in turns]
    theta = np.concatenate([linear, np.full((4, 3, 1), 0.3)], 2).reshape(4, 12)
    left = pose_left(theta, turns)
    assert left["turn_after"].max() < 1e-6 and left["tilt_after"].max() < 1e-3 and left["turn_before"].min() > 5
    seen = solid_pose(np.eye(3, 4).reshape(1, 12), np.array([[0.0, 0, 30]]))[1]
    np.testing.assert_allclose(seen, 30)  # from x to y: clockwise, as y is down
    broken = theta.copy()
    broken[0], broken[1] = np.nan, 0
    assert np.isnan(pose_left(broken, turns)["tilt_after"][:2]).all()


@pytest.fixture(scope="module")
def trained(small, workplace):
    """Records of the three cells, trained for a moment on volumes of 30 voxels a side."""
    where_stored = workplace / "solid_30"
    command = ("data=volumes_60", *EMBEDDED, "data.canvas=30", f"data.raw={small.data.raw}")
    assert run("stn.distort", *command, f"data.stored={where_stored}", cwd=workplace).returncode == 0
    paths = []
    for cell in VOLUMES.cells():
        record = workplace / f"solid_records/{cell.key}"
        where = (f"data.stored={where_stored}", *EMBEDDED, *LITTLE, f"data.raw={small.data.raw}", f"record={record}")
        tiny = ("budget=smoke", "budget.steps=2", "budget.batch_size=4", "budget.validate_every=2", "logger=none")
        what = (f"data={cell.data}", f"model={cell.model}", *cell.settings)
        result = run("stn.train", *what, *where, *tiny, cwd=workplace)
        assert result.returncode == 0, result.stderr
        paths.append(record.with_suffix(".json"))
    return tables.load(6, paths)


def test_the_table_shows_all_rows_and_no_number_of_the_paper(trained):
    text = tables.to_markdown(trained, 6)
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:4] == ["CNN", "ST-CNN 3-D Aff", "CNN, true pose"]
    assert "2 steps of 4 volumes" in text and "500 test volumes" in text
    assert "the paper's" not in text and "has a figure and no numbers" in text
    assert "## How much of the pose is undone" in text and "tilt without" in text
    console = Console(width=100, record=True)
    console.print(tables.to_terminal(trained, 6))
    assert "ST-CNN 3-D Aff" in console.export_text()


def test_the_figure_shows_volumes_boxes_and_poses_and_is_the_same_each_time(trained, tmp_path):
    sheets = [draw_volumes(trained) for _ in range(2)]
    for sheet, name in zip(sheets, "ab", strict=True):
        sheet.save(tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    words = {text.get_text() for text in sheets[0].figure.findobj(mpl.text.Text)}
    assert {"tilt", "volume\nand box"} <= words and any("budget smoke, seed 0" in text for text in words)
    with pytest.raises(UserError, match="TABLE=6"):
        draw_volumes([record for record in trained if not record.row.transformer])


def test_a_broken_theta_does_not_stop_the_figure(trained, tmp_path):
    record = next(record for record in trained if record.row.transformer)
    arrays = {name: value.copy() for name, value in record.arrays.items()}
    arrays["theta"][:], arrays["example_theta"][:] = np.nan, np.nan
    draw_volumes([replace(record, arrays=arrays)]).save(tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000
