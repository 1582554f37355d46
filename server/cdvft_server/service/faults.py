"""Which answer each exception of the parts below becomes. What is not listed is a bug, and a 500."""

import logging
from collections.abc import Mapping

import torch
from cdvft.errors import InvalidAdapter, InvalidData
from cdvft.errors import TooLarge as AdapterTooLarge

from cdvft_server.engine.admission import Draining, QueueFull, RequestRefused
from cdvft_server.engine.pool import PoolFull
from cdvft_server.errors import ApiError
from cdvft_server.exceptions import (
    AmbiguousDigest,
    BadArchive,
    Conflict,
    CorruptBlob,
    InvalidName,
    ModelNotFound,
    NotFound,
    QuotaExceeded,
    StoreUnavailable,
    TemplateWorkerFailed,
    TooLarge,
    UnknownKey,
    UnknownTenant,
)

__all__ = ["FAULTS", "is_out_of_memory", "translate"]

log = logging.getLogger(__name__)

FAULTS: Mapping[type[Exception], tuple[str, int | None]] = {
    AdapterTooLarge: ("too_large", None),
    InvalidAdapter: ("invalid_adapter", None),
    InvalidData: ("invalid_request", None),
    RequestRefused: ("invalid_request", None),
    QueueFull: ("overloaded", 1),
    PoolFull: ("overloaded", 1),
    Draining: ("draining", 5),
    AmbiguousDigest: ("invalid_request", None),
    BadArchive: ("invalid_request", None),
    TooLarge: ("too_large", None),
    InvalidName: ("invalid_request", None),
    ModelNotFound: ("model_not_found", None),
    UnknownKey: ("not_found", None),
    UnknownTenant: ("not_found", None),
    NotFound: ("model_not_found", None),
    QuotaExceeded: ("quota_exceeded", None),
    Conflict: ("conflict", None),
    CorruptBlob: ("adapter_unavailable", 60),
    StoreUnavailable: ("store_unavailable", 5),
    TemplateWorkerFailed: ("overloaded", 5),
}
"""Exception -> code and, for a 503, the seconds of Retry-After. A subclass stands before its base."""


def is_out_of_memory(error: Exception) -> bool:
    """torch's allocator on the CPU raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def translate(error: Exception) -> ApiError:
    """The answer; an unknown exception becomes internal_error, and the log has it. Memory that was refused is told from
    other faults: the client may try again."""
    if isinstance(error, ApiError):
        return error
    for kind, (code, retry_after) in FAULTS.items():
        if isinstance(error, kind):
            return ApiError(code, str(error), retry_after=retry_after)
    if is_out_of_memory(error):
        log.error("out of memory: %s", str(error)[:300])
        message = "the server has no memory for this request now; ask for less at once, or try again"
        return ApiError("overloaded", message, retry_after=5)
    log.error("unexpected error", exc_info=error)
    return ApiError("internal_error", "an error of the server; its log has the details")
