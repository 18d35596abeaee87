"""The tiny study from texts to the write-up; and once more, killed at a random point."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_workflow import SNAKEMAKE

JUDGED = "data/runs/tiny/05-evaluation.json"


@pytest.mark.notebook
@pytest.mark.timeout(600)
def test_the_tiny_study_killed_at_a_random_point_ends_with_the_same_tables(tmp_path):
    seconds = {}
    for name, targets in (("through", ()), ("killed", (JUDGED,))):
        (tmp_path / name).mkdir()
        given = os.environ | {"ASYMLIB_HOME": str(tmp_path / name), "HF_HUB_OFFLINE": "1"}
        command = [*SNAKEMAKE, *targets, "--quiet", "all", "--configfile", "workflow/tiny.yaml"]
        if name == "killed":
            process = subprocess.Popen(
                command, cwd=ROOT, env=given, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            time.sleep(random.Random(os.getpid()).uniform(0.1, 0.9) * seconds["judged"])
            os.killpg(process.pid, signal.SIGKILL)  # the engine and the jobs; kernels have sessions of their own
            process.wait()
        begun = time.time()
        done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        seconds["judged"] = (tmp_path / name / JUDGED).stat().st_mtime - begun
    found = {
        path.relative_to(tmp_path / "killed")
        for path in (tmp_path / "killed").glob("data/r*/**/*")
        if path.suffix in (".csv", ".safetensors", ".parquet")
    }
    assert len(found) > 12
    for path in found:
        assert (tmp_path / "through" / path).read_bytes() == (tmp_path / "killed" / path).read_bytes(), path
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.written"))
    every_file_is_in_one_receipt(tmp_path / "through")


def every_file_is_in_one_receipt(home: Path) -> None:
    """What jobs left in the folders of results is what their receipts say, each file once."""
    receipts = [json.loads(path.read_text()) for path in home.glob("data/runs/tiny/*.json") if "." not in path.stem]
    named = [name for receipt in receipts if "files" in receipt for name in receipt["files"]]
    assert len(named) == len(set(named))
    folders = (
        "data/prepared/tiny",
        "data/results/tiny",
        "figures/tiny",
        "data/runs/tiny/heads",
        "data/runs/tiny/ranked",
    )
    there = [path for folder in folders for path in (home / folder).rglob("*") if path.is_file()]
    shared = ("origin.json", ".origin.lock")
    assert {str(path.relative_to(home)) for path in there if path.name not in shared} == {
        name for name in named if "origin.json:" not in name
    }
    tables = json.loads((home / "data/results/tiny/origin.json").read_text()).keys() - {"record_sha256"}
    assert {f"data/results/tiny/origin.json:{table}" for table in tables} == {name for name in named if ":" in name}
