"""The module out of its project: the wheel, installed where torch is and nothing else of what the project needs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

from conftest import ROOT, build_wheel, copy_package
from test_docs import python_blocks

SIZES = ((1, 1), (17, 5), (48, 64), (300, 201))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The Python of an environment of its own: torch, numpy, what these say they need, and the project's wheel."""
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder / "environment", symlinks=True)
    python = folder / "environment/bin/python"
    (site,) = folder.glob("environment/lib/python*/site-packages")
    for name in sorted({path.parts[0] for part in needed("torch", "numpy") for path in part.files or ()} - {".."}):
        (site / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    wheel = build_wheel(copy_package(folder / "a clone"))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "a clone")
    return python


def needed(*names: str) -> list[Distribution]:
    """These packages and what they need in turn, as far as it is installed."""
    waiting, distributions = list(names), {}
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in distributions:
            continue
        try:
            distributions[name] = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        requires = [text for text in distributions[name].requires or () if "extra ==" not in text]
        waiting += [re.match(r"[\w.-]+", text)[0] for text in requires]
    return list(distributions.values())


def test_the_wheel_asks_for_little_beside_torch(alone):
    (metadata,) = alone.parents[1].glob("lib/python*/site-packages/stn-*.dist-info/METADATA")
    lines = [
        line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist") and "extra" not in line
    ]
    assert {re.match(r"Requires-Dist: ([\w-]+)", line)[1] for line in lines} == {
        "torch",
        "numpy",
        "omegaconf",
        "safetensors",
    }


def run(python: Path, code: str, folder: Path) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([python, "-c", code], cwd=folder, env=clean, capture_output=True, text=True)


@pytest.mark.parametrize("package", ["lightning", "hydra", "omegaconf", "wandb", "dvc", "scipy", "torchvision"])
def test_the_environment_has_nothing_of_what_experiments_need(alone, package, tmp_path):
    done = run(alone, f"import {package}", tmp_path)
    assert f"No module named {package!r}" in done.stderr


def test_the_readmes_example_needs_torch_alone_and_takes_images_of_any_size(alone, tmp_path):
    """No config and no data: an empty folder. Torch's warnings aside, not a word on stderr."""
    example = python_blocks(ROOT / "README.md")[0].strip("\n")
    assert len(example.splitlines()) <= 20 and "from stn import SpatialTransformer" in example
    code = (
        f"{example}\n"
        f"for size in {SIZES}:\n"
        "    assert net(torch.rand(2, 3, *size)).isfinite().all()\n"
        "    plain = SpatialTransformer(localisation, 32)\n"
        "    U = torch.rand(2, 3, *size)\n"
        "    torch.testing.assert_close(plain(U), U, rtol=0, atol=1e-4)\n"
        "import stn; print(stn.__file__)\n"
    )
    done = run(alone, code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr and not list(tmp_path.iterdir())
    assert Path(done.stdout.strip()).is_relative_to(alone.parents[1])
