"""What counts as the same text: keys of both ends, near-equal documents against the definition, equal questions."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from asymlib.data.collections import Collection, same_words
from asymlib.data.leakage import (
    NEAR_DUPLICATE,
    met_in_training,
    near_duplicates,
    overlap,
    overlap_keys,
    without_overlap,
)
from tests.test_collections import prose


def test_overlap_counts_texts_that_start_or_end_alike():
    body = prose(7, words=60)  # 360 letters
    training = ["Who built it?", f"A Title {body}"]
    documents = [body.upper(), f"A title: {body[:300]}", body[10:300], ""]  # same end, same start, neither, nothing
    queries = ["who BUILT it", "who built them"]
    collection = Collection("test", list("1234"), documents, ["q1", "q2"], queries, {"q1": {"1": 1}, "q2": {"2": 1}})
    counts = {"queries": 2, "queries_in_training": 1, "queries_share": 0.5}
    assert overlap(training, collection) == counts | {
        "documents": 4,
        "documents_in_training": 2,
        "documents_share": 0.5,
    }


def test_queries_are_grouped_by_the_answers_and_topics_that_training_met():
    qrels = {"a": {"1": 1, "3": 2}, "b": {"2": 1, "1": 0}, "c": {"3": 1}, "d": {"2": 1, "gone": 1}, "e": {"1": 1}}
    angles = np.radians([80, 1, 60, 89, 30])  # from the nearest training query: at 0 and, longer, at 180 degrees
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    test = Collection("test", list("123"), ["one", "two", "three"], list("abcde"), list("abcde"), qrels)
    test = replace(test, query_vectors=vectors)
    training = np.array([[1, 0], [-9, 0]], dtype=np.float32)
    groups = met_in_training(training, ["one", "not tested", "one"], test)
    assert {name: "".join(np.array(list("abcde"))[inside]) for name, inside in groups.items()} == {
        "met in training": "ae",
        "not met": "bcd",  # a grade of 0 and a document that is not there answer nothing
        "near topic": "be",
        "far topic": "acd",
        "not met, far topic": "cd",
    }


@given(
    st.text(st.characters(max_codepoint=0x2FF), max_size=300), st.text(" -_.,!", max_size=5)
)  # no marks to part from letters
def test_punctuation_and_spaces_do_not_hide_an_overlap(text, between):
    assert overlap_keys(between.join("a" + text)) == overlap_keys("a" + text)
    seen = overlap_keys("Once, upon a time")
    rows = [("a question", between.join("once upon a time")), ("ONCE upon-a-time", "a document"), ("other", "another")]
    assert without_overlap(seen, rows) == rows[2:]


def test_a_text_of_symbols_alone_is_seen_where_it_occurs_again():
    collection = Collection("test", ["1", "2"], ["→ 👍", "!"], ["q1"], ["???"], {"q1": {"1": 1}})
    shares = {"queries_share": 1, "documents": 2, "documents_in_training": 1, "documents_share": 0.5}
    assert overlap(["? ??", "→👍"], collection) == {"queries": 1, "queries_in_training": 1} | shares
    assert without_overlap(overlap_keys("???"), [("???", "a"), ("??", "b"), ("c", " ?? ? ")]) == [("??", "b")]
    assert overlap_keys(" \n") == set()


def test_equal_questions():
    assert same_words("? ?!") == same_words(" ?  ?!") != same_words("?")
    assert same_words("What's  new, Straße-2?") == same_words("what s NEW strasse 2")
    assert same_words("what is new") != same_words("what is new in 2")


def test_copies_in_another_unicode_form_are_the_same_text_and_marks_tell_texts_apart():
    for one, other in [
        ("caf\u00e9 cr\u00e8me", "CAFE\u0301 cre\u0300me"),
        ("\uff26\uff55\uff4c\uff4c \uff12", "full 2"),
        ("\u03aa\u0301", "\u0390"),  # a capital that no single character holds with its accents
    ]:
        assert overlap_keys(one) == overlap_keys(other) and same_words(one) == same_words(other)
    for one, other in [
        ("\u0915\u0940", "\u0915\u093e"),
        ("\u0e01\u0e31", "\u0e01\u0e34"),
        ("\u2764\ufe0f", "\u2714\ufe0f"),
    ]:
        assert overlap_keys(one).isdisjoint(overlap_keys(other)) and same_words(one) != same_words(other)
    documents = ["caf\u00e9 au lait noir", "cafe\u0301 au lait noir", "\u0915\u0940 " * 3, "\u0915\u093e " * 3]
    assert near_duplicates(documents).tolist() == [False, True, False, False]


def slow_near_duplicates(docs: list[str]) -> list[bool]:
    """The definition, pair by pair, on sets of word triples."""
    sets = []
    for doc in docs:
        words = doc.lower().split()
        sets.append({tuple(words[i : i + 3]) for i in range(len(words) - 2)})
    dropped: list[bool] = []
    for i, mine in enumerate(sets):
        near = [len(mine & other) >= NEAR_DUPLICATE * len(mine | other) for other in sets[:i]]
        dropped.append(any(close and not gone for close, gone in zip(near, dropped, strict=True)))
    return dropped


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("ab"), min_size=3, max_size=9).map(" ".join), min_size=1, max_size=12))
def test_near_duplicates_are_those_of_the_definition(docs):
    assert near_duplicates(docs).tolist() == slow_near_duplicates(docs)


def test_near_duplicates_across_blocks_of_the_product():
    rng = np.random.default_rng(0)
    docs = [" ".join(rng.choice(list("abcd"), size=6)) for _ in range(1200)]  # the product is done in blocks of 500
    found = near_duplicates(docs).tolist()
    assert found == slow_near_duplicates(docs)
    assert 100 < sum(found) < 1100
