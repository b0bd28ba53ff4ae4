import subprocess
import sys
from itertools import product

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conftest import one_error, run, spawn
from stn.cells import config
from stn.config import CONF, LARGEST_SEED, checked, compose, experiment, filled
from stn.errors import UserError
from stn.experiments.mnist.networks import DigitNetwork, n_parameters
from stn.experiments.mnist.table import SIZES
from stn.messages import one_line
from stn.report.rows import LONGEST
from stn.schema import deliberate
from stn.training.learner import build_network

BASES = {"mnist", "digits", "svhn", "cub", "volumes"}
DATA = sorted(path.stem for path in (CONF / "data").glob("*.yaml") if path.stem not in BASES)
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem not in BASES)
BUDGETS = sorted(path.stem for path in (CONF / "budget").glob("*.yaml"))
# By the first part of their name: the experiment of a data set, and the experiments of a network.
KINDS = {"mnist": "mnist", "digits": "mnist", "svhn": "svhn", "cub": "cub", "cub50": "cub", "volumes": "volumes"}
NETWORKS = {"svhn": {"svhn"}, "cub": {"cub"}, "volume": {"volumes"}, "colocalisation": {"colocalisation"}}
OWN = {
    "svhn": "svhn_cnn",
    "cub": "cub_cnn",
    "colocalisation": "colocalisation",
    "addition": "cnn",
    "volumes": "volume_cnn",
}


def kind(data: str) -> str:
    """The experiment of a data set."""
    return "addition" if data.endswith("_addition") else KINDS.get(data.split("_")[0], "colocalisation")


def kinds(model: str) -> set[str]:
    """The experiments of a network."""
    return NETWORKS.get(model.split("_")[0], {"mnist", "addition"})


WITH_TRANSFORMER = {"mnist": "st_cnn_affine", "svhn": "svhn_st_single", "cub": "cub_2st", "addition": "st_fcn_tps"}
WITH_TRANSFORMER |= {"colocalisation": "colocalisation", "volumes": "volume_st"}
CLASSIFIERS = [name for name in MODELS if "mnist" in kinds(name)]
# Every data set with a network of each experiment, and every network with a data set of each.
FIRST_MODELS = list({str(kinds(name)): name for name in reversed(MODELS)}.values())
FIRST_DATA = list({kind(name): name for name in reversed(DATA)}.values())
PAIRS = sorted({*product(DATA, FIRST_MODELS), *product(FIRST_DATA, MODELS)})


@pytest.mark.parametrize("data, model", PAIRS)
def test_a_data_set_composes_with_the_networks_of_its_experiment_and_no_others(data, model):
    if kind(data) in kinds(model):
        cfg = compose(f"data={data}", f"model={model}")
        assert (cfg.data.name, cfg.model.name, cfg.data.kind) == (data, model, kind(data))
    else:
        with pytest.raises(UserError, match=f"model={model} is a network of data.kind=") as caught:
            compose(f"data={data}", f"model={model}")
        assert all(name in str(caught.value) for name in kinds(model))


# Schedules


@pytest.mark.parametrize("data", [name for name in DATA if kind(name) in OWN and not name.startswith("digits")])
@pytest.mark.parametrize("budget", ["smoke", "quick", "medium", "paper"])
def test_experiments_have_a_schedule_for_each_budget_and_the_command_line_comes_last(data, budget):
    model = f"model={OWN[kind(data)]}"
    here = compose(f"data={data}", model, f"budget={budget}")
    assert here.budget.name == budget
    plain = experiment(compose(f"data={data}", model, f"budget={budget}", "schedule=none"))
    # At the paper's budget additions and volumes have the paper's schedule of Table 1.
    assert (experiment(here) == plain) == (budget == "paper" and kind(data) == "volumes")
    asked = compose(f"data={data}", model, f"budget={budget}", "budget.steps=7", "model.localisation.filters=5")
    assert asked.budget.steps == 7 and asked.model.localisation.filters == 5


def test_a_schedule_can_be_chosen():
    assert compose("schedule=sizes").budget.steps == 1800
    assert compose("data=svhn_64", "model=svhn_cnn", "schedule=none", "budget=smoke").model.width == 1


def test_what_holds_for_every_budget_holds_for_each():
    for budget in ("smoke", "quick", "medium", "paper"):
        assert compose("data=mnist_addition", "model=cnn", f"budget={budget}").model.match_filters == 80


def test_a_schedule_says_nothing_that_is_no_key_of_budget_or_model():
    tree = OmegaConf.to_container(compose(), enum_to_str=True) | {"schedule": {"quick": {"budget": {"stepz": 3}}}}
    with pytest.raises(OmegaConfBaseException) as caught:
        checked(OmegaConf.create(tree))
    assert "budget.stepz" in one_line(caught.value)


def test_every_section_of_a_schedule_is_of_a_budget():
    for path in (CONF / "schedule").glob("*.yaml"):
        assert set(OmegaConf.load(path)) <= {*BUDGETS, "every", "defaults"}, path


@pytest.mark.parametrize("group", ["budget", "trainer", "logger", "debug", "export"])
def test_every_other_config_composes(group):
    for path in (CONF / group).glob("*.yaml"):
        assert compose(f"{group}={path.stem}")


def test_a_config_is_named_like_its_file():
    assert all(compose(f"budget={name}").budget.name == name for name in BUDGETS)


@pytest.mark.parametrize(
    "data", [name for name in DATA if name.startswith("mnist") and kind(name) == "mnist" and name != "mnist_ts"]
)
def test_networks_of_a_column_have_equal_parameters_within_3_percent(data):
    totals = [n_parameters(build_network(compose(f"data={data}", f"model={model}"))) for model in CLASSIFIERS]
    assert max(totals) / min(totals) < 1.03


@pytest.mark.parametrize("cell", SIZES.cells(), ids=lambda cell: cell.key)
def test_a_network_of_table_8_has_the_parameters_of_its_name_within_6_percent(cell):
    cfg = config("quick", cell)
    assert abs(n_parameters(build_network(cfg)) / cfg.model.parameters - 1) < 0.06


def test_the_cnn_has_the_parameters_the_paper_allows():
    assert n_parameters(DigitNetwork(28, "cnn", 64)) == 208_586


@pytest.mark.parametrize(
    "override, reached",
    [
        ("model.localisation.filters=32", lambda net: net.transformer.localisation[1].out_channels == 32),
        ("model.localisation.features=12", lambda net: net.transformer.regression.in_features == 12),
        ("model.width=17", lambda net: net.classifier[0].out_channels == 17),
        ("model.transformation=tps", lambda net: net.transformer.regression.out_features == 32),
        ("model.sampler=bicubic", lambda net: net.transformer.sampler.__name__ == "bicubic"),
        ("data.canvas=42 data.pool=2", lambda net: net.pool.kernel_size == 2),
    ],
)
def test_every_override_reaches_the_model(override, reached):
    assert reached(build_network(compose("model=st_cnn_affine", *override.split())))


def test_a_run_of_long_settings_has_a_name_that_a_file_can_have():
    names = [compose(f"data.stored=/{'long/' * 80}{end}").name for end in ("a", "b")]
    assert all(len(name) == LONGEST and name.startswith("mnist_r-st_cnn_affine-stored__long") for name in names)
    assert names[0] != names[1]


def test_seed_is_the_shorthand_of_seeds():
    assert compose("seed=3").seeds == [3]


def test_the_experiment_is_primitives_only():
    plain = (str, int, float, bool, type(None))

    def leaves(tree):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(value) if isinstance(value, dict | list) else [value]

    assert all(type(leaf) in plain for leaf in leaves(experiment(compose())))


@pytest.mark.parametrize(
    "override, named",
    [
        ("model.filterz=3", "filterz"),
        ("+model.filterz=3", "filterz"),
        ("data.train=sometimes", "stream, frozen"),
        ("budget=huge", "paper"),
        ("budget.steps=many", "budget.steps"),
        ("budget.steps=0", "budget.steps=0"),
        ("budget.warm_up=1.5", "budget.warm_up=1.5 is not a fraction"),
        ("budget.steps=4", "budget.warm_up=0.2 of budget.steps=4 is a single step"),
        ("budget.decay_every=often", "budget.decay_every=often"),
        ("budget.decay_every=[300,200]", "[300, 200]"),
        ("seeds=[1,x]", "seeds"),
        ("seeds=[]", "seeds=[]"),
        ("seed=-1", "-1 is not a seed: give integers from 0"),
        ("seeds=[0,-1]", "-1 is not a seed"),
        ("seed=4294967296", "4294967296 is not a seed"),
        ("seeds=[2,0,2]", "2 is given twice"),
        ("data=mnist", "choose one of mnist_addition, mnist_e"),
        ("data=cub", "choose one of cub50_224, cub50_448, cub_224, cub_448"),
        (
            "model=svhn",
            "model=svhn only holds what other files share: choose one of svhn",
        ),
        ("model=st_cnn_afine", "'model/st_cnn_afine': did you mean st_cnn_affine? Available options in 'model': cnn"),
        ("budget=smok", "did you mean smoke?"),
        ("budget.stepz=3", "budget.stepz"),
        ("budget.stepz=3", "did you mean budget.steps?"),
        ("+budget.stepz=3", "did you mean budget.steps?"),
        ("bugdet=smoke", "did you mean budget?"),
        ("steps=3", "did you mean budget.steps?"),
        ("model.localization.filters=3", "did you mean model.localisation?"),
        ("smoke", "'smoke': a setting is key=value, such as budget=smoke"),
        ("export.opset=9", "export.opset=9"),
        ("model.parameters=0", "model.parameters=0"),
        ("model.parallel=2", "model.parallel=2: data=mnist_r takes one transformer"),
        ("data.kind=toys", "data.kind=toys is not one of addition, colocalisation"),
        ("schedule=huge", "sizes"),
        ("budget.noise=[-1,0]", "budget.noise=[-1.0, 0.0] must be two"),
        ("budget.noise=[1]", "budget.noise=[1.0] must be two"),
        ("budget.explore_share=0.5", "budget.noise starts at 0"),
        ("budget.random_share=0.5", "model=st_cnn_affine of data.kind=mnist has no windows to put"),
        ("budget.explore_share=nan", "add up to more than 1"),
        ("budget.pull=-1", "budget.pull=-1.0 must be zero"),
        ("budget.pull=nan", "budget.pull=nan must be zero"),
        ("budget.gradient=exact", "budget.gradient"),
        ("budget.momentum=1.5", "budget.momentum=1.5 must be from 0 to below 1"),
        ("budget.momentum=-0.1", "budget.momentum=-0.1 must be from 0"),
        ("budget.momentum=nan", "budget.momentum=nan must be from 0"),
        ("budget.weight_decay=-1", "budget.weight_decay=-1.0 is too small"),
        ("budget.decay_factor=-1", "budget.decay_factor=-1.0 is too small"),
        ("budget.learning_rate=nan", "budget.learning_rate=nan is not a finite number"),
        ("budget.localisation_rate=inf", "budget.localisation_rate=inf is not a finite number"),
        ("data.distortion.rotation=nan", "data.distortion.rotation=nan is not a finite number"),
        ("data.distortion.rotation=inf", "data.distortion.rotation=inf is not a finite number"),
        ("data.distortion.sigma=-1", "data.distortion.sigma=-1.0 is too small"),
        ("data.distortion.sigma=nan", "data.distortion.sigma=nan is not a finite number"),
        ("data.distortion.scale=[0,0]", "data.distortion.scale=[0.0, 0.0] must be the least"),
        ("data.distortion.scale=[1.2,0.7]", "data.distortion.scale=[1.2, 0.7] must be the least"),
        ("data.distortion.scale=[nan,1]", "data.distortion.scale=[nan, 1.0] must be the least"),
        ("data.distortion.scale=[1,inf]", "data.distortion.scale=inf is not a finite number"),
        ("data.distortion.control_points=1", "data.distortion.control_points=1 is too small"),
        ("data.distortion.patches=-1", "data.distortion.patches=-1 is too small"),
        ("data.pool=50", "data.pool=50 does not divide the 28 pixels"),
        ("data.pool=3", "data.pool=3 does not divide the 28 pixels"),
        ("data.pool=2", "data.pool=2 leaves 14 of 28 pixels to model=st_cnn_affine, which takes 21"),
        ("data.canvas=27", "data.canvas=27 is too small: model=st_cnn_affine takes 28"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(override, named):
    with pytest.raises((HydraException, OmegaConfBaseException, UserError)) as caught:
        compose(override)
    line = one_line(caught.value)
    assert named in line and "\n" not in line


def test_a_setting_that_a_network_cannot_have_is_refused():
    with pytest.raises(UserError, match="model=cnn has no transformer that samples; drop it"):
        compose("model=cnn", "model.sampler=learned")
    with pytest.raises(UserError, match=r"model.parameters=10: the nearest that this network can have is 11,268"):
        build_network(compose("model.parameters=10"))


@pytest.mark.parametrize(
    "overrides, named",
    [
        (("data=cub_224", "model=cub_2st", "model.reach=-1"), "model.reach=-1.0 must be positive"),
        (("data=cub_224", "model=cub_cnn", "budget.explore_share=0.5"), "model=cub_cnn has no transformer"),
        (("model=cnn", "budget.explore_share=0.5", "budget.noise=[1,0]"), "model=cnn has no transformer"),
        (
            ("budget.explore_share=0.5", "budget.noise=[1,0]", "budget.pull=1"),
            "has no model.reach; set it, or set budget.pull=0",
        ),
        (
            ("budget.explore_share=0.5", "budget.gradient=pathwise", "budget.pull=1"),
            "budget.gradient=pathwise has no pull",
        ),
        (("data=colocalisation_t", "model=colocalisation", "budget.random_share=0.5"), "has no windows to put"),
        (("data=cub_224", "model=cub_2st", "budget.random_share=1.5"), "add up to more than 1"),
        (("data=cub_224", "model=cub_2st", "model.spread=0"), "model.spread=0 starts all windows in the middle"),
        (("data=cub_448", "model=cub_4st", "data.annotated=true"), "model=cub_4st does not have 2"),
        (("data=svhn_64", "model=svhn_st_single", "model.reach=0"), "model.reach=0.0 must be positive"),
        (("data=svhn_64", "model=svhn_st_multi", "model.reach=nan"), "model.reach=nan must be positive"),
        (("data=svhn_64", "model=svhn_cnn", "model.size=65"), "model.size=65 is larger than the images of 64 pixels"),
        (("data=svhn_64", "model=svhn_cnn", "data.window=54", "model.size=64"), "model.size=64 is larger than"),
        (("data=svhn_64", "model=svhn_cnn", "model.size=15"), "model.size=15 is too small"),
        (("data=svhn_64", "model=svhn_cnn", "data.place=0.5"), "data.place=0.5 must be the least"),
        (("data=svhn_64", "model=svhn_cnn", "data.place=[0.5,0.3]"), "data.place=[0.5, 0.3] must be the least"),
        (("data=svhn_64", "model=svhn_cnn", "data.place=[0,1]"), "data.place=[0, 1] must be the least"),
        (("data=svhn_64", "model=svhn_cnn", "data.place=[[0.2,0.3]]"), "data.place=[[0.2, 0.3]] must be the least"),
        (("data=svhn_64", "model=svhn_cnn", "data.place=[[0.2,0.3],[0.2,x]]"), "must be the least"),
        (
            ("data=svhn_64", "model=svhn_st_single", "model.family=crop", "model.start=[0,1]"),
            "must be the two sides of a window",
        ),
        (
            ("data=svhn_64", "model=svhn_st_single", "model.start=[0.5,1]"),
            "model.start and model.reach_sides belong to",
        ),
        (("data=svhn_64", "model=svhn_st_single", "model.reach_sides=-1"), "model.reach_sides=-1.0 must be positive"),
        (("data=svhn_64", "model=svhn_cnn", "data.held=[0.9,0.4]"), "data.held=[0.9, 0.4] must be two shares"),
        (
            ("data=svhn_64", "model=svhn_cnn", "data.window=54", "budget.random_share=0.5"),
            "data.window already chooses what is",
        ),
        (("data=svhn_photos_128", "model=svhn_cnn", "budget.explore_share=0.5"), "has no transformer to explore with"),
        (("model=cnn", "data.canvas=20"), "data.canvas=20 is too small: model=cnn takes 21"),
        (("data=mnist_rts", "data.undo=true"), "data.pool=2 leaves 14 of 28 pixels"),
        (("data=mnist_tc", "data.canvas=20", "model=fcn"), "data.canvas=20 is too small: clutter"),
        (("data=mnist_tc", "data.distortion.patch_side=29"), "data.distortion.patch_side=29 is too large"),
        (("data=mnist_addition", "model=cnn", "data.canvas=20"), "data.canvas=20 is too small"),
        (("data=mnist_addition", "data.pool=50"), "data.pool=50 leaves 1 of 42 pixels"),
        (("data=mnist_addition", "data.distortion.scale=[0,1]"), "data.distortion.scale=[0.0, 1.0] must be"),
    ],
)
def test_exploration_and_windows_that_cannot_be_are_one_line(overrides, named):
    with pytest.raises(UserError) as caught:
        compose(*overrides)
    assert named in one_line(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=cnn", "data.canvas=21"),
        ("model=cnn", "data.pool=2"),  # without a transformer nothing is pooled
        ("data.canvas=28",),
        ("data.canvas=42", "data.pool=2"),
        ("model=fcn", "data.canvas=3"),
        ("model=st_fcn_affine", "data.pool=28"),
        ("data=mnist_addition", "data.pool=2"),
    ],
)
def test_the_smallest_images_that_are_taken_can_be_classified(overrides):
    cfg = compose(*overrides)
    channels = 2 if cfg.data.kind == "addition" else 1
    network = build_network(cfg)
    assert network(torch.zeros(2, channels, cfg.data.canvas, cfg.data.canvas)).shape[0] == 2


def test_settings_need_not_fit_the_default_network_where_a_checkpoint_has_its_own():
    assert compose("checkpoint=x", "data.canvas=20").data.canvas == 20
    assert compose("weights=x", "data=mnist_rts", "data.undo=true").data.undo is True


def test_only_networks_with_a_transformer_follow_what_a_schedule_says_of_them():
    for data, models in (("cub_224", ("cub_cnn", "cub_2st")), ("svhn_photos_128", ("svhn_cnn", "svhn_st_multi"))):
        shares = [compose(f"data={data}", f"model={m}", "budget=quick").budget.explore_share for m in models]
        assert shares[0] == 0 < shares[1]


def test_a_key_that_is_younger_than_a_config_has_its_default_there():
    config = experiment(compose())
    for group, key in (("data", "undo"), ("model", "parameters"), ("model", "parallel")):
        older = {name: dict(values) for name, values in config.items()}
        del older[group][key]
        assert older != config and filled(older) == config


def test_a_key_that_is_younger_changes_no_cell():
    config = experiment(compose())
    older = {group: dict(values) for group, values in config.items()}
    del older["data"]["undo"], older["model"]["parallel"], older["budget"]["explore_share"], older["budget"]["noise"]
    assert deliberate(older) == deliberate(config) != deliberate(experiment(compose("budget.warm_up=0.3")))
    assert deliberate(experiment(compose("data.undo=true")))["data"]["undo"] is True


def test_younger_keys_of_house_numbers_have_their_defaults_and_change_no_cell():
    config = experiment(compose("data=svhn_64", "model=svhn_st_multi"))
    older = {group: dict(values) for group, values in config.items()}
    del older["data"]["whole"], older["data"]["held"]
    for key in ("size", "family", "reach", "reach_sides", "start"):
        del older["model"][key]
    older["model"]["localisation"] = {key: older["model"]["localisation"][key] for key in ("filters", "features")}
    assert filled(older) == config
    older["model"]["localisation"] = config["model"]["localisation"]
    assert deliberate(older) == deliberate(config)


def test_a_younger_key_that_holds_a_range_changes_no_cell():
    config = experiment(compose("data=svhn_64", "model=svhn_cnn"))
    assert config["data"]["held"] == [0.4, 0.9] and "held" not in deliberate(config)["data"]


def test_a_misspelt_key_in_a_file_is_one_line_that_names_it():
    tree = OmegaConf.to_container(compose(), enum_to_str=True)
    tree["model"]["localisation"]["filterz"] = 20
    with pytest.raises(OmegaConfBaseException) as caught:
        checked(OmegaConf.create(tree | {"schedule": {}}))
    assert "model.localisation.filterz" in one_line(caught.value)


def configs_in(folder, text, monkeypatch):
    """A folder of configs of an experiment outside of the project, with the data config `odd`."""
    (folder / "data").mkdir(parents=True)
    (folder / "data/odd.yaml").write_bytes(text)
    monkeypatch.setattr("stn.config.find_configs", lambda: [folder])
    return folder / "data/odd.yaml"


@pytest.mark.parametrize(
    "text, told",
    [
        (b"name: odd\ncanvas: [28", "line 2, column 12: not valid YAML (expected ',' or ']'"),
        (b"<<<<<<< HEAD\nname: odd\n=======\n", "line 2, column 5: not valid YAML ("),
        (b"name: \xff\xfe\n", ": not UTF-8"),
        (b"name: \x00\n", "not valid YAML ("),
    ],
    ids=["cut", "merge", "bytes", "zero"],
)
def test_a_config_that_is_no_yaml_is_one_line_that_names_the_file(tmp_path, monkeypatch, text, told):
    path = configs_in(tmp_path / "odd", text, monkeypatch)
    line = one_error(run("stn.train", "data=odd", cwd=tmp_path))
    assert str(path) in line and told in line
    with pytest.raises(UserError, match=r"odd\.yaml"):  # as the pipeline reads configs
        compose("data=odd")


@pytest.mark.parametrize("name", ["my exp (1)", "exp[a]", "exp,b", "it's", 'a "b"', "back\\", "a=b #c", "{x}$y:z"])
def test_configs_outside_of_the_project_may_lie_in_a_folder_of_any_name(tmp_path, monkeypatch, name):
    configs_in(tmp_path / name, b"defaults: [mnist_p]\nname: odd\n", monkeypatch)
    assert compose("data=odd").data.name == "odd"


@pytest.mark.parametrize(
    "words, setting",
    [
        (["--budget", "smoke"], "--budget smoke is no option: settings have no dashes, did you mean budget=smoke?"),
        (["--budgt=smoke"], "did you mean budget=smoke?"),
        (["data=mnist_e", "--seed", "3"], "did you mean seed=3?"),
        (["-x"], "unrecognized arguments: -x: a setting is key=value"),
    ],
)
def test_dashes_before_a_setting_are_one_line_that_says_how_it_is_written(tmp_path, words, setting):
    assert setting in one_error(run("stn.train", *words, cwd=tmp_path))


@pytest.mark.parametrize("module", ["train", "evaluate", "export", "pretrain", "fetch", "distort", "crop"])
def test_help_begins_with_what_the_command_does_and_an_example(module, tmp_path):
    first, *rest = run(f"stn.{module}", "--help", cwd=tmp_path).stdout.partition("config is powered by Hydra")
    assert f"`python -m stn.{module} " in first and len(first.splitlines()) <= 5 and "budget:" in rest[-1]


def test_a_wrong_command_line_ends_with_one_line_and_status_2(tmp_path):
    assert "filterz" in one_error(spawn("stn.train", "model.filterz=3", cwd=tmp_path))


@pytest.mark.parametrize("seeds", ["seed=-1", "seeds=[-1]", "seeds=[0,0]"])
def test_a_wrong_seed_ends_with_one_line_and_leaves_nothing(seeds, tmp_path):
    assert "seeds: " in one_error(run("stn.train", seeds, "budget=smoke", cwd=tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_largest_seed_that_is_told_is_the_largest_that_can_be_sown():
    from lightning.fabric.utilities.seed import max_seed_value

    assert compose(f"seed={max_seed_value}").seeds == [max_seed_value] == [LARGEST_SEED]


def test_a_wrong_command_line_is_told_before_torch_is_loaded(tmp_path):
    code = "import sys; from stn.train import main; main()"
    loaded = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    command = [sys.executable, "-c", loaded + code, "model.filterz=3"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout.strip() == "False"


def test_help_lists_the_groups(tmp_path):
    text = run("stn.train", "--help", cwd=tmp_path).stdout
    assert all(name in text for name in ("mnist_rts", "st_cnn_tps", "paper", "wandb", "ddp"))


def test_importing_stn_loads_torch_only(tmp_path):
    heavy = "{'lightning', 'hydra', 'wandb', 'scipy', 'matplotlib', 'torchvision'}"
    code = f"import sys, stn; from stn import SpatialTransformer; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    "data",
    [
        "mnist_r",
        "mnist_addition",
        "svhn_64",
        "svhn_photos_128",
        "cub_224",
        "cub50_448",
        "colocalisation_tc",
        "volumes_60",
    ],
)
def test_medium_is_quick_in_five_times_the_steps(data):
    model = WITH_TRANSFORMER[kind(data)]
    quick, medium = (experiment(compose(f"data={data}", f"model={model}", f"budget={b}")) for b in ("quick", "medium"))
    races = [each["model"].pop("race", 0) for each in (quick, medium)]  # steps too, where several starts race
    assert races[1] == races[0] * (5 if quick["model"].get("starts", 1) > 1 else 1)
    assert quick["model"] == medium["model"] and medium["budget"]["steps"] == 5 * quick["budget"]["steps"]
    other = {key for key, value in quick["budget"].items() if medium["budget"][key] != value}
    assert other == {"name", "steps", "validate_every"}
