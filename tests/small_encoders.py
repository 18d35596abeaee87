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
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ":"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    bert = folder / "bert"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(bert)
    size = dict(hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **size)).save_pretrained(bert)
    pool = Pooling(hidden, pooling_mode=pooling, include_prompt=include_prompt)
    SentenceTransformer(modules=[Transformer(str(bert)), pool], device="cpu").save(str(folder / "model"))
    return folder / "model"


def build_static(folder):
    """No attention: the mean of the words' vectors (20,). The word `nan` has NaN in it, an unknown word is zero."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["?", "nan", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).standard_normal((len(vocabulary), 20)).astype(np.float32)
    weights[0], weights[1, 3] = 0, np.nan
    module = StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save(str(folder / "static"))
    return folder / "static"


def plain(folder, texts, max_length, **arguments):
    """sentence-transformers' own way, in its default batches."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    if max_length is not None:
        model.max_seq_length = max_length
    return model.encode(texts, show_progress_bar=False, **arguments)


def stored(cache):
    """How many vectors a cache holds: a text that was encoded twice counts twice."""
    return sum(json.loads(path.read_text())["rows"] for path in Path(cache).glob("*/shard-*.json"))
