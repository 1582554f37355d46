"""Everything between the routes and the engine."""

from cdvft_server.service.catalog import Page
from cdvft_server.service.classification import Classified, Scored
from cdvft_server.service.faults import FAULTS, translate
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
    "MODES",
    "STALE",
    "TENANT",
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
    "translate",
]
