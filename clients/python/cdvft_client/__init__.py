"""Client of the CDVFT adapter server: upload an adapter, use it in the next request.

from cdvft_client import Client

with Client("http://127.0.0.1:8000") as client:
    client.upload("runs/reviews")
    print(client.classify("reviews", "Great food!")[0].label)
"""

from ._async_client import AsyncClient
from ._client import Client
from ._exceptions import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    CDVFTError,
    ConflictError,
    InternalServerError,
    MethodNotAllowedError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ServiceUnavailableError,
    TooLargeError,
    UnprocessableAdapterError,
    UnsupportedMediaTypeError,
)
from ._fields import GenerationFields, StreamFields, TenantFields, UsageFields
from ._stream import AsyncStream, Stream
from ._types import (
    Adapter,
    AdapterUsed,
    Choice,
    Chunk,
    Classification,
    ClassifiedRow,
    Completion,
    Deleted,
    Key,
    LabelScore,
    Model,
    Tenant,
    Usage,
    UsageEntry,
)
from ._version import __version__

__all__ = [
    "APIConnectionError",
    "APIResponseError",
    "APIStatusError",
    "APITimeoutError",
    "Adapter",
    "AdapterUsed",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "CDVFTError",
    "Choice",
    "Chunk",
    "Classification",
    "ClassifiedRow",
    "Client",
    "Completion",
    "ConflictError",
    "Deleted",
    "GenerationFields",
    "InternalServerError",
    "Key",
    "LabelScore",
    "MethodNotAllowedError",
    "Model",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitedError",
    "ServiceUnavailableError",
    "Stream",
    "StreamFields",
    "Tenant",
    "TenantFields",
    "TooLargeError",
    "UnprocessableAdapterError",
    "UnsupportedMediaTypeError",
    "Usage",
    "UsageEntry",
    "UsageFields",
    "__version__",
]
