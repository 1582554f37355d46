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
from cdvft_server.engine.engine import Engine, EngineConfig, EngineStats
from cdvft_server.engine.pool import AdapterPool, Head, Lease, PoolFull, PoolStats

__all__ = [
    "AdapterPool",
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
    "PoolFull",
    "PoolStats",
    "QueueFull",
    "Request",
    "RequestRefused",
    "SamplingParams",
    "Scores",
    "Token",
]
