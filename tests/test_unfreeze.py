"""A small BERT's top layer trained: what moves, what stands still, and that a killed run ends where an unbroken one does."""

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Normalize

from asymlib import losses
from asymlib.data.pairs import Pairs
from asymlib.encoding.encoder import EncoderConfig
from asymlib.errors import InputError
from asymlib.magnitude import wide
from asymlib.tools import unfreeze
from asymlib.tools.unfreeze import Below, train_top
from tests.small_encoders import bert_modules, build_static, plain, save, some_texts, store

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = {"epochs": 3, "lr": 1e-3, "batch_size": 16, "log_every": 2}


def some_pairs(count, seed):
    """Pairs whose document is the query and a few more words."""
    queries = some_texts(count, seed, longest=12)
    return Pairs("pairs", queries, [f"{text} w{i % 7} w{i % 11}" for i, text in enumerate(queries)])


TRAIN, VALIDATION = some_pairs(64, 0), some_pairs(16, 1)


@pytest.fixture(scope="module", params=["Bert", "MPNet"])
def config(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    modules = bert_modules(folder, "mean", kind=request.param)
    return EncoderConfig(model=str(save(folder / "model", *modules, Normalize())), max_length=24, device="cpu")


@pytest.fixture(scope="module")
def below(config):
    found = Below(config, 1, TRAIN.documents)
    for pairs in (TRAIN, VALIDATION):
        found.keep("query", pairs.queries)
        found.keep("document", pairs.documents)
    return found


def weights(model):
    return {name: own.clone() for name, own in model.state_dict().items()}


def test_untrained_the_vectors_are_the_encoders_own_before_their_length_was_taken(config, below):
    texts = [*TRAIN.documents, TRAIN.documents[3]]
    (vectors,) = below.encode([below.top()], "document", texts)
    lengths = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(vectors / lengths[:, None], plain(config.model, texts, 24), atol=1e-5)
    assert lengths[:-1].mean() == pytest.approx(1, abs=1e-5) and lengths.std() > 1e-3
    with torch.no_grad():
        first = below.top()(below.features(texts[:5]))["sentence_embedding"]  # from states in float16
    np.testing.assert_allclose(first, vectors[:5], atol=2e-3)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_top_layer_alone_moves_and_the_loss_is_the_similaritys_own(below, tmp_path, similarity):
    frozen, start = weights(below.lower), weights(below.top())
    q, d = (torch.from_numpy(below.encode([below.top()], side, texts)[0])
            for side, texts in (("query", VALIDATION.queries), ("document", VALIDATION.documents)))  # fmt: skip
    model, history, best = train_top(below, TRAIN, VALIDATION, similarity, 0, tmp_path / "run", **SHORT)
    moved = {name for name, own in model.state_dict().items() if not torch.equal(own, start[name])}
    assert moved and all(".encoder.layer.0." in name for name in moved)  # the network's only layer
    assert all(torch.equal(own, frozen[name]) for name, own in below.lower.state_dict().items())

    validation = wide(history, "validation").set_index("epoch")["loss.contrastive"]
    by_hand = float(losses.info_nce(losses.score_matrix(q, d, similarity), 0.05))
    assert validation[0] == pytest.approx(by_hand, abs=2e-3) and validation[best] == validation[1:].min()
    q, d = (torch.from_numpy(below.encode([model], side, texts)[0])
            for side, texts in (("query", VALIDATION.queries), ("document", VALIDATION.documents)))  # fmt: skip
    assert float(losses.info_nce(losses.score_matrix(q, d, similarity), 0.05)) == pytest.approx(
        validation[best], abs=2e-3
    )
    train = wide(history, "train").dropna(subset="loss.contrastive")
    assert train["step"].tolist() == [2, 4, 6, 8, 10, 12] and history["system"].unique() == [
        f"unfrozen-top-1-{similarity}"
    ]
    assert train["length.document.mean"].iloc[0] == pytest.approx(1, abs=0.2)
    if similarity == "dot":  # random weights: all texts lie in one cone
        assert history["name"].str.startswith("alarm.").any()


def test_kept_states_train_as_states_computed_anew_do(config, below, tmp_path):
    anew = Below(config, 1, TRAIN.documents)
    runs = [
        train_top(each, TRAIN, VALIDATION, "dot", 0, tmp_path / str(i), **SHORT) for i, each in enumerate((below, anew))
    ]
    assert below.kept and not anew.kept
    kept, new = (wide(history, "train")["loss.contrastive"] for _, history, _ in runs)
    np.testing.assert_allclose(kept, new, rtol=2e-3)


def test_a_killed_run_ends_with_the_numbers_of_an_unbroken_one(below, tmp_path, monkeypatch):
    whole, history, best = train_top(below, TRAIN, VALIDATION, "dot", 3, tmp_path / "whole", **SHORT)
    step = unfreeze._Watch.on_step_end

    def killed(self, args, state, control, **more):
        if state.global_step == 7:  # of 12, in the second epoch
            raise KeyboardInterrupt
        step(self, args, state, control, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(unfreeze._Watch, "on_step_end", killed)
        train_top(below, TRAIN, VALIDATION, "dot", 3, tmp_path / "killed", **SHORT)
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-4"]
    (tmp_path / "killed/checkpoint-8").mkdir()  # cut off while it was written
    resumed, again, same = train_top(below, TRAIN, VALIDATION, "dot", 3, tmp_path / "killed", **SHORT)
    assert same == best and all(torch.equal(own, weights(whole)[name]) for name, own in resumed.state_dict().items())
    assert again.sort_values(["step", "split", "name"], ignore_index=True).equals(
        history.sort_values(["step", "split", "name"], ignore_index=True)
    )
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "run.json",
        "settings.json",
        unfreeze.WEIGHTS,
    ]


def test_a_finished_run_is_read_and_one_of_other_settings_begins_anew(below, tmp_path, monkeypatch):
    model, history, _ = train_top(below, TRAIN, VALIDATION, "cosine", 0, tmp_path / "run", **SHORT | {"epochs": 1})
    with monkeypatch.context() as patched:
        patched.setattr(unfreeze, "_fit", None)
        read, same, _ = train_top(below, TRAIN, VALIDATION, "cosine", 0, tmp_path / "run", **SHORT | {"epochs": 1})
    assert same.equals(history) and all(torch.equal(o, weights(model)[n]) for n, o in read.state_dict().items())
    other = train_top(below, TRAIN, VALIDATION, "cosine", 1, tmp_path / "run", **SHORT | {"epochs": 1})[1]
    assert set(other["seed"]) == {1}


def test_several_models_are_encoded_beside_one_another(below, tmp_path):
    model, _, _ = train_top(below, TRAIN, VALIDATION, "dot", 0, tmp_path / "run", **SHORT | {"epochs": 1})
    both = below.encode([model, below.top()], "query", TRAIN.queries)
    for vectors, alone in zip(both, (model, below.top()), strict=True):
        np.testing.assert_array_equal(vectors, below.encode([alone], "query", TRAIN.queries)[0])
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_what_cannot_be_unfrozen_is_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"2 of 2 in network\.encoder\.layer, expected at least 1 and fewer than all"):
        Below(config, 2, TRAIN.documents)
    with pytest.raises(InputError, match="1 of 0 in"):
        Below(EncoderConfig(model=str(build_static(tmp_path))), 1, TRAIN.documents)
    prompted = save(tmp_path / "prompted", *bert_modules(tmp_path, "mean", include_prompt=False))
    store(prompted, prompts={"query": "w1 : "})
    with pytest.raises(InputError, match="pooling over prompts"):
        Below(EncoderConfig(model=str(prompted), max_length=24), 1, TRAIN.documents)
