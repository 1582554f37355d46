"""Everything between the routes and the engine."""

from cdvft_server.service.catalog import Page
from cdvft_server.service.classification import Classified, Scored
from cdvft_server.service.faults import FAULTS, is_out_of_memory, translate
from cdvft_server.service.gauges import Gauges
from cdvft_server.service.generation import Generation, Piece
from cdvft_server.service.merging import MODES, Mode
from cdvft_server.service.service import TENANT, Service
from cdvft_server.service.targets import STALE
from cdvft_server.service.uploads import Stored, UploadForm

__all__ = [
    "FAULTS",
    "MODES",
    "STALE",
    "TENANT",
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
    "is_out_of_memory",
    "translate",
]
