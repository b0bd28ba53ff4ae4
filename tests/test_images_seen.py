"""`images_seen` of a record is what its steps fed the network: in every experiment, held against a count of that."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import run
from cub_archive import write_cub
from stn.config import compose
from stn.data import download
from stn.data.download import export_embedded
from stn.experiments import find_tables
from stn.experiments.mnist.networks import cnn
from stn.params import TABLES
from stn.training import learner
from stn.training.data_module import DataModule
from stn.training.run import train_seed
from svhn_archive import pack, write_part

BATCH, STEPS = 8, 5
# Stretches and blocks that do not come out even.
SHORT = (f"budget.batch_size={BATCH}", f"budget.steps={STEPS}", "budget.validate_every=3", "trainer.block=2")
DIGITS = ("data.source=digits", "data.raw=raw/digits", "data.validation=200")
EXPERIMENTS = {  # data set: network, what makes both small
    "digits_r": ("st_cnn_affine", *DIGITS, "data.draws=1"),
    "mnist_p": ("fcn", *DIGITS, "data.train=frozen"),
    "undone_rts": ("cnn_undone", *DIGITS),
    "mnist_ts": ("cnn", *DIGITS),
    "svhn_64": ("svhn_cnn", "data.validation=4", "data.raw=raw/svhn", "data.augment.scale=0.2", "model.width=0.05"),
    "cub_224": ("cub_cnn", "data.classes=4", "data.raw=raw/cub", "data.side=72", "data.canvas=64"),
    "mnist_addition": ("sum_2st_fcn_affine", *DIGITS),
    "colocalisation_t": ("colocalisation", *DIGITS, "data.images=6", "model.pretrained=classifier.npz"),
    "colocalisation_tc": ("colocalisation", *DIGITS, "data.images=9", "model.pretrained=classifier.npz"),
    "volumes_60": ("volume_st", *DIGITS, "data.canvas=30", "model.localisation.downsample=2"),
    "kernels_r": ("kernel_learned", *DIGITS),
    "sizes_rts": ("size_st_2k5", *DIGITS),
}


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
    """Overrides for an experiment, whose sets are stored."""
    name, (model, *small) = request.param, EXPERIMENTS[request.param]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STN_DATA_MIRROR", str(folder / "mirror"))
    sizes = {path.name.partition(".")[0]: path.stat().st_size for path in (folder / "mirror/svhn").glob("*.gz")}
    monkeypatch.setattr(download, "SVHN_BYTES", sizes)
    small = [f"data={name}", f"data.stored=stored/{name}", *small]
    doors = {"svhn_64": ("fetch", "crop"), "cub_224": ("crop",)}.get(name, ("distort",))
    for door in doors if not (folder / "stored" / name).exists() else ():
        result = run(f"stn.{door}", *(setting for setting in small if setting.startswith("data")), cwd=folder)
        assert result.returncode == 0, result.stderr
    return [*small, f"model={model}", "budget=smoke", "logger=none", *SHORT]


def count(batch) -> int:
    """Images of a batch as the network gets it."""
    return len(getattr(batch, "images", batch))


def test_every_table_is_among_the_experiments():
    cells = [compose(f"data={name}", f"model={model}") for name, (model, *_) in EXPERIMENTS.items()]
    assert {cell.data.table for cell in cells} == {*TABLES}


WHOLE = [(name, 1) for name in EXPERIMENTS]


@pytest.mark.parametrize("settings, parts", [*WHOLE, ("digits_r", 2), ("colocalisation_t", 2)], indirect=["settings"])
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
    assert len(fed) == STEPS * parts and result["images_seen"] == STEPS * BATCH * find_tables()[cfg.data.table].classes


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
