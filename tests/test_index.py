"""The notebook that puts vectors with words into faiss, run on a small encoder and a folder in BEIR's layout."""

import re

import nbformat
import numpy as np
import pytest

from asymlib.data.collections import write_beir
from asymlib.encoding.encode import encode
from asymlib.encoding.encoder import EncoderConfig
from asymlib.words.block import Block
from tests.conftest import ROOT
from tests.small_encoders import build_static, some_texts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the cells leave behind: 60 documents of which 6 come later, each with a rare word that its query says."""
    folder = tmp_path_factory.mktemp("index")
    texts = some_texts(60, longest=20)
    pairs = [(f"{' '.join(text.split()[-2:])} rare{i}", f"{text} rare{i}") for i, text in enumerate(texts)]
    write_beir(folder / "small", pairs)
    given = {"model": str(build_static(folder)), "collection": str(folder / "small"), "max_length": 32, "timed": 5}
    space = {"pairs": pairs, "home": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASYMLIB_HOME", str(folder))
        for cell in nbformat.read(ROOT / "notebooks" / "13_index.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, "13_index.ipynb", "exec"), space)
                space |= given if "parameters" in cell.metadata.get("tags", []) else {}
    return space


def test_faiss_ranks_as_a_plain_product_of_the_joined_vectors_does(ran):
    asked, documents = zip(*ran["pairs"], strict=True)
    config, block = EncoderConfig(ran["model"], max_length=32), Block.fit(documents[:54])
    q, d = (block.join(side, encode(texts, config, ran["home"] / "cache", False, side), texts)
            for side, texts in (("query", asked), ("document", documents)))  # fmt: skip
    scores = q @ d.T
    found = np.take_along_axis(scores, ran["after"][:, :10], axis=1)
    np.testing.assert_allclose(found, -np.sort(-scores, axis=1)[:, :10], atol=1e-5)
    assert ran["found"].mean() == pytest.approx(ran["exact"].mean(), abs=1e-9)


def test_documents_that_come_later_are_found_with_the_numbers_fitted_before(ran):
    assert ran["encoder"].block.texts == 54 and ran["joined"].ntotal == 60
    assert (ran["before"] < 54).all() and np.flatnonzero(ran["waiting"]).tolist() == list(range(54, 60))
    first = (ran["after"][54:, :5] == np.arange(54, 60)[:, None]).any(1)
    assert first.sum() >= 5  # a word that was never seen has the largest idf; two words may share an axis


def test_what_it_costs_is_counted_from_the_dimensions(ran):
    costs = ran["costs"]
    assert costs["bytes a vector"].tolist() == [4 * 20, 4 * 1556, 2 * 1556] and (costs["ms a query"] > 0).all()
    assert costs["nDCG@10"].iloc[1] == pytest.approx(costs["nDCG@10"].iloc[2], abs=0.01)
    assert costs["nDCG@10"].iloc[1] > costs["nDCG@10"].iloc[0]


def test_the_folder_holds_numbers_and_settings_alone(ran):
    assert all(re.search(r"\.(json|safetensors)$", name) for name in ran["sizes"]) and len(ran["sizes"]) == 3
