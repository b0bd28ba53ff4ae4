"""Benchmarks: that rivals do the same work, and what a run leaves. None of these tests looks at a time."""

import json
import time
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F

from benchmarks import compiled, distortion, together, training
from benchmarks.__main__ import LONG, chosen, page
from benchmarks.timing import OURS, Bench, Work, measured
from conftest import ROOT, one_error, run
from stn.config import compose
from stn.data.download import export_embedded
from stn.data.draws import generator
from stn.experiments.mnist import data as digits
from stn.nn.localisation import Layers
from stn.training.learner import new_learner

N = 24


@pytest.fixture(autouse=True)
def one_thread():
    yield
    torch.set_num_threads(1)  # a run of benchmarks takes all


@pytest.fixture
def blobs() -> torch.Tensor:
    """Smooth images (N, 28, 28) uint8, dark at the edges as digits are."""
    small = torch.rand(N, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(small, (20, 20), mode="bilinear", align_corners=False)
    return (F.pad(large, (4, 4, 4, 4))[:, 0] * 255).round().to(torch.uint8)


def contestants(kind: str, blobs: torch.Tensor, processes: int = 1) -> dict[str, torch.Tensor]:
    """What ours and every installed rival make of the same parameters."""
    warp = digits.distortion(compose(f"data=mnist_{kind}", "model=cnn").data)
    parameters = warp.draw(N, generator(0, "test"))
    with ExitStack() as stack:
        works = distortion.contestants(
            Bench(torch.device("cpu"), quick=True), warp, parameters, blobs, 8, processes, stack
        )
        return {name: (work.result or work.call)().clone() for name, work in works.items() if not work.other}


@pytest.mark.parametrize("kind", ["r", "rts", "p", "e"])
def test_rivals_make_the_images_that_we_make(kind, blobs):
    made = contestants(kind, blobs)
    assert {"OpenCV", "torchvision v2"} <= set(made)
    ours = made[OURS]
    for name, images in made.items():
        assert (images - ours[: len(images)]).abs().mean() < 0.002, name  # a hundredth of what a wrong turn makes
    assert (ours - blobs[:, None].float().mean() / 255).abs().mean() > 0.1  # and there is something on them


def test_a_loop_spread_over_processes_makes_the_same_images(blobs):
    alone, together = contestants("r", blobs), contestants("r", blobs, processes=2)
    assert torch.equal(alone["OpenCV"], together["OpenCV"])
    assert torch.equal(alone["torchvision v2"], together["torchvision v2"])


def test_a_rival_that_does_something_else_is_not_timed(capsys):
    bench = Bench(torch.device("cpu"), quick=True)
    works = {
        OURS: Work(lambda: torch.ones(3)),
        "the same": Work(lambda: torch.ones(3)),
        "wrong": Work(lambda: torch.zeros(3)),
        "another shape": Work(lambda: torch.ones(3, 2)),
        "no number": Work(lambda: torch.full((3,), torch.nan)),
    }
    row = bench.compare("ones", "calls/s", works, tolerance=0.01)
    assert set(row["contestants"]) == {OURS, "the same"}
    assert len(bench.left_out) == 3 and "wrong in ones: its result is not ours" in bench.left_out[0]
    assert "left out: wrong" in capsys.readouterr().out


@pytest.mark.parametrize("model", training.MODELS)
def test_the_plain_network_is_our_network(model):
    cfg = compose("data=digits_r", f"model={model}")
    torch.manual_seed(0)
    ours = new_learner(cfg).network
    with torch.no_grad():
        for parameter in ours.parameters():  # a transformer starts at the identity: move it off
            parameter += 0.02 * torch.randn_like(parameter)
    plain = training.plain_network(ours, cfg)
    images = torch.rand(4, 1, 28, 28)
    scores, theirs = ours(images), plain(images)
    torch.testing.assert_close(theirs, scores, rtol=1e-3, atol=1e-4)
    for network, out in ((ours, scores), (plain, theirs)):
        out.logsumexp(1).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
    last, same = (list(network.parameters())[-2].grad for network in (ours, plain))
    torch.testing.assert_close(same, last, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("degrees", [-70.0, 30.0])
def test_the_plain_loop_rotates_as_we_do(degrees, blobs):
    warp = digits.distortion(compose("data=digits_r", "model=cnn").data)
    ours = warp.render(torch.tensor([[degrees, 1.0, 0.0, 0.0]]).expand(N, -1), blobs)
    rotated = training.PlainDigits(digits.Digits(blobs, torch.arange(N)), training.rotation((degrees, degrees)))
    theirs = torch.stack([rotated[i][0] for i in range(N)])
    assert (theirs - ours).abs().mean() < 0.005
    assert [rotated[i][1] for i in range(N)] == list(range(N))


def test_convolutions_are_compared_with_cudnns_on_the_same_steps(tmp_path, monkeypatch):
    """Here both are PyTorch's; without a GPU the command leaves the part out."""
    monkeypatch.chdir(tmp_path)
    export_embedded(tmp_path / "raw")
    seen = []
    monkeypatch.setattr(Layers, "forward", lambda layers, x: seen.append(x) or torch.nn.Sequential.forward(layers, x))
    bench = Bench(torch.device("cpu"), quick=True)
    (row,) = training.convolutions(bench, "digits", tmp_path, f"data.raw={tmp_path / 'raw'}")
    assert set(row["contestants"]) == {OURS, training.CUDNN} and row["work"] == "cnn" and row["precision"] == "32-true"
    assert len(seen) == 1 + 3 * (8 + 8)  # ours alone: scores, then in each of three rounds 8 steps to warm up and 8
    result = run("benchmarks.__main__", "--quick", "--device", "cpu", "--only", "convolutions", cwd=tmp_path)
    assert result.returncode == 0 and "left out: convolutions: needs a GPU" in result.stdout


@pytest.fixture
def compiles(monkeypatch):
    """What is compiled, and how; nothing really is, which would take a compiler and half a minute."""
    calls = []
    monkeypatch.setattr(torch, "compile", lambda module, **how: calls.append((module, how)) or module)
    return calls


def test_the_module_is_compared_with_pytorchs_functions_plain_and_compiled(compiles):
    rows = list(compiled.modules(Bench(torch.device("cpu"), quick=True)))
    plain = compiled.PLAIN
    assert set(rows[0]["contestants"]) == {OURS, plain, *(f"{plain}, {name}" for name in compiled.MODES)}
    for _, facts in list(rows[0]["contestants"].items())[1:]:
        assert facts["relative_difference_from_ours"] < 1e-3
    assert [how["mode"] for _, how in compiles] == [None, "max-autotune"] and set(rows[0]["compiling"]) == set(
        compiled.MODES
    )
    assert compiled.describe_compiling(rows).startswith(
        "The first call, in which a rival is compiled, is not in these rates: compiled 0 "
    )


def test_a_plain_loop_is_compared_compiled_too_before_it_learns(compiles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_embedded(tmp_path / "raw")
    bench = Bench(torch.device("cpu"), quick=True)
    row = next(compiled.loops(bench, "digits", tmp_path, f"data.raw={tmp_path / 'raw'}"))
    assert set(row["contestants"]) == {
        OURS,
        *(f"{training.PLAIN}{name}" for name in ("", ", compiled", ", compiled, max-autotune")),
    }
    assert bench.left_out == [] and set(compiled.MODES) <= set(row["compiling"])
    assert [how["mode"] for _, how in compiles] == [None, "max-autotune"]


def test_the_long_parts_run_when_they_are_named_alone():
    assert not set(LONG) & set(chosen(None)) and chosen("compiled") == ["compiled"]


def test_cells_trained_at_once_are_timed_while_all_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_embedded(tmp_path / "raw")
    bench = Bench(torch.device("cpu"), quick=True)
    begun = time.perf_counter()
    (row,) = together.measure(bench, "digits", tmp_path, f"data.raw={tmp_path / 'raw'}")
    low, high = row["contestants"][OURS]["rate"]["quartiles"]
    assert row["steps"] / (time.perf_counter() - begun) < low <= high
    assert (row["cells_at_once"], row["steps"], row["of_steps"], row["batch"]) == (2, 8, 150_000, 8)
    assert (tmp_path / "together/0/last.ckpt").exists() and (tmp_path / "together/1/last.ckpt").exists()


def test_a_cell_that_fails_ends_the_others_with_its_own_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_embedded(tmp_path / "raw")
    (tmp_path / "together").mkdir()
    (tmp_path / "together/1").write_text("in the way of a folder")
    bench = Bench(torch.device("cpu"), quick=True)
    with pytest.raises(OSError, match="together/1"):
        next(together.measure(bench, "digits", tmp_path, f"data.raw={tmp_path / 'raw'}"))


def test_the_hour_is_the_sum_of_what_all_cells_take():
    facts = {"cells_at_once": 8, "of_steps": 150_000, "steps": 5_000, "batch": 256, "repeats": 2, "mps": True}
    rows = [facts | {"contestants": {OURS: measured([rate, rate])}} for rate in (250.0, 1000.0)]  # 1,800 s and 450 s
    line = (
        "2 cells x 3 seeds x 150,000 steps of 256, 8 at once with MPS: 3,200 steps/s in all, 5 minutes for 0.9 million;"
    )
    assert together.hour(rows).startswith(line)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--only", "distortion,speling"), "--only=speling: no such part; there are distortion, transformer"),
        (("--device", "tpu"), "--device=tpu: choose cpu or cuda"),
    ],
)
def test_an_unknown_part_or_device_is_one_line(arguments, line, tmp_path):
    assert line in one_error(run("benchmarks.__main__", *arguments, cwd=tmp_path))


def test_a_quick_run_leaves_records_that_explain_themselves_and_no_report(tmp_path):
    result = run("benchmarks.__main__", "--quick", "--device", "cpu", "--only", "distortion,training", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "reports").exists()
    for part, contest in (("distortion", {OURS, "OpenCV", "torchvision v2"}), ("training", {OURS, training.PLAIN})):
        about = json.loads((tmp_path / f"outputs/bench/{part}-cpu.json").read_text())
        assert about["quick"] and about["command"].endswith("--quick") and about["device"] == "cpu"
        assert {"cpu", "cores", "cores_used", "threads", "python", "torch", "rivals"} <= set(about["provenance"])
        assert about["provenance"]["rivals"]["torchvision"]
        for row in about["rows"]:
            assert row["repeats"] == 2 and row["threads"] and row["batch"] and row["precision"]
            assert row["data"].startswith("digits_")  # MNIST is not here
            assert contest <= set(row["contestants"])
            for facts in row["contestants"].values():
                low, high = facts["rate"]["quartiles"]
                assert 0 < low <= facts["rate"]["median"] <= high
    assert all(row["of_matmul_rate"] > 0 and row["multiply_adds"] > 1e5 for row in about["rows"])
    for name in ("Ours reach", "fcn", "R, one core", "rivals, the best first", "OpenCV"):
        assert name in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_the_page_of_committed_records_says_what_they_say():
    folder = ROOT / "reports/bench"
    assert (folder / "README.md").read_text() == page(folder)
