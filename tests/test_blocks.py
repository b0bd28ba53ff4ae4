"""Blocks of steps: the same training as the plain learner's, which is the reference."""

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from conftest import one_error, run
from stn.config import compose
from stn.data.draws import generator
from stn.training import run as runs
from stn.training.blocks import BlockLearner, Captured, _Capturable, _Restored
from stn.training.data_module import DataModule
from stn.training.learner import Learner, new_learner

SMALL = ["model.width=4", "budget=smoke", "budget.batch_size=32", "logger.every=1", "logger=none"]
SGD = ["budget.optimiser=sgd", "budget.schedule=step", "budget.decay_every=7", "budget.decay_factor=0.5"]
SGD += ["budget.learning_rate=0.05", "budget.weight_decay=0.01"]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Told(Logger):
    """Keeps what it is told: {step: {name: value}}."""

    name = version = "told"

    def __init__(self):
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_hyperparams(self, *_) -> None:
        pass

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        rounded = {name: torch.tensor(value).item() for name, value in metrics.items()}  # as Lightning's own are
        self.rows.setdefault(step, {}).update(rounded)


def fit(block: int, *overrides: str, folder: Path | None = None, resume: bool = False) -> tuple[Told, Learner]:
    """A run of the trainer that `stn.train` makes, with seed 0: what it logged, and the learner."""
    cfg = compose(f"trainer.block={block}", *SMALL, *overrides)
    torch.manual_seed(0)
    feed = DataModule(cfg.data, cfg.budget, 0, block=runs.block(cfg))
    learner = new_learner(cfg, BlockLearner if feed.block > 1 else Learner)
    told = Told()
    runs.quieten()
    trainer = runs.make_trainer(cfg, 0, folder, told)
    trainer.fit(learner, feed, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    assert trainer.global_step == cfg.budget.steps
    return told, learner


def assert_same(found: tuple[Told, Learner], expected: tuple[Told, Learner]) -> None:
    """Losses, rates and validations step by step, and every weight at the end: bit for bit."""
    (told, learner), (told_before, reference) = found, expected
    assert told.rows == told_before.rows and learner.validation == reference.validation
    ours, theirs = learner.state_dict(), reference.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def distorted(workplace) -> Path:
    """The workplace with P and E too."""
    for kind in ("p", "e"):
        assert run("stn.distort", f"data=digits_{kind}", cwd=workplace).returncode == 0
    return workplace


@pytest.mark.parametrize("optimiser", [[], SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("kind", ["r", "rts", "p", "e"])
def test_blocks_are_the_plain_training_bit_for_bit(kind, optimiser, distorted, monkeypatch):
    """20 steps with validations after 10 and 20, in blocks of 4, 4, 2, 4, 4 and 2."""
    monkeypatch.chdir(distorted)
    settings = [f"data=digits_{kind}", "model=st_cnn_affine", *optimiser]
    plain = fit(1, *settings)
    assert sorted(plain[0].rows) == list(range(20)) and plain[1].validation[-1][0] == 20
    assert plain[0].rows[19]["train/learning_rate"] != plain[0].rows[0]["train/learning_rate"]
    assert_same(fit(4, *settings), plain)


@pytest.mark.parametrize(
    "override", ["budget.precision=float32", "data.train=frozen", "model=cnn", "trainer.block=100"]
)
def test_blocks_are_the_plain_training_in_other_settings_too(override, distorted, monkeypatch):
    monkeypatch.chdir(distorted)
    if override == "data.train=frozen":
        assert run("stn.distort", "data=digits_r", override, cwd=distorted).returncode == 0
    settings = ["data=digits_r", "model=st_cnn_tps", "budget.localisation_rate=0.1", override]
    assert_same(fit(7, *settings), fit(1, *settings[:-1], override.replace("block=100", "block=1")))


@pytest.mark.parametrize("before, after", [(4, 4), (1, 4), (4, 1), (1, 1)])
def test_a_resumed_run_ends_as_an_uninterrupted_one(before, after, distorted, monkeypatch, tmp_path):
    """In blocks, and where the plain learner goes on where blocks stopped, and the other way round."""
    monkeypatch.chdir(distorted)
    settings = ["data=digits_r", "model=st_cnn_affine", "budget.steps=27"]
    whole = fit(1, *settings)
    with monkeypatch.context() as patched:
        patched.setattr(runs.ProgressBar, "on_train_epoch_start", stop_at_20)
        with pytest.raises(Stopped):
            fit(before, *settings, folder=tmp_path)
    told, learner = fit(after, *settings, folder=tmp_path, resume=True)
    if after > 1:
        assert told.rows == {step: row for step, row in whole[0].rows.items() if step >= 20}
    told.rows = whole[0].rows  # the plain learner's loggers are a step ahead after Lightning has resumed it
    assert_same((told, learner), whole)


class Stopped(Exception):
    pass


def stop_at_20(watch, trainer, learner) -> None:
    if trainer.global_step == 20:
        raise Stopped


def test_a_block_is_many_batches(distorted, monkeypatch):
    monkeypatch.chdir(distorted)
    for name in ("digits_r", "digits_rts", "digits_p", "digits_e", "digits_tc"):
        cfg = compose(f"data={name}")
        source = DataModule(cfg.data, cfg.budget, 0).source
        source.load("train")
        index = torch.randint(1000, (3, 17), generator=generator(0, "test"))
        device, draws = torch.device("cpu"), [[generator(5, "distortion", step) for step in range(3)] for _ in range(2)]
        images, labels = source.train_block(index, draws[0], device)
        for i in range(3):
            one = source.train_batch(index[i], draws[1][i], 17, slice(None), device)
            assert torch.equal(images[i], one[0]) and torch.equal(labels[i], one[1]), name


def test_where_steps_cannot_be_made_together_they_are_made_one_by_one():
    def block(*overrides):
        return runs.block(compose("trainer=gpu", *overrides))

    assert block() == 50 and block("model=cnn", "data.undo=true") == 50 and block("trainer=cpu") == 8
    assert block("trainer.accumulate=2") == block("trainer=ddp", "trainer.block=50") == block("debug=anomaly") == 1
    assert block("data=svhn_64", "model=svhn_cnn") == block("data=cub_224", "model=cub_cnn") == 1


def test_a_nan_loss_in_a_block_stops_the_run_with_one_line(workplace, tmp_path):
    (tmp_path / "data").symlink_to(workplace / "data")
    wild = ["model=cnn", *SGD, "budget.learning_rate=1e30", "budget.precision=float32", "trainer.block=4"]
    line = one_error(run("stn.train", "data=digits_r", *SMALL, *wild, cwd=tmp_path))
    assert "loss is" in line and "at step 1 " in line and "budget.learning_rate" in line


def test_a_whole_run_in_blocks_leaves_the_record_of_the_plain_one(workplace, tmp_path):
    records = []
    for block in (1, 4):
        folder = tmp_path / str(block)
        folder.mkdir()
        (folder / "data").symlink_to(workplace / "data")
        result = run("stn.train", "data=digits_r", "model=cnn", *SMALL, f"trainer.block={block}", cwd=folder)
        assert result.returncode == 0 and not result.stderr, result.stderr
        (path,) = folder.glob("outputs/results/*/*.json")
        record = json.loads(path.read_text())
        for seed in record["seeds"]:
            del seed["seconds"], seed["provenance"]
        records.append(record)
        (checkpoint,) = folder.glob("outputs/runs/*/*/*/last.ckpt")
        assert Learner.load_from_checkpoint(checkpoint, weights_only=True).cfg.model.name == "cnn"
    assert records[0] == records[1]


@pytest.mark.parametrize("optimiser", [[], SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("steps", [0, 3])
def test_warming_up_leaves_no_trace(steps, optimiser):
    """Neither on an untrained optimiser, whose state is made meanwhile, nor on one that has made steps."""

    def trained(warm: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        learner = new_learner(compose("data=digits_r", "model=fcn", *SMALL, *optimiser))
        made = learner.configure_optimizers()["optimizer"]

        def step(seed: int) -> None:
            images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
            made.zero_grad()
            learner(images).square().sum().backward()
            made.step()

        for i in range(steps):
            step(i)
        groups = [dict(group) for group in made.param_groups]
        if warm:
            with _Capturable(made), _Restored(learner.network, made):
                assert all(group["capturable"] for group in made.param_groups)
                made.param_groups[0]["lr"] = 1.0
                step(10)
        assert made.param_groups == groups
        for i in range(steps, steps + 3):
            step(i)
        return list(learner.parameters())

    assert all(torch.equal(ours, theirs) for ours, theirs in zip(trained(True), trained(False), strict=True))


class StandIn:
    """In place of a CUDA graph, on a CPU: keeps what is called while it is captured, and calls it at each replay."""

    def replay(self) -> None:
        Captured._next(self.captured)

    @contextmanager
    def capture(self, stream):
        with patch.object(Captured, "_next", lambda captured: setattr(self, "captured", captured)):
            yield


@pytest.mark.parametrize("optimiser", [[], SGD], ids=["adamw", "sgd"])
def test_a_captured_step_takes_batch_after_batch_at_its_own_rates(optimiser, monkeypatch):
    """All of it but the graph itself, which takes a GPU: buffers, counter, rates, and the way back from warming up."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
    monkeypatch.setattr(torch.cuda, "graph", StandIn.capture)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    draws = torch.Generator().manual_seed(0)
    blocks = [
        (torch.rand(k, 8, 1, 28, 28, generator=draws), torch.randint(10, (k, 8), generator=draws)) for k in (3, 4, 1, 4)
    ]

    def trained(captured: bool) -> tuple[list[torch.Tensor], list[float]]:
        torch.manual_seed(0)
        learner = new_learner(compose("data=digits_r", "model=st_fcn_affine", *SMALL, *optimiser))
        made = learner.configure_optimizers()["optimizer"]

        def step(images, labels, rates):
            for group, rate in zip(made.param_groups, rates, strict=True):
                group["lr"] = rate
            loss = learner.objective.loss(learner(images), labels)
            made.zero_grad()
            loss.backward()
            made.step()
            return loss.detach()

        losses, graph = [], None
        for images, labels in blocks:
            rates = [[0.01 / (1 + len(losses) + i), 0.001 * (i + 1)] for i in range(len(labels))]
            rates = torch.tensor(rates).tolist()  # float32, as on the device
            if captured:
                graph = graph or Captured(step, learner.network, made, 4, images, labels)
                losses += graph(images, labels, rates).tolist()
            else:
                losses += [step(*one).item() for one in zip(images, labels, rates, strict=True)]
        return list(learner.parameters()), losses

    (ours, losses), (theirs, expected) = trained(True), trained(False)
    assert losses == expected and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@GPU
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("optimiser", [[], SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("data", ["r", "rts", "p", "e"])
def test_captured_steps_are_the_plain_training_but_for_rounding(data, optimiser, precision, distorted, monkeypatch):
    """50 steps, of which the first alone must agree closely: rounding grows with each."""
    monkeypatch.chdir(distorted)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    settings = ["trainer=gpu", f"data=digits_{data}", "model=st_cnn_affine", *optimiser, "budget.steps=50"]
    settings += [f"budget.precision={precision}", "budget.validate_every=25"]
    (plain, reference), (told, learner) = (fit(block, *settings) for block in (1, 10))
    assert sorted(told.rows) == sorted(plain.rows) == list(range(50))
    for step, row in plain.rows.items():
        assert told.rows[step]["train/learning_rate"] == row["train/learning_rate"]
        near = 1e-4 if step < 5 and precision == "float32" else 0.05
        assert told.rows[step]["train/loss"] == pytest.approx(row["train/loss"], rel=near, abs=near)
    ours, theirs = (torch.cat([weight.flatten() for weight in one.parameters()]) for one in (learner, reference))
    assert (ours - theirs).norm() <= 0.05 * theirs.norm()


@GPU
@pytest.mark.parametrize("block", [1, 10])
def test_a_whole_run_on_a_gpu_leaves_a_record(block, workplace, tmp_path):
    (tmp_path / "data").symlink_to(workplace / "data")
    settings = ["data=digits_r", "model=st_cnn_affine", *SMALL, "trainer=gpu", f"trainer.block={block}"]
    result = run("stn.train", *settings, cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr, result.stderr
    (path,) = tmp_path.glob("outputs/results/*/*.json")
    assert json.loads(path.read_text())["seeds"][0]["provenance"]["gpu"] == torch.cuda.get_device_name()


@GPU
@pytest.mark.parametrize("before, after", [(10, 10), (1, 10)])
def test_a_resumed_captured_run_ends_near_an_uninterrupted_one(before, after, distorted, monkeypatch, tmp_path):
    monkeypatch.chdir(distorted)
    settings = ["trainer=gpu", "data=digits_r", "model=st_cnn_affine", "budget.steps=30", "budget.precision=float32"]
    whole, _ = fit(10, *settings)
    with monkeypatch.context() as patched:
        patched.setattr(runs.ProgressBar, "on_train_epoch_start", stop_at_20)
        with pytest.raises(Stopped):
            fit(before, *settings, folder=tmp_path)
    told, _ = fit(after, *settings, folder=tmp_path, resume=True)
    assert sorted(told.rows) == list(range(20, 30))
    assert all(
        row["train/loss"] == pytest.approx(whole.rows[i]["train/loss"], rel=0.05) for i, row in told.rows.items()
    )


@GPU
@pytest.mark.parametrize("kind", ["r", "rts", "e", "tc"])
def test_nothing_in_a_block_makes_the_host_wait(kind, monkeypatch, workplace):
    """But for P's homographies, whose solution PyTorch checks once a block."""
    monkeypatch.chdir(workplace)
    cfg = compose(f"data=digits_{kind}", "model=st_cnn_tps", *SMALL)
    learner = new_learner(cfg).cuda()
    source, made = DataModule(cfg.data, cfg.budget, 0).source, learner.configure_optimizers()["optimizer"]
    source.load("train")
    device = torch.device("cuda:0")

    def step(images, labels, rates):
        for group, rate in zip(made.param_groups, rates, strict=True):
            group["lr"] = rate
        loss = learner.objective.loss(learner(images), labels)
        made.zero_grad()
        loss.backward()
        made.step()
        return loss.detach()

    def batches(first):
        index = torch.arange(4 * 32).view(4, 32).pin_memory().to(device, non_blocking=True)
        return source.train_block(index, [generator(0, "x", first + i, device=device) for i in range(4)], device)

    rates = [[0.001] * len(made.param_groups)] * 4
    captured = Captured(step, learner.network, made, 4, *batches(0))
    captured(*batches(0), rates)
    torch.cuda.set_sync_debug_mode("error")
    try:
        captured(*batches(4), rates)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@GPU
@pytest.mark.parametrize("model", ["fcn", "cnn", "st_fcn_projective", "st_cnn_projective", "st_cnn_tps"])
def test_every_network_of_the_table_can_be_captured(model, distorted, monkeypatch):
    monkeypatch.chdir(distorted)
    fit(5, "trainer=gpu", "data=digits_r", f"model={model}")


@GPU
@pytest.mark.parametrize("sampler", ["integer", "bicubic", "learned"])
def test_every_sampling_kernel_can_be_captured(sampler, distorted, monkeypatch):
    monkeypatch.chdir(distorted)
    fit(5, "trainer=gpu", "data=digits_r", "model=st_cnn_affine", f"model.sampler={sampler}")
