"""What an embedding model suffers from: every finding with its numbers, judged by the rules in diagnose.json."""

import argparse
import base64
import json
import math
import re
import tempfile
from functools import reduce
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, select_autoescape

from asymlib import __version__, evaluate, losses, magnitude, significance
from asymlib.data.collections import Collection, load_beir
from asymlib.data.docstrings import PACKAGES, docstring_pairs
from asymlib.data.pairs import Pairs, load_pairs
from asymlib.encoding.encode import encode_lists, share_cut
from asymlib.encoding.encoder import SIDES, EncoderConfig, find_folder
from asymlib.errors import InputError
from asymlib.files import read_json, write_json, write_text
from asymlib.report import style
from asymlib.tools.compare import detectable
from asymlib.tools.export import STORED, declared_similarity, encoder_of
from asymlib.words.block import Block
from asymlib.words.bm25 import BM25

EXAMPLE = "asymlib diagnose all-MiniLM-L6-v2 --html diagnosis.html"
HERE = Path(__file__).parent
KNOWN = read_json(HERE / "diagnose.json")  # rules, prompts of model families, metrics of vector stores
PAGES = Environment(loader=FileSystemLoader(HERE), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True)
PAGES.globals |= {"version": __version__, "rules": KNOWN["rules"]}
LEVEL = 0.05  # of all tests of a diagnosis together
DEPTH, TEMPERATURE = 10, 0.05  # results a query, as in METRIC; 1 / the default scale of MultipleNegativesRankingLoss
DOCSTRINGS = "2,000 docstrings of installed packages, about 2 minutes with all-MiniLM-L6-v2 on 2 cores"
VARIES = 0.01  # coefficient of variation from which on lengths differ by more than rounding


def of_pairs(pairs: Pairs) -> Collection:
    """Pairs as a collection, ids are texts, nothing is its own result; pairs of a text with itself are left out, counted."""
    both = [pair for pair in zip(pairs.queries, pairs.documents, strict=True) if len(set(pair)) == 2]
    qrels: dict[str, dict[str, int]] = {}
    for query, document in both:
        qrels.setdefault(query, {})[document] = 1
    queries, documents = list(qrels), list(dict.fromkeys(document for _, document in both))
    own, tolerated = len(qrels.keys() & set(documents)), {"pairs_of_one_text": len(pairs) - len(both)}
    return Collection(pairs.name, documents, documents, queries, queries, qrels, True, None, None, own, tolerated)


def docstring_collection(limit: int = 2_000) -> Collection:
    """`limit` docstrings of five installed packages in one corpus: a summary asks for the rest of its docstring."""
    packages = {"test": ["huggingface_hub"], "validation": ["sentence-transformers"], "train": PACKAGES["test"]}
    queries, documents = zip(*docstring_pairs(packages, limit, 1, 1).train, strict=True)
    return of_pairs(Pairs("docstrings", list(queries), list(documents)))


def diagnose(
    model: str, collection: Collection | None = None, max_length: int | None = None,
    cache_folder: str | Path = "~/.cache/asymlib", progress: bool = True,
) -> dict:  # fmt: skip
    """Measure a SentenceTransformer on a test collection and judge it by the rules.

    model: the embedded encoder, a Hub id or a folder. collection: None is docstring_collection(). max_length: in tokens, None
    is the model's own. Returns plain values, as the JSON file holds them: what was measured, and `findings`, a row for each
    rule that applies: rule, of, value, low, high, p, p_holm (over all tests of what may be wrong; that of information is alone),
    verdict (wrong, note, information or fine), evidence, advice.
    """
    declared = declared_similarity(find_folder(EncoderConfig(model)))
    collection, used = collection or docstring_collection(), declared or "cosine"
    row = {name: i for i, name in enumerate(collection.doc_ids)}
    judged = [(i, row[name]) for i, query in enumerate(collection.query_ids)
              for name, grade in collection.qrels[query].items() if grade > 0 and name in row]  # fmt: skip
    if min(len(judged), len(collection.queries), len(collection.documents)) < DEPTH:
        raise InputError(f"{collection.name}: expected at least {DEPTH} queries, documents and right answers")
    right = np.array(judged).T  # (2, P) rows of queries and of the documents that answer them
    cache_folder, lists = Path(cache_folder).expanduser(), [collection.queries, collection.documents]
    config = encoder_of(model) if max_length is None else EncoderConfig(model, max_length=max_length)
    how = cache_folder, progress, lambda number, row: collection.name_of(SIDES[number], row)
    (q, d), encoder = encode_lists(lists, SIDES, config, *how)
    rankings = {name: evaluate.rank(collection.judgements, q, d, name, None) for name in STORED}
    ndcg = {name: ranking.metrics([evaluate.METRIC])[evaluate.METRIC] for name, ranking in rankings.items()}
    findings = [_paired("similarity", ndcg[name], ndcg[used], name) for name in STORED if name != used]
    family, asked = _family(model, encoder.prompts)
    if asked != encoder.prompts:
        prompted = EncoderConfig(model, None, *asked.values(), max_length=config.max_length)
        vectors, _ = encode_lists(lists, SIDES, prompted, *how)
        better = evaluate.rank(collection.judgements, *vectors, used, None).metrics([evaluate.METRIC])
        findings.append(_paired("prompts", better[evaluate.METRIC], ndcg[used], family))
    words, gained = _words(collection, q, d, ndcg, max((used, "cosine"), key=lambda name: ndcg[name].mean()))
    findings.append(gained)
    lengths = {side: _lengths(vectors) for side, vectors in zip(SIDES, (q, d), strict=True)}
    varies = {side: length["cv"] >= VARIES for side, length in lengths.items()}
    by_length, tested = _by_length(rankings[used], *right, used != "cosine" and varies["document"])
    report = {
        "model": model, "collection": collection.name, "queries": len(q), "documents": len(d), "dimension": q.shape[1],
        "declared": declared, "used": used, "max_length": config.max_length,
        "prompts": encoder.prompts, "family": family, "asked": asked,
        "drop_self": collection.drop_self, "self_matches": collection.self_matches, "tolerated": collection.tolerated,
        "own_results": 0 if collection.drop_self else collection.self_matches,
        "similarities": {name: _mean(values) for name, values in ndcg.items()}, "words": words,
        "lengths": lengths, **by_length,
        "hubness": rankings[used].hubness(DEPTH),
        "statistics": _statistics(q, d, right, collection.judgements.exclude, used),
        "cut": dict(zip(SIDES, share_cut(lists, SIDES, config), strict=True)),
        "findings": findings + tested,
    }  # fmt: skip
    _judge(report)
    report |= _seen(report["findings"], f"{len(q):,} queries")
    better = [finding["of"] for finding in report["findings"] if finding["rule"] == "similarity" and finding["advice"]]
    report["best"] = max(better, key=lambda name: ndcg[name].mean(), default=used)
    report["store"] = KNOWN["stores"][report["best"] if any(varies.values()) else "unit"]
    return json.loads(pd.Series(report).to_json(double_precision=10))  # Python's own numbers, None for NaN


def _family(model: str, prompts: dict[str, str]) -> tuple[str | None, dict[str, str]]:
    """The model's family, by whole parts of its name, and each side's prompt: its own, or the family's where it has none."""
    for name, wanted in KNOWN["prompts"].items():
        if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", Path(model).name.casefold()):
            return name, {side: prompts[side] or prompt for side, prompt in zip(SIDES, wanted, strict=True)}
    return None, prompts


def _mean(values: np.ndarray) -> dict[str, float]:
    """Mean over queries, (Q,), with its 95 % interval."""
    low, high = significance.bootstrap_interval(values[None])
    return {"value": values.mean(), "low": low.item(), "high": high.item()}


def _paired(rule: str, a: np.ndarray, b: np.ndarray, of: str = "") -> dict:
    """The finding that a is not b: their mean difference over the same queries, (Q,) each, with interval and test."""
    p = significance.paired_randomization_test(a, b).item()
    least = detectable(pd.Series(a - b, pd.Index([""] * len(a), name="dataset")))
    return {"rule": rule, "of": of, **_mean(a - b), "p": p, "a": a.mean(), "b": b.mean(), "detectable": least}


def _words(collection: Collection, q: np.ndarray, d: np.ndarray, dense: dict, against: str) -> tuple[dict, dict]:
    """nDCG@10 with the documents' block beside the vectors, and of BM25, each also less dense[against]; and the finding."""
    qrels, queries, documents = collection.judgements, collection.queries, collection.documents
    block, bm25, found = Block.fit(documents), BM25(documents), {"against": against}
    joined = block.join("query", q, queries), block.join("document", d, documents)
    by_words = evaluate.rank_scores(qrels, lambda rows: bm25.scores(queries[rows]))
    for name, ranking in (("bm25", by_words), ("lexical", evaluate.rank(qrels, *joined, "dot", None))):
        ndcg = ranking.metrics([evaluate.METRIC])[evaluate.METRIC]
        found[name] = _mean(ndcg) | {"difference": _mean(ndcg - dense[against])}
    found |= {"weight": block.weight, "dimensions": block.dimensions}
    return found, _paired("words", ndcg, dense[against])


def _lengths(vectors: np.ndarray) -> dict:
    """Mean, coefficient of variation, zeros and percentiles (0 to 100) of the lengths of one side, (N, D)."""
    x = np.linalg.norm(vectors.astype(np.float64), axis=1)
    spread = {"mean": x.mean(), "cv": x.std() / x.mean() if x.any() else 0.0, "zero": int((x == 0).sum())}
    return spread | {"percentiles": np.percentile(x, np.arange(101)).tolist()}


def cohens_d(length: np.ndarray, times: np.ndarray, total: int) -> float:
    """How much longer chosen documents are than the others, over (query, document) pairs: (mean - mean of others) / pooled sd.

    length: (N,). times: (N,) for how many of `total` queries each is chosen. Cohen 1988, section 2.2. nan: all equal, or no others.
    """
    weights = np.stack([times, total - times])
    means = (weights @ length) / np.where(sizes := weights.sum(1), sizes, math.nan)
    sd = math.sqrt((weights * (length - means[:, None]) ** 2).sum() / sizes.sum())
    return (means[0] - means[1]) / sd if sd else math.nan


def _by_length(ranking: evaluate.Ranking, query: np.ndarray, document: np.ndarray, counts: bool) -> tuple[dict, list]:
    """What vector length does to the results; where it counts, the findings `length`, `hubs`. query, document: (P,) answers."""
    from scipy.stats import pearsonr, rankdata  # of the extras

    length, rows = ranking.document_length, ranking.rows[:, :DEPTH]
    found, right = (np.bincount(x, minlength=len(length)) for x in (rows[rows >= 0], document))
    effect = {name: cohens_d(length, n, len(rows)) for name, n in (("relevant", right), ("retrieved", found))}
    about = {"cohens_d": effect, "length_deciles": ranking.by_length(DEPTH).to_dict("list")}
    wrong = np.bincount(rows[(rows >= 0) & (ranking.qrels.grades(rows) <= 0)], minlength=len(length))
    if not (counts and wrong.std()):
        return about, []
    z, asked = (length - length.mean()) / length.std(), np.unique(query)
    of_right = (np.bincount(query, z[document]) / np.bincount(query).clip(1))[asked]
    of_found = np.nanmean(np.where(rows >= 0, z[rows], np.nan), axis=1)[asked]
    by_rank = pearsonr(rankdata(wrong), rankdata(length))
    low, high = by_rank.confidence_interval()
    hubs = {"rule": "hubs", "of": "", "value": by_rank.statistic, "low": low, "high": high, "p": by_rank.pvalue}
    return about, [_paired("length", of_found, of_right), hubs]


def _statistics(q: np.ndarray, d: np.ndarray, right: np.ndarray, own: np.ndarray, used: str) -> dict[str, float]:
    """magnitude.statistics of right answers, (2, P) rows, 2,000 at most. own: as Qrels.exclude, which are no negatives."""
    query, document = right[:, np.random.default_rng(0).permutation(right.shape[1])[:2_000]]
    same = (query[:, None] == query) | (document[:, None] == document) | (own[query, None] == document)
    a, b = (torch.from_numpy(x).double()[None, None] for x in (q[query], d[document]))
    scores, tau = losses.score_matrix(a, b, used), torch.tensor([TEMPERATURE]).double()
    rows = magnitude.statistics(a, b, scores, torch.from_numpy(same)[None, None], tau, spectrum=True)
    return {name: value.item() for name, value in rows.items()}


def _judge(report: dict) -> None:
    """Add a finding for each rule about a value of the report; then Holm's p, verdict, evidence and advice to each."""
    findings, rules = report["findings"], KNOWN["rules"]
    asked = [name for name, rule in rules.items() if "at" in rule and report["used"] not in rule.get("unless", ())]
    findings += [{"rule": name, "of": "", "value": reduce(dict.get, rules[name]["at"], report)} for name in asked]
    kinds = [rules[finding["rule"]]["kind"] for finding in findings]
    of_wrong = [f.get("p", math.nan) if kind == "wrong" else math.nan for f, kind in zip(findings, kinds, strict=True)]
    for finding, kind, p in zip(findings, kinds, significance.holm(np.array(of_wrong)), strict=True):
        rule, value, p = rules[finding["rule"]], finding["value"], finding["p"] if kind == "information" else p
        size = abs(value) if "either_way" in rule else value
        holds = size > rule["above"] if "above" in rule else size <= rule["at_most"]
        bad = holds and (kind == "note" or p < LEVEL)
        finding |= {"p_holm": p, "verdict": kind if bad else "fine"}
        finding |= {"evidence": rule["evidence"].format(**report | finding), "advice": rule["advice"] if bad else ""}


def _seen(findings: list[dict], queries: str) -> dict:
    """The headline, and the smallest difference of nDCG that each of its tests would find; 0 if all rankings are alike."""
    wrong = sum(finding["verdict"] == "wrong" for finding in findings)
    least = max(finding["detectable"] for finding in findings if finding["rule"] in ("similarity", "prompts"))
    seen = f"{queries} show differences of about {least:.3f} nDCG@10 or more"
    healthy = f"nothing found beyond chance; {seen if least else f'all similarities rank these {queries} alike'}"
    sick = f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong beyond chance"
    return {"headline": sick if wrong else healthy, "detectable": least}


def summary(report: dict) -> str:
    """A few lines for the terminal."""
    return PAGES.get_template("diagnose.txt").render(report).rstrip()


def page(report: dict) -> str:
    """An HTML page that needs no other file."""
    picture = base64.b64encode(figure(report)._repr_png_()).decode()
    return PAGES.get_template("diagnose.html").render(report, figure=picture)


def figure(report: dict) -> style.Figure:
    """nDCG@10 of each similarity and with words, lengths of both sides, and what documents of each length are found and right."""
    with matplotlib.style.context(style.STYLE_SHEET, after_reset=True):
        drawn, (scores, lengths, deciles) = style.panels(["nDCG@10", "Vector length", "Results by vector length"], 1.7)
        found = report["similarities"] | {"with words": report["words"]["lexical"], "BM25": report["words"]["bm25"]}
        looks = style.looks(found, style.SIMILARITY_STYLE)
        for y, (name, row) in enumerate(found.items()):
            error = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
            scores.errorbar(row["value"], y, xerr=error, elinewidth=1, **looks[name] | {"linestyle": ""})
        style.text_rows(scores, [f"{name}, in use" if name == report["used"] else name for name in found])
        scores.set_xlabel("mean over queries, 95 % interval")
        for side, color, line in (("query", style.ORANGE, style.DASHED), ("document", style.BLUE, "-")):
            at = report["lengths"][side]["percentiles"]
            lengths.plot(at, np.arange(101), color=color, linestyle=line, label=side)
        lengths.set(xlabel="length", ylabel="% of texts at most as long", xlim=(0, None))
        rows = pd.DataFrame(report["length_deciles"]).set_index("length_decile")
        deciles.plot(rows["relevant_rate"], **style.BASELINE_LINE, label="right answers")
        deciles.plot(rows["retrieved_rate"], "o-", color=style.VERMILLION, label="first 10 results")
        deciles.set(xlabel="tenth of the documents, by length", ylabel="share / average share", ylim=(0, None))
        lengths.legend(loc="best")
        deciles.legend(loc="best")
    return drawn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `asymlib diagnose`."""
    parser.add_argument("model", help="a SentenceTransformer: folder, Hub id, or all-MiniLM-L6-v2 (embedded)")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--collection", metavar="DIR", help=f"BEIR folder (default: {DOCSTRINGS})")
    given.add_argument("--pairs", metavar="FILE", help="JSONL with query and document, which is the query's answer")
    parser.add_argument("--drop-self", action="store_true", help="of --collection: a query's own document is no result")
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    parser.add_argument("--html", metavar="FILE", help="write one page with figures and advice")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens of a text (default: the model's own)")
    parser.add_argument("--cache", metavar="DIR", default="~/.cache/asymlib", help="vectors (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """0: nothing found, 1: something is wrong beyond chance."""
    for path in map(Path, filter(None, (options.json, options.html))):  # what cannot be written is said before the work
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.is_dir():
            raise InputError(f"{path}: is a folder; expected a file to write")
    if options.drop_self and not options.collection:
        raise InputError("--drop-self: expected with --collection alone; of pairs a query's own text is never a result")
    collection = of_pairs(load_pairs(options.pairs)) if options.pairs else None
    if options.collection:
        collection = load_beir(options.collection, strict=False, drop_self=options.drop_self or None)
    report = diagnose(options.model, collection, options.max_length, options.cache)
    if options.json:
        write_json(options.json, report)
    if options.html:
        write_text(options.html, page(report))
    print(summary(report))
    return int(any(finding["verdict"] == "wrong" for finding in report["findings"]))
