"""Tiny random bases and adapters for tests: complete checkpoint folders in milliseconds, no download.

The weights are much larger than a trained model's: different inputs and adapters give clearly different outputs.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cdvft.adapter import Adapter, AdapterSpec, Task
from cdvft.baseinfo import BaseInfo
from cdvft.checkpoint import make_adapter
from cdvft.family import FAMILIES
from cdvft.heads import HeadSpec, init_head
from cdvft.methods import Method
from cdvft.methods.cdvft import Cdvft, CdvftSpec
from cdvft.site import Site
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)
from transformers.utils.logging import disable_progress_bar

WORDS = "the a cat dog sat ran on mat red blue big small is was good bad not and he she it to of in no yes".split()
DEFAULT_TARGETS = {name: (own.projections["q"], own.projections["v"]) for name, own in FAMILIES.items()}

disable_progress_bar()


def tiny_llama(folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """A LLaMA of 2 layers (width 32, grouped-query 4/2 heads, context 256) with a byte tokenizer of 259 ids."""
    tokenizer = _byte_tokenizer(["<s>", "</s>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    fields: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }
    return _save(folder, LlamaForCausalLM, LlamaConfig(**(fields | overrides)), fast, seed)


def tiny_roberta(folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """A RoBERTa of 2 layers (width 32, at most 96 tokens) with a byte tokenizer of 261 ids."""
    tokenizer = _byte_tokenizer(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    fields = _encoder_fields(tokenizer.get_vocab_size()) | {
        "max_position_embeddings": 98,
        "type_vocab_size": 1,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    return _save(folder, RobertaModel, RobertaConfig(**(fields | overrides)), fast, seed, add_pooling_layer=False)


def tiny_bert(folder: Path, seed: int = 0, *, pooler: bool = True, **overrides: Any) -> Path:
    """A BERT of 2 layers (width 32, at most 96 tokens) with a word-piece tokenizer (letters and a few words)."""
    letters = [chr(code) for code in range(33, 127)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    vocab += [word for word in WORDS if word not in vocab]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    fields = _encoder_fields(len(vocab)) | {"max_position_embeddings": 96, "type_vocab_size": 2, "pad_token_id": 0}
    return _save(folder, BertModel, BertConfig(**(fields | overrides)), fast, seed, add_pooling_layer=pooler)


def random_adapter(
    base: BaseInfo,
    seed: int = 0,
    task: Task = "lm",
    labels: Sequence[str] | None = None,
    scale: float = 1.0,
    *,
    targets: Sequence[str] | None = None,
    head: HeadSpec | None = None,
    max_length: int | None = None,
    template: str | None = None,
    base_verified: bool = True,
    **options: Any,
) -> Adapter:
    """An asymmetric random CDVFT adapter: |dW x| is about `scale * |x|`, far more than a trained one.

    `targets` are name endings (default q and v), `options` go to CdvftSpec (`partition_size` default gcd(d_in, d_out)).
    A classifier has labels no, yes unless `labels` says others, and the linear head unless `head` says another.
    """
    generator = torch.Generator().manual_seed(seed)
    endings = tuple(targets or DEFAULT_TARGETS[base.family.model_type])
    method = Cdvft()
    specs: dict[Site, CdvftSpec] = {}
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for site in sorted(base.sites.values()):
        if site.name.rpartition(".")[2] not in endings and not site.name.endswith(tuple(f".{e}" for e in endings)):
            continue
        spec = method.spec(dict(options), site)
        specs[site] = spec
        tensors[site.name] = _random_vectors(method, site, spec, scale, generator)
    if not specs:
        raise ValueError(f"no site of the base ends in {endings}")
    names = tuple(labels or ("no", "yes")) if task == "classification" else None
    head_tensors: dict[str, torch.Tensor] = {}
    if task != "lm":
        head = head or HeadSpec("linear", base.family.linear_pooling, 1)
        head = replace(head, outputs=len(names) if names else 1)
        fresh = init_head(head, base.family, base.hidden, generator)
        head_tensors = {name: torch.randn(t.shape, generator=generator) * 0.5 for name, t in fresh.items()}
    full = AdapterSpec("cdvft", specs, task, head, names, max_length, template)
    return make_adapter(full, tensors, head_tensors, base, base_verified=base_verified)


def method_adapter(
    base: BaseInfo,
    method: Method[Any],
    which: int,
    seed: int,
    *,
    labels: Sequence[str] | None = None,
    scale: float = 0.7,
    options: Mapping[str, Any] | None = None,
) -> Adapter:
    """An adapter of any method on q and v: its `which`-th example, or by `options` of its config; random tensors,
    |dW x| about `scale * |x|`.
    """
    endings = tuple(f".{name}" for name in DEFAULT_TARGETS[base.family.model_type])
    generator = torch.Generator().manual_seed(seed)
    sites = [site for site in base.sites.values() if site.name.endswith(endings)]
    if options is None:
        examples = {site: list(method.examples(site)) for site in sites}
        specs = {site: own[which % len(own)] for site, own in examples.items()}
    else:
        specs = {site: method.spec(options, site) for site in sites}
    frozen = method.frozen(specs, generator)
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for site, spec in specs.items():
        own = {name: torch.randn(shape, generator=generator) for name, shape in method.shapes(site, spec).items()}
        dense = method.dense(own | method.frozen_of(frozen, site, spec), site, spec)
        own[min(own)] *= scale * site.d_in**0.5 / float(dense.norm())  # dW is linear in each tensor
        tensors[site.name] = own
    full, head_tensors = AdapterSpec(method.name, specs), {}
    if labels:
        head = HeadSpec("linear", base.family.linear_pooling, len(labels))
        fresh = init_head(head, base.family, base.hidden, generator)
        head_tensors = {name: torch.randn(t.shape, generator=generator) * 0.5 for name, t in fresh.items()}
        full = replace(full, task="classification", head=head, labels=tuple(labels))
    return make_adapter(full, tensors, head_tensors, base, frozen=frozen)


def _random_vectors(
    method: Cdvft, site: Site, spec: CdvftSpec, scale: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, shape in method.shapes(site, spec).items():
        noise = torch.randn(shape, generator=generator)
        if "diag" in name:
            tensors[name] = 1.0 + 0.3 * noise
        else:
            span = shape[-1] if name.endswith("sq") else shape[1] * shape[2]
            tensors[name] = noise * span**-0.5
    tensors["cdvft_diag_out"][-1] *= scale
    return tensors


def _byte_tokenizer(specials: list[str]) -> Tokenizer:
    """One id per byte: any text survives a round trip, and a character may take several tokens."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, *symbols])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _encoder_fields(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }


def tiny_base(folder: Path, model_type: str, seed: int = 0, **overrides: Any) -> Path:
    """A base of 2 layers (width 32) of any family, with the byte tokenizer of the tiny LLaMA or RoBERTa."""
    family = FAMILIES[model_type]
    if model_type == "bert":
        return tiny_bert(folder, seed, **overrides)
    like = (tiny_llama if family.kind == "decoder" else tiny_roberta)(folder / "like")
    tokenizer = AutoTokenizer.from_pretrained(like)
    config = AutoConfig.from_pretrained(like).to_dict()
    kept = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    kept += "max_position_embeddings type_vocab_size bos_token_id eos_token_id pad_token_id tie_word_embeddings"
    fields = {key: config[key] for key in kept.split() if key in config}
    if model_type == "distilbert":
        names = {"hidden_size": "dim", "intermediate_size": "hidden_dim", "num_hidden_layers": "n_layers"}
        names["num_attention_heads"] = "n_heads"
        fields = {names.get(key, key): value for key, value in fields.items()}
    if family.kind == "decoder":
        fields["head_dim"] = fields["hidden_size"] // fields["num_attention_heads"]
    own = AutoConfig.for_model(model_type, **(fields | overrides))
    shutil.rmtree(like)
    auto = AutoModelForCausalLM if family.kind == "decoder" else AutoModel
    options = {"add_pooling_layer": False} if family.token_types else {}
    return _save(folder, auto.from_config, own, tokenizer, seed, **options)


def _save(folder: Path, model_class: Any, config: Any, tokenizer: Any, seed: int, **options: Any) -> Path:
    """Weights N(0, 0.15^2), norms and biases a little off their usual 1 and 0, so that nothing cancels by symmetry."""
    folder = Path(folder)
    model = model_class(config, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1.0 + 0.1 * noise if is_norm else 0.15 * noise)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
