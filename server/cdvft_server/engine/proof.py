"""Proofs by running: packed equals plain on this base; an adapter's forward stays finite."""

from collections.abc import Sequence as AbstractSequence

import torch
from cdvft.backbone import Backbone
from cdvft.errors import InvalidAdapter, UnsupportedBase
from cdvft.heads import head_logits, pool
from cdvft.linear import AdapterContext
from cdvft.prepared import PreparedAdapter
from torch import Generator, Tensor

from cdvft_server.engine.bank import BankView, Placement
from cdvft_server.engine.batch import Batch, Event, Request, SamplingParams, Sequence
from cdvft_server.engine.runners import Runner, attention_by, kv_arena

__all__ = ["TOLERANCE", "probe_adapter", "prove_packing", "relative_errors"]

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}  # |packed - plain| / |plain| of a token
PROOF_FLOPS = 2e11  # one or two seconds of a small CPU
PROBE_TOKENS = 32
LENGTHS = (1, 2, 5, 37, 130)  # tokens of the segments beside the longest
DECODE_STEPS = 3


def prove_packing(backbone: Backbone, context: AdapterContext, context_length: int) -> None:
    """Last hidden states of several packed segments against one plain forward each, token by token.

    Decoders run in chunks whose borders differ between segments, then decode steps. The longest segment is the served
    context, or what PROOF_FLOPS allow of it. Raises UnsupportedBase beyond TOLERANCE.
    """
    lengths = _lengths(backbone, context_length)
    generator = Generator().manual_seed(0)
    sequences = [_sequence(backbone, length, generator) for length in lengths]
    packed = _run_packed(backbone, context, sequences)
    with attention_by(backbone, "sdpa"), torch.inference_mode():
        worst = max(
            float(relative_errors(own, _plain(backbone, s)).max()) for own, s in zip(packed, sequences, strict=True)
        )
    tolerance = TOLERANCE[backbone.dtype]
    if not worst <= tolerance:  # NaN fails too
        raise UnsupportedBase(
            f"{backbone.info.name}: packed and plain forward differ by {worst:.2g} (relative; allowed: {tolerance:g}) "
            f"on segments of {', '.join(map(str, lengths))} tokens: this model cannot be served"
        )


def probe_adapter(backbone: Backbone, context: AdapterContext, prepared: PreparedAdapter, context_length: int) -> None:
    """One forward pass of a seeded probe with the adapter, from any thread. Raises InvalidAdapter if not finite."""
    sequence = _sequence(backbone, min(PROBE_TOKENS, context_length), Generator().manual_seed(0))
    output = _runner(backbone, context, [sequence]).run(
        Batch.pack([(sequence, sequence.remaining, _placement(prepared, backbone.device))])
    )
    results = [output.hidden] if output.logits is None else [output.hidden, output.logits]
    if prepared.head is not None:
        tensors = {name: tensor.to(backbone.device) for name, tensor in prepared.head_tensors.items()}
        pooled = pool(output.hidden, prepared.head.pooling)[None]  # [1, hidden]
        results.append(head_logits(prepared.head, tensors, pooled, backbone.pooler))
    if not all(bool(torch.isfinite(result).all()) for result in results):
        raise InvalidAdapter("self-test: a forward pass with this adapter gives values that are not finite")


def _lengths(backbone: Backbone, context_length: int) -> list[int]:
    weights = sum(p.numel() for name, p in backbone.model.named_parameters() if "embed" not in name)
    longest = min(context_length, max(64, int(PROOF_FLOPS / (2 * weights))))
    return [longest, *(length for length in LENGTHS if length < longest)]


def _sequence(backbone: Backbone, length: int, generator: Generator) -> Sequence:
    """Random tokens; never the padding id, from which RoBERTa's own code counts positions."""
    config = backbone.config
    ids = torch.randint(0, config.vocab_size, (length,), generator=generator)
    ids[ids == (config.pad_token_id or 0)] = config.vocab_size - 1
    types, sampling = None, None
    if backbone.info.family.token_types:
        types = torch.randint(0, config.type_vocab_size, (length,), generator=generator).tolist()
    if backbone.info.family.kind == "decoder":
        sampling = SamplingParams(max_tokens=1, temperature=0.0, top_p=1.0, top_k=0, seed=0)
    return Sequence(Request("probe", ids.tolist(), _ignore, types, None, sampling))


def _ignore(_: Event) -> None:
    pass


def _runner(backbone: Backbone, context: AdapterContext, sequences: AbstractSequence[Sequence]) -> Runner:
    """A runner with an arena of its own in which these sequences have their spans."""
    arena = kv_arena(backbone, sum(s.need for s in sequences))
    if arena is not None:
        for sequence in reversed(sequences):
            sequence.span = arena.reserve(sequence.need)
    return Runner(backbone, context, arena)


def _run_packed(backbone: Backbone, context: AdapterContext, sequences: AbstractSequence[Sequence]) -> list[Tensor]:
    """Every sequence's hidden states `[length, hidden]`."""
    runner = _runner(backbone, context, sequences)
    parts: dict[Sequence, list[Tensor]] = {sequence: [] for sequence in sequences}
    while shares := [(s, _next_length(s, runner), None) for s in sequences if s.remaining]:
        batch = Batch.pack(shares)
        hidden = runner.run(batch).hidden
        for segment in batch.segments:
            parts[segment.sequence].append(hidden[segment.start : segment.stop])
            segment.sequence.computed += segment.length
    return [torch.cat(own) for own in parts.values()]


def _next_length(sequence: Sequence, runner: Runner) -> int:
    """Encoders whole; decoders a third of the prompt, then one token, then the rest but the decode steps."""
    if runner.arena is None:
        return sequence.remaining
    third = len(sequence.tokens) // 3
    if sequence.computed < third:
        return third
    if sequence.computed == third or sequence.remaining <= DECODE_STEPS:
        return 1
    return sequence.remaining - DECODE_STEPS


def _plain(backbone: Backbone, sequence: Sequence) -> Tensor:
    """transformers' own forward, its own masks and positions, `[length, hidden]`."""
    ids = torch.tensor([sequence.tokens], device=backbone.device)
    options = {}
    if sequence.request.type_ids is not None:
        options["token_type_ids"] = torch.tensor([sequence.request.type_ids], device=backbone.device)
    output = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def relative_errors(found: Tensor, expected: Tensor) -> Tensor:
    """`|found - expected| / |expected|` of each token, `[T, n]` both -> `[T]`."""
    found, expected = found.float(), expected.float()
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)  # type: ignore[no-any-return]


def _placement(prepared: PreparedAdapter, device: torch.device) -> Placement:
    """A bank of two rows, the base's and the adapter's: kernels skip row 0."""
    tables = {
        site: {name: torch.stack([torch.zeros_like(table), table]).to(device) for name, table in own.items()}
        for site, own in prepared.tables.items()
    }
    shared = {site: {name: t.to(device) for name, t in own.items()} for site, own in prepared.shared.items()}
    return Placement(BankView(0, prepared.method, tables, prepared.layouts, shared), 1)
