"""asymlib: why projection heads trained on raw dot products blow up, and what repairs them.

Read the core from left to right; no module imports one to its right, and none imports a room:
errors, files, heads, losses, recipes, pair_vectors, train, checkpoints, magnitude, alarm, exact_search, evaluate, significance.
The rooms: encoding (texts to vectors), data (studies), words (of texts, beside vectors), selection (the search for a head),
report (tables and figures), tools (what leaves the repository).
"""

from importlib import import_module

__version__ = "0.4.0"

# The few names that most users need, from the module that has them; a module is loaded when its name is first asked for.
_HOME = {
    "InputError": "errors",
    "Recipe": "recipes", "RECIPES": "recipes", "get_recipe": "recipes",
    "PairVectors": "pair_vectors",
    "save_runs": "checkpoints", "load_runs": "checkpoints",
    "Recorder": "magnitude",
    "Alarm": "alarm",
    "Qrels": "evaluate", "rank": "evaluate",
    "against_baseline": "significance",
}  # fmt: skip
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'asymlib' has no attribute {name!r}")
    return getattr(import_module(f"asymlib.{_HOME[name]}"), name)
