"""`conf/experiment` and `conf/search`: one file, one experiment, whose expected number is that of its record."""

import importlib.util
import json

import pytest
import yaml

from conftest import one_error, run
from expected import FILES, LINE, record_of, renewed
from stn import config
from stn.cells import record_path
from stn.config import compose, experiment, filled
from stn.report.table import Cell

NAMES = [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_an_experiments_file_says_what_its_record_says(path):
    text = path.read_text(encoding="utf-8")
    assert [line[1] for line in LINE.finditer(text)] == ["Data", "Command", "Expected", "Cost"]
    assert text == renewed(path), "run `python tests/expected.py`, and commit what it writes"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_an_experiment_is_the_one_of_its_record(path):
    place, record = record_of(path)
    cfg = compose(f"experiment={path.stem}")
    assert experiment(cfg) == filled(record["config"])
    assert list(cfg.seeds) == [seed["seed"] for seed in record["seeds"]]
    assert cfg.name == place.stem  # also where it sets single keys, as the cell of the table does


def test_the_command_line_comes_after_an_experiment():
    cfg = compose("experiment=mnist_rts_st_cnn_affine", "budget=smoke", "model.width=4", "seed=3")
    assert (cfg.data.name, cfg.model.name, cfg.budget.name) == ("mnist_rts", "st_cnn_affine", "smoke")
    assert (cfg.budget.steps, cfg.model.width, list(cfg.seeds)) == (20, 4, [3])
    cfg = compose("experiment=addition_2st_fcn_affine", "model.parallel=1", "model=fcn")
    assert (cfg.model.name, cfg.model.parallel, cfg.name) == ("fcn", 1, "mnist_addition-fcn-parallel_1")


def test_what_an_experiment_sets_comes_after_the_schedule(tmp_path, monkeypatch):
    folder = tmp_path / "conf/experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\ndefaults: [{override /data: mnist_addition}]\nbudget: {noise: [0.5, 0.1]}\n"
    text += "model: {match_filters: 70, sampler: learned}\nseeds: [4, 5]\noutputs: elsewhere\n"
    (folder / "mine.yaml").write_text(text)
    assert compose("data=mnist_addition").model.match_filters == 80  # of conf/schedule/addition.yaml
    monkeypatch.setattr(config, "find_configs", lambda: [tmp_path / "conf"])
    cfg = compose("experiment=mine")
    assert (cfg.model.match_filters, list(cfg.budget.noise), list(cfg.seeds)) == (70, [0.5, 0.1], [4, 5])
    assert cfg.outputs == "elsewhere" and cfg.name == "mnist_addition-st_cnn_affine-match_filters_70-sampler_learned"


def test_an_experiment_trains_and_is_listed(workplace, tmp_path):
    (tmp_path / "data").symlink_to(workplace / "data")
    text = run("stn.train", "--help", cwd=tmp_path).stdout
    assert f"experiment: {', '.join(NAMES)}" in text and "search: learning_rate" in text
    small = ["data=digits_rts", "budget=smoke", "logger=none", "model.width=4", "record=out"]
    result = run("stn.train", "experiment=mnist_rts_st_cnn_affine", *small, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out.json").read_text())["config"]["model"]["name"] == "st_cnn_affine"
    assert "mnist_rts_st_cnn" in one_error(run("stn.train", "experiment=mnist_rts_st_cnn", cwd=tmp_path))


def test_optuna_makes_the_validation_error_small(workplace, tmp_path):
    if not importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper"):
        line = one_error(run("stn.train", "-m", "search=learning_rate", cwd=tmp_path))
        assert "sh setup.sh search" in line
        pytest.skip("Optuna is not installed: `sh setup.sh search`")
    (tmp_path / "data").symlink_to(workplace / "data")
    small = ["data=digits_r", "model=cnn", "model.width=4", "budget=smoke", "logger=none", "hydra.sweeper.n_trials=3"]
    result = run("stn.train", "-m", "search=learning_rate", *small, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    best = yaml.safe_load((tmp_path / "outputs/sweep/optimization_results.yaml").read_text())
    records = [json.loads(path.read_text()) for path in (tmp_path / "outputs/results/smoke").glob("*.json")]
    errors = {
        record["config"]["budget"]["learning_rate"]: record["seeds"][0]["validation"][-1][1] for record in records
    }
    rate = best["best_params"]["budget.learning_rate"]
    assert len(errors) == 3 and 0.0003 <= rate <= 0.03
    assert best["best_value"] == min(errors.values()) == errors[rate]


def test_a_record_is_where_the_pipeline_has_it():
    for path in FILES:
        place, record = record_of(path)
        settings = tuple(
            f"model.{key}={value}" for key, value in yaml.safe_load(path.read_text()).get("model", {}).items()
        )
        assert place == record_path(record["budget"], Cell(record["data"], record["model"], settings))


def test_a_search_without_a_sweep_is_refused_in_one_line(workplace, tmp_path, monkeypatch):
    if not importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper"):
        pytest.skip("Optuna is not installed: `sh setup.sh search`")
    assert "-m search=learning_rate" in one_error(run("stn.train", "search=learning_rate", cwd=tmp_path))
