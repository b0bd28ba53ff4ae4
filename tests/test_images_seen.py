"""`images_seen` of a record is what its steps fed the network: in every experiment, held against a count of that."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import run
from cub_archive import write_cub
from stn.config import compose
from stn.data.download import export_embedded
from stn.experiments import find_experiments, find_tables, load
from stn.experiments.mnist.networks import cnn
from stn.experiments.svhn import data as svhn
from stn.report.table import Cell
from stn.training import learner
from stn.training.data_module import DataModule
from stn.training.run import train_seed
from svhn_archive import pack, write_part

BATCH, STEPS = 8, 5
# Stretches and blocks that do not come out even.
SHORT = (f"budget.batch_size={BATCH}", f"budget.steps={STEPS}", "budget.validate_every=3", "trainer.block=2")
DIGITS = ("data.source=digits", "data.raw=raw/digits", "data.validation=200")
TINY = ("model.localisation.filters=4", "model.localisation.features=6")
SVHN = ("data.validation=4", "data.raw=raw/svhn", "data.augment.scale=0.2", "model.width=0.05")
BIRDS = ("data.classes=4", "data.raw=raw/cub", "data.side=72", "data.canvas=64")
SMALL = {  # cell: what makes it small
    Cell("digits_r", "st_cnn_affine"): (*DIGITS, "data.draws=1"),
    Cell("mnist_p", "fcn"): (*DIGITS, "data.train=frozen"),
    Cell("mnist_rts", "cnn", ("data.undo=true",)): DIGITS,
    Cell("mnist_ts", "cnn"): DIGITS,
    Cell("svhn_64", "svhn_cnn"): SVHN,
    Cell("cub_224", "cub_cnn"): BIRDS,
    Cell("cub50_224", "cub_2st", ("model.size=112",)): BIRDS,
    Cell("mnist_addition", "st_fcn_affine", ("model.parallel=2",)): DIGITS,
    Cell("colocalisation_t", "colocalisation"): (*DIGITS, "data.images=6", "model.pretrained=classifier.npz"),
    Cell("colocalisation_tc", "colocalisation"): (*DIGITS, "data.images=9", "model.pretrained=classifier.npz"),
    Cell("volumes_60", "volume_st"): (*DIGITS, "data.canvas=30", "model.localisation.downsample=2"),
    Cell("mnist_r", "st_cnn_affine", ("model.sampler=learned",)): DIGITS,
    Cell("mnist_rts", "st_cnn_affine", ("schedule=sizes", "model.parameters=2500", *TINY)): DIGITS,
}
EXPERIMENTS = {cell.key: (cell, small) for cell, small in SMALL.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the raw data, and the classifier behind Table 5, untrained."""
    folder = tmp_path_factory.mktemp("images_seen")
    export_embedded(folder / "raw/digits")
    write_cub(folder / "raw/cub")
    mirror = folder / "mirror/svhn"
    for seed, (part, n) in enumerate({"train": 9, "test": 4, "extra": 8}.items()):
        write_part(folder / part, n, seed)
        pack(folder / part, mirror / f"{part}.tar.gz")
    weights = cnn(28, compose("data=colocalisation_t", "model=colocalisation").model.filters, 10).state_dict()
    np.savez(folder / "classifier.npz", **{name: weight.numpy() for name, weight in weights.items()})
    return folder


@pytest.fixture
def settings(folder, request, monkeypatch):
    """Overrides for a cell, whose sets are stored."""
    name, (cell, small) = request.param, EXPERIMENTS[request.param]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STN_DATA_MIRROR", str(folder / "mirror"))
    sizes = {path.name.partition(".")[0]: path.stat().st_size for path in (folder / "mirror/svhn").glob("*.gz")}
    monkeypatch.setattr(svhn, "SVHN_BYTES", sizes)
    small = [f"data={cell.data}", f"data.stored=stored/{name}", *cell.settings, *small]
    doors = {"svhn_64": ("fetch", "crop"), "cub_224": ("crop",), "cub50_224": ("crop",)}.get(cell.data, ("distort",))
    for door in doors if not (folder / "stored" / name).exists() else ():
        result = run(f"stn.{door}", *(setting for setting in small if setting.startswith("data")), cwd=folder)
        assert result.returncode == 0, result.stderr
    return [*small, f"model={cell.model}", "budget=smoke", "logger=none", *SHORT]


def count(batch) -> int:
    """Images of a batch as the network gets it."""
    return len(getattr(batch, "images", batch))


def test_a_cell_of_every_experiment_and_of_every_table_is_among_them():
    assert {compose(f"data={cell.data}", f"model={cell.model}").data.kind for cell in SMALL} == {*find_experiments()}
    for table in find_tables().values():
        assert EXPERIMENTS.keys() & table.places.keys(), table.title


WHOLE = [(name, 1) for name in EXPERIMENTS]
PARTS = [("digits_r-st_cnn_affine", 2), ("colocalisation_t-colocalisation", 2)]


@pytest.mark.parametrize("settings, parts", [*WHOLE, *PARTS], indirect=["settings"])
def test_images_seen_are_those_that_the_network_was_fed(settings, parts, tmp_path, monkeypatch):
    fed, build = [], learner.build_network

    def build_counting(cfg):
        network = build(cfg)
        network.register_forward_pre_hook(lambda net, args: fed.append(count(args[0])) if net.training else None)
        return network

    monkeypatch.setattr(learner, "build_network", build_counting)
    cfg = compose(*settings, f"trainer.accumulate={parts}")
    result, _ = train_seed(cfg, 0, tmp_path / "run")
    assert result["steps"] == STEPS and result["images_seen"] == sum(fed) > 0
    assert len(fed) == STEPS * parts
    for table in load(cfg.data.kind, "table").TABLES:  # by which records are judged
        assert result["images_seen"] == STEPS * BATCH * table.classes


@pytest.mark.parametrize("settings", EXPERIMENTS, indirect=True)
@pytest.mark.parametrize("processes, parts", [(3, 1), (2, 2)])
def test_processes_and_parts_together_are_fed_what_one_step_counts(settings, processes, parts):
    cfg, fed = compose(*settings), 0
    for rank in range(processes):
        feed = DataModule(cfg.data, cfg.budget, 0, parts)
        feed.setup("fit")
        root = SimpleNamespace(root_device=torch.device("cpu"))
        feed.trainer = SimpleNamespace(world_size=processes, global_rank=rank, global_step=0, strategy=root)
        for batch in [batch for _, batch in zip(range(parts), feed.train_dataloader(), strict=False)]:
            fed += count(feed.on_after_batch_transfer(tuple(batch), 0)[0])
    assert fed == feed.images_per_step
