"""Promises of the export: the same answers outside of torch, and one clear line where that cannot be."""

import json
import re
import sys
from unittest.mock import patch

import numpy as np
import pytest
import torch

from conftest import one_error, run
from stn.errors import UserError
from stn.geometry.transforms import pixel_centres

CELL = ("data=digits_r", "model=size_st_7k", "budget=smoke", "budget.steps=150", "outputs=exporting")
QUICK = ("export.calibration=20", "export.timed=20", "export.warm_up=1", "export.batch=500")


@pytest.fixture(scope="module")
def checkpoint(workplace):
    """Of a small ST-CNN, trained for a moment on the embedded digits."""
    result = run("stn.train", *CELL, "logger=none", cwd=workplace)
    assert result.returncode == 0, result.stderr
    (path,) = (workplace / "exporting").glob("runs/smoke/digits_r-size_st_7k/*-s0/last.ckpt")
    return path


@pytest.fixture(scope="module")
def exported(workplace, checkpoint):
    """What an export says, and leaves: (stdout, record, folder of the files)."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    pixel_centres.cache_clear()  # as in a process of its own
    record = workplace / "records" / "cell-export"
    result = run("stn.export", f"checkpoint={checkpoint}", f"record={record}", *QUICK, cwd=workplace)
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(record.with_suffix(".json").read_text()), checkpoint.parent


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


def test_the_first_convolution_is_exported_as_one(exported):
    """Not as what it becomes on a CPU (`FirstConvolution`)."""
    import onnx

    graph = onnx.load(exported[2] / "float32.onnx").graph
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert "classifier.0.weight" in weights and len(weights) == 4


def test_int8_leaves_theta_grid_and_sampler_in_float32(exported):
    import onnx

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
    assert (record["model"], record["tested"], record["n_test"]) == ("size_st_7k", "digits_r", 5000)
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
    assert "no checkpoint of digits_r/size_st_7k/s0" in line and "stn.train" in line
    line = one_error(run("stn.export", *CELL, "seed=5", "record=x", cwd=workplace))
    assert "make table TABLE=1 FRESH=1" in line


@pytest.mark.parametrize(
    "overrides, named",
    [
        (["checkpoint=nowhere.ckpt"], "no such checkpoint"),
        (["data=digits_rts"], "canvas 42"),
        (["model=cnn"], "drop model="),
        (["export.folder=/dev/null/x"], "set export.folder"),
    ],
)
def test_what_cannot_be_exported_is_one_line(workplace, checkpoint, exported, overrides, named):
    given = [] if overrides[0].startswith("checkpoint") else [f"checkpoint={checkpoint}"]
    folder = [] if "folder" in overrides[0] else [f"export.folder={workplace}/refused"]
    assert named in one_error(run("stn.export", *given, *overrides, *folder, *QUICK, cwd=workplace))


def test_a_file_that_answers_otherwise_is_refused(exported):
    from stn.deployment import _agree

    torch_scores = np.array([[1.0, 2.0], [3.0, -4.0]])
    _agree({"torch": torch_scores, "float32": torch_scores + 0.003}, 0.001)
    for wrong in (torch_scores + 0.005, torch_scores * np.nan):
        with pytest.raises(UserError, match="does not give torch's scores"):
            _agree({"torch": torch_scores, "float32": wrong}, 0.001)


def test_without_onnxruntime_one_line_says_how_to_get_it(workplace, checkpoint):
    with patch.dict(sys.modules, {"onnxruntime": None}):
        sys.modules.pop("stn.deployment", None)
        line = one_error(run("stn.export", f"checkpoint={checkpoint}", cwd=workplace))
    sys.modules.pop("stn.deployment", None)
    assert re.search(r"(onnx|onnxruntime) is not installed: `make export`", line)
