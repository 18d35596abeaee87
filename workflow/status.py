"""One line a job: state, seconds, error. `python workflow/status.py [--brief]`; brief leaves out what is done or waiting."""

import fcntl
import os
import sys
import time
from collections import Counter
from pathlib import Path

from receipts import CURE, changed, problem

from asymlib.errors import InputError, run_command
from asymlib.files import project_path, read_record


def look(receipt: Path) -> tuple[str, float | None, str]:
    """The state of a job, its seconds so far or in all, and its error."""
    base = receipt.with_suffix("")
    if not Path(f"{base}.status.json").exists():
        return "waiting", None, ""
    try:
        last = read_record(f"{base}.status.json", CURE)
    except InputError as damaged:
        return "outdated", None, str(damaged)
    state, seconds, error = last["state"], last.get("seconds"), last.get("error", "")
    if state == "running":
        seconds = time.time() - last["started"]
        with open(f"{base}.log", "r+") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                state, error = "killed", "it ended without a word"
            except OSError:  # a running job holds its log
                pass
    elif state == "ok":
        error = problem(last) or ((path := changed(receipt)) and f"{path} has changed")
        state = "outdated" if error else "ok"
    return state, seconds, error


def main() -> None:
    os.chdir(project_path())
    for family in sorted(Path("data/runs").glob("*/jobs.json")):
        counts = Counter()
        for receipt in map(Path, read_record(family, "the next run writes it again")["jobs"]):
            state, seconds, error = look(receipt)
            counts[state] += 1
            if state not in ("ok", "waiting") or "--brief" not in sys.argv:
                shown = "" if seconds is None else f"{seconds:.1f} s"
                print(f"{f'{receipt.parent.name}/{receipt.stem}':48} {state:8} {shown:>10}  {error}".rstrip())
        print(f"{family.parent.name}: {', '.join(f'{number} {state}' for state, number in counts.items())}")


if __name__ == "__main__":
    run_command(main)
