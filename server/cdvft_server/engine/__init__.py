"""The engine: packed batches of many adapters on one frozen base. Knows no HTTP, no asyncio, no text."""

from cdvft_server.engine.admission import Draining, QueueFull, RequestRefused
from cdvft_server.engine.batch import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Request,
    SamplingParams,
    Scores,
    Token,
)
from cdvft_server.engine.costs import CostModel
from cdvft_server.engine.engine import Engine, EngineConfig, EngineStats
from cdvft_server.engine.merged import MergedLease, MergedPool, MergedStats, MergedUse, MergedWeights, merge_adapter
from cdvft_server.engine.pool import AdapterPool, Head, Lease, PoolFull, PoolStats

__all__ = [
    "AdapterPool",
    "CostModel",
    "Draining",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Head",
    "Lease",
    "MergedLease",
    "MergedPool",
    "MergedStats",
    "MergedUse",
    "MergedWeights",
    "PoolFull",
    "PoolStats",
    "QueueFull",
    "Request",
    "RequestRefused",
    "SamplingParams",
    "Scores",
    "Token",
    "merge_adapter",
]
