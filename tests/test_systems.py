"""Recipes: all of the design's are there, each is strict, and each survives being written and read."""

import dataclasses
import json
import math

import pytest

from asymlib.errors import InputError
from asymlib.systems import SYSTEMS, System, get_system, system_from_dict

DESIGNED = {
    "baseline", "asym-dot", "asym-cos", "asym-cos-identity", "asym-qnorm", "asym-dnorm", "asym-euclidean", "iso15-pred12",
    "respred", "whitened",
}  # fmt: skip


def test_every_designed_recipe_is_present_under_its_own_name():
    assert set(SYSTEMS) == DESIGNED
    assert all(name == system.name for name, system in SYSTEMS.items())
    assert {name for name, system in SYSTEMS.items() if not system.trained} == {"baseline", "whitened"}


def test_the_failure_is_the_setting_whose_log_is_closest_to_the_cases():
    expected = {
        "head": "linear", "start": "random", "sides": "both", "similarity": "dot", "temperature": 0.05, "isotropy": "cosine",
        "isotropy_weight": 1.0, "prediction_weight": 0.0, "recovery_weight": 0.0, "lr": 1e-2, "batch_size": 64, "epochs": 3,
    }  # fmt: skip
    found = get_system("asym-dot").to_dict()
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "similarity"),
    [("asym-cos", "cosine"), ("asym-qnorm", "qnorm"), ("asym-dnorm", "dnorm"), ("asym-euclidean", "euclidean")],
)
def test_the_2x2_and_euclidean_differ_from_the_failure_in_similarity_alone(name, similarity):
    changed = get_system("asym-dot").with_changes(name=name, similarity=similarity)
    assert get_system(name) == changed


def test_the_readings_of_the_cases_names():
    iso15, respred = get_system("iso15-pred12"), get_system("respred")
    assert (iso15.isotropy_weight, iso15.prediction_weight) == (1.5, 1.2)
    assert (respred.head, respred.sides) == ("residual", "query")  # q + f(q), documents untouched
    ours = get_system("asym-cos-identity")
    assert (ours.start, ours.similarity) == ("identity", "cosine") and ours.lr < get_system("asym-dot").lr
    assert get_system("whitened").whitening > 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_recipe_survives_json(name):
    system = get_system(name)
    assert system_from_dict(json.loads(json.dumps(system.to_dict()))) == system


def test_an_integer_is_a_float_and_json_cannot_tell_the_difference():
    assert System("x", lr=1).lr == 1.0 and type(System("x", lr=1).lr) is float
    assert System("x", lr=1) == System("x", lr=1.0)


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_system("asym-dot").lr = 1.0


def test_an_unknown_system_is_refused_and_the_valid_ones_are_named():
    with pytest.raises(InputError, match=r"'asym-cosine' is unknown, expected one of baseline, asym-dot, asym-cos, "):
        get_system("asym-cosine")


@pytest.mark.parametrize(
    "change", [lambda **k: get_system("asym-dot").with_changes(**k), lambda **k: system_from_dict({"name": "x", **k})]
)
def test_an_unknown_field_is_refused_and_the_valid_ones_are_named(change):
    with pytest.raises(
        InputError, match=r"unknown field learning_rate; valid fields: name, head, start, .*, lr, "
    ) as caught:
        change(learning_rate=1e-3)
    assert all(field.name in str(caught.value) for field in dataclasses.fields(System))


def test_a_missing_name_is_refused():
    with pytest.raises(InputError, match="the field 'name' is missing"):
        system_from_dict({"lr": 1e-3})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("lr", "1e-3", "expected float"),  # as YAML 1.1 reads 1e-3
        ("lr", None, "expected float"),
        ("lr", True, "expected float"),
        ("epochs", 3.0, "expected int"),
        ("epochs", True, "expected int"),
        ("batch_size", "64", "expected int"),
        ("similarity", 1, "expected str"),
        ("lr", 0.0, "expected a number above 0"),
        ("lr", math.nan, "expected a finite number"),
        ("lr", math.inf, "expected a finite number"),
        ("temperature", -0.05, "expected a number above 0"),
        ("isotropy_weight", -1.0, "expected 0 or more"),
        ("prediction_weight", math.nan, "expected a finite number"),
        ("recovery_weight", -0.1, "expected 0 or more"),
        ("weight_decay", -0.1, "expected 0 or more"),
        ("clip_norm", -1.0, "expected 0 or more"),
        ("patience", -1, "expected 0 or more"),
        ("hard_negatives", -1, "expected 0 or more"),
        ("hard_negatives", 1.0, "expected int"),
        ("whitening", -0.1, "expected 0 or more"),
        ("batch_size", 1, "expected batch_size >= 2"),
        ("epochs", 0, "epochs >= 1"),
        ("similarity", "cos", "expected one of dot, cosine, qnorm, dnorm, euclidean"),
        ("isotropy", "vicreg", "expected one of none, cosine, covariance, variance-hinge, uniformity"),
        ("head", "mlp", "expected one of none, linear, residual, deep"),
        ("start", "zero", "expected one of random, identity"),
        ("sides", "left", "expected one of both, query, document, shared"),
    ],
)
def test_a_wrong_value_is_refused_and_the_message_names_field_and_value(field, value, expected):
    with pytest.raises(InputError) as caught:
        System("mine", **{field: value})
    message = str(caught.value)
    assert expected in message and field in message


def test_a_deep_head_cannot_start_as_the_identity():
    with pytest.raises(InputError, match="cannot start as the identity"):
        System("mine", head="deep", start="identity")
