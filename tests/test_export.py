"""An exported folder against asymlib's own vectors: read back by plain sentence-transformers, by its evaluator and by mteb."""

import json
import shutil
from argparse import ArgumentParser

import numpy as np
import pandas as pd
import pytest
import torch

from asymlib import checkpoints, evaluate, heads, losses, magnitude
from asymlib.encoding.encode import encode
from asymlib.encoding.encoder import EncoderConfig, find_encoder
from asymlib.errors import InputError
from asymlib.files import project_path
from asymlib.recipes import Recipe
from asymlib.report import tables
from asymlib.tools import export as tool
from asymlib.tools import fit
from asymlib.tools.export import declared_similarity, export
from asymlib.tools.main import main
from asymlib.train import TrainedRun
from tests.small_encoders import some_texts, store

pytestmark = pytest.mark.usefixtures("one_thread")
QUERIES, DOCUMENTS = some_texts(12, seed=1, longest=60), some_texts(40, seed=2, longest=60)  # some are cut
DIM = 48


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(bert):
    return EncoderConfig(str(bert), query_prompt="w7 w9 : ", document_prompt="w3 : ", max_length=24, device="cpu")


def trained(head, sides, seed=0):
    """A head with large random weights: a sign or a layer that went wrong would show."""
    start = heads.start_heads(head, "random", sides, DIM, seed, predictor=True)
    return {name: 3 * value for name, value in start.items()}


def ours(parameters, config, cache, texts, side):
    return heads.project(parameters, side, encode(texts, config, cache, progress=False, side=side))


def load(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)


CASES = [
    ("linear", "both", "dot"),
    ("linear", "query", "cosine"),
    ("linear", "document", "euclidean"),
    ("residual", "both", "qnorm"),
    ("residual", "query", "dot"),
    ("residual", "shared", "cosine"),
    ("deep", "both", "dnorm"),
    ("deep", "shared", "euclidean"),
    ("none", "both", "qnorm"),
]


@pytest.mark.parametrize(("head", "sides", "similarity"), CASES)
def test_reloaded_vectors_and_scores_are_ours(tmp_path, config, cache, head, sides, similarity):
    recipe, parameters = Recipe(name="r", head=head, sides=sides, similarity=similarity), trained(head, sides)
    model = load(export(tmp_path / "model", config, recipe, parameters, {}))
    q, d = ours(parameters, config, cache, QUERIES, "query"), ours(parameters, config, cache, DOCUMENTS, "document")
    found = (
        model.encode_query(QUERIES, convert_to_tensor=True),
        model.encode_document(DOCUMENTS, convert_to_tensor=True),
    )
    for vectors, expected, unit in zip(found, (q, d), losses.SIMILARITIES[similarity], strict=True):
        expected = torch.from_numpy(expected)
        if unit and similarity != "cosine":
            expected = losses.normalize(expected)
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
    scores = losses.score_matrix(torch.from_numpy(q), torch.from_numpy(d), similarity)
    if similarity == "euclidean":
        scores = -(-scores).sqrt()
    torch.testing.assert_close(model.similarity(*found), scores, rtol=0, atol=3e-5)


def test_prompts_length_and_route_of_a_plain_encode(tmp_path, config):
    model = load(export(tmp_path / "model", config, Recipe(name="r"), trained("linear", "both"), {}))
    assert model.max_seq_length == 24
    assert model.prompts == {"query": "w7 w9 : ", "document": "w3 : "}
    np.testing.assert_array_equal(model.encode(DOCUMENTS[:3]), model.encode_document(DOCUMENTS[:3]))
    long = ["w1 " * 40, "w1 " * 60]
    query = model.encode_query(long)
    np.testing.assert_allclose(query[0], query[1], atol=1e-6)  # both are cut to the same 24 tokens
    assert np.abs(query - model.encode_document(long)).max() > 0.01


def test_a_base_that_normalises_and_stores_its_own_prompts(tmp_path, bert, cache):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize

    prompts = {"query": "w5 : ", "document": "w6 : "}
    base = SentenceTransformer(
        modules=[*load(bert), Normalize()], prompts=prompts, similarity_fn_name="dot", device="cpu"
    )
    base.save(str(tmp_path / "base"))
    config, parameters = EncoderConfig(str(tmp_path / "base"), max_length=32, device="cpu"), trained("residual", "both")
    model = load(export(tmp_path / "model", config, Recipe(name="r", head="residual"), parameters, {}))
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize", "Router"]
    assert model.prompts == prompts
    for side, texts, way in (("query", QUERIES, model.encode_query), ("document", DOCUMENTS, model.encode_document)):
        np.testing.assert_allclose(way(texts), ours(parameters, config, cache, texts, side), atol=1e-5)


def test_a_base_with_routes_and_one_that_is_cut_to_some_dimensions(tmp_path, config, cache):
    first = export(tmp_path / "first", config, Recipe(name="r"), trained("linear", "both"), {})
    about = json.loads((first / "config_sentence_transformers.json").read_text())
    cut, few = tmp_path / "cut", 20
    shutil.copytree(first, cut)
    (cut / "config_sentence_transformers.json").write_text(json.dumps(about | {"truncate_dim": few}))
    for base, dim in ((first, DIM), (cut, few)):
        config = EncoderConfig(str(base), max_length=24, device="cpu")
        parameters = heads.start_heads("residual", "random", "both", dim, 1)
        model = load(export(tmp_path / f"second {dim}", config, Recipe(name="r", head="residual"), parameters, {}))
        for side, texts, way in (
            ("query", QUERIES, model.encode_query),
            ("document", DOCUMENTS, model.encode_document),
        ):
            expected = ours(parameters, config, cache, texts, side)
            assert expected.shape == (len(texts), dim)
            np.testing.assert_allclose(way(texts), expected, atol=1e-5)


def test_a_head_and_the_whitening_after_it_are_one_dense_layer(tmp_path, config, cache):
    head = trained("linear", "both")
    documents = ours(head, config, cache, DOCUMENTS, "document")
    whitening = heads.soft_whitening(documents, 0.3)
    recipe = Recipe(name="r", similarity="cosine")
    model = load(export(tmp_path / "model", config, recipe, heads.compose(head, whitening), {}))
    expected = heads.project(whitening, "document", documents)
    np.testing.assert_allclose(model.encode_document(DOCUMENTS), expected, rtol=1e-4, atol=1e-4)
    structure = json.loads((tmp_path / "model" / "2_Router" / "router_config.json").read_text())["structure"]
    assert structure == {"query": ["query_0_Dense"], "document": ["document_0_Dense"]}


def test_a_learnt_power_of_the_length_is_refused_in_one_sentence(tmp_path, config):
    parameters = heads.start_heads("linear", "identity", "both", DIM, 0, exponents=True)
    with pytest.raises(InputError, match=r"export: query\.exponent, a power of a vector's length, is no module"):
        export(tmp_path / "model", config, Recipe(name="r"), parameters, {})
    assert not (tmp_path / "model").exists()


def test_soft_whitening_is_a_dense_layer(tmp_path, config, cache):
    documents = encode(DOCUMENTS, config, cache, progress=False, side="document")
    parameters = heads.soft_whitening(documents, 0.5)
    model = load(export(tmp_path / "model", config, Recipe(name="w", head="none", whitening=0.5), parameters, {}))
    np.testing.assert_allclose(
        model.encode_document(DOCUMENTS), heads.project(parameters, "document", documents), atol=1e-5
    )
    assert model.similarity_fn_name == "cosine"


def test_modules_are_stock_and_a_side_without_a_head_is_dropout(tmp_path, config):
    one = export(tmp_path / "one", config, Recipe(name="r", sides="query"), trained("linear", "query"), {})
    structure = json.loads((one / "2_Router" / "router_config.json").read_text())
    assert structure["structure"] == {"query": ["query_0_Dense"], "document": ["document_0_Dropout"]}
    assert all(name.startswith("sentence_transformers.") for name in structure["types"].values())
    assert not list(one.rglob("*.bin")) and not list(one.rglob("*.py"))


RESULTS = [
    {"part": "held out", "queries": 300, "ndcg@10": 0.51234, "difference_low": 0.0101, "difference_high": 0.0303},
    {"part": "other", "queries": 20, "ndcg@10": 0.4, "difference_low": -0.01, "difference_high": 0.02},
]


def test_the_card_tells_where_it_comes_from(tmp_path, config):
    origin = {"study": "f" * 64, "seed": 3, "lengths": {"query": 1.5}, "results": RESULTS}
    recipe = Recipe(name="mine", similarity="qnorm", sides="query")
    folder = export(tmp_path / "model", config, recipe, trained("linear", "query"), origin)
    card = (folder / "README.md").read_text()
    told = json.loads(card.split("```json\n")[1].split("```")[0])
    assert told["study"] == "f" * 64 and told["seed"] == 3 and told["lengths"] == {"query": 1.5}
    assert Recipe(**told["recipe"]) == recipe
    assert told["identity"] == find_encoder(config).identity
    assert " ".join(card.split("```\n")[1].split("\n")[1].split()) == "held out 300 0.5123 0.0101 0.0303"
    assert "The similarity is dot" in card and "Not good for" in card and "Texts are cut to 24 tokens" in card
    assert "Means over the study's seeds" not in card and "empty texts" in card
    bare = export(tmp_path / "bare", config, recipe, {}, {})
    assert "No results were given" in (bare / "README.md").read_text()
    assert str(tmp_path) not in card


def test_what_cannot_be_exported(tmp_path, config):
    recipe = Recipe(name="r")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="full: holds something already"):
        export(tmp_path / "full", config, recipe, trained("linear", "both"), {})
    with pytest.raises(InputError, match="heads of 10 dimensions"):
        export(tmp_path / "new", config, recipe, heads.start_heads("linear", "random", "both", 10, 0), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_failing_save_leaves_nothing(tmp_path, config, monkeypatch):
    import sentence_transformers

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sentence_transformers.SentenceTransformer, "save", full)
    with pytest.raises(OSError, match="No space"):
        export(tmp_path / "model", config, Recipe(name="r"), trained("linear", "both"), {})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def runs(tmp_path, config):
    """A heads folder of three runs, the last of them diverged, with history; and the command without its seed."""
    runs = [
        TrainedRun(Recipe(name="mine"), seed, trained("linear", "both", seed), trained("linear", "both", 9 + seed), 1,
                   [2.0, 1.5], diverged_at)
        for seed, diverged_at in ((0, None), (4, None), (5, 7))
    ]  # fmt: skip
    rows = [
        ("mine", seed, 10 * epoch, float(epoch), "validation", f"length.{side}.mean", seed + epoch + 0.25)
        for seed in (0, 4)
        for epoch in (0, 1)
        for side in ("query", "document")
    ]
    history = pd.DataFrame(rows, columns=magnitude.HISTORY_COLUMNS)
    folder = tmp_path / "heads" / "mine"
    key = find_encoder(config).key
    checkpoints.save_runs(folder, runs, history, encoder=key, encoder_config=vars(config), study="a" * 64)
    return ["export", str(folder)], runs


def test_the_command_exports_one_seed(tmp_path, config, cache, runs, capsys):
    command, saved = runs
    rows = [("mine", "scifact", "ndcg@10", 0.61234, 0.00721, 3), ("other", "scifact", "ndcg@10", 0.5, 0.1, 3)]
    table = pd.DataFrame(rows, columns=["system", "dataset", "metric", "mean", "sd", "seeds"])
    tables.write_table(tmp_path / "results", "systems.csv", table, {"data": {}})
    out = str(tmp_path / "model")
    assert main([*command, "--seed", "4", "--out", out, "--results", str(tmp_path / "results")]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    expected = ours(saved[1].best, config, cache, QUERIES, "query")
    np.testing.assert_allclose(load(out).encode_query(QUERIES), expected, atol=1e-5)
    card = (tmp_path / "model" / "README.md").read_text()
    told = json.loads(card.split("```json\n")[1].split("```")[0])
    assert (told["study"], told["seed"], told["epoch"], told["validation_loss"]) == ("a" * 64, 4, 1, 1.5)
    assert told["lengths"] == {"length.query.mean": 5.25, "length.document.mean": 5.25}
    shown = card.split("```")[1].split()
    assert shown == ["dataset", "metric", "mean", "sd", "seeds", "scifact", "ndcg@10", "0.6123", "0.0072", "3"]
    assert "Means over the study's seeds, of which this model is one:\n```" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--seed", "5"], "--seed 5: expected a run that did not diverge: 0, 4"),
        (["--seed", "1"], "--seed 1: expected a run that did not diverge: 0, 4"),
        (
            ["--encoder", "all-MiniLM-L6-v2"],
            "^all-MiniLM-L6-v2: another model than that of .*; give the same as --encoder$",
        ),
    ],
)
def test_the_command_refuses_other_encoders_and_seeds(tmp_path, runs, changes, message):
    with pytest.raises(InputError, match=message):
        main([*runs[0], "--out", str(tmp_path / "model"), *changes])
    assert not (tmp_path / "model").exists()


def test_the_encoder_may_have_moved(tmp_path, bert, runs, config):
    shutil.copytree(bert, tmp_path / "elsewhere")
    command = [*runs[0], "--encoder", str(tmp_path / "elsewhere"), "--out", str(tmp_path / "model")]
    assert main(command) == 0 and load(tmp_path / "model").prompts["query"] == config.query_prompt


def test_a_full_folder_is_refused_before_heads_are_read_and_heads_without_their_encoder_are(tmp_path, runs, config):
    full = tmp_path / "full"
    (full / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="full: holds something already"):
        main(["export", str(tmp_path / "no heads"), "--out", str(full)])
    checkpoints.save_runs(runs[0][1], runs[1], encoder=find_encoder(config).key)
    with pytest.raises(InputError, match=r"config\.json: expected encoder_config"):
        main([*runs[0], "--out", str(tmp_path / "model")])


def test_the_length_is_the_models_own_where_none_is_given(tmp_path, bert):
    assert (declared_similarity(bert), tool.encoder_of(str(bert)).max_length) == ("cosine", 64)
    model = load(export(tmp_path / "model", str(bert), Recipe(name="r"), trained("linear", "both"), {}))
    assert model.max_seq_length == 64
    for given, expected in (([], 64), (["--max-length", "20"], 20)):
        fit.add_arguments(parser := ArgumentParser())
        options = parser.parse_args(["pairs.jsonl", "--encoder", str(bert), "--out", "x", *given])
        assert fit.encoder_config(options) == EncoderConfig(str(bert), max_length=expected)


def test_a_declared_similarity_is_one_that_is_known(tmp_path, bert):
    shutil.copytree(bert, tmp_path / "model")
    store(tmp_path / "model", similarity_fn_name="dot")
    assert declared_similarity(tmp_path / "model") == "dot"
    store(tmp_path / "model", similarity_fn_name="manhattan")
    with pytest.raises(InputError, match="similarity_fn_name 'manhattan'; expected one of cosine, dot, euclidean"):
        declared_similarity(tmp_path / "model")


def test_the_example_of_the_help_is_the_readmes():
    assert f"\n{tool.EXAMPLE}\n" in project_path("README.md").read_text(encoding="utf-8")


@pytest.fixture
def collection():
    """Every query has two relevant documents, of grades 1 and 2."""
    doc_ids, query_ids = [f"d{i}" for i in range(len(DOCUMENTS))], [f"q{i}" for i in range(len(QUERIES))]
    qrels = {query: {f"d{3 * i}": 1, f"d{3 * i + 1}": 2} for i, query in enumerate(query_ids)}
    return evaluate.Qrels("small", doc_ids, query_ids, qrels), qrels


def our_scores(qrels, parameters, config, cache, similarity):
    vectors = (ours(parameters, config, cache, *part) for part in ((QUERIES, "query"), (DOCUMENTS, "document")))
    return evaluate.rank(qrels, *vectors, similarity, similarity).metrics()


@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean", "dnorm"])
def test_the_evaluator_of_sentence_transformers_takes_the_right_similarity(
    tmp_path, config, cache, collection, similarity
):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    qrels, judged = collection
    parameters = trained("residual", "both")
    recipe = Recipe(name="r", head="residual", similarity=similarity)
    model = load(export(tmp_path / "model", config, recipe, parameters, {}))
    corpus = {f"d{i}": text for i, text in enumerate(DOCUMENTS)}
    asked = {f"q{i}": text for i, text in enumerate(QUERIES)}
    relevant = {query: set(grades) for query, grades in judged.items()}
    evaluator = InformationRetrievalEvaluator(asked, corpus, relevant, show_progress_bar=False, write_csv=False)
    found = evaluator(model)
    expected = our_scores(qrels, parameters, config, cache, similarity)["mrr@10"].mean()
    assert evaluator.primary_metric == f"{model.similarity_fn_name}_ndcg@10"
    assert found[f"{model.similarity_fn_name}_mrr@10"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # mteb calls old names, its own too
@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_mteb_gives_every_query_our_score(tmp_path, config, cache, collection, similarity):
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    qrels, judged = collection
    parameters = trained("residual", "both")
    recipe = Recipe(name="r", head="residual", similarity=similarity)
    model = load(export(tmp_path / "model", config, recipe, parameters, {}))
    corpus = [{"id": f"d{i}", "title": "", "text": text} for i, text in enumerate(DOCUMENTS)]
    asked = [{"id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)]
    split = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(asked), "relevant_docs": judged}
    found = {}

    class Small(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name="Small", description="made for this test", type="Retrieval", category="t2t", modalities=["text"],
            dataset={"path": "none/none", "revision": "1"}, eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="ndcg_at_10", prompt=None,
        )  # fmt: skip

        def load_data(self, **how):
            self.dataset, self.data_loaded = {"default": {"test": {**split, "top_ranked": None}}}, True

        def task_specific_scores(self, scores, *rest, **how):
            found.update(scores)
            return {}

    result = mteb.evaluate(model, Small(), cache=None, co2_tracker=False, show_progress_bar=False)
    expected = our_scores(qrels, parameters, config, cache, similarity)
    assert 0 < np.ptp(expected["ndcg@10"])  # queries differ, so that a swap of them would show
    for query, value in zip(qrels.query_ids, expected["ndcg@10"], strict=True):
        assert found[query]["ndcg_cut_10"] == pytest.approx(value, abs=1e-4)
    main_score = result.task_results[0].scores["test"][0]["main_score"]
    assert main_score == pytest.approx(expected["ndcg@10"].mean(), abs=1e-4)
