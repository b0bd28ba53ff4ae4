"""Promises of the gate to the report: what is a record of a table, and which is refused by name."""

import json

import numpy as np
import pytest

from stn.config import compose, experiment
from stn.errors import UserError
from stn.experiments.mnist.table import DISTORTED, SIZES
from stn.experiments.svhn.table import HOUSE_NUMBERS
from stn.report.records import config_differences, load_records, missing
from stn.schema import filled
from synthetic import DERIVED, write_cell, write_export, write_table


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All cells of Table 1 but those of TC."""
    return write_table(tmp_path_factory.mktemp("table1"))


@pytest.fixture(scope="module")
def strips(tmp_path_factory):
    """Table 2 on its columns of stand-ins, column by column."""
    folder = tmp_path_factory.mktemp("table2")
    return [path for column in DERIVED for path in write_table(folder, [column], part="256 strips", n_test=256)]


def test_table_names_the_missing_cell(whole, tmp_path):
    lost = [tmp_path / "mnist_p-st_fcn_tps.json", tmp_path / "mnist_e-cnn.json"]
    assert missing([*whole, *lost]) == lost
    with pytest.raises(UserError, match="make table") as error:
        load_records(DISTORTED, [*whole, *lost])
    assert all(str(path) in str(error.value) for path in lost) and "\n" not in str(error.value)
    assert str(whole[0]) not in str(error.value)


def test_an_optional_column_is_all_or_nothing(whole, strips, tmp_path):
    assert len(load_records(DISTORTED, whole, [tmp_path / "mnist_tc-cnn.json", tmp_path / "mnist_tc-fcn.json"])) == 32
    official = [tmp_path / f"svhn_64-{path.stem.partition('-')[2]}.json" for path in strips[:3]]
    assert len(load_records(HOUSE_NUMBERS, [], [*official, *strips])) == 6
    begun = write_cell(tmp_path, "CNN", "64 px", [120])
    assert begun in official
    with pytest.raises(UserError, match=r"2 cells have no record: .*`make table TABLE=2` trains") as error:
        load_records(HOUSE_NUMBERS, [], [*official, *strips])
    assert all(str(path) in str(error.value) for path in official if path != begun)


def test_unfinished_record_is_refused_by_name(tmp_path):
    path = write_cell(tmp_path, "CNN", "R", [120], complete=False)
    with pytest.raises(UserError, match=r"mnist_r-cnn\.json: an unfinished run"):
        load_records(DISTORTED, [path])


def test_record_of_another_config_is_refused(tmp_path):
    path = write_cell(tmp_path, "CNN", "R", [120])
    right = {"data": {"kind": "mnist"}, "model": {"filters": 64, "localisation": {"filters": 20}}, "seeds": [0]}
    assert len(load_records(DISTORTED, [path], configs={path: right})) == 1
    wrong = {"data": {"kind": "mnist"}, "model": {"filters": 32, "localisation": {"filters": 20}}, "seeds": [0]}
    with pytest.raises(UserError, match=r"mnist_r-cnn\.json: .*model\.filters: 64, not 32"):
        load_records(DISTORTED, [path], configs={path: wrong})


def test_config_differences_are_dotted_and_complete():
    ours = {"model": {"filters": 32, "bias": True}, "lr": 1, "only": "x", "sizes": [1, 2]}
    theirs = {"model": {"filters": 64, "bias": 1}, "lr": 1.0, "steps": None, "sizes": [1, 2]}
    assert config_differences(ours, theirs) == [
        "model.filters: 32, not 64",
        "model.bias: true, not 1",
        "steps: absent, not null",
        'only: "x", not absent',
    ]
    assert config_differences(ours, ours) == []


def damage_json(path):
    path.write_text(path.read_text()[:200])


def damage_key(path):
    record = json.loads(path.read_text())
    del record["parameters"]
    path.write_text(json.dumps(record))


def damage_count(path):
    record = json.loads(path.read_text())
    record["seeds"][0].update(error=1.0, errors=100)
    path.write_text(json.dumps(record))


def damage_npz(path):
    path.with_suffix(".npz").write_bytes(path.with_suffix(".npz").read_bytes()[:300])


def damage_byte(path):
    """Flips bits in the middle of the predictions, which are compressed."""
    archive = path.with_suffix(".npz")
    content = bytearray(archive.read_bytes())
    name = b"correct_s0.npy"
    content[content.index(name) + len(name) + 40] ^= 0xFF
    archive.write_bytes(content)


def damage_array(path):
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "cloud_after"}
    np.savez(path.with_suffix(".npz"), **arrays)


def damage_absent(path):
    path.with_suffix(".npz").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_json, "not valid JSON"),
        (damage_key, "without parameters"),
        (damage_count, r"claims 100 errors \(1.0 %\) of 10000 images, its predictions have 120 of 10000"),
        (damage_npz, "cannot be read"),
        (damage_byte, "cannot be read"),
        (damage_array, "without cloud_after"),
        (damage_absent, "beside it"),
    ],
)
def test_damaged_record_is_one_line_that_names_the_file(tmp_path, damage, reason):
    path = write_cell(tmp_path, "ST-CNN Aff", "R", [120], n=20)
    load_records(DISTORTED, [path])
    damage(path)
    with pytest.raises(UserError, match=reason) as error:
        load_records(DISTORTED, [path])
    assert "mnist_r-st_cnn_affine.json" in str(error.value) and "\n" not in str(error.value)


def test_record_under_another_cells_name_is_refused(tmp_path):
    path = write_cell(tmp_path, "CNN", "R", [120])
    other = path.with_name("mnist_e-cnn.json")
    path.rename(other)
    with pytest.raises(UserError, match=r"mnist_e-cnn\.json: .*of another cell: mnist_r-cnn"):
        load_records(DISTORTED, [other])


def test_record_of_another_table_is_refused(tmp_path):
    path = write_cell(tmp_path, "CNN", "64 px", [120])
    with pytest.raises(UserError, match=r"svhn_64-svhn_cnn\.json: .*no cell of Table 1: svhn_64-svhn_cnn"):
        load_records(DISTORTED, [path])


def test_positions_that_contradict_the_predictions_are_refused(tmp_path):
    path = write_cell(tmp_path, "CNN", "64 px", [120])
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = dict(archive)
    arrays["positions"][:] = True
    np.savez(path.with_suffix(".npz"), **arrays)
    with pytest.raises(UserError, match=r"svhn_64-svhn_cnn\.npz whose positions"):
        load_records(HOUSE_NUMBERS, [path])


def test_cells_of_two_budgets_do_not_share_a_table(tmp_path):
    paths = [write_cell(tmp_path, "CNN", "R", [120]), write_cell(tmp_path, "CNN", "E", [120], budget="paper")]
    with pytest.raises(UserError, match="budget paper, not quick"):
        load_records(DISTORTED, paths)


def change(path, **changes):
    """Rewrites keys of a record's JSON."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_where_a_record_stands_is_said_by_the_table_alone(tmp_path):
    path = write_cell(tmp_path, "CNN", "R", [120])
    change(path, table=7, row="an old label", column="another")
    (record,) = load_records(DISTORTED, [path])
    assert (record.row.label, record.column.label) == ("CNN", "R")


def test_a_stand_in_stands_in_the_column_of_the_papers_data(tmp_path):
    path = write_cell(tmp_path, "CNN", "R", [120], data="digits_r", part="embedded digits")
    path.with_suffix(".npz").rename(tmp_path / "digits_r-cnn.npz")
    (record,) = load_records(DISTORTED, [path.rename(tmp_path / "digits_r-cnn.json")])
    assert record.column.label == "R" and record.part == "embedded digits"


def test_a_record_may_say_which_code_trained_it_and_what_was_shown_since(tmp_path):
    path = write_cell(tmp_path, "CNN", "R", [120])
    (record,) = load_records(DISTORTED, [path])
    assert not record.code and list(record.adopted) == []
    code = {"digest": 16 * "a", "commit": 40 * "b"}
    adopted = [{"digest": 16 * "c", "commit": 40 * "d", "evidence": "curves"}]
    change(path, code=code, adopted=adopted, key_of_the_future=1)
    (record,) = load_records(DISTORTED, [path])
    assert record.code == code and record.adopted == adopted


def test_a_record_without_test_images_is_refused(tmp_path):
    path = write_cell(tmp_path, "CNN", "R", [0])
    record = json.loads(path.read_text())
    record["seeds"][0] |= {"n_test": 0, "error": 0}
    path.write_text(json.dumps(record | {"n_test": 0}))
    np.savez(path.with_suffix(".npz"), correct_s0=np.zeros(0, bool))
    with pytest.raises(UserError, match=r"mnist_r-cnn\.json: damaged record, without any test image"):
        load_records(DISTORTED, [path])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seeds": 5}, "seeds: 5"),
        ({"seeds": []}, "without any seed"),
        ({"seeds": ["0"]}, "a seed without seed, error"),
        ({"n_test": "many"}, 'n_test: "many"'),
        ({"config": [1]}, r"config: \[1\]"),
        ({"parameters": None}, "parameters: null"),
        ({"schema": 9}, "schema 9, not 1"),
        ({"part": 5}, "part: 5"),
        ({"pose_names": "angle"}, 'pose_names: "angle"'),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(tmp_path, changes, reason):
    path = write_cell(tmp_path, "CNN", "R", [120])
    change(path, **changes)
    with pytest.raises(UserError, match=rf"mnist_r-cnn\.json: damaged record, {reason}") as error:
        load_records(DISTORTED, [path])
    assert "\n" not in str(error.value)


def test_a_seed_that_cannot_be_is_refused(tmp_path):
    path = write_cell(tmp_path, "CNN", "R", [120])
    seeds = json.loads(path.read_text())["seeds"]
    values = (("errors", "120"), ("provenance", None), ("steps", 1.5), ("validation", "x"), ("validation", [[1], 2]))
    for key, value in values:
        change(path, seeds=[seeds[0] | {key: value}])
        with pytest.raises(UserError, match=f"a seed whose {key} is "):
            load_records(DISTORTED, [path])


def test_a_seed_counts_once(tmp_path):
    path = write_cell(tmp_path, "CNN", "R", [120])
    change(path, seeds=3 * json.loads(path.read_text())["seeds"])
    with pytest.raises(UserError, match=r"mnist_r-cnn\.json: damaged record, with seed 0 more than once; delete it"):
        load_records(DISTORTED, [path])


@pytest.mark.parametrize(
    ("group", "changes"),
    [
        ("data", {"key_of_the_future": 1}),
        ("budget", {"steps": "many"}),
        ("data", {"kind": "experiment_of_the_future"}),
        ("data", None),
        ("budget", [1]),
        ("budget", None),
    ],
)
def test_a_config_that_is_not_understood_is_one_line_that_names_the_record(tmp_path, group, changes):
    config = experiment(compose("data=mnist_r", "model=cnn"))
    whole = json.loads(json.dumps(config))
    whole[group] = whole[group] | changes if isinstance(changes, dict) else changes
    path = write_cell(tmp_path, "CNN", "R", [120], config=config)
    assert len(load_records(DISTORTED, [path], configs={path: config}, fill=filled)) == 1
    change(path, config=whole)
    with pytest.raises(UserError, match=r"mnist_r-cnn\.json: damaged record, .* is not understood") as error:
        load_records(DISTORTED, [path], configs={path: config}, fill=filled)
    assert "a newer version of the project; delete it" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (
            {"trained": {"seed": 0, "date": "2024-12-31", "errors": 2000}},
            "training of mnist_r-cnn-schedule_sizes-parameters_2500",
        ),
        ({"config": {}}, "not from the training"),
        ({"tested": "sizes_rts"}, "tested on other images"),
        ({"runs": {}}, "without runs.torch"),
        ({"schema": 7}, "schema 7"),
        (None, "no JSON object"),
        ({"provenance": "here"}, 'provenance: "here"'),
        ({"n_test": "all"}, 'n_test: "all"'),
    ],
)
def test_an_export_of_something_else_is_refused_by_name(tmp_path, changes, reason):
    cell = write_cell(tmp_path, "CNN 2.5k", "R", [2000])
    path = write_export(cell, 2000, **(changes or {}))
    if changes is None:
        path.write_text("[1]")
    with pytest.raises(UserError, match=reason) as caught:
        load_records(SIZES, [cell])
    assert str(path) in str(caught.value) and "make table TABLE=8" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("run", "changes", "reason"),
    [
        ("int8", {"error": 0.11}, r"int8 claims 2000 errors \(0\.11 %\) of 10000 images"),
        ("int8", {"errors": "many"}, 'runs.int8.errors: "many"'),
        ("float32", {"bytes": 0}, "runs.float32.bytes: 0"),
        ("float32", {"agreement": 101}, "runs.float32.agreement: 101"),
        ("torch", {"latency": 5}, "runs.torch.latency: 5"),
        ("torch", {"latency": {"median": 0, "low": 0, "high": 0.5, "n": 500}}, "runs.torch.latency.median: 0"),
        ("torch", {"latency": {"median": 0.4, "low": 0.1, "high": 0.5}}, "runs.torch.latency.n: null"),
        ("int8", None, "without runs.int8"),
    ],
)
def test_an_export_that_does_not_add_up_is_refused_by_name(tmp_path, run, changes, reason):
    cell = write_cell(tmp_path, "CNN 2.5k", "R", [2000])
    path = write_export(cell, 2000)
    runs = json.loads(path.read_text())["runs"]
    change(path, runs=runs | {run: runs[run] | changes if changes else None})
    with pytest.raises(UserError, match=f"damaged record, {reason}; delete it and `make table TABLE=8`") as caught:
        load_records(SIZES, [cell])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
