"""The base and its engine, as a configuration asks for them."""

import os

import torch
from cdvft.backbone import Backbone, load_backbone
from cdvft.errors import UnsupportedBase

from cdvft_server import demo
from cdvft_server.config import ServeConfig
from cdvft_server.engine.engine import Engine, EngineConfig
from cdvft_server.engine.pool import AdapterPool
from cdvft_server.errors import StartRefused
from cdvft_server.exceptions import InvalidName
from cdvft_server.naming import check_name

__all__ = ["load_base", "make_engine", "make_pool"]

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
    return AdapterPool(backbone.device, config.adapter_memory or _default_memory(backbone.device))


def make_engine(config: ServeConfig, backbone: Backbone, pool: AdapterPool, threads: int) -> Engine:
    """Not started. Its queue has room for one call more than `max_queue`, see `Call.submit`. Raises as above."""
    settings = EngineConfig(
        max_batch_tokens=config.max_batch_tokens,
        context_length=config.context_length,
        kv_tokens=config.kv_tokens,
        max_queue=config.max_queue + max(config.max_classify_rows, config.max_sequences),
        threads=threads,
    )
    try:
        return Engine(backbone, pool, settings)
    except UnsupportedBase:
        raise
    except ValueError as error:
        raise StartRefused(str(error)) from None


def _default_memory(device: torch.device) -> int:
    """A quarter of the device's memory, in bytes."""
    if device.type == "cuda":
        return max(torch.cuda.mem_get_info(device)[1] // 4, LEAST_MEMORY)
    return max(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4, LEAST_MEMORY)
