"""The HTML pages and JupyterLab in a real browser: Chromium, where it and the package playwright are installed.

The diagnosis' page takes seconds and is always looked at; the write-up and JupyterLab only with ASYMLIB_BROWSER=1 (make browser).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from urllib.request import urlopen

import pytest

from asymlib.tools import diagnose
from tests.conftest import ROOT
from tests.test_diagnose import LOUD, build, pairs, vectors_of_words
from workflow import write_page

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to look at pages in a browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
opt_in = pytest.mark.skipif(
    os.environ.get("ASYMLIB_BROWSER") != "1", reason="minutes: make browser sets ASYMLIB_BROWSER=1"
)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="install chromium (Debian's package will do)"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield found
        found.close()


@pytest.fixture
def look(browser):
    """Open an address in a window of a given width: the page and what went wrong in it, a list that grows."""
    pages = []

    def visit(address, width=1200):
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        wrong = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address, wait_until="load")
        return page, wrong

    yield visit
    for page in pages:
        page.close()


def pictures(page):
    """Widths in pixels of every picture, 0 for one that could not be loaded."""
    return page.evaluate("() => [...document.images].map(image => image.complete ? image.naturalWidth : 0)")


def too_wide(page):
    return page.evaluate("() => document.scrollingElement.scrollWidth - window.innerWidth")


def test_the_page_of_a_diagnosis_shows_its_figure_and_fits_a_telephone(tmp_path, look):
    build(tmp_path / "loud", vectors_of_words(LOUD), similarity_fn_name="dot")
    asked = diagnose.of_pairs(pairs(100))
    report = diagnose.diagnose(str(tmp_path / "loud"), asked, cache_folder=tmp_path / "cache", progress=False)
    (tmp_path / "page.html").write_text(diagnose.page(report), encoding="utf-8")
    for width in (1200, 390):
        page, wrong = look((tmp_path / "page.html").as_uri(), width)
        assert wrong == [] and too_wide(page) <= 0
        assert [size > 600 for size in pictures(page)] == [True]
        assert page.locator(".verdict.wrong").is_visible() and page.locator("figure img").is_visible()
        assert page.locator(".card.wrong").count() == sum(row["verdict"] == "wrong" for row in report["findings"]) > 0


def execute(home, name, **given):
    """Run a notebook with parameters on a project folder; the executed copy."""
    executed = home / f"{name}.ipynb"
    command = [sys.executable, "-m", "papermill", "-k", "python3", f"notebooks/{name}.ipynb", str(executed)]
    setting = {"env": os.environ | {"ASYMLIB_HOME": str(home)}, "cwd": ROOT, "capture_output": True, "text": True}
    done = subprocess.run([*command, "-y", json.dumps(given)], **setting)
    assert done.returncode == 0, done.stderr[-2000:]
    return executed


@opt_in
def test_the_page_of_the_write_up_shows_its_figures(tmp_path, look):
    for part in ("data/results/real", "data/results/real-full", "figures/real"):
        shutil.copytree(ROOT / part, tmp_path / part)
    executed = execute(tmp_path, "09_writeup", study="real", full="real-full")
    (tmp_path / "writeup.html").write_text(write_page.page(executed, "html"), encoding="utf-8")
    page, wrong = look((tmp_path / "writeup.html").as_uri())
    assert len(pictures(page)) >= 5 and all(size > 300 for size in pictures(page))
    assert page.locator("table").count() >= 3 and page.locator("h1").first.is_visible()
    assert wrong == [], "the page asks for something that it does not hold"


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on the notebooks of a project folder with a tiny study; its address and the folder of the notebooks."""
    packages = {"test": ["seaborn"], "validation": ["jedi"], "train": ["fonttools"]}
    limits = {"limit_train": 160, "limit_validation": 80, "limit_per_collection": 40, "max_length": 16}
    execute(tmp_path, "01_data_prep", packages=packages, **limits)
    execute(tmp_path, "02_train_heads", seeds=[0, 1], changes={"epochs": 2, "batch_size": 16})
    home = tmp_path / "notebooks"
    home.mkdir()
    shutil.copy(ROOT / "notebooks/04_magnitude.ipynb", home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "ServerApp.port": port, "IdentityProvider.token": "", "ServerApp.password": "", "ServerApp.disable_check_xsrf": True,
        "ServerApp.root_dir": home, "LabApp.news_url": "", "ServerApp.open_browser": False,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", *(f"--{k}={v}" for k, v in options.items())]
    with open(tmp_path / "lab.log", "w") as log:
        setting = {"env": os.environ | {"ASYMLIB_HOME": str(tmp_path)}, "cwd": ROOT}
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **setting)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "lab.log").read_text()[-2000:]
                time.sleep(0.5)
        yield address, home
    finally:
        server.terminate()
        server.wait(30)


@opt_in
def test_a_notebook_runs_from_top_to_bottom_in_jupyterlab(lab, look):
    address, folder = lab
    page, wrong = look(f"{address}/lab/tree/04_magnitude.ipynb?reset")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=120_000)
    started = (
        "() => [...document.querySelectorAll('.jp-InputPrompt')].some(prompt => /[*0-9]/.test(prompt.textContent))"
    )
    for _ in range(12):  # a kernel that shows itself idle may not listen yet, and a busy machine makes JupyterLab ask
        with suppress(playwright.TimeoutError):
            for dialog in page.locator(".jp-Dialog .jp-mod-accept").all():
                dialog.click(timeout=5_000)
            page.get_by_role("menuitem", name="Run", exact=True).click(timeout=5_000)
            page.get_by_text("Run All Cells", exact=True).first.click(timeout=5_000)
            page.wait_for_function(started, timeout=10_000)
            break
    outputs, code = [], []
    for _ in range(120):
        page.wait_for_timeout(1500)
        page.keyboard.press("Control+s")
        cells = json.loads((folder / "04_magnitude.ipynb").read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        outputs = [output for cell in code for output in cell["outputs"]]
        if all(cell["execution_count"] for cell in code) or any(out["output_type"] == "error" for out in outputs):
            break
    assert [out["evalue"] for out in outputs if out["output_type"] == "error"] == []
    counts = [cell["execution_count"] for cell in code]
    assert all(counts) and counts == list(range(counts[0], counts[0] + len(code)))
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 2
    assert code[-1]["outputs"], "the last cell prints its answer"
    page.locator(".jp-RenderedImage img").first.scroll_into_view_if_needed()
    assert any(size > 300 for size in pictures(page))
    assert not any("Uncaught" in text for text in wrong)
