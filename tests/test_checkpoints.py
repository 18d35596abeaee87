"""Saved runs: what was written is read back, and what is half, altered or trained on something else is refused."""

import errno
import json

import numpy as np
import pandas as pd
import pytest
import torch

from asymlib import heads
from asymlib.checkpoints import load_history, load_runs, save_runs
from asymlib.errors import InputError
from asymlib.recipes import Recipe
from asymlib.train import TrainedRun
from tests.conftest import flipped, full_disk

SMALL = Recipe(name="small", similarity="dot", epochs=2)


def run(seed: int, recipe: Recipe = SMALL) -> TrainedRun:
    best, last = (heads.start_heads("linear", "random", "both", 4, 10 * seed + i) for i in range(2))
    return TrainedRun(recipe, seed, best, last, 1, [0.9, 0.5, 0.6], 7 if seed else None)


def test_runs_survive_being_saved_and_loaded(tmp_path):
    runs = [run(0), run(7)]
    save_runs(tmp_path / "small", runs, encoder="abc", pairs=64)
    loaded, config = load_runs(tmp_path / "small", encoder="abc")
    assert config["encoder"] == "abc" and config["pairs"] == 64 and config["recipe"] == SMALL.to_dict()
    for mine, other in zip(runs, loaded, strict=True):
        assert all(torch.equal(other.best[name], value) for name, value in mine.best.items())
        assert all(torch.equal(other.last[name], value) for name, value in mine.last.items())
        for name in ("recipe", "seed", "best_epoch", "validation_loss", "diverged_at"):
            assert getattr(mine, name) == getattr(other, name)
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["config.json", "heads.safetensors"]


def test_exponents_are_saved_with_their_heads(tmp_path):
    recipe = SMALL.with_changes(exponent_lr=0.1)
    parameters = heads.start_heads("linear", "random", "both", 4, 0, exponents=True)
    last = {name: value + 1 for name, value in parameters.items()}
    save_runs(tmp_path, [TrainedRun(recipe, 0, parameters, last, 1, [0.9, 0.5])])
    (loaded,), _ = load_runs(tmp_path)
    assert loaded.recipe == recipe and loaded.best.keys() == parameters.keys()
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    for side in ("query", "document"):
        np.testing.assert_array_equal(heads.project(loaded.best, side, x), heads.project(parameters, side, x))


def test_heads_that_were_trained_on_something_else_are_refused(tmp_path):
    save_runs(tmp_path, [run(0)], encoder="abc")
    with pytest.raises(InputError, match="trained with encoder 'abc', but 'xyz' is in use now; train again"):
        load_runs(tmp_path, encoder="xyz")
    with pytest.raises(InputError, match="trained with study None, but 'xyz' is in use now"):
        load_runs(tmp_path, study="xyz")


def test_runs_of_two_recipes_are_not_saved_as_one(tmp_path):
    for wrong in ([run(0), run(0, SMALL.with_changes(name="other"))], []):
        with pytest.raises(InputError, match="expected runs of exactly one recipe"):
            save_runs(tmp_path, wrong)
    assert list(tmp_path.iterdir()) == []


def test_an_altered_or_missing_file_is_refused(tmp_path):
    save_runs(tmp_path, [run(0)])
    path, config = tmp_path / "heads.safetensors", tmp_path / "config.json"
    whole = path.read_bytes()
    for altered in (whole[:-1], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], b""):
        path.write_bytes(altered)
        with pytest.raises(InputError, match=r"heads\.safetensors: changed since it was written"):
            load_runs(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"heads\.safetensors: no such file"):
        load_runs(tmp_path)
    kept = json.loads(config.read_text())
    config.write_text(json.dumps({name: value for name, value in kept.items() if name != "recipe"}))
    with pytest.raises(InputError, match=r"config\.json: not as it was written .*; train again"):
        load_runs(tmp_path)
    config.unlink()  # a folder without it is not a finished run
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_runs(tmp_path)


HISTORY = pd.DataFrame({"system": "small", "seed": [0, 7], "epoch": [0.0, 0.5], "name": "loss", "value": [1.5, np.nan]})


def test_a_history_is_kept_with_its_runs_and_goes_when_they_are_trained_without_one(tmp_path):
    save_runs(tmp_path, [run(0)], HISTORY)
    pd.testing.assert_frame_equal(load_history(tmp_path), HISTORY)
    (tmp_path / "history.parquet").unlink()
    with pytest.raises(InputError, match=r"history\.parquet: no such file; train again"):
        load_history(tmp_path)
    save_runs(tmp_path, [run(0)], HISTORY)
    save_runs(tmp_path, [run(0)])
    assert not (tmp_path / "history.parquet").exists()
    with pytest.raises(InputError, match=r"history\.parquet: no such file; train again"):
        load_history(tmp_path)


def test_a_flipped_bit_in_any_file_is_an_error_or_changes_nothing_that_is_read(tmp_path):
    runs = [run(0), run(7)]
    save_runs(tmp_path, runs, HISTORY, encoder="abc")
    described = load_runs(tmp_path)[1]
    rng = np.random.default_rng(0)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        refused = 0
        for bit in rng.choice(8 * len(whole), 150, replace=False):
            path.write_bytes(flipped(whole, int(bit)))
            try:
                loaded, config = load_runs(tmp_path)
                history = load_history(tmp_path)
            except InputError as error:
                refused += path.name in str(error)
                continue
            assert config == described and history.equals(HISTORY) and path.name == "config.json"
            assert all(
                torch.equal(a.best["query.weight"], b.best["query.weight"]) for a, b in zip(runs, loaded, strict=True)
            )
        assert refused == 150 or (path.name == "config.json" and refused > 120)
        for wrong in (b"", whole[: len(whole) // 2], whole + b" ", b"\xff" * 100):
            path.write_bytes(wrong)
            if wrong != whole + b" " or path.name != "config.json":
                with pytest.raises(InputError, match="train again"):
                    load_runs(tmp_path)
                    load_history(tmp_path)
        path.write_bytes(whole)


def test_a_full_disk_while_saving_leaves_the_earlier_runs_whole(tmp_path, monkeypatch):
    save_runs(tmp_path, [run(0)])
    with monkeypatch.context() as patched:
        full_disk(patched)
        with pytest.raises(InputError, match=r"heads\.safetensors: no space left on the disk") as caught:
            save_runs(tmp_path, [run(0), run(7)])
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert [one.seed for one in load_runs(tmp_path)[0]] == [0]


def test_a_stop_between_the_two_files_is_noticed_on_reading(tmp_path):
    save_runs(tmp_path, [run(0)])
    with pytest.raises(TypeError):  # the new heads are written, and this origin cannot be
        save_runs(tmp_path, [run(0), run(7)], origin=object())
    with pytest.raises(InputError, match="changed since it was written"):
        load_runs(tmp_path)
    save_runs(tmp_path, [run(0), run(7)])
    assert len(load_runs(tmp_path)[0]) == 2
