"""Bases for benchmarks: the real encoder from outside, and random weights of named shapes."""

from pathlib import Path

from tests.e2e import inputs
from tests.tiny import tiny_llama


def text_encoder() -> Path:
    return inputs.model("minilm-roberta")


def llama_160m(folder: Path) -> Path:
    """162M parameters: 12 layers of 768, 12 heads, MLP 3,072, vocabulary 32,000."""
    return tiny_llama(
        folder / "llama-160m",
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
    )
