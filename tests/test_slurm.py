"""Jobs through a real Slurm, started on this machine: skipped where Slurm is missing or we are not root."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_workflow import make_toy, start, write_toy

PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "runuser")
OPTIONS = [
    *("--workflow-profile", "workflow/profiles/slurm", "--slurm-no-account", "--slurm-status-command", "squeue"),
    *("--set-threads", "data_prep=2", "--seconds-between-status-checks", "2"),
    *("--slurm-init-seconds-before-status-checks", "2", "--config", "gpus_per_job=1"),
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
@pytest.mark.timeout(300)
def test_jobs_run_through_slurm_each_with_a_gpu_of_its_own(slurm, tmp_path, monkeypatch):
    cell = """
        import os, time
        from asymlib.table import write
        write(f"data/runs/{study}/gpu-{recipe}", os.environ["CUDA_VISIBLE_DEVICES"])
        files = "config.json heads.safetensors history.parquet"
        write(" ".join(f"data/runs/{study}/heads/{recipe}/{name}" for name in files.split()), os.environ["SLURM_JOB_ID"])
        time.sleep(4)
        """
    make_toy(tmp_path)
    write_toy(tmp_path, "02_train_heads", cell)
    monkeypatch.setenv("SLURM_CONF", str(slurm / "slurm/slurm.conf"))
    targets = [f"data/runs/s/02-{recipe}.json" for recipe in "ab"]
    shown = start(tmp_path, *targets, *OPTIONS).communicate(timeout=200)[0]
    assert all((tmp_path / target).exists() for target in targets), shown
    assert {(tmp_path / f"data/runs/s/gpu-{recipe}").read_text() for recipe in "ab"} <= {"0", "1"}
    jobs = (slurm / "slurm/log/jobs.txt").read_text().splitlines()
    assert len(jobs) == 3 and all("JobState=COMPLETED" in line for line in jobs)
