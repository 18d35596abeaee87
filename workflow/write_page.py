"""The executed write-up notebook as a page: Markdown for the repository, self-contained HTML, and the table of the README.

    python workflow/write_page.py EXECUTED.ipynb [--markdown ANALYSIS.md] [--html writeup.html] [--readme README.md]

Code is left out, and so are cells tagged `remove`. Pictures are linked below the page's folder in Markdown and embedded in HTML.
"""

import argparse
import re
from pathlib import Path

from asymlib.errors import InputError, run_command
from asymlib.files import project_path, read_record, sha256_file, write_text

CURE = "remove it and the files beside it that begin with the same name, and run again"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


def page(executed: str | Path, kind: str) -> str:
    """The notebook without its code, kind "markdown" or "html"; a notebook that stopped on the way is an InputError."""
    import nbformat  # seconds to import
    from nbconvert.exporters import HTMLExporter, MarkdownExporter
    from traitlets.config import Config

    notebook = nbformat.read(executed, as_version=4)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if output.output_type == "error":
            raise InputError(f"{executed}: stopped at {output['ename']}: {output['evalue']}; there is no page of it")
        if "text/markdown" in output.get(
            "data", {}
        ):  # links are as seen from notebooks/; an HTML page lies beside its tables
            text = output["data"]["text/markdown"]
            text = re.sub(r"\]\(\.\./data/results/[^/)]+/", "](", text) if kind == "html" else text
            output["data"]["text/markdown"] = text.replace("](../", "](").replace('src="../', 'src="')
    config = Config()
    config.TagRemovePreprocessor.remove_cell_tags = {"remove", "parameters", "injected-parameters"}
    config.TagRemovePreprocessor.enabled = True
    exporter, more = (HTMLExporter, {"embed_images": True}) if kind == "html" else (MarkdownExporter, {})
    exporter = exporter(config=config, exclude_input=True, exclude_output_prompt=True, **more)
    where = {"path": str(project_path()), "name": "asymlib"}  # what pictures are relative to, and the title
    text, _ = exporter.from_notebook_node(notebook, resources={"metadata": where})
    if kind == "html":  # whose template asks a server for what only formulas and widgets need
        return re.sub(r'<script[^>]* src="https://[^"]*"[^>]*>\s*</script>', "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def check_executed(executed: Path) -> None:
    """Refuse an executed notebook whose bytes are not those that its job left."""
    status = read_record(executed.with_suffix(".status.json"), CURE)
    if not executed.is_file() or sha256_file(executed) != status.get("executed"):
        raise InputError(f"{executed}: not the notebook that its job executed to the end; {CURE}")


def tagged_output(executed: str | Path, tag: str) -> str:
    """The Markdown that the cell with this tag shows."""
    import nbformat

    for cell in nbformat.read(executed, as_version=4).cells:
        if tag in cell["metadata"].get("tags", []):
            return "".join(output["data"]["text/markdown"] for output in cell["outputs"] if "data" in output)
    raise InputError(f"{executed}: no cell is tagged {tag!r}")


def with_block(text: str, block: str, where: str | Path) -> str:
    """A text whose part between the two markers is `block`; both must be there once, in order."""
    parts = re.split(f"{BEGIN}|{END}", text)
    if len(parts) != 3 or text.index(BEGIN) > text.index(END):
        raise InputError(f"{where}: expected one line {BEGIN} and, below it, one line {END}")
    return f"{parts[0]}{BEGIN}\n{block.strip()}\n{END}{parts[2]}"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="workflow/write_page.py", description=__doc__.splitlines()[0])
    parser.add_argument("executed", type=Path, help="the executed notebook")
    parser.add_argument("--markdown", help="page to write, e.g. ANALYSIS.md")
    parser.add_argument("--html", help="self-contained page to write")
    parser.add_argument("--readme", help="file whose table is filled from the cell tagged readme-table")
    given = parser.parse_args(arguments)
    check_executed(given.executed)
    if given.markdown:
        write_text(given.markdown, page(given.executed, "markdown"))
    if given.html:
        write_text(given.html, page(given.executed, "html"))
    if given.readme:
        block = tagged_output(given.executed, "readme-table")
        write_text(given.readme, with_block(Path(given.readme).read_text(encoding="utf-8"), block, given.readme))


if __name__ == "__main__":
    run_command(main)
