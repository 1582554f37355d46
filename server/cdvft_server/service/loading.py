"""The base and its engine, as a configuration asks for them."""

from cdvft.backbone import Backbone, load_backbone
from cdvft.errors import UnsupportedBase

from cdvft_server import demo
from cdvft_server.config import ServeConfig
from cdvft_server.engine.engine import Engine, EngineConfig
from cdvft_server.engine.hostcache import HostCache
from cdvft_server.engine.merged import MergedPool
from cdvft_server.engine.pool import AdapterPool
from cdvft_server.errors import StartRefused
from cdvft_server.exceptions import InvalidName
from cdvft_server.naming import check_name
from cdvft_server.service.memory import free_on_device, free_on_host

__all__ = ["load_base", "make_engine", "make_merged_pool", "make_pool"]

DEVICE_SHARE, HOST_SHARE = 4, 8  # a quarter and an eighth of what is free
MERGED_SHARE = 2  # of the adapters' own
LEAST_MEMORY = 64 << 20


def load_base(config: ServeConfig) -> Backbone:
    """Raises CdvftError, StartRefused."""
    embedded = config.base is None
    base = str(demo.base_path()) if config.base is None else config.base
    name = config.served_name or (demo.BASE_NAME if embedded else None)
    backbone = load_backbone(base, device=config.device, dtype=config.dtype, name=name)
    try:
        check_name("adapter", backbone.info.name)
    except InvalidName as error:
        raise StartRefused(f"the base's name cannot be served ({error}); give --served-name") from None
    return backbone


def make_pool(config: ServeConfig, backbone: Backbone) -> AdapterPool:
    """With its host cache. Call it when the base is in memory: defaults are shares of what is free then."""
    memory = config.adapter_memory or max(free_on_device(backbone.device) // DEVICE_SHARE, LEAST_MEMORY)
    behind = free_on_host() // HOST_SHARE if config.host_memory is None else config.host_memory
    return AdapterPool(backbone.device, memory, HostCache(behind))


def make_merged_pool(config: ServeConfig, pool: AdapterPool) -> MergedPool:
    share = pool.stats().budget_bytes // MERGED_SHARE
    return MergedPool(share if config.merged_memory is None else config.merged_memory)


def make_engine(config: ServeConfig, backbone: Backbone, pool: AdapterPool, threads: int) -> Engine:
    """Not started. Its queue has room for one call more than `max_queue`, and for as many of tenants that have few
    waiting, see `Call.submit`. Raises as above."""
    settings = EngineConfig(
        max_batch_tokens=config.max_batch_tokens,
        context_length=config.context_length,
        kv_tokens=config.kv_tokens,
        max_queue=2 * config.max_queue + max(config.max_classify_rows, config.max_sequences),
        threads=threads,
        kernel=config.kernel,
        scheduling=config.scheduling,
        cuda_graphs=config.cuda_graphs,
        fit_costs=config.merged_memory != 0,
    )
    try:
        return Engine(backbone, pool, settings)
    except UnsupportedBase:
        raise
    except ValueError as error:
        raise StartRefused(str(error)) from None
