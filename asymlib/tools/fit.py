"""Pairs in, a better model folder out: one is written only if queries that nothing was chosen on say that it is better."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from asymlib import heads
from asymlib.data.collections import same_words
from asymlib.data.leakage import keys_of, overlap_keys
from asymlib.data.pairs import MIN_PAIRS, Pairs, load_pairs
from asymlib.encoding.encode import encode_lists
from asymlib.encoding.encoder import SIDES, EncoderConfig, find_folder
from asymlib.errors import InputError
from asymlib.evaluate import DEPTH, METRIC, Qrels, rank
from asymlib.files import sha256_file
from asymlib.pair_vectors import PairVectors
from asymlib.recipes import IDENTITY, Recipe
from asymlib.selection import search
from asymlib.significance import bootstrap_interval
from asymlib.tools import lexical
from asymlib.tools.compare import detectable
from asymlib.tools.export import add_encoder, check_new, declared_similarity, encoder_config, encoder_of, export
from asymlib.words.block import Block

EXAMPLE = "asymlib fit pairs.jsonl --corpus corpus.jsonl --encoder all-MiniLM-L6-v2 --out my-model"
PARTS = TRAIN, SELECT, TEST, MET = ("train", "select", "test", "met")
SHARE, GROUPS = 0.15, 200  # of the pairs, for SELECT and for TEST; groups to draw from, so that TEST has about 30
POOL, UPDATES = 5_000, 750  # documents that a candidate is ranked on during the search; of a run
LEXICAL = Recipe(name="lexical", head="none", similarity="dot")  # the joined vectors as they are
FOUND = "{difference:+.4f} [{low:+.4f}, {high:+.4f}] on {queries:,} queries"  # a line of compare's table
ROUNDS = [{"lr": [3e-5, 1e-4, 3e-4, 1e-3]}, {"temperature": [0.02, 0.05, 0.1]}, {"sides": ["both", "query"]}]


def fit(
    pairs: str | Path, encoder: EncoderConfig | str, out: str | Path, corpus: str | Path | None = None, seed: int = 0,
    cache: str | Path = "~/.cache/asymlib",
) -> tuple[Path | None, pd.DataFrame]:  # fmt: skip
    """Try heads and words on one's own pairs and export the best, if held-out queries say that it beats the frozen encoder.

    pairs: JSONL, see load_pairs; of a text with itself they are left out. encoder: a name has its own max_length.
    corpus: corpus.jsonl of BEIR, ranked together with the pairs' documents. out: a new folder.
    On SELECT four compete: the encoder as it is, with its own similarity; soft whitening; the head that the search chooses;
    lexical, the block of all documents' words beside the vector. The best is tested once, on TEST: it is exported if the 95 %
    interval of its difference to the frozen encoder lies above 0, lexical as lexical.save writes it, the others as a model.
    Returns the folder, None if nothing was exported, and compare's table with a column chosen; attrs["notes"]: sentences.
    """
    out, config = check_new(out), encoder_of(encoder)
    own = declared_similarity(find_folder(config))
    frame, same = read_parts(pairs, seed)
    counts = frame["part"].value_counts().reindex(PARTS, fill_value=0).to_dict()
    lists, places = read_lists(frame, corpus)
    where = lambda i, row: (places if i else {}).get(lists[i][row], f"{pairs}, distinct {SIDES[i]} {row + 1}")  # noqa: E731
    vectors, _ = encode_lists(lists, SIDES, config, Path(cache).expanduser(), name=where)
    pool = np.random.default_rng(seed).permutation(len(lists[1]))[:POOL]
    select = judged(frame, vectors, [SELECT], pool)
    parts = [pair_vectors(frame[frame["part"] == part], vectors) for part in (TRAIN, SELECT)]
    start = IDENTITY.with_changes(name="fit", epochs=search.epochs_for(UPDATES, counts[TRAIN]))
    choice, _ = search.search(start, ROUNDS, search.Criterion([select]), *parts, seeds=(seed, seed + 1))
    (run,) = search.train_choice(choice, [seed], *parts, progress=False)
    frozen = Recipe(name="frozen", head="none", similarity=own or "cosine")
    systems = {"frozen": (frozen, {}, vectors), "head": (run.recipe, run.best, vectors)}
    for exponent in (0.05, 0.1, 0.2, 0.4):
        recipe = Recipe(name="whitening", head="none", whitening=exponent)
        systems[f"whitening {exponent}"] = recipe, heads.soft_whitening(vectors[1], exponent), vectors
    scores = {name: select.score(head, recipe.similarity) for name, (recipe, head, _) in systems.items()}
    words = [np.array(texts, dtype=object) for texts in lists]
    block, scores["lexical"] = lexical.choose(Block.fit(lists[1]), select, judged(frame, words, [SELECT], pool))
    systems["lexical"] = LEXICAL, {}, [block.join(*given) for given in zip(SIDES, vectors, lists, strict=True)]
    best = max(scores, key=scores.__getitem__)  # of equals the first: frozen
    results = compare(frame, systems).assign(chosen=lambda rows: rows["system"] == best)
    whole = results[results["answers"] == "all"].set_index("system")
    results.attrs["notes"] = [f"left out: {same} pairs of a text with itself"] if same else []
    made = f"asymlib lexical --weight {block.weight:g} --exponent {block.exponent:g} makes the like of a corpus"
    results.attrs["notes"] += [f"lexical ({lexical.settings(block)}): {FOUND.format(**whole.loc['lexical'])}; {made}"]
    if not whole.loc[best, "low"] > 0:
        row = whole.loc[max(list(scores)[1:], key=scores.__getitem__)]
        least = f"{FOUND.format(**row)}; about {row['detectable']:.4f} or more would be found"
        results.attrs["notes"] += [f"{row.name} was the best of the others: {least}"]
        return None, results
    recipe, head, own = systems[best]
    shown = {side: heads.project(head, side, x) for side, x in zip(SIDES, own, strict=True)}
    origin = {"seed": seed, "averaged": choice.averaged, "pairs": counts, "select": scores}
    origin["sha256"] = {Path(path).name: sha256_file(path) for path in (pairs, corpus) if path}
    origin["lengths"] = {side: pd.Series(np.linalg.norm(z, axis=1)).describe().to_dict() for side, z in shown.items()}
    origin["results"] = results.to_dict("records")
    if best == "lexical":
        results.attrs["notes"] += [lexical.USE]
        return lexical.save(out, config, block, origin), results
    return export(out, config, recipe, head, origin), results


def read_lists(frame: pd.DataFrame, corpus: str | Path | None) -> tuple[list[list[str]], dict[str, str]]:
    """The distinct queries; the documents of the pairs, then those of the corpus that share no text with them, with places.

    Gives frame the column id: the number of the document that the query is, else one of its own.
    """
    documents = frame["document"].unique()
    texts, seen = lexical.corpus_texts(corpus) if corpus else [], keys_of(documents)
    places = {text: at for text, at in texts if seen.isdisjoint(overlap_keys(text))}  # in their order
    lists = [list(frame["query"].unique()), [*documents, *places]]
    number = {text: str(i) for i, text in enumerate(lists[1])}
    frame["id"] = frame["query"].map(number).fillna("query " + frame["q"].astype(str))
    return lists, places


def read_parts(path: str | Path, seed: int) -> tuple[pd.DataFrame, int]:
    """split of a file's pairs, and how many of a text with itself were left out. InputError: too few for three parts."""
    if not 0 <= seed < 2**32 - 1:
        raise InputError(f"seed: expected a whole number from 0 to 4,294,967,294, got {seed}")
    pairs = load_pairs(path)
    both = [pair for pair in zip(pairs.queries, pairs.documents, strict=True) if len(set(pair)) == 2]
    if (found := len({document for _, document in both})) < DEPTH:
        raise InputError(f"{path}: fewer than {DEPTH} distinct documents ({found}), of which all would be results")
    frame = split(Pairs(pairs.name, *map(list, zip(*both, strict=True))), seed)
    counts, sizes = frame["part"].value_counts(), frame["group"].value_counts()
    if counts.reindex([TRAIN, SELECT, TEST], fill_value=0).min() < MIN_PAIRS:
        found = f"{path}: {len(frame)} distinct pairs, {len(sizes)} groups of 1 to {sizes.max()}: {counts.to_dict()}"
        need = f"{MIN_PAIRS} or more in each of {TRAIN}, {SELECT}, {TEST}; pairs that share a text stay together"
        raise InputError(f"{found}; expected {need}")
    return frame, len(pairs) - len(both)


def split(pairs: Pairs, seed: int) -> pd.DataFrame:
    """The distinct pairs with the numbers of their texts, q and d, their group and, as a whole group, their part.

    A group holds the pairs that share a text (leakage.overlap_keys), directly or over others: no answer of SELECT or TEST is
    in TRAIN. If that leaves fewer than GROUPS, or one with half of all pairs, a group is the pairs of one query, and answers
    may be met. MET: of documents that several queries of TRAIN ask for, one of these.
    """
    texts = {"query": pairs.queries, "document": pairs.documents}
    frame = pd.DataFrame({**texts, "q": pairs.query_number, "d": pairs.passage}).drop_duplicates(ignore_index=True)
    row, keys = zip(*((i, key) for i, pair in enumerate(frame.to_numpy()[:, :2]) for key in keys_of(pair)), strict=True)
    column = len(frame) + pd.factorize(np.array(keys))[0]
    graph = coo_array((np.ones(len(row)), (row, column)), shape=[column.max() + 1] * 2)
    group = connected_components(graph, directed=False)[1][: len(frame)]
    if group.max() + 1 < GROUPS or np.bincount(group).max() > len(frame) / 2:
        group = pd.factorize(frame["query"].map(same_words))[0]
    sizes = pd.Series(group).value_counts().sort_index().sample(frac=1, random_state=seed)
    sizes = sizes.sort_values(key=lambda size: size > SHARE * len(frame) / 4, kind="stable")  # the large ones: to TRAIN
    part = pd.cut(sizes.cumsum() / len(frame), [0, SHARE, 2 * SHARE, 1.1], labels=[TEST, SELECT, TRAIN]).astype(str)
    frame = frame.assign(group=group, part=part.loc[group].to_numpy())
    left = frame[frame["part"] == TRAIN].sample(frac=1, random_state=seed)
    spare = (left.groupby("d")["q"].transform("nunique") > 1) & ~left["q"].duplicated(keep=False)
    frame.loc[left[spare].drop_duplicates("d").index[: int(SHARE * len(frame))], "part"] = MET
    return frame


def pair_vectors(pairs: pd.DataFrame, vectors: list) -> PairVectors:
    """Pairs of split to train with; a pair with a zero vector has no direction and is left out."""
    q, d = pairs[["q", "d"]].to_numpy().T
    some = vectors[0][q].any(1) & vectors[1][d].any(1)
    return PairVectors.of(vectors[0][q[some]], vectors[1][d[some]], d[some], q[some])


def judged(frame: pd.DataFrame, vectors: list, parts: list[str], documents: np.ndarray) -> search.ValidationSet:
    """The queries of some parts against these documents, all of their pairs' too, never themselves; vectors: (Q, D), (N, D)."""
    rows = frame[frame["q"].isin(frame.loc[frame["part"].isin(parts), "q"])]
    queries, documents = rows["q"].unique(), np.union1d(documents, rows["d"])
    grades = {query: dict.fromkeys(map(str, d), 1) for query, d in rows.groupby("id")["d"]}
    qrels = Qrels("pairs", [str(d) for d in documents], list(rows["id"].unique()), grades, drop_self=True)
    return search.ValidationSet(search.OWN, qrels, vectors[0][queries], vectors[1][documents])


def compare(frame: pd.DataFrame, systems: dict) -> pd.DataFrame:
    """Held-out queries against all documents: nDCG@10 of each system (recipe, parameters, vectors), on each kind of answers.

    answers: all (of TEST), not met, met (of TEST and MET; met if one is a document of TRAIN). queries: their number.
    Means are over groups. difference: to the system 'frozen'; low, high: its 95 % interval, paired by group, as is detectable.
    """
    rows = frame.assign(met=frame["d"].isin(frame.loc[frame["part"] == TRAIN, "d"]))
    queries = rows.groupby("id").agg({"group": "first", "part": "first", "met": "any"})
    for system, (recipe, head, vectors) in systems.items():
        test = judged(frame, vectors, [TEST, MET], np.arange(len(vectors[1])))
        q, d = heads.project(head, "query", test.queries), heads.project(head, "document", test.documents)
        found = rank(test.qrels, q, d, *[recipe.similarity] * 2).metrics([METRIC])[METRIC]
        queries = queries.loc[test.qrels.query_ids].assign(**{system: found})
    table = []
    for answers, which in (("all", queries["part"] == TEST), ("not met", ~queries["met"]), ("met", queries["met"])):
        means = queries[which].groupby("group")[list(systems)].mean()
        for system in systems if len(means) else ():
            difference = means[system] - means["frozen"]
            low, high = map(float, bootstrap_interval(difference.to_numpy()[None]))
            least = detectable(pd.Series(difference.to_numpy(), pd.Index([""] * len(means), name="dataset")))
            table.append([answers, system, which.sum(), means[system].mean(), difference.mean(), low, high, least])
    return pd.DataFrame(table, columns=f"answers system queries {METRIC} difference low high detectable".split())


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("pairs", help='JSONL, a pair a line: {"query": ..., "document": ...}')
    parser.add_argument("--corpus", help="corpus.jsonl of BEIR, all that is searched; left out: the pairs' documents")
    parser.add_argument("--cache", default="~/.cache/asymlib", help="folder of the vectors (~/.cache/asymlib)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the training (0)")
    add_encoder(parser)
    parser.add_argument("--out", required=True, help="folder of the model, new or empty")


def run(options: Namespace) -> int:
    """The command; 3 if nothing beat the frozen encoder."""
    given = options.pairs, encoder_config(options), options.out, options.corpus, options.seed, options.cache
    model, results = fit(*given)
    print(results.to_string(index=False, float_format="%.4f"))
    print(*results.attrs["notes"], model or "nothing beats the frozen encoder beyond chance: no model", sep="\n")
    return 0 if model else 3
