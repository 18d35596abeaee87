"""The command `asymlib`, one subcommand a tool: a module with add_arguments(parser), run(options) -> exit code and EXAMPLE."""

import argparse
import sys
from importlib import import_module

from asymlib import __version__
from asymlib.errors import run_command

TOOLS = {
    "diagnose": "what an embedding model suffers from: similarity, lengths, hubs, cut texts; exit code 1 when something is wrong",
    "compare": "runs against each other on the same queries: scores, paired tests, intervals, the smallest difference to be seen",
    "fit": "pairs in, a better model folder out, if held-out queries say that it is better; exit code 3 when it is not",
    "lexical": "the words beside the vectors: fitted on a corpus, saved as an encoder for an inner-product index",
    "export": "trained heads as an ordinary SentenceTransformer folder",
}


def parser_of(chosen: str | None) -> argparse.ArgumentParser:
    """The command's parser; only the chosen tool's module is loaded, for they bring heavy libraries."""
    parser = argparse.ArgumentParser(
        prog="asymlib", description="Tools for dense retrieval models. asymlib TOOL --help"
    )
    parser.add_argument("--version", action="version", version=f"asymlib {__version__}")
    commands = parser.add_subparsers(metavar="TOOL", required=True)
    for name, help_text in TOOLS.items():
        formatter = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=help_text, description=help_text, formatter_class=formatter)
        if name == chosen:
            module = import_module(f"asymlib.tools.{name}")
            module.add_arguments(command)
            command.epilog = f"example:\n  {module.EXAMPLE}"
            command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the chosen tool; its exit code. An InputError is one line and exit code 2 (errors.run_command)."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser_of(next((word for word in argv if word in TOOLS), None)).parse_args(argv)
    return options.run(options)


def command() -> None:
    """The console entry point."""
    run_command(main)
