"""`cdvft inspect DIR`: what an adapter folder holds and costs, read as strictly as an upload."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from cdvft.errors import CdvftError

from cdvft_server import demo
from cdvft_server.cli.commands import Command, reported
from cdvft_server.cli.tables import size, table

__all__ = ["inspect"]


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--base", help="The adapter's base: model folder or Hub id; the embedded cdvft-tiny if left out.")
@click.option("--json", "as_json", is_flag=True, envvar="CDVFT_JSON", help="Print JSON.")
def inspect(folder: Path, base: str | None, as_json: bool) -> None:
    """Show an adapter's parameters, bytes, FLOPs per token, sites and head."""
    with reported(CdvftError, OSError):
        found = _inspect(folder, base or str(demo.base_path()))
    click.echo(json.dumps(found, ensure_ascii=False, indent=2) if as_json else _shown(found))


def _inspect(folder: Path, base: str) -> dict[str, Any]:
    from cdvft.accounting import adapter_cost
    from cdvft.backbone import load_backbone
    from cdvft.checkpoint import read_adapter, read_folder
    from transformers.utils import logging

    logging.disable_progress_bar()
    info = load_backbone(base).info
    files = read_folder(folder)
    adapter = read_adapter(files, info)
    cost = adapter_cost(adapter, files)
    spec = adapter.spec
    return {
        "digest": adapter.digest,
        "method": spec.method,
        "task": spec.task,
        "labels": None if spec.labels is None else list(spec.labels),
        "base": info.name,
        "base_verified": adapter.base_verified,
        "head": None if spec.head is None else asdict(spec.head),
        "max_length": spec.max_length,
        "template": spec.template is not None,
        "parameters": cost.parameters,
        "head_parameters": cost.head_parameters,
        "disk_bytes": cost.disk_bytes,
        "device_bytes": cost.device_bytes,
        "head_device_bytes": cost.head_device_bytes,
        "flops_per_token": cost.flops,
        "sites": [
            {
                "name": part.site.name,
                "d_in": part.site.d_in,
                "d_out": part.site.d_out,
                "parameters": part.parameters,
                "flops_per_token": part.flops,
                "device_bytes": part.device_bytes,
                "options": asdict(spec.sites[part.site]),
            }
            for part in cost.sites
        ],
    }


def _shown(found: dict[str, Any]) -> str:
    head = found["head"]
    verified = "named in the config" if found["base_verified"] else "not named in the config, fits by its shapes"
    facts = [
        ("digest", found["digest"]),
        ("method", f"{found['method']}, {len(found['sites'])} sites"),
        ("base", f"{found['base']} ({verified})"),
        ("task", found["task"] + (f": {', '.join(found['labels'])}" if found["labels"] else "")),
        ("head", f"{head['type']}, {head['pooling']} pooling, {head['outputs']} outputs" if head else "none"),
        ("parameters", f"{found['parameters']:,}, and {found['head_parameters']:,} in the head"),
        ("files", size(found["disk_bytes"])),
        ("on the device", f"{size(found['device_bytes'])}, and {size(found['head_device_bytes'])} for the head"),
        ("FLOPs per token", f"{found['flops_per_token']:,.0f}"),
    ]
    if found["max_length"]:
        facts.append(("longest input", f"{found['max_length']} tokens"))
    if found["template"]:
        facts.append(("chat template", "its own"))
    rows = [
        (site["name"], f"{site['d_in']} -> {site['d_out']}", site["parameters"], round(site["flops_per_token"]))
        for site in found["sites"]
    ]
    width = max(len(name) for name, _ in facts)
    lines = [f"{name.ljust(width)}  {value}" for name, value in facts]
    return "\n".join([*lines, "", table(("SITE", "SIZE", "PARAMETERS", "FLOPS PER TOKEN"), rows)])
