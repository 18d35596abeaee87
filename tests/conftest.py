"""What every test runs under: no display, no network, and threads that leave room for the processes that tests start."""

import os
from pathlib import Path

import pytest

os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """Tests marked `real` are skipped where ASYMLIB_DATA names no folder."""
    if os.environ.get("ASYMLIB_DATA"):
        return
    for item in items:
        if "real" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="set ASYMLIB_DATA to the folder with the real data"))
