"""The tiny study through a real Slurm, started on this machine: skipped where Slurm is missing or we are not root."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_workflow import SNAKEMAKE

PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "runuser")
OPTIONS = [
    *("--workflow-profile", "workflow/profiles/slurm", "--slurm-no-account", "--slurm-status-command", "squeue"),
    *("--set-threads", "data_prep=2", "--seconds-between-status-checks", "2"),
    *(
        "--slurm-init-seconds-before-status-checks",
        "2",
        "--configfile",
        "workflow/tiny.yaml",
        "--config",
        "gpus_per_job=1",
    ),
]


@pytest.fixture
def slurm():
    """A folder with a running Slurm of two pretended GPUs; it is ended by the ids that it wrote."""
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    if absent or os.geteuid():
        pytest.skip(
            f"needs {', '.join(absent) or 'root'} to start a Slurm (Debian: slurmctld slurmd slurm-client munge)"
        )
    if os.path.exists("/etc/slurm/slurm.conf"):
        pytest.skip("this machine has a Slurm of its own")
    folder = Path(tempfile.mkdtemp(prefix="asymlib-slurm-"))
    folder.chmod(0o711)  # unlike pytest's own folders: munge's user must enter
    try:
        environment = os.environ | {"GPUS": "2"}
        subprocess.run(["sh", ROOT / "tests/slurm-start.sh", folder / "slurm"], env=environment, check=True, timeout=90)
        yield folder
    finally:
        subprocess.run(["sh", ROOT / "tests/slurm-stop.sh", folder / "slurm"], check=True, timeout=30)
        shutil.rmtree(folder)


@pytest.mark.notebook
@pytest.mark.timeout(420)
def test_the_tiny_study_runs_through_slurm(slurm, tmp_path):
    environment = os.environ | {
        "SLURM_CONF": str(slurm / "slurm/slurm.conf"),
        "ASYMLIB_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    command = ["timeout", "-k", "10", "300", SNAKEMAKE[0], "data/runs/tiny/05-evaluation.json", *OPTIONS]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("has been submitted with SLURM jobid") == 4  # data, two recipes, evaluation
    assert (tmp_path / "data/results/tiny/systems.csv").exists()
    jobs = (slurm / "slurm/log/jobs.txt").read_text().splitlines()
    assert len(jobs) == 4 and all("JobState=COMPLETED" in line for line in jobs)
