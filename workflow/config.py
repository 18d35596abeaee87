"""The config file of a family of studies, read strictly: what is wrong in it is one sentence."""

import datetime
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from asymlib.errors import InputError
from asymlib.files import safe_name

NUMBER = re.compile(
    r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"
)  # 1e-3: a number in YAML 1.2, text in the 1.1 that is read here


class Family(BaseModel):
    """The keys of a config file; workflow/real.yaml uses and explains them all."""

    model_config = ConfigDict(strict=True, extra="forbid")
    study: str
    studies: dict[str, dict[str, Any]]
    recipes: Annotated[list[str], Field(min_length=1)]
    changes: dict[str, dict[str, Any]] = {}
    seeds: Annotated[list[int], Field(min_length=1)]
    parity: list[str] = []
    untrained: list[str] = []
    apart: list[str] = []
    search: dict[str, dict[str, Any]] = {}
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

    @model_validator(mode="after")
    def names_agree(self) -> "Family":
        other = {given[key] for given in self.search.values() for key in ("transfer", "recipe_from") if given.get(key)}
        for key, names, known in (
            ("study", [self.study], [name for name in self.trained if name not in self.apart]),
            ("untrained", self.untrained, self.studies),
            ("apart", self.apart, self.trained),
            ("search", {*self.search, *other}, self.studies),
            ("changes", self.changes, self.recipes),
        ):
            if wrong := sorted(set(names) - set(known)):
                raise ValueError(f"{key}: {wrong[0]!r} is not one of {', '.join(known)}")
        for key, given in ({"studies": self.studies, "search": self.search, "parameters": self.parameters}).items():
            for name, parameters in given.items():
                if taken := sorted({"study", "recipe", "save_as"} & set(parameters)):
                    raise ValueError(f"{key}: {name}: {taken[0]!r} is given by the workflow itself; leave it out")
        if len(set(self.recipes)) < len(self.recipes):
            raise ValueError("recipes: one stands twice")
        if 0 < len(set(self.search) & set(self.joined)) < len(self.joined):
            raise ValueError(f"search: {', '.join(self.joined)} are compared: give all of them a search, or none")
        return self


def plain(value: Any, where: str) -> Any:
    """The value as a notebook can be given it: 1e-3 as a number; a date, or a key that is no text, is refused."""
    if isinstance(value, datetime.date):
        raise InputError(f"config: {where}: {value} is a date in YAML; quote it if it is meant as text")
    if isinstance(value, dict):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise InputError(f"config: {where}: the key {wrong[0]!r} is no text; quote it")
        return {key: plain(inner, f"{where}.{key}".strip(".")) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner, where) for inner in value]
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def read_family(config: dict) -> Family:
    """The checked config; an InputError names every key that is unknown, missing or of another type."""
    try:
        family = Family(**plain(config, ""))
    except ValidationError as error:
        words = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}".replace("Value error, ", "").lstrip(": ")
            for e in error.errors()
        ]
        raise InputError(f"config: {'; '.join(words)} (keys: {', '.join(Family.model_fields)})") from error
    for name in (*family.studies, *family.recipes):
        safe_name(name, "config")
    return family
