"""Everything between the routes and the engine."""

from cdvft_server.service.access import KEYLESS_SCOPES, SCOPES, Access, Caller, keys_required
from cdvft_server.service.admin import Admin
from cdvft_server.service.catalog import Page
from cdvft_server.service.classification import Classified, Scored
from cdvft_server.service.faults import FAULTS, translate
from cdvft_server.service.gauges import Gauges
from cdvft_server.service.generation import Generation, Piece
from cdvft_server.service.merging import MODES, Mode
from cdvft_server.service.service import TENANT, Service
from cdvft_server.service.targets import STALE
from cdvft_server.service.uploads import Stored, UploadForm

__all__ = [
    "FAULTS",
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
    "Scored",
    "Service",
    "Stored",
    "UploadForm",
    "keys_required",
    "translate",
]
