"""Kept scores of systems: what is written is read, and only where it was made with the study's encoder and data."""

from types import SimpleNamespace

import pandas as pd
import pytest

from asymlib.data.ranked import COLUMNS, read_ranked, write_ranked
from asymlib.errors import InputError
from asymlib.evaluate import METRICS


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMLIB_HOME", str(tmp_path))
    return SimpleNamespace(name="s", made_with={"encoder": "e", "study": "t"}, folder=tmp_path / "data/runs/s/ranked")


def scores(system, value=0.25):
    rows = [(track, system, 0, "food", query, metric, value) for track in ("adapted", "zero-shot")
            for query in "ab" for metric in METRICS]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def test_what_is_written_is_read(study):
    nothing, about = read_ranked(study)
    assert (list(nothing.columns), len(nothing), about) == (COLUMNS, 0, {})
    write_ranked(study, scores("lexical"), "lexical", similarity="dot", trained=False, notebook="11_words")
    write_ranked(study, scores("bm25", 1)[COLUMNS[::-1]], "bm25", similarity="bm25", pairs=0)
    write_ranked(study, scores("lexical", 0.5), "lexical", similarity="dot", trained=False, notebook="11_words")
    found, about = read_ranked(study)
    pd.testing.assert_frame_equal(found, pd.concat([scores("bm25", 1.0), scores("lexical", 0.5)], ignore_index=True))
    assert list(about) == ["bm25", "lexical"] and about["bm25"]["pairs"] == 0
    assert about["lexical"]["trained"] is False and about["lexical"]["made_with"] == study.made_with


def test_other_data_and_altered_files_are_refused(study):
    write_ranked(study, scores("lexical"), "lexical", notebook="11_words")
    other = SimpleNamespace(**{**vars(study), "made_with": {"encoder": "e", "study": "u"}})
    with pytest.raises(InputError, match=r"lexical\.json: ranked on another encoder or other data .*; run 11_words"):
        read_ranked(other)
    table = study.folder / "lexical.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"lexical\.parquet: missing, or altered .*; run 11_words"):
        read_ranked(study)
    table.unlink()
    with pytest.raises(InputError, match=r"lexical\.parquet: missing"):
        read_ranked(study)


def test_scores_of_another_shape_are_refused(study):
    good = scores("lexical")
    for wrong in (good.drop(columns="seed"), good.iloc[:0], scores("bm25")):
        with pytest.raises(InputError, match="expected rows of this system alone"):
            write_ranked(study, wrong, "lexical")
    for wrong in (pd.concat([good, good[:1]]), good.assign(value=float("nan")), good.assign(metric="map@10")):
        with pytest.raises(InputError, match="once a query, as a finite number"):
            write_ranked(study, wrong, "lexical")
    with pytest.raises(InputError, match="expected letters, digits"):
        write_ranked(study, good, "../lexical")
    assert not study.folder.exists()
