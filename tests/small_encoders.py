"""Encoders small enough to build in a test, texts of their words, and sentence-transformers' own way through them."""

import json
from pathlib import Path

import numpy as np
import torch

WORDS = [f"w{i}" for i in range(200)]


def some_texts(count, seed=0, longest=30):
    """Distinct texts of 2 to `longest` known words, the first two of them a serial number, in no order of length."""
    rng = np.random.default_rng(seed)
    return [
        " ".join([f"w{i // 100 % 100}", f"w{100 + i % 100}", *rng.choice(WORDS, rng.integers(0, longest - 1))])
        for i in range(count)
    ]


def build_bert(folder, pooling="cls", include_prompt=True, hidden=48):
    """A small BERT with random weights, a WordPiece tokenizer and 64 positions, saved as sentence-transformers saves."""
    return save(folder / "model", *bert_modules(folder, pooling, include_prompt, hidden))


def bert_modules(folder, pooling="cls", include_prompt=True, hidden=48, kind="Bert", seed=0):
    """Transformer and Pooling. kind: of transformers' models; other than Bert, they count positions from 2."""
    import transformers
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(seed)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ":"]
    if kind != "Bert":
        vocabulary[:2] = reversed(vocabulary[:2])
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    place = str(folder / kind.lower())
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)
    words.save_pretrained(place)
    size = dict(hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(vocabulary), max_position_embeddings=64, **size)
    config.pad_token_id = vocabulary.index("[PAD]")
    getattr(transformers, f"{kind}Model")(config).save_pretrained(place)
    return Transformer(place), Pooling(hidden, pooling_mode=pooling, include_prompt=include_prompt)


def save(folder, *modules, **arguments):
    """The folder of a model of these modules. arguments: of SentenceTransformer, such as prompts."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=list(modules), device="cpu", **arguments).save(str(folder))
    return folder


def build_static(folder):
    """No attention: the mean of the words' vectors (20,). The word `nan` has NaN in it, an unknown word is zero."""
    return save(folder / "static", static_module())


def static_module(dim=20):
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["?", "nan", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).standard_normal((len(vocabulary), dim)).astype(np.float32)
    weights[0], weights[1, 3] = 0, np.nan
    return StaticEmbedding(tokenizer, embedding_weights=weights)


def build_two_encoders(folder):
    """A Router: queries through static embeddings, documents through a BERT; then both through one Normalize."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Router

    return save(folder / "two", Router.for_query_document([static_module(48)], [*bert_modules(folder)]), Normalize())


def build_two_heads(folder, dims=(16, 16), **arguments):
    """A BERT, and behind it a Router: a Dense and a Dropout for queries, a Dense and a Normalize for documents."""
    from sentence_transformers.sentence_transformer.modules import Dense, Dropout, Normalize, Router

    bert = bert_modules(folder)
    query, document = (Dense(48, dim, activation_function=torch.nn.Identity()) for dim in dims)
    router = Router.for_query_document([query, Dropout(0.5)], [document, Normalize()])
    return save(folder / "heads", *bert, router, **arguments)


def store(folder, **fields):
    """Write fields, such as prompts, into the model's config_sentence_transformers.json."""
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder, change):
    """Store change(weights) in place of the weights, {name: array}, of the model's first module."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def plain(folder, texts, max_length, side=None, **arguments):
    """sentence-transformers' own way, in its default batches. side: through encode_query or encode_document."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    for module in model.modules() if max_length is not None else ():
        if hasattr(module, "tokenizer") and hasattr(module, "auto_model"):
            module.max_seq_length = max_length
    encode = getattr(model, f"encode_{side}") if side else model.encode
    return encode(texts, show_progress_bar=False, **arguments)


def stored(cache):
    """How many vectors a cache holds: a text that was encoded twice counts twice."""
    return sum(json.loads(path.read_text())["rows"] for path in Path(cache).glob("*/shard-*.json"))
