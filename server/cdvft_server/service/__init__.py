"""Everything between the routes and the engine."""

from cdvft_server.service.access import KEYLESS_SCOPES, SCOPES, Access, Caller, keys_required
from cdvft_server.service.admin import Admin
from cdvft_server.service.catalog import Page
from cdvft_server.service.classification import Classified, Scored
from cdvft_server.service.faults import FAULTS, is_out_of_memory, translate
from cdvft_server.service.gauges import Gauges, RouterView
from cdvft_server.service.generation import Generation, Piece
from cdvft_server.service.merging import MODES, Mode
from cdvft_server.service.service import TENANT, Service
from cdvft_server.service.targets import STALE
from cdvft_server.service.uploads import Stored, UploadForm
from cdvft_server.service.usage import GROUPS, UsageQuery

__all__ = [
    "FAULTS",
    "GROUPS",
    "KEYLESS_SCOPES",
    "MODES",
    "SCOPES",
    "STALE",
    "TENANT",
    "Access",
    "Admin",
    "Caller",
    "Classified",
    "Gauges",
    "Generation",
    "Mode",
    "Page",
    "Piece",
    "RouterView",
    "Scored",
    "Service",
    "Stored",
    "UploadForm",
    "UsageQuery",
    "is_out_of_memory",
    "keys_required",
    "translate",
]
