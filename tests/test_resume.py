"""The whole pipeline, killed at three random points and taken up again, ends with the same tables as one that ran through."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from asymlib.files import read_json
from tests.conftest import ROOT
from tests.test_datasets import write_beir, write_lines
from tests.test_encode import WORDS, build_model

JOBS = """
name: kill
defaults: {timeout: 600, parameters: {study: kill}}
jobs:
  - id: 01-data
    notebook: notebooks/01_data_prep.ipynb
    parameters: {source: folder, train: pairs.jsonl, tests: [docs], encoder: %s, max_length: 32, limit_validation: 64}
    outputs: [data/prepared/kill/study.json, data/prepared/kill/encoder.json]
  - id: 02-{system}
    foreach: {system: [asym-dot, asym-cos]}
    notebook: notebooks/02_train_heads.ipynb
    parameters: {seeds: [0, 1]}
    needs: [01-data]
    outputs: ["data/runs/kill/heads/{system}/config.json", "data/runs/kill/heads/{system}/heads.safetensors"]
  - id: 04-evaluation
    notebook: notebooks/04_beir_evaluation.ipynb
    parameters: {other_similarities: [asym-dot]}
    needs: ["02-{system}"]
    outputs: [data/results/kill/systems.csv, data/results/kill/per_query.parquet]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("resume"))


def home(folder, model):
    """A project folder with 700 pairs, a test collection of 60 queries and the list of jobs."""
    rng = np.random.default_rng(0)
    docs = [" ".join(rng.choice(WORDS, 12)) for _ in range(900)]
    queries = [
        " ".join(rng.permutation(doc.split())[:4]) + f" {WORDS[i % 200]} {WORDS[i // 200]}"
        for i, doc in enumerate(docs)
    ]
    write_lines(
        folder / "pairs.jsonl", [{"query": q, "document": d} for q, d in zip(queries[200:], docs[200:], strict=True)]
    )
    write_beir(
        folder / "docs",
        [{"_id": f"d{i}", "title": "", "text": doc} for i, doc in enumerate(docs[:200])],
        [{"_id": f"q{i}", "text": query} for i, query in enumerate(queries[:60])],
        ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(60))],
    )
    (folder / "jobs.yaml").write_text(JOBS % json.dumps(str(model)))
    return folder


def start(folder):
    environment = os.environ | {"ASYMLIB_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "asymlib.batch", str(folder / "jobs.yaml"), "--jobs", "2", "--resume"]
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


@pytest.mark.timeout(600)
def test_killed_three_times_and_resumed_gives_the_same_tables(tmp_path, model):
    through, killed = home(tmp_path / "through", model), home(tmp_path / "killed", model)
    started = time.monotonic()
    assert start(through).wait() == 0, (through / "log.txt").read_text()
    seconds = time.monotonic() - started
    rng = random.Random(os.getpid())
    for _ in range(3):
        process = start(killed)
        time.sleep(rng.uniform(0.05, 0.5) * seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(killed).wait() == 0, (killed / "log.txt").read_text()
    for name in ("systems.csv", "per_query.parquet", "contrasts.csv"):
        table = f"data/results/kill/{name}"
        assert (killed / table).read_bytes() == (through / table).read_bytes(), name
    jobs = read_json(killed / "data/runs/kill/ledger.json")["jobs"]
    assert len(jobs) == 4 and {job["status"] for job in jobs.values()} == {"ok"}
    assert not list(killed.rglob("*.part"))
