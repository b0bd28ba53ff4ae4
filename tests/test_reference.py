"""The reference loss curves: what allows a record to be kept across a change of code that leaves results alone."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import stn
from reference import CASES, CURVES, SPLITS, Workshop, differences, tolerances
from stn.codebase import APART, reached, roots
from stn.experiments import find_experiments
from stn.geometry.sampling import LearnableKernel

CASES_BY_NAME = {case.name: case for case in CASES}
COMMITTED = json.loads(CURVES.read_text())["curves"]
PACKAGE = Path(stn.__file__).parent
# What settles the environment, checks a config, names a run, moves files into place, opens a finished checkpoint or
# lists the experiments, of which the config names one: it decides no number.
AROUND = {"stn.environment", "stn.files", "stn.checkout", "stn.training.run:load"}
AROUND |= {f"stn.experiments.{name}.config" for name in find_experiments()}
AROUND |= {"stn.experiments:find_experiments", "stn.experiments:find_configs", "stn.report.rows:Cell.key"}
OPTIMISED = 0x1  # the flag of a function's code; that of a module or class, which runs at import, lacks it


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("reference"))


def too_far(name: str, curve: dict) -> list[str]:
    """The losses that are farther from the committed ones than rounding can bring them."""
    committed = COMMITTED[name]
    found, allowed = differences(committed, curve), tolerances(committed)
    return [
        f"{split}[{step}]: {curve[split][step]!r}, not {committed[split][step]!r} ({apart:.1e} > {limit:.1e})"
        for split in SPLITS
        for step, (apart, limit) in enumerate(zip(found[split], allowed[split], strict=True))
        if not apart <= limit
    ]


@contextmanager
def executed():
    """The functions of the project that run within it: module, name, line."""
    codes = set()

    def note(frame, event, _):
        if event == "call":
            codes.add(frame.f_code)

    found, before = set(), sys.getprofile()
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)
    for code in codes:
        path = Path(code.co_filename)
        if code.co_flags & OPTIMISED and path.is_relative_to(PACKAGE):
            module = ".".join(["stn", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
            found.add((module, code.co_qualname.partition(".<locals>")[0], code.co_firstlineno))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_curve_is_the_committed_one_and_its_digest_covers_the_code_that_ran(case, workshop):
    workshop.prepared(case)
    with executed() as functions:
        curve = workshop.curve(case)
    assert not too_far(case.name, curve)
    apart = [name for name in APART if ":" in name]
    covered = reached(*roots(curve["config"]["data"]["kind"])) | reached(*apart)
    for module, name, line in functions:
        inside = any(of == module and first <= line <= last for of, first, last in covered)
        apart_from_it = {module, f"{module}:{name}"} & (APART | AROUND | {case.door})
        assert inside or apart_from_it, f"the digest lacks {module}:{name}"


def test_every_curve_that_is_committed_is_computed():
    assert list(COMMITTED) == [case.name for case in CASES]


@pytest.mark.parametrize(
    "name, change",
    [
        ("mnist_r-fcn", "data.distortion.rotation=85"),
        ("mnist_tc-st_cnn_affine", "data.distortion.patches=15"),
        ("mnist_p-st_cnn_projective", "data.distortion.sigma=4.5"),
        ("mnist_r-cnn", "budget.learning_rate=0.0033"),
        ("mnist_r-cnn/paper", "budget.decay_every=4"),
        ("mnist_p-st_cnn_projective", "budget.localisation_rate=1"),
        ("mnist_addition-cnn", "budget.momentum=0.8"),
        ("colocalisation_t-colocalisation", "model.margin=1.01"),
        ("mnist_r-st_cnn_affine", "model.sampler=bicubic"),
    ],
)
def test_a_small_change_moves_a_curve_too_far(name, change, workshop):
    stored = [f"data.stored=data/stored/{name}"] if change.startswith("data.") else []
    assert too_far(name, workshop.curve(CASES_BY_NAME[name], more=[change, *stored]))


def test_other_first_weights_or_another_kernel_move_a_curve_too_far(workshop, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.init, "kaiming_uniform_", torch.nn.init.kaiming_normal_)
        assert too_far("mnist_r-cnn", workshop.curve(CASES_BY_NAME["mnist_r-cnn"]))
    make = LearnableKernel.__init__

    def moved(kernel, *arguments, **options):
        make(kernel, *arguments, **options)
        with torch.no_grad():
            kernel.phi[len(kernel.phi) // 2] += 0.01

    monkeypatch.setattr(LearnableKernel, "__init__", moved)
    assert too_far(
        "mnist_r-st_cnn_affine-sampler_learned", workshop.curve(CASES_BY_NAME["mnist_r-st_cnn_affine-sampler_learned"])
    )
