"""Where a bench's base comes from: a folder, the embedded one, or random weights of a named shape."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from cdvft_server import demo
from cdvft_server.bench.settings import Settings
from cdvft_server.bench.shapes import SHAPES, Shape

__all__ = ["base_of", "make_base", "word_tokenizer"]

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
SPECIALS = (BOS, PAD, EOS, UNK)  # RoBERTa's order; positions start behind the padding id, which is 1


@contextmanager
def base_of(settings: Settings, texts: Sequence[str]) -> Iterator[str]:
    """What `load_backbone` takes. A shape's folder, and what is cached of it, are gone after the block."""
    if settings.shape is None:
        yield settings.base or str(demo.base_path())
        return
    with tempfile.TemporaryDirectory(prefix="cdvft-bench-") as folder, _cache_at(Path(folder) / "cache"):
        yield str(make_base(SHAPES[settings.shape], Path(folder) / settings.shape, texts))


def make_base(shape: Shape, folder: Path, texts: Sequence[str]) -> Path:
    """A complete checkpoint with seeded random weights, as transformers initialises them, and a tokenizer of words."""
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(shape.model_type, **shape.fields, **special)
    dtype = torch.bfloat16 if shape.dtype == "bfloat16" else torch.float32
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        if shape.kind == "encoder":
            model: Any = AutoModel.from_config(config, dtype=dtype, add_pooling_layer=False)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    word_tokenizer(texts, config.vocab_size, pairs=shape.kind == "encoder").save_pretrained(folder)
    return folder


def word_tokenizer(texts: Sequence[str], size: int, *, pairs: bool) -> Any:
    """One token for each word and each run of punctuation; a word beyond `size` ids is `<unk>`. `pairs`: with RoBERTa's
    template, else LLaMA's."""
    split = pre_tokenizers.Whitespace()
    words = dict.fromkeys(word for text in texts for word, _ in split.pre_tokenize_str(text))
    vocabulary = {word: k for k, word in enumerate([*SPECIALS, *(w for w in words if w not in SPECIALS)][:size])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = split
    single, pair = (f"{BOS} $A {EOS}", f"{BOS} $A {EOS} {EOS} $B {EOS}") if pairs else (f"{BOS} $A", f"{BOS} $A $B")
    ids = [(BOS, vocabulary[BOS]), (EOS, vocabulary[EOS])]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


@contextmanager
def _cache_at(folder: Path) -> Iterator[None]:
    """The user's cache of base digests keeps no trace of a base that is there once."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before
