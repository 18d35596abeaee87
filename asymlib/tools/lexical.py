"""The words beside the vectors: a block fitted on texts, its weight chosen on judged queries, saved with its encoder."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from asymlib.data.collections import json_lines, text_field
from asymlib.encoding.encoder import EncoderConfig
from asymlib.errors import InputError
from asymlib.files import sha256_file
from asymlib.selection.search import OWN, ValidationSet
from asymlib.tools.export import add_encoder, check_new, encoder_config, write_folder
from asymlib.words.block import Block, Counts, LexicalEncoder

EXAMPLE = "asymlib lexical corpus.jsonl --encoder all-MiniLM-L6-v2 --out my-lexical"
WEIGHTS, EXPONENTS = (0.2, 0.4, 0.6, 0.8, 1.0), (0.0, 1.0)
USE = "asymlib.words.block.LexicalEncoder.load(folder, cache): encode_query, encode_document, any inner-product index"
CARD = Path(__file__).with_name("lexical.md").read_text(encoding="utf-8")


def corpus_texts(path: str | Path) -> list[tuple[str, str]]:
    """Title and text of each line of BEIR's corpus.jsonl as one text, with the place of the line."""
    lines = json_lines(Path(path))
    return [(f"{text_field(line, 'title', at, '')} {text_field(line, 'text', at)}".strip(), at) for at, line in lines]


def choose(block: Block, frozen: ValidationSet, texts: ValidationSet) -> tuple[Block, float]:
    """The block with the weight and the exponent of document length that rank these queries best, and its nDCG@10.

    frozen, texts: the same queries and documents, as vectors and as texts. Of equals the first; the smallest weight, length kept.
    """
    how, found = (block.stop_words, block.stemmer), []
    asked, documents = (Counts.of(list(side), *how) for side in (texts.queries, texts.documents))
    for exponent in EXPONENTS:
        d = block.with_settings(exponent=exponent).join("document", frozen.documents, documents)
        for weight in WEIGHTS:
            one = block.with_settings(exponent=exponent, weight=weight)
            q = one.join("query", frozen.queries, asked)
            found.append((one, ValidationSet(OWN, frozen.qrels, q, d).score({}, "dot")))
    return max(found, key=lambda pair: pair[1])


def settings(block: Block) -> str:
    """What a table cannot show of it, in words."""
    stems = ", stemmed" if block.stemmer else ""
    numbers = f"weight {block.weight:g}, exponent of document length {block.exponent:g}"
    return f"{block.dimensions:,} dimensions of words{stems}, {numbers}"


def save(folder: str | Path, encoder: EncoderConfig, block: Block, origin: dict) -> Path:
    """Write a LexicalEncoder and its card. origin: as of export.export."""
    writer = LexicalEncoder(encoder, block, cache="")  # it encodes nothing
    return write_folder(check_new(folder), writer.save, encoder, origin, CARD, {"settings": settings(block)})


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("corpus", help="corpus.jsonl of BEIR: the texts that are searched, or are like them")
    add_encoder(parser)
    parser.add_argument("--weight", type=float, default=0.6, help="of the words beside a cosine (0.6; fit chooses one)")
    parser.add_argument(
        "--exponent", type=float, default=0.0, help="of a document's length: 0 keeps it, 1 does not (0)"
    )
    parser.add_argument("--stemmer", choices=["english"], help="stems of the words, as the study uses (none)")
    parser.add_argument("--out", required=True, help="folder of the encoder, new or empty")


def run(options: Namespace) -> int:
    """The command: fit and save; nothing is encoded."""
    check_new(options.out)
    texts = [text for text, _ in corpus_texts(options.corpus)]
    try:
        block = Block.fit(texts, weight=options.weight, exponent=options.exponent, stemmer=options.stemmer)
    except InputError as error:
        raise InputError(f"{options.corpus}: {error}") from error
    origin = {"texts": len(texts), "sha256": {Path(options.corpus).name: sha256_file(options.corpus)}}
    print(save(options.out, encoder_config(options), block, origin), settings(block), USE, sep="\n")
    return 0
