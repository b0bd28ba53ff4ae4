"""Promises of the export: the same answers outside of torch, and one clear line where that cannot be."""

import json
import re
import sys
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from conftest import one_error, run
from stn.config import compose
from stn.errors import UserError
from stn.geometry import constants
from stn.geometry.sampling import LearnableSampler
from stn.geometry.transforms import HORIZON, Projective
from stn.nn.transformer import SpatialTransformer
from stn.report.table import Cell

NETWORKS = ["fcn", "cnn", *(f"st_{kind}_{warp}" for kind in ("fcn", "cnn") for warp in ("affine", "projective", "tps"))]
SIZE = Cell(  # of Table 8
    "mnist_r",
    "st_cnn_affine",
    ("schedule=sizes", "model.parameters=7000", "model.localisation.filters=4", "model.localisation.features=6"),
)
CELL = ("data=digits_r", f"model={SIZE.model}", *SIZE.settings, "budget=smoke", "budget.steps=150", "outputs=exporting")
QUICK = ("export.calibration=20", "export.timed=20", "export.warm_up=1", "export.batch=500")


@pytest.fixture(scope="module")
def checkpoint(workplace):
    """Of a small ST-CNN, trained for a moment on the embedded digits."""
    result = run("stn.train", *CELL, "logger=none", cwd=workplace)
    assert result.returncode == 0, result.stderr
    (path,) = (workplace / "exporting").glob(f"runs/smoke/{replace(SIZE, data='digits_r').key}/*-s0/last.ckpt")
    return path


@pytest.fixture(scope="module")
def onnx():
    """The package, where it is installed with what else an export needs."""
    return [pytest.importorskip(name) for name in ("onnxruntime", "onnxscript", "onnx")][-1]


@pytest.fixture(scope="module")
def exported(workplace, checkpoint, onnx):
    """What an export says, and leaves: (stdout, record, folder of the files)."""
    constants.clear()  # as in a process of its own
    record = workplace / "records" / "cell-export"
    result = run("stn.export", f"checkpoint={checkpoint}", f"record={record}", *QUICK, cwd=workplace)
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(record.with_suffix(".json").read_text()), checkpoint.parent


def small(model: str) -> torch.nn.Module:
    """A network of Table 1 as it would be trained, but narrow, and with a theta that its image decides."""
    from stn.training.learner import new_learner

    torch.manual_seed(0)
    network = new_learner(compose("data=digits_r", f"model={model}", "model.width=4")).network.eval()
    for name, parameter in network.requires_grad_(False).named_parameters():
        if "regression" in name:
            parameter += 0.05 * torch.randn_like(parameter)
    return network


def layers(graph) -> list[str]:
    """The second factors of the products that int8 takes in 8 bits: weights, if the grid is none of it."""
    from stn.deployment import sampling_nodes

    kept = sampling_nodes(graph)
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [node.input[1] for node in products if node.name not in kept]


def test_the_float32_file_gives_torchs_scores_for_any_number_of_images(exported):
    from stn.deployment import session
    from stn.training.run import load

    network = load(exported[2] / "last.ckpt").network.eval()
    run_file = session(exported[2] / "float32.onnx")
    for n in (1, 7):
        images = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(n))
        with torch.inference_mode():
            wanted = network(images).numpy()
        np.testing.assert_allclose(run_file(images.numpy()), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", NETWORKS)
def test_every_network_of_table_1_is_exported_for_any_number_of_images(onnx, tmp_path, model):
    from stn.deployment import session, to_onnx

    network, path = small(model), tmp_path / "float32.onnx"
    constants.clear()  # as in a process of its own
    to_onnx(network, torch.rand(2, 1, 28, 28), path, compose("data=digits_r").export.opset)
    run_file = session(path)
    for n in (1, 3):
        images = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(n))
        with torch.inference_mode():
            wanted = network(images).numpy()
        np.testing.assert_allclose(run_file(images.numpy()), wanted, rtol=1e-4, atol=1e-5)
    quantised = layers(onnx.load(path).graph)
    assert quantised and all(re.match(r"classifier|transformer.localisation", name) for name in quantised)


def test_a_learned_kernel_leaves_theta_and_grid_in_float32_too(onnx, tmp_path):
    """Its sampler is no operator of ONNX, but many."""
    from stn.deployment import session, to_onnx

    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4))
    network = SpatialTransformer(body, 4, sampler=LearnableSampler(radius=1)).eval().requires_grad_(False)
    torch.nn.init.normal_(network.regression.weight, std=0.1)
    to_onnx(network, torch.rand(2, 1, 6, 6), tmp_path / "float32.onnx", 20)
    images = torch.rand(3, 1, 6, 6)
    given = session(tmp_path / "float32.onnx")(images.numpy())
    np.testing.assert_allclose(given, network(images).numpy(), rtol=1e-4, atol=1e-5)
    assert layers(onnx.load(tmp_path / "float32.onnx").graph) == ["localisation.1.weight"]


def test_the_sign_of_a_small_denominator_is_kept(onnx, tmp_path):
    """A projective transformation wants that at its horizon, which no test image reaches."""
    from stn.deployment import session, to_onnx

    class Corner(torch.nn.Module):
        def forward(self, theta):
            return Projective().points(theta, torch.tensor([[1.0, 0.0]]))

    to_onnx(Corner(), torch.zeros(2, 8), tmp_path / "corner.onnx", 20)
    theta = Projective().identity().repeat(3, 1)
    theta[:, 6] = torch.tensor([-1 - 2**-23, -1, -1 + 2**-24])  # the denominators are -1e-7, 0 and 6e-8
    corners = session(tmp_path / "corner.onnx")(theta.numpy())[:, 0, 0]
    np.testing.assert_allclose(corners, [-1 / HORIZON, 1 / HORIZON, 1 / HORIZON], rtol=1e-6)


def test_the_first_convolution_is_exported_as_one(exported, onnx):
    """Not as what it becomes on a CPU (`FirstConvolution`)."""
    graph = onnx.load(exported[2] / "float32.onnx").graph
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert "classifier.0.weight" in weights and len(weights) == 4


def test_int8_leaves_theta_grid_and_sampler_in_float32(exported, onnx):
    graph = onnx.load(exported[2] / "int8.onnx").graph
    makers = {output: node for node in graph.node for output in node.output}
    (sampler,) = (node for node in graph.node if node.op_type == "GridSample")
    assert sampler.input[0] == "images"
    way = []  # from the sampler up to the regression layer
    while not way or not any(name.endswith("regression.weight") for name in way[-1].input):
        way.append(makers[(way[-1].input[0] if way else sampler.input[1])])
    assert len(way) > 3 and not any("Quantize" in node.op_type for node in way)
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert kinds["classifier.3.weight_quantized"] == onnx.TensorProto.INT8
    assert kinds["transformer.localisation.4.weight_quantized"] == onnx.TensorProto.INT8


def test_a_file_is_little_more_than_its_weights(exported):
    _, record, folder = exported
    grid = 4 * 2 * 28**2
    assert (folder / "float32.onnx").stat().st_size < 4 * record["parameters"] + grid + 10_000
    assert b"/stn/" not in (folder / "float32.onnx").read_bytes()  # no path of the machine


def test_an_export_says_what_it_found(workplace, checkpoint, exported):
    said, record, folder = exported
    assert (record["model"], record["tested"], record["n_test"]) == ("st_cnn_affine", "digits_r", 5000)
    runs, trained = record["runs"], json.loads((folder / "result.json").read_text())
    assert runs["torch"]["errors"] == runs["float32"]["errors"] and runs["float32"]["agreement"] == 100
    assert runs["torch"]["error"] == 100 * runs["torch"]["errors"] / 5000
    assert abs(runs["int8"]["error"] - runs["torch"]["error"]) < 5 and runs["int8"]["agreement"] < 100
    assert runs["int8"]["bytes"] == (folder / "int8.onnx").stat().st_size < runs["float32"]["bytes"]
    for run_ in runs.values():
        time = run_["latency"]
        assert 0 < time["low"] <= time["median"] <= time["high"] and time["n"] == 20
    assert record["trained"] == {"seed": 0, "date": trained["provenance"]["date"], "errors": trained["errors"]}
    assert record["provenance"]["onnxruntime"] and record["provenance"]["torch"]
    assert f"{runs['int8']['error']:.2f}" in said and "float32.onnx" in said
    tested = run("stn.evaluate", f"checkpoint={checkpoint}", "data=digits_r", "budget.precision=float32", cwd=workplace)
    assert f"({runs['torch']['errors']} of 5000 images)" in tested.stdout


def test_without_a_checkpoint_it_is_that_of_the_finished_cell(workplace, exported):
    folder = workplace / "elsewhere"
    result = run("stn.export", *CELL, *QUICK, f"export.folder={folder}", cwd=workplace)
    assert result.returncode == 0, result.stderr
    assert (folder / "float32.onnx").read_bytes() == (exported[2] / "float32.onnx").read_bytes()
    line = one_error(run("stn.export", *CELL, "budget.steps=21", cwd=workplace))
    assert f"no checkpoint of {SIZE.key.replace('mnist_r-', 'digits_r/')}/s0" in line and "stn.train" in line
    for cell, command in (("mnist_r-cnn", "make table FRESH=1"), (SIZE.key, "make table TABLE=8 FRESH=1")):
        line = one_error(run("stn.export", *CELL, "seed=5", f"record=records/{cell}-export", cwd=workplace))
        assert f"`{command}` trains it" in line


@pytest.mark.parametrize(
    "overrides, named",
    [
        (["checkpoint=nowhere.ckpt"], "no such checkpoint"),
        (["data=digits_rts"], "canvas 42"),
        (["model=cnn"], "drop model="),
        (["data.stored=data/stored/elsewhere"], "drop data.stored=; data=... tests"),
        (["model.width=4"], "drop model.width="),
        (["budget.steps=7"], "drop budget.steps="),
        (["export.folder=/dev/null/x"], "set export.folder"),
    ],
)
def test_what_cannot_be_exported_is_one_line(workplace, checkpoint, exported, overrides, named):
    given = [] if overrides[0].startswith("checkpoint") else [f"checkpoint={checkpoint}"]
    folder = [] if "folder" in overrides[0] else [f"export.folder={workplace}/refused"]
    assert named in one_error(run("stn.export", *given, *overrides, *folder, *QUICK, cwd=workplace))


class Baked(torch.nn.Module):
    def forward(self, images):
        return images.view(2, -1)


class Untranslatable(torch.nn.Module):
    def forward(self, images):
        return torch.special.bessel_j0(images)


class Undecided(torch.nn.Module):
    def forward(self, images):
        return images + 1 if images.sum() > 0 else images


@pytest.mark.parametrize(
    "network, cause",
    [(Baked(), "no number of images but"), (Untranslatable(), "bessel_j0"), (Undecided(), "data-dependent")],
)
def test_what_the_exporter_cannot_do_is_one_line_that_names_the_cause(onnx, tmp_path, capfd, network, cause):
    from stn.deployment import to_onnx

    with pytest.raises(UserError, match="cannot be exported to ONNX") as refused:
        to_onnx(network, torch.rand(2, 3), tmp_path / "none.onnx", 20)
    assert cause in str(refused.value) and "\n" not in str(refused.value) and "\x1b" not in str(refused.value)
    assert not list(tmp_path.iterdir()) and "def forward" not in "".join(capfd.readouterr())


def test_a_file_that_answers_otherwise_is_refused(exported):
    from stn.deployment import check_agreement

    torch_scores = np.array([[1.0, 2.0], [3.0, -4.0]])
    check_agreement({"torch": torch_scores, "float32": torch_scores + 0.003}, 0.001)
    for wrong in (torch_scores + 0.005, torch_scores * np.nan):
        with pytest.raises(UserError, match="does not give torch's scores"):
            check_agreement({"torch": torch_scores, "float32": wrong}, 0.001)


def test_without_onnxruntime_one_line_says_how_to_get_it(workplace, checkpoint):
    with patch.dict(sys.modules, {"onnxruntime": None}):
        sys.modules.pop("stn.deployment", None)
        line = one_error(run("stn.export", f"checkpoint={checkpoint}", cwd=workplace))
    sys.modules.pop("stn.deployment", None)
    assert re.search(r"(onnx|onnxruntime) is not installed: `make export`", line)
