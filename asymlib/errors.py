"""The one exception that a user is meant to read, and how a command line shows it."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something given from outside is wrong: the message names the file, line or field and what was expected."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command line's main: an InputError or a full disk prints one line and exits 2, Ctrl-C exits 130."""
    try:
        sys.exit(main() or 0)
    except (InputError, OSError) as error:
        system = isinstance(error, OSError) and f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
        print(f"error: {system or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
