"""The wheel: in an environment that has nothing but what pyproject asks for, the core trains and evaluates a head."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import asymlib
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE_ALONE = """
import importlib.util
import numpy as np
from asymlib import Alarm, PairVectors, Qrels, get_recipe, heads, rank, train

rng = np.random.default_rng(0)
q, d = rng.standard_normal((2, 48, 8)).astype("float32")
pairs = PairVectors.of(q, d, np.arange(48))
alarm = Alarm(temperature=0.05)
assert isinstance(alarm(pairs.queries, pairs.documents), list)
recipe = get_recipe("asym-dot").with_changes(epochs=2, batch_size=16)
(run,) = train.train([(recipe, 0)], pairs, pairs, device="cpu", progress=False)
ids = [str(i) for i in range(48)]
qrels = Qrels("random", ids, ids, {i: {i: 1} for i in ids})
ranking = rank(qrels, heads.project(run.last, "query", q), heads.project(run.last, "document", d), "dot", "dot")
assert 0 < ranking.mean("ndcg@10") <= 1
for name in ("jupyterlab", "pytest", "faiss", "sentence_transformers", "transformers", "snakemake", "matplotlib"):
    assert importlib.util.find_spec(name) is None, name
"""


def brought(requirements):
    """The installed distributions that requirements ask for, with what those ask for."""
    found, waiting = {}, [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found[name] = importlib.metadata.distribution(name)
            waiting += [Requirement(line) for line in found[name].requires or ()]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("a wheel is built with setuptools, which is not installed")
    source = tmp_path_factory.mktemp("source")  # a build leaves folders beside what it builds
    shutil.copytree(ROOT / "asymlib", source / "asymlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "-m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir".split()
    subprocess.run([sys.executable, *build, source, source], check=True)
    return next(source.glob("*.whl"))


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "asymlib").rglob("*.*") if path.is_file() and path.suffix != ".pyc"]
    assert names == {path.relative_to(ROOT).as_posix() for path in files} and f"-{asymlib.__version__}-" in wheel.name


def test_the_core_trains_and_evaluates_with_nothing_but_its_dependencies(tmp_path, wheel):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    for distribution in brought(PROJECT["dependencies"]).values():
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    subprocess.run([tmp_path / "bin/python", "-I", "-c", CORE_ALONE], check=True, cwd=tmp_path)
