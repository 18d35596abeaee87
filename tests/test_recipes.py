"""Recipes: all of the design's are there, each is strict, and each survives being written and read."""

import json
import math

import pytest
from pydantic import ValidationError

from asymlib.errors import InputError
from asymlib.recipes import RECIPES, RESERVED, Recipe, get_recipe, reserved_name


def test_every_recipe_stands_under_its_own_name_and_two_have_nothing_to_train():
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert {name for name, recipe in RECIPES.items() if not recipe.trained} == {"baseline", "whitened"}


def test_the_failure_is_the_setting_whose_log_is_closest_to_the_cases():
    expected = {
        "head": "linear", "start": "random", "sides": "both", "similarity": "dot", "temperature": 0.05, "isotropy": "cosine",
        "isotropy_weight": 1.0, "prediction_weight": 0.0, "recovery_weight": 0.0, "lr": 1e-2, "batch_size": 64, "epochs": 3,
    }  # fmt: skip
    found = get_recipe("asym-dot").to_dict()
    assert {name: found[name] for name in expected} == expected


def test_the_readings_of_the_cases_names():
    iso15, respred = get_recipe("iso15-pred12"), get_recipe("respred")
    assert (iso15.isotropy_weight, iso15.prediction_weight) == (1.5, 1.2)
    assert (respred.head, respred.sides) == ("residual", "query")  # q + f(q), documents untouched
    ours = get_recipe("asym-cos-identity")
    assert (ours.start, ours.similarity) == ("identity", "cosine") and ours.lr < get_recipe("asym-dot").lr
    assert get_recipe("whitened").whitening > 0


def changed(name: str, since: str) -> dict:
    """The fields, but for the name, in which a recipe differs from another."""
    ours, theirs = get_recipe(name).to_dict(), get_recipe(since).to_dict()
    return {field: value for field, value in ours.items() if value != theirs[field] and field != "name"}


def test_families_of_recipes_differ_only_in_what_they_study():
    for short in ("dot", "cos"):
        assert changed(f"asym-{short}-iso01", f"asym-{short}") == {"isotropy_weight": 0.1}
        assert changed(f"asym-{short}-iso0", f"asym-{short}") == {"isotropy": "none", "isotropy_weight": 0.0}
    for short, similarity in (("cos", "cosine"), ("qnorm", "qnorm"), ("dnorm", "dnorm")):
        assert changed(f"identity-{short}", "identity-dot") == {"similarity": similarity}
    plain = get_recipe("identity-dot")
    assert (plain.start, plain.similarity, plain.isotropy, plain.lr) == ("identity", "dot", "none", 3e-5)
    assert changed("identity-gamma", "identity-dot") == changed("asym-gamma", "asym-dot") == {"exponent_lr": 1e-2}
    rival = get_recipe("llamaindex-adapter")
    assert (rival.sides, rival.start, rival.similarity, rival.temperature) == ("query", "identity", "cosine", 1 / 20)
    assert (rival.lr, rival.batch_size, rival.epochs, rival.warm_up, rival.clip_norm) == (2e-5, 10, 1, 0.1, 1.0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    recipe = get_recipe(name)
    assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_an_integer_is_a_float_and_equal_recipes_are_one_key():
    whole, real = Recipe(name="x", lr=1), Recipe(name="x", lr=1.0)
    assert type(whole.lr) is float and whole == real and len({whole, real, whole.with_changes(lr=2)}) == 2


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        get_recipe("asym-dot").lr = 1.0


def test_an_unknown_recipe_is_refused_and_the_valid_ones_are_named():
    with pytest.raises(InputError, match=r"'asym-cosine' is unknown, expected one of baseline, asym-dot, asym-cos, "):
        get_recipe("asym-cosine")


@pytest.mark.parametrize("change", [get_recipe("asym-dot").with_changes, lambda **values: Recipe(name="x", **values)])
def test_an_unknown_field_is_refused_and_the_valid_ones_are_named(change):
    with pytest.raises(InputError, match=r"unknown field learning_rate, w; valid fields: name, .*") as caught:
        change(learning_rate=1e-3, w=2)
    assert str(caught.value).endswith(", ".join(get_recipe("asym-dot").to_dict()))


ABOVE, NOT_BELOW = "expected greater than 0", "expected greater than or equal to 0"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("lr", "1e-3", "expected a valid number"),  # as YAML 1.1 reads 1e-3
        ("lr", None, "expected a valid number"),
        ("lr", True, "expected a valid number"),
        ("lr", 0.0, ABOVE),
        ("lr", math.nan, "expected a finite number"),
        ("lr", math.inf, "expected a finite number"),
        ("temperature", -0.05, ABOVE),
        ("epochs", 3.0, "expected a valid integer"),
        ("epochs", True, "expected a valid integer"),
        ("epochs", 0, "expected greater than or equal to 1"),
        ("batch_size", "64", "expected a valid integer"),
        ("batch_size", 1, "expected greater than or equal to 2"),
        *((f"{term}_weight", -1.0, NOT_BELOW) for term in ("isotropy", "prediction", "recovery")),
        *((name, -1, NOT_BELOW) for name in ("weight_decay", "clip_norm", "patience", "hard_negatives", "whitening")),
        *((name, -1, NOT_BELOW) for name in ("warm_up", "exponent_lr")),
        ("warm_up", 10_000, "expected less than 1"),
        ("similarity", 1, "expected 'dot', 'cosine', 'qnorm', 'dnorm' or 'euclidean'"),
        ("isotropy", "vicreg", "expected 'none', 'cosine', 'covariance', 'variance-hinge' or 'uniformity'"),
        ("head", "mlp", "expected 'none', 'linear', 'residual' or 'deep'"),
        ("start", "zero", "expected 'random' or 'identity'"),
        ("sides", "left", "expected 'both', 'query', 'document' or 'shared'"),
    ],
)
def test_a_wrong_value_is_refused_naming_recipe_field_value_and_what_was_expected(field, value, expected):
    with pytest.raises(InputError) as caught:
        Recipe(name="mine", **{field: value})
    assert str(caught.value) == f"recipe 'mine': {field} = {value!r}, {expected}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"name": "mine", "head": "deep", "start": "identity"},
            "recipe 'mine': start: .* cannot start as the identity, .*; use 'residual'",
        ),
        (
            {"name": "mine", "whitening": 0.1},
            "recipe 'mine': whitening = 0.1 with a trained head, expected head 'none'",
        ),
        (
            {"name": "mine", "exponent_lr": 0.1},
            "exponent_lr = 0.1 with similarity 'cosine' and head 'linear', expected similarity 'dot' and a trained head",
        ),
        (
            {"name": "mine", "exponent_lr": 0.1, "similarity": "dot", "head": "none"},
            "similarity 'dot' and head 'none', expected similarity 'dot' and a trained head",
        ),
        ({"name": "dot/1"}, "recipe 'dot/1': name: 'dot/1', expected letters, digits"),
        ({"lr": 1e-3}, "name = None, Field required"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Recipe(**values)


@pytest.mark.parametrize("name", ["1e-3", "007", "None", "NA", "true", "mine", "asym-dot", "lr=0.001"])
def test_a_safe_name_that_tables_have_no_other_meaning_for_is_given_back(name):
    assert reserved_name(name, "save_as") == name


@pytest.mark.parametrize(
    "name", ["lr/0.001", "../x", "../../../../x", "a\\b", "", ".hidden", "-x", "two words", "é", "x\n"]
)
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(InputError, match=r"save_as: .*expected letters, digits"):
        reserved_name(name, "save_as")


def test_names_that_mean_something_else_in_tables_are_refused_but_for_the_searchs_own():
    words = {"bm25", "hybrid", "lexical", "lexical-head"}
    assert set(RESERVED) == {"baseline", "whitened", "average", "best-head"} | words
    for name in RESERVED:
        with pytest.raises(InputError, match=f"save_as: '{name}' means something else in tables"):
            reserved_name(name, "save_as")
    for variant in ("mine-whitened", "mine-normalised", "unfrozen-top-3-dot"):
        with pytest.raises(InputError, match=f"save_as: '{variant}' means something else in tables"):
            reserved_name(variant, "save_as")
    assert reserved_name("best-head", "save_as", search=True) == "best-head"
    with pytest.raises(InputError, match="'average' means something else"):
        reserved_name("average", "save_as", search=True)
