"""The config file of a family of studies, read strictly: what is wrong in it is one sentence.

    python workflow/config.py workflow/mine.yaml     says what is wrong in a file, before anything is started

YAML 1.1, which most programs read, and YAML 1.2 disagree on what `no`, `007`, `1:30` or `1_000` is, and dates are no parameters:
such a word must be quoted here, or written as a plain number, true or false. Quoted, everything is text; `1e-3` is a number.
"""

import math
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml.constructor import ConstructorError

from asymlib.errors import InputError, run_command
from asymlib.files import safe_name

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?\Z")
OTHER = re.compile(r"([-+]?0[0-9]+|0o[0-7]+)\Z")  # numbers in YAML 1.2 alone


def distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("one stands twice")
    return seeds


Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(distinct)]


class Draw(BaseModel):
    """Pairs drawn from a data set of the Hub with the columns `query` and `positive`."""

    model_config = ConfigDict(strict=True, extra="forbid")
    dataset: str
    revision: str
    subset: str
    sample: Annotated[int, Field(ge=1)]
    seed: Seed = 0


class Fetch(BaseModel):
    """What fetch.py brings before a family is run; workflow/public.yaml explains it."""

    model_config = ConfigDict(strict=True, extra="forbid")
    beir: list[str] = []
    ir_datasets: dict[str, str] = {}
    pairs: dict[str, Draw] = {}


class Family(BaseModel):
    """The keys of a config file; workflow/real.yaml uses and explains them all."""

    model_config = ConfigDict(strict=True, extra="forbid")
    study: str
    studies: dict[str, dict[str, Any]]
    recipes: Annotated[list[str], Field(min_length=1)]
    changes: dict[str, dict[str, Any]] = {}
    seeds: Seeds
    fetch: Fetch = Fetch()
    parity: list[str] = []
    untrained: list[str] = []
    apart: list[str] = []
    more: dict[str, list[str]] = {}
    updates: dict[str, Annotated[int, Field(ge=1)]] = {}
    search: dict[str, dict[str, Any]] = {}
    words: bool = False
    unfrozen: dict[str, dict[str, Any]] = {}
    oracle: bool = False
    parameters: dict[str, dict[str, Any]] = {}
    limit: Annotated[int, Field(ge=1)] = 3600
    threads: Annotated[int, Field(ge=1)] = 1
    gpus_per_job: Annotated[int, Field(ge=0)] = 0

    @property
    def trained(self) -> list[str]:
        return [name for name in self.studies if name not in self.untrained]

    @property
    def joined(self) -> list[str]:
        """The studies that one table compares, the main one first."""
        return [self.study] + [name for name in self.trained if name not in (self.study, *self.apart)]

    def recipes_of(self, study: str) -> list[str]:
        """What is trained on a study: what is on every one, and its own."""
        return self.recipes + self.more.get(study, [])

    @property
    def all_recipes(self) -> list[str]:
        return list(dict.fromkeys(self.recipes + [name for names in self.more.values() for name in names]))

    @model_validator(mode="after")
    def names_agree(self) -> "Family":
        other = {given[key] for given in self.search.values() for key in ("transfer", "recipe_from") if given.get(key)}
        for key, names, known in (
            ("study", [self.study], [name for name in self.trained if name not in self.apart]),
            ("untrained", self.untrained, self.studies),
            ("apart", self.apart, self.trained),
            ("more", self.more, self.trained),
            ("updates", self.updates, self.trained),
            ("search", {*self.search, *other}, self.studies),
            ("unfrozen", self.unfrozen, self.trained),
            ("changes", self.changes, self.all_recipes),
        ):
            if wrong := sorted(set(names) - set(known)):
                raise ValueError(f"{key}: {wrong[0]!r} is not one of {', '.join(known)}")
        for key in ("studies", "changes", "search", "unfrozen", "parameters"):
            for name, parameters in getattr(self, key).items():
                if taken := sorted({"study", "recipe", "save_as", "name"} & set(parameters)):
                    raise ValueError(f"{key}: {name}: {taken[0]!r} is given by the workflow itself; leave it out")
        for study in self.studies:
            if len(set(names := self.recipes_of(study))) < len(names):
                raise ValueError(f"recipes: one stands twice for {study}, in recipes or in more")
        if 0 < len(set(self.search) & set(self.joined)) < len(self.joined):
            raise ValueError(f"search: {', '.join(self.joined)} are compared: give all of them a search, or none")
        tracks: dict[tuple, dict[str, tuple]] = {}  # what is compared on the same queries
        for study in self.joined:
            given = self.studies[study]
            systems = frozenset(self.recipes_of(study)), study in self.unfrozen
            tracks.setdefault((given.get("source") == "target", bool(given.get("labels"))), {})[study] = systems
        if uneven := [", ".join(track) for track in tracks.values() if len(set(track.values())) > 1]:
            raise ValueError(f"more, unfrozen: {uneven[0]} stand in one track: give all of them the same systems")
        return self


class Loader(yaml.SafeLoader):
    """YAML whose keys are text, none of them twice in one mapping, and in which no word has two readings."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                shown = f"`{key.value}`" if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise ConstructorError(
                    problem=f"keys must be text, found {shown}; quote it", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise ConstructorError(problem=f"the key `{key.value}` stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def one_reading(self, node: yaml.ScalarNode) -> int | float | bool:
        text = node.value
        if INTEGER.match(text):
            return int(text)
        if NUMBER.match(text) and math.isfinite(float(text)):
            return float(text)
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        wanted = "true or false" if node.tag.endswith("bool") else "a plain finite number"
        message = f"`{text}` has more than one reading in YAML: quote it if it is text, or write {wanted}"
        raise ConstructorError(problem=message, problem_mark=node.start_mark)


for kind in ("int", "float", "bool", "timestamp"):
    Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.one_reading)
Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
Loader.add_implicit_resolver("tag:yaml.org,2002:int", OTHER, list("-+0"))


def read_config(path: str | Path) -> dict[str, Any]:
    """A config file as JSON literals; what is no YAML, or can be read in two ways, is an InputError with its line."""
    try:
        config = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader)
        return literals(config, "") if isinstance(config, dict) else _refuse(f"{path}: expected keys, as in real.yaml")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a config file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply, or in itself") from error
    except yaml.YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        tab = "; indent with blanks, not tabs" if "\\t" in what else ""
        raise InputError(f"{path}{f':{mark.line + 1}' if mark else ''}: {' '.join(what.split())}{tab}") from error


def literals(value: Any, where: str) -> Any:
    """The value, if a notebook can be given it: text, numbers, true, false, null, lists, and mappings whose keys are text."""
    if isinstance(value, dict):
        if wrong := [key for key in value if not isinstance(key, str)]:
            _refuse(f"config: {where}: keys must be text, found {wrong[0]!r}; quote it")
        return {key: literals(inner, f"{where}.{key}".strip(".")) for key, inner in value.items()}
    if isinstance(value, list):
        return [literals(inner, where) for inner in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    return _refuse(f"config: {where}: {value} is a {type(value).__name__}; quote it if it is meant as text")


def _refuse(message: str) -> None:
    raise InputError(message)


def read_family(config: dict) -> Family:
    """The checked config; an InputError names every key that is unknown, missing or of another type."""
    try:
        family = Family(**literals(config, ""))
    except ValidationError as error:
        words = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}".replace("Value error, ", "").lstrip(": ")
            + f", found {e['input']!r}; quote it" * (e["type"] == "string_type")
            for e in error.errors()
        ]
        raise InputError(f"config: {'; '.join(words)} (keys: {', '.join(Family.model_fields)})") from error
    for name in (*family.studies, *family.all_recipes, *family.parity, *family.fetch.ir_datasets, *family.fetch.pairs):
        safe_name(name, "config")
    return family


if __name__ == "__main__":
    run_command(lambda: read_family(read_config(sys.argv[1])) and None)
