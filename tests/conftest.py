"""What every test runs under: no display, no network, and threads that leave room for the processes that tests start."""

import os
import signal
from pathlib import Path

import pytest
import torch

from asymlib.encoding.encoder import EncoderConfig
from tests.small_encoders import build_bert

os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # two workers of pytest-xdist and the jobs that they start share the cores
torch.set_num_threads(1)
# A suite that a shell starts in the background inherits SIGINT as ignored, and so would what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
# A worker takes a file at a time.
SLOW = ["test_tiny", "test_workflow", "test_notebooks", "test_slurm", "test_run_notebook"]


def pytest_collection_modifyitems(items):
    """The slowest files come first. Tests marked `real` are skipped where ASYMLIB_DATA names no folder."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))
    if os.environ.get("ASYMLIB_DATA"):
        return
    for item in items:
        if "real" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="set ASYMLIB_DATA to the folder with the real data"))


@pytest.fixture(scope="module")
def one_thread():
    """Matrices this small gain nothing from threads, and lose much where other programs want the same cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every temporary file is the device that is always full, so the kernel itself answers ENOSPC."""
    touch = Path.touch

    def full(path: Path, *arguments: object, **keywords: object) -> None:
        path.symlink_to("/dev/full") if path.suffix == ".part" else touch(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "touch", full)


def flipped(content: bytes, bit: int) -> bytes:
    """The bytes with one bit turned."""
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The folder of a BERT of two hundred words."""
    return build_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def config(bert):
    return EncoderConfig(model=str(bert), max_length=32, device="cpu")
