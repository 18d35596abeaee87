"""The callback in real trainings of a small model: what it records, when it speaks, and that it changes nothing."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    util,
)
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.sentence_transformer.modules import Dense, Pooling

from asymlib import losses
from asymlib.alarm import Alarm, Limits
from asymlib.errors import InputError
from asymlib.magnitude import HISTORY_COLUMNS, radial_share, wide
from asymlib.tools.callback import MagnitudeCallback, alarm_for
from tests.small_encoders import WORDS

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(bert):
    """BERT's mean and a linear map: its length is free, and texts of other words are far apart from the start."""
    torch.manual_seed(0)
    transformer = SentenceTransformer(str(bert), device="cpu", local_files_only=True)[0]
    transformer.auto_model.embeddings.word_embeddings.weight.data *= 50
    head = Dense(48, 32, bias=False, activation_function=torch.nn.Identity())
    return SentenceTransformer(modules=[transformer, Pooling(48, pooling_mode="mean"), head], device="cpu")


def make_loss(bert, function=util.dot_score, kind=st.MultipleNegativesRankingLoss, **arguments):
    return kind(make_model(bert), scale=20.0, similarity_fct=function, **arguments)


def texts(rows, seed):
    return [" ".join(words) for words in np.random.default_rng(seed).choice(WORDS, (rows, 12))]


def train(loss, folder, callback=None, rows=64, negatives=0, eval_dataset=None, **arguments):
    """Train on pairs that share 12 of 13 words; returns the trainer."""
    anchors = texts(rows, 0)
    columns = {"anchor": anchors, "positive": [f"{text} {WORDS[i]}" for i, text in enumerate(anchors)]}
    columns |= {f"negative_{n}": texts(rows, n) for n in range(1, negatives + 1)}
    chosen = {
        "per_device_train_batch_size": 16, "learning_rate": 1e-3, "num_train_epochs": 2, "logging_steps": 2,
        "report_to": [], "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False, **arguments,
    }  # fmt: skip
    args = SentenceTransformerTrainingArguments(output_dir=str(folder), use_cpu=True, **chosen)
    data = Dataset.from_dict(columns)
    trainer = SentenceTransformerTrainer(loss.model, args, train_dataset=data, eval_dataset=eval_dataset, loss=loss)
    if callback is not None:
        callback.attach(trainer)
    trainer.train()
    return trainer


def watched(loss, folder, **arguments):
    """The callback after a training."""
    callback = MagnitudeCallback(loss)
    train(loss, folder, callback, **arguments)
    return callback


def without_dropout(loss):
    for module in loss.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return loss


class Listener(Alarm):
    """An alarm that keeps what it was shown."""

    shown = ()

    def __call__(self, q, d, same=None):
        self.shown = (*self.shown, (q, d))
        return super().__call__(q, d, same)


def test_dot_with_scale_20_raises_the_alarm_and_cosine_with_a_small_rate_does_not(bert, tmp_path, caplog):
    sick = watched(make_loss(bert), tmp_path, learning_rate=1e-2, num_train_epochs=8, lr_scheduler_type="constant")
    assert {"std-query-growing", "std-document-growing"} <= {finding.rule for finding in sick.findings}
    table = wide(sick.history, "train")
    assert table["length.query.mean"].iloc[-1] > 1.5 * table["length.query.mean"].iloc[0]
    assert table["step"].tolist() == list(range(2, 33, 2)) and table["findings"].iloc[-1] == len(sick.findings)
    first = sick.findings[0]
    assert 0 < first.epoch <= 8 and any(first.message in record.getMessage() for record in caplog.records)

    caplog.clear()
    well = watched(make_loss(bert, util.cos_sim), tmp_path, learning_rate=1e-5, num_train_epochs=8)
    assert well.findings == [] and not [record for record in caplog.records if "asymlib" in record.name]
    assert wide(well.history, "train")["gradient.query.radial_share"].max() < 1e-9  # a cosine cannot see lengths


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_row_is_what_the_batch_gives_by_hand(bert, tmp_path, negatives, similarity, cached):
    function = {"dot": util.dot_score, "cosine": util.cos_sim}[similarity]
    more = {"kind": st.CachedMultipleNegativesRankingLoss, "mini_batch_size": 5} if cached else {}
    loss = without_dropout(make_loss(bert, function, **more))
    anchors = texts(16, 0)
    columns = [
        anchors,
        [f"{text} {WORDS[i]}" for i, text in enumerate(anchors)],
        *(texts(16, n + 1) for n in range(negatives)),
    ]
    with torch.no_grad():
        vectors = [torch.from_numpy(loss.model.encode(column, show_progress_bar=False)) for column in columns]
    q, d = vectors[0].requires_grad_(), torch.cat(vectors[1:]).requires_grad_()
    scores = 20 * (q @ d.T if similarity == "dot" else losses.normalize(q) @ losses.normalize(d).T)
    torch.nn.functional.cross_entropy(scores, torch.arange(16)).backward()

    callback = MagnitudeCallback(loss)
    train(loss, tmp_path, callback, rows=16, negatives=negatives, num_train_epochs=1, logging_steps=1)
    dq, dd, q, d, scores = q.grad, d.grad, q.detach(), d.detach(), scores.detach()
    row = wide(callback.history, "train").iloc[0]
    assert (row["system"], row["seed"], row["step"], row["epoch"]) == (type(loss).__name__, 42, 1, 1.0)
    expected = {
        "length.query.mean": q.norm(dim=1).mean(),
        "length.document.mean": d[:16].norm(dim=1).mean(),
        "similarity.positive.logit": scores.diagonal().mean(),
        "accuracy": (scores.argmax(1) == torch.arange(16)).float().mean(),
        "temperature.effective": (0.05 / (q.norm(dim=1) * d[:16].norm(dim=1))).mean(),
        "gradient.query.radial_share": radial_share(dq, q),
        "gradient.document.radial_share": radial_share(dd, d),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(value), rel=1e-3, abs=1e-6), name
    assert list(callback.history.columns) == list(HISTORY_COLUMNS)


@pytest.mark.parametrize("kind", [st.MultipleNegativesRankingLoss, st.CachedMultipleNegativesRankingLoss])
def test_training_is_the_same_to_the_bit(bert, tmp_path, kind):
    weights = []
    for with_callback in (False, True):
        loss = make_loss(bert, kind=kind)  # with dropout: a random number more would show
        callback = MagnitudeCallback(loss) if with_callback else None
        train(
            loss, tmp_path, callback, negatives=1, gradient_accumulation_steps=2, learning_rate=1e-2, max_grad_norm=1.0
        )
        weights.append(loss.model.state_dict())
    assert len(callback.history)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not {"forward", "calculate_loss"} & set(vars(loss))  # the loss is as it was


def test_gradient_accumulation_and_evaluation(bert, tmp_path):
    loss = make_loss(bert)
    callback = MagnitudeCallback(loss, alarm=Listener(0.05))
    pairs = Dataset.from_dict({"anchor": texts(8, 1), "positive": texts(8, 2)})
    train(loss, tmp_path, callback, per_device_train_batch_size=8, gradient_accumulation_steps=4, logging_steps=1,
          eval_strategy="steps", eval_steps=1, eval_on_start=True, eval_dataset=pairs)  # fmt: skip
    assert [len(q) for q, _ in callback.alarm.shown] == [8] * 4  # 64 pairs, 2 epochs, 32 a step; nothing of evaluation
    assert wide(callback.history, "train")["step"].tolist() == [1, 2, 3, 4]


def test_bf16_autocast(bert, tmp_path):
    rows = [
        wide(watched(without_dropout(make_loss(bert)), tmp_path, bf16=bf16, logging_steps=1).history, "train").iloc[0]
        for bf16 in (False, True)
    ]
    for name in ("length.query.mean", "similarity.positive.logit", "similarity.negative.cosine"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=0.02) and rows[1][name] != rows[0][name]


def test_a_last_batch_of_one_has_no_row(bert, tmp_path):
    for kind in (st.MultipleNegativesRankingLoss, st.CachedMultipleNegativesRankingLoss):
        loss = make_loss(bert, kind=kind)
        callback = MagnitudeCallback(loss, alarm=Listener(0.05))
        train(loss, tmp_path, callback, rows=17, logging_steps=1)
        assert wide(callback.history, "train")["step"].tolist() == [1, 3]
        assert [len(q) for q, _ in callback.alarm.shown] == [16, 16]


def test_tensorboard_reads_the_rows_back(bert, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    callback = watched(make_loss(bert), tmp_path, report_to=["tensorboard"])
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    table = wide(callback.history, "train")
    names = sorted(set(table) - {"system", "seed", "epoch", "step"})
    assert sorted(tag for tag in board.Tags()["scalars"] if "magnitude" in tag) == [
        f"train/magnitude/{name}" for name in names
    ]
    for name in names:
        events = board.Scalars(f"train/magnitude/{name}")
        assert [event.step for event in events] == table["step"].tolist() == [2, 4, 6, 8]
        np.testing.assert_allclose([event.value for event in events], table[name], rtol=1e-6)


def test_a_callback_that_was_not_attached_says_that_trackers_get_nothing(bert, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    loss = make_loss(bert)
    callback = MagnitudeCallback(loss)
    trainer = train(loss, tmp_path, rows=16, report_to=["tensorboard"])
    trainer.add_callback(callback)
    trainer.train()
    assert "use attach(trainer)" in caplog.text and len(callback.history)
    callback.attach(trainer)  # moves it
    assert trainer.callback_handler.callbacks.count(callback) == 1 and trainer.callback_handler.callbacks[0] is callback


def test_stop_ends_the_training_at_the_first_finding(bert, tmp_path):
    loss = make_loss(bert)
    callback = MagnitudeCallback(loss, stop=True, alarm=Alarm(0.05, limits=Limits(std_growth=1.01), warm_up=1))
    trainer = train(loss, tmp_path, callback, learning_rate=1e-2, num_train_epochs=8)
    assert callback.findings and trainer.state.global_step < 32
    assert callback.findings[-1].epoch == trainer.state.global_step / 4


@pytest.mark.parametrize("every", [2, 100])
def test_the_step_that_stop_ends_with_is_in_the_history(bert, tmp_path, every):
    loss = make_loss(bert)
    callback = MagnitudeCallback(loss, stop=True, alarm=Alarm(0.05, limits=Limits(std_growth=1.01), warm_up=1))
    trainer = train(loss, tmp_path, callback, learning_rate=1e-2, num_train_epochs=8, logging_steps=every)
    table, last = wide(callback.history, "train"), trainer.state.global_step
    assert table["step"].tolist() == sorted({*range(every, last + 1, every), last})
    assert table["findings"].iloc[-1] == len(callback.findings) > 0


def test_a_loss_is_as_before_also_after_an_error(bert, tmp_path):
    loss = make_loss(bert)
    seen = []
    before = loss.forward

    def forward(features, labels=None):
        seen.append(len(seen))
        if len(seen) == 2:
            raise RuntimeError("the second batch")
        return before(features, labels)

    loss.forward = forward
    callback = MagnitudeCallback(loss)
    with pytest.raises(RuntimeError, match="second batch"):
        train(loss, tmp_path, callback)
    train(loss, tmp_path, callback)
    assert loss.forward is forward and len(seen) == 2 + 8


class Contrastive(torch.nn.Module):
    """A user's own loss, which tells nothing about itself."""

    def __init__(self, model, columns=2):
        super().__init__()
        self.model, self.columns = model, columns

    def forward(self, features, labels=None):
        q, *d = (self.model(column)["sentence_embedding"] for column in list(features)[: self.columns])
        d = torch.cat(d or [q])
        return torch.nn.functional.cross_entropy(20 * q @ d.T, torch.arange(len(q)))


def test_other_losses(bert, tmp_path):
    own = Contrastive(make_model(bert))
    with pytest.raises(InputError, match=r"Contrastive: temperature or similarity unknown; expected alarm=Alarm"):
        MagnitudeCallback(own)
    callback = MagnitudeCallback(own, alarm=Alarm(0.05))
    train(own, tmp_path, callback, num_train_epochs=1)
    same = watched(make_loss(bert), tmp_path, num_train_epochs=1)
    assert callback.history["value"].tolist() == pytest.approx(same.history["value"].tolist(), rel=1e-5)

    with pytest.raises(InputError, match="one column of texts, expected anchors and positives"):
        train(own := Contrastive(make_model(bert), columns=1), tmp_path, MagnitudeCallback(own, alarm=Alarm(0.05)))

    guided = st.GISTEmbedLoss(make_model(bert), make_model(bert), temperature=0.05)
    assert (alarm_for(guided).temperature, alarm_for(guided).similarity) == (0.05, "cosine")
    assert len(watched(guided, tmp_path, negatives=1, num_train_epochs=1).history)

    inner = make_loss(bert, util.cos_sim)
    callback = MagnitudeCallback(inner)
    train(st.MatryoshkaLoss(inner.model, inner, [32, 16]), tmp_path, callback, num_train_epochs=1)
    assert wide(callback.history, "train")["length.query.mean"].tolist() == pytest.approx([1.0, 1.0])  # it normalises


def test_a_loss_that_the_trainer_does_not_use_is_named(bert, tmp_path, caplog):
    train(make_loss(bert), tmp_path, MagnitudeCallback(make_loss(bert)), rows=16)
    assert "MultipleNegativesRankingLoss is not the loss of this trainer" in caplog.text
