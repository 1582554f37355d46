"""What the parts of a service share: handed to each by its constructor."""

from dataclasses import dataclass

from cdvft.backbone import Backbone
from cdvft.baseinfo import BaseInfo

from cdvft_server.config import ServeConfig
from cdvft_server.engine.engine import Engine
from cdvft_server.engine.merged import MergedPool
from cdvft_server.engine.pool import AdapterPool
from cdvft_server.naming import AdapterRef
from cdvft_server.service.bridge import Bridge
from cdvft_server.service.flights import Flights
from cdvft_server.service.hits import Hits
from cdvft_server.service.lastknown import LastKnown
from cdvft_server.service.ledger import Ledger
from cdvft_server.service.workers import Workers
from cdvft_server.store import Store, VersionRow
from cdvft_server.template_worker import TemplateWorkers

__all__ = ["RENDERERS", "Parts"]

RENDERERS = 2  # template worker processes: while one is stuck in a template the other serves


@dataclass(frozen=True)
class Parts:
    config: ServeConfig
    backbone: Backbone
    engine: Engine
    pool: AdapterPool
    merged: MergedPool
    store: Store
    workers: Workers
    templates: TemplateWorkers
    bridge: Bridge
    flights: Flights
    hits: Hits
    ledger: Ledger
    last_known: LastKnown[tuple[str, AdapterRef], VersionRow]

    @property
    def base(self) -> BaseInfo:
        return self.backbone.info
