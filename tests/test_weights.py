"""Promises of the trained networks: loaded by name they are what their cards say, and whatever is not is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import stn
from conftest import ROOT, build_wheel, copy_package, one_error, run
from stn import publishing, weights
from stn.errors import UserError
from stn.report.blocks import Report, Sources
from stn.report.pages import make_block
from stn.report.statistics import wilson

NAME, MODEL = "digits_r/st_cnn_tps", "st_cnn_tps"
RECORD = Path("reports/results/smoke/mnist/digits_r-st_cnn_tps.json")
FILE = Path(f"reports/weights/{NAME}.safetensors")
CELL = ("data=digits_r", f"model={MODEL}", "model.width=4", "budget=smoke", "logger=none")
PUBLISHED = stn.list_weights()
TABLE_1 = publishing.COLUMNS[:4]
MIRROR = os.environ.get("STN_DATA_MIRROR", "")
MNIST = Path(MIRROR, "mnist").resolve() if MIRROR and "://" not in MIRROR else None
published = pytest.mark.skipif(not PUBLISHED, reason="reports/weights is empty")
real = pytest.mark.skipif(MNIST is None or not MNIST.is_dir(), reason="STN_DATA_MIRROR has no mnist")


@pytest.fixture(scope="module")
def trained(workplace, tmp_path_factory):
    """A folder with a finished run of a small network, its record and its weights."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "data").symlink_to(workplace / "data")
    result = run("stn.train", *CELL, "budget.steps=60", f"record={RECORD.with_suffix('')}", cwd=folder)
    assert result.returncode == 0, result.stderr
    result = run("stn.publish", str(RECORD), cwd=folder)
    assert result.returncode == 0, result.stderr
    (checkpoint,) = folder.glob("outputs/runs/smoke/*/*-s0/last.ckpt")
    return folder, checkpoint, result.stdout


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of that folder to change, as the current one."""
    shutil.copytree(trained[0], tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return Path.cwd()


@pytest.fixture
def library(project, monkeypatch):
    """The same, where `stn.load` looks for names."""
    monkeypatch.setattr(weights, "folder", lambda: project / weights.CLONE)
    return project / weights.CLONE


def of_checkpoint(path: Path) -> torch.nn.Module:
    from stn.training.run import load

    return load(path).network.eval()


def images(n: int = 16) -> torch.Tensor:
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------ load


def test_a_loaded_network_is_the_trained_one_in_float16(trained, library):
    _, checkpoint, _ = trained
    network = stn.load(NAME)
    assert not network.training and network.card["stored"]["dtype"] == "float16"
    expected = of_checkpoint(checkpoint)
    for parameter in expected.parameters():
        parameter.data = parameter.data.half().float()
    with torch.inference_mode():
        torch.testing.assert_close(network(images()), expected(images()))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_file_is_loaded_by_its_path_and_onto_a_device(project):
    assert next(stn.load(FILE).parameters()).device.type == "cpu"
    assert next(stn.load(str(FILE), "meta").parameters()).device.type == "meta"


def test_images_of_another_shape_are_refused_in_one_line(project):
    network = stn.load(FILE)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    for shape in ((2, 1, 42, 42), (2, 3, 28, 28), (1, 28, 28)):
        with pytest.raises(ValueError, match=r"digits_r/st_cnn_tps takes images \(B, 1, 28, 28\), not \(.*\)$"):
            network(torch.rand(shape))
        with pytest.raises(ValueError, match=r"takes images \(B, 1, 28, 28\), not \(.*\)$"):
            network(images=torch.rand(shape))


def test_images_may_be_given_by_name(project):
    network = stn.load(FILE)
    assert torch.equal(network(images=images()), network(images()))
    with pytest.raises(TypeError, match="image"):
        network(image=images())


def test_loading_draws_no_random_numbers(project):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    stn.load(FILE)
    assert torch.equal(torch.rand(2), expected)


def test_loading_needs_neither_lightning_nor_hydra_nor_wandb(trained):
    code = (
        f"import sys, stn; stn.load({str(FILE)!r})\n"
        "print(*{'lightning', 'hydra', 'wandb', 'scipy', 'matplotlib', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=trained[0], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


def test_a_card_explains_its_network(trained, project):
    card = json.loads(FILE.with_suffix(".json").read_text())
    record = json.loads(RECORD.read_text())
    assert card == stn.load(FILE).card
    assert card["record"] == RECORD.as_posix() and card["config"] == record["config"]
    assert card["errors"] == record["seeds"][0]["errors"] and card["code"] == record["code"]
    assert card["licence"]["weights"] == "MIT" and card["licence"]["data"]
    assert abs(card["stored"]["errors"] - card["errors"]) <= 5  # of 5,000
    assert f"{card['error']:.2f} % of 5,000 images (smoke), {card['stored']['error']:.2f} % as float16" in trained[2]


def test_writing_the_same_weights_again_gives_the_same_bytes(project):
    before = FILE.read_bytes()
    FILE.unlink()
    assert run("stn.publish", str(RECORD), cwd=project).returncode == 0
    assert FILE.read_bytes() == before


# -------------------------------------------------------------------------------------- what is refused


def flip(path: Path, where: int) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(bytes(content))


def foreign(path: Path) -> None:
    save_file({"weight": np.zeros(3)}, path)


def of_another_schema(path: Path) -> None:
    weights.write(path, {**weights.read_card(path), "schema": 2}, load_file(path))


def of_another_network(path: Path) -> None:
    card = json.loads(json.dumps(weights.read_card(path)))
    card["config"]["model"]["width"] = 5
    weights.write(path, card, load_file(path))


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
        (lambda path: flip(path, -1), "damaged"),
        (lambda path: flip(path, path.read_bytes().index(b"2015")), "damaged"),  # the card's seed of the data
        (lambda path: flip(path, 3), "damaged"),
        (foreign, "not a weight file of this project"),
        (of_another_schema, "update stn"),
        (of_another_network, "fits its weights"),
        (Path.unlink, "no such weight file"),
    ],
    ids=["empty", "cut", "tensors", "card", "header", "foreign", "schema", "network", "missing"],
)
def test_a_file_that_is_not_what_was_written_is_refused_in_one_line(project, damage, reason):
    damage(FILE)
    with pytest.raises(ValueError, match=reason) as refused:
        stn.load(FILE)
    assert "\n" not in str(refused.value) and str(FILE) in str(refused.value).replace(NAME, str(FILE))
    if damage is not of_another_network:
        assert reason in one_error(run("stn.evaluate", f"weights={FILE}", cwd=project))


def test_an_unknown_name_is_refused_in_one_line(library):
    with pytest.raises(
        ValueError, match=r"^no trained network 'digits_r/st_cnn_tsp': did you mean digits_r/st_cnn_tps\?"
    ):
        stn.load("digits_r/st_cnn_tsp")
    with pytest.raises(ValueError, match=r"^no trained network '\.\./x': stn.list_weights\(\) names all"):
        stn.load("../x")
    assert "did you mean" in one_error(run("stn.evaluate", "weights=digits_r/st_cnn_tp", cwd=library.parents[1]))
    shutil.rmtree(library)
    assert stn.list_weights() == []
    with pytest.raises(ValueError, match="none is"):
        stn.load(NAME)


def test_a_file_under_another_name_is_refused(library):
    (library / "digits_rts").mkdir()
    shutil.copy(library / f"{NAME}.safetensors", library / "digits_rts/cnn.safetensors")
    assert stn.list_weights() == [NAME, "digits_rts/cnn"]
    with pytest.raises(ValueError, match=f"holds the weights of {NAME}, not of digits_rts/cnn"):
        stn.load("digits_rts/cnn")


# ------------------------------------------------------------------------------------------- evaluate


def test_evaluate_takes_a_name_and_gets_the_records_error_again(library):
    """On its own data set, and at its own budget's precision, though the command line names neither."""
    card = stn.load(NAME).card
    said = run("stn.evaluate", f"weights={NAME}", cwd=library.parents[1])
    assert said.returncode == 0, said.stderr
    assert f"tested on digits_r: error {card['stored']['error']:.2f} %" in said.stdout
    assert f"its record, {RECORD}: error {card['error']:.2f} %" in said.stdout


def test_evaluate_tests_a_network_on_what_the_command_line_names(project):
    other = run("stn.evaluate", f"weights={FILE}", "data.stored=nowhere", cwd=project)
    assert "nowhere" in one_error(other)
    assert "canvas 42" in one_error(run("stn.evaluate", f"weights={FILE}", "data=digits_rts", cwd=project))
    assert "drop model=" in one_error(run("stn.evaluate", f"weights={FILE}", "model=cnn", cwd=project))
    assert "one of the two" in one_error(run("stn.evaluate", f"weights={FILE}", "checkpoint=x", cwd=project))
    for door in ("stn.train", "stn.export"):
        assert "is only for stn.evaluate" in one_error(run(door, f"weights={FILE}", cwd=project))


def test_images_of_another_shape_than_the_network_was_trained_on_are_one_line(tmp_path, workplace):
    """True poses make 28 pixels of the 42 of RTS."""
    (tmp_path / "data").symlink_to(workplace / "data")
    cell = ("data=digits_rts", "model=cnn", "model.width=4", "budget=smoke", "budget.steps=10", "logger=none")
    cell = (*cell, "budget.validate_every=10")
    assert run("stn.train", *cell, cwd=tmp_path).returncode == 0
    (checkpoint,) = tmp_path.glob("outputs/runs/smoke/*/*-s0/last.ckpt")
    name = f"checkpoint={checkpoint.relative_to(tmp_path)}"
    assert run("stn.evaluate", name, "data.undo=[angle]", cwd=tmp_path).returncode == 0
    for settings in (["data.undo=true"], ["data=digits_rts", "data.undo=true"]):
        line = one_error(run("stn.evaluate", name, *settings, cwd=tmp_path))
        assert "was trained on images (1, 42, 42) of digits_rts" in line and "images (1, 28, 28)" in line


def test_the_records_error_is_beside_that_of_its_own_test_images_only(library):
    root = library.parents[1]
    said = run("stn.evaluate", f"weights={NAME}", "data.undo=[angle]", cwd=root)
    assert said.returncode == 0 and "tested on digits_r" in said.stdout and "its record" not in said.stdout
    assert "its record, " in run("stn.evaluate", f"weights={NAME}", "data=digits_r", cwd=root).stdout


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["seeds"][0].update(errors=record["seeds"][0]["errors"] + 1),
        lambda record: record["seeds"][0].update(seed=1),
        lambda record: record["seeds"][0]["validation"][-1].__setitem__(2, 9.0),
        lambda record: record["config"]["budget"].update(learning_rate=0.5),
        lambda record: record.pop("seeds"),
    ],
    ids=["errors", "seed", "validation", "config", "damaged"],
)
def test_weights_whose_record_tells_of_another_training_are_told(project, change):
    record = json.loads(RECORD.read_text())
    change(record)
    RECORD.write_text(json.dumps(record))
    line = one_error(run("stn.evaluate", f"weights={FILE}", cwd=project))
    assert "is not from the training of" in line and f"`python -m stn.publish {RECORD}` writes it again" in line
    block = make_block("weights", Path("docs/weights.md"), Sources(lambda number: Report([[]], ""), {}, project))
    assert f"`{NAME}` †" in block and "tells of another training" in block


# --------------------------------------------------------------------------------------------- writing


def scale_scores(checkpoint: Path, factor: float) -> None:
    """Multiplies the last layer of a checkpoint: by a power of two, no answer of float32 changes."""
    state = torch.load(checkpoint, weights_only=True)
    last = max(
        (key for key in state["state_dict"] if key.startswith("network.classifier")), key=lambda key: key.split(".")
    )
    for key in (last, last.replace("weight", "bias")):
        state["state_dict"][key] *= factor
    torch.save(state, checkpoint)


def test_weights_that_float16_would_change_are_stored_as_float32(project):
    (checkpoint,) = project.glob("outputs/runs/smoke/*/*-s0/last.ckpt")
    scale_scores(checkpoint, 2.0**-30)  # zeros in float16
    said = run("stn.publish", str(RECORD), cwd=project)
    assert said.returncode == 0 and "as float32" in said.stdout, said.stderr
    network = stn.load(FILE)
    assert network.card["stored"]["dtype"] == "float32"
    assert network.card["stored"]["errors"] == network.card["errors"]
    assert all(tensor.dtype == np.float32 for tensor in load_file(FILE).values())


def test_weights_that_do_not_give_the_records_error_are_not_written(project):
    (checkpoint,) = project.glob("outputs/runs/smoke/*/*-s0/last.ckpt")
    scale_scores(checkpoint, -1.0)
    before = FILE.read_bytes()
    assert "its weights make" in one_error(run("stn.publish", str(RECORD), cwd=project))
    assert FILE.read_bytes() == before


def change_result(folder: Path, **values) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def permute(folder: Path) -> None:
    arrays = dict(np.load(folder / "result.npz"))
    arrays["correct"] = np.roll(arrays["correct"], 1)
    np.savez(folder / "result.npz", **arrays)


def change_config(folder: Path) -> None:
    state = torch.load(folder / "last.ckpt", weights_only=True)
    state["hyper_parameters"]["experiment"]["budget"]["learning_rate"] = 0.5
    torch.save(state, folder / "last.ckpt")


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda folder: change_result(folder, errors=1), "has 1 errors, the record"),
        (lambda folder: change_result(folder, validation=[[60, 1.0, 1.0]]), "another validation curve"),
        (permute, "other test images right"),
        (change_config, "another config"),
        (lambda folder: (folder / "result.npz").write_bytes(b"x"), "damaged result"),
        (lambda folder: (folder / "last.ckpt").write_bytes(b"x"), "damaged"),
        (lambda folder: (folder / "last.ckpt").unlink(), "no finished run"),
        (lambda folder: (folder / "result.json").unlink(), "no finished run"),
    ],
    ids=["errors", "validation", "images", "config", "result", "checkpoint", "no checkpoint", "unfinished"],
)
def test_a_run_of_which_the_record_says_something_else_is_refused(project, change, reason):
    (folder,) = project.glob("outputs/runs/smoke/*/*-s0")
    change(folder)
    assert reason in one_error(run("stn.publish", str(RECORD), cwd=project))


def test_a_run_of_another_network_is_not_taken_for_one_of_the_record(project):
    (folder,) = project.glob("outputs/runs/smoke/*/*-s0")
    change_config(folder)
    change_result(folder, errors=1)
    line = one_error(run("stn.publish", str(RECORD), cwd=project))
    assert "no finished run of it in outputs/runs/smoke/digits_r-st_cnn_tps; " in line and "the record" not in line


def test_runs_of_other_networks_do_not_hide_that_of_the_record(project):
    (folder,) = project.glob("outputs/runs/smoke/*/*-s0")
    other = folder.parent / f"{'0' * 12}-s0"
    shutil.copytree(folder, other)
    change_config(other)
    change_result(other, errors=1)  # now the newest
    shutil.copytree(other, folder.parents[1] / RECORD.stem / other.name)
    assert run("stn.publish", str(RECORD), cwd=project).returncode == 0


def test_a_record_that_is_none_is_refused(project):
    for path, reason in (
        ("nowhere.json", "no such record"),
        (str(RECORD.with_suffix(".npz")), "no such record"),
        (".", "no such record"),
        ("../x.json", "not in this folder"),
        ("outputs/other.json", "not the record of a cell"),
    ):
        if reason == "not the record of a cell":
            shutil.copy(RECORD, path)
        assert reason in one_error(run("stn.publish", path, cwd=project))


def test_weights_learned_from_data_without_a_known_licence_are_not_written(project, monkeypatch):
    monkeypatch.setattr(publishing, "DATA_LICENCES", {})
    assert "no licence is known" in one_error(run("stn.publish", str(RECORD), cwd=project))


def test_without_a_record_all_are_written_that_are_here_and_the_others_named(project, monkeypatch):
    monkeypatch.setattr(publishing, "COLUMNS", ("digits_r",))
    monkeypatch.setattr(publishing, "MODELS", ("cnn", MODEL))
    monkeypatch.setattr(publishing, "BUDGETS", ("", "smoke", "quick"))
    (project / "docs").mkdir()
    (project / publishing.PAGE).write_text("<!-- weights:begin -->\n<!-- weights:end -->\n")
    shutil.rmtree(project / weights.CLONE)
    said = run("stn.publish", cwd=project)
    assert said.returncode == 0, said.stderr
    assert f"{NAME}: error" in said.stdout and "1 of 2 are missing at budget smoke" in said.stdout
    assert "smoke/mnist/digits_r-cnn.json: no such record" in said.stdout and "BUDGET=smoke FRESH=1" in said.stdout
    page = (project / publishing.PAGE).read_text()
    assert f"| `{NAME}` | `smoke` |" in page and "float16" in page
    card = weights.read_card(FILE)
    weights.write(FILE, {**card, "steps": 61, "budget": "quick"}, load_file(FILE))
    assert f"{NAME}: kept, of budget quick" in run("stn.publish", cwd=project).stdout
    shutil.rmtree(project / "outputs")
    assert "no run below outputs/runs" in one_error(run("stn.publish", cwd=project))


def test_the_page_says_what_the_files_say(project):
    sources = Sources(lambda number: Report([[]], ""), {}, project)
    row = next(line for line in make_block("weights", Path("docs/weights.md"), sources).splitlines() if NAME in line)
    card = weights.read_card(FILE)
    low, high = wilson(card["errors"], card["n_test"])
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    stored = f"{card['stored']['error']:.2f}"
    assert cells[1:7] == ["`smoke`", f"{card['error']:.2f}", f"{low:.2f} to {high:.2f}", stored, "float16", cells[6]]
    flip(FILE, -1)
    with pytest.raises(UserError, match="damaged"):
        make_block("weights", Path("docs/weights.md"), sources)
    shutil.rmtree(project / weights.CLONE)
    assert "None are published yet" in make_block("weights", Path("docs/weights.md"), sources)


# -------------------------------------------------------------------------------------- other ways to it


@pytest.fixture
def clone(trained, tmp_path):
    """A copy of the project with that network alone."""
    folder = copy_package(tmp_path / "a clone")
    shutil.copytree(trained[0] / weights.CLONE, folder / weights.CLONE)
    return folder


def python(code: str, folder: Path, **variables: str) -> list[str]:
    """The lines that this code prints in a process without the project on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_torch_hub_loads_the_same_network(clone, trained):
    code = (
        "import torch\n"
        f"hub = dict(repo_or_dir={str(clone)!r}, source='local')\n"
        f"module = torch.hub._import_module('hubconf', {str(clone / 'hubconf.py')!r})\n"
        "print(*(name for name in dir(module) if callable(getattr(module, name)) and name[0] != '_'))\n"  # its list
        f"one = torch.hub.load(**hub, model={NAME!r}, map_location='cpu')\n"
        f"other = torch.hub.load(hub['repo_or_dir'], 'load', {NAME!r}, source='local')\n"
        "import stn; print(stn.__file__)\n"
        "total = lambda network: sum(p.double().sum().item() for p in network.parameters())\n"
        "print(total(one)); print(total(other))"
    )
    names, source, one, other = python(code, clone.parent)
    assert names.split() == [NAME, "load"] and source == str(clone / "src/stn/__init__.py")
    network = stn.load(trained[0] / FILE)
    assert float(one) == float(other) == sum(p.double().sum().item() for p in network.parameters())


def test_an_installed_package_has_the_weights(clone):
    """Built as `pip install .` builds it, and found without the clone."""
    (clone / "build/lib/stn/trained/old").mkdir(parents=True)
    (clone / "build/lib/stn/trained/old/x.safetensors").touch()  # what an earlier build left
    wheel = build_wheel(clone)
    site = clone.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shutil.rmtree(clone)
    code = f"import stn; print(stn.__file__); print(*stn.list_weights()); print(stn.load({NAME!r}).card['name'])"
    source, names, name = python(code, clone.parent, PYTHONPATH=str(site))
    assert source == str(site / "stn/__init__.py") and names == name == NAME


# ------------------------------------------------------------------------- the networks that are published


@published
def test_every_network_of_table_1_is_published_and_all_are_small():
    names = [f"{data}/{model}" for data in TABLE_1 for model in publishing.MODELS]
    assert set(names) <= set(PUBLISHED)
    assert sum(path.stat().st_size for path in weights.folder().rglob("*.safetensors")) <= 12e6


@published
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_is_of_the_record_that_is_here(name):
    card = stn.load(name).card
    assert (ROOT / card["record"]).is_file() and weights.conflict(card, ROOT) is None
    assert 1000 * abs(card["stored"]["errors"] - card["errors"]) <= card["n_test"]
    assert card["licence"] == {"weights": "MIT", "data": "MNIST: CC BY-SA 3.0"} and card["code"]["commit"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with MNIST, and a function that stores a data set there."""
    folder = tmp_path_factory.mktemp("mnist")
    assert run("stn.fetch", "data=mnist_r", cwd=folder).returncode == 0

    def store(data: str) -> Path:
        if not (folder / "data/stored" / data).exists():
            assert run("stn.distort", f"data={data}", cwd=folder).returncode == 0
        return folder

    return store


@published
@real
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_gets_its_records_error_on_the_stored_test_set(stored, name):
    said = run("stn.evaluate", f"weights={name}", cwd=stored(name.partition("/")[0]))
    assert said.returncode == 0, said.stderr
    errors = int(re.search(r"\((\d+) of 10000 images\)", said.stdout)[1])
    assert 1000 * abs(errors - stn.load(name).card["errors"]) <= 10_000


@pytest.fixture(scope="module")
def digits():
    """Two thousand test digits of MNIST distorted by scipy and OpenCV, and their labels, by data set."""
    from reference_digits import distorted, read_digits

    clean, labels = read_digits(MNIST, 5)
    made = {}

    def make(data: str) -> tuple[torch.Tensor, torch.Tensor]:
        if data not in made:
            made[data] = torch.from_numpy(distorted(data, clean, seed=0)), torch.from_numpy(labels)
        return made[data]

    return make


@published
@real
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.partition("/")[0] in TABLE_1])
def test_digits_that_scipy_and_opencv_distort_give_the_same_error(digits, name):
    """The record's error lies in the interval of what is measured, at 95 % over all networks together."""
    network = stn.load(name)
    inputs, labels = digits(name.partition("/")[0])
    with torch.inference_mode():
        errors = sum(
            (network(x).argmax(1) != y).sum().item() for x, y in zip(inputs.split(500), labels.split(500), strict=True)
        )
    low, high = wilson(errors, len(labels), 1 - 0.05 / len(PUBLISHED))
    assert low <= network.card["error"] <= high
