"""`cdvft inspect DIR` and `cdvft compare DIR...`: what adapter folders hold and cost, read as strictly as an upload."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from cdvft.errors import CdvftError

from cdvft_server import demo
from cdvft_server.cli.commands import Command, reported
from cdvft_server.cli.tables import size, table

if TYPE_CHECKING:
    from cdvft.baseinfo import BaseInfo

__all__ = ["compare", "inspect"]

COLUMNS = (
    "ADAPTER",
    "METHOD",
    "SITES",
    "PARAMETERS",
    "HEAD",
    "FILES",
    "DEVICE",
    "SHARED",
    "FLOPS PER TOKEN",
    "PAPER'S COUNT",
)


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--base", help="The adapter's base: model folder or Hub id; the embedded cdvft-tiny if left out.")
@click.option("--json", "as_json", is_flag=True, envvar="CDVFT_JSON", help="Print JSON.")
def inspect(folder: Path, base: str | None, as_json: bool) -> None:
    """Show an adapter's parameters, bytes, FLOPs per token, sites and head."""
    with reported(CdvftError, OSError):
        found = _inspect(folder, _info(base))
    click.echo(json.dumps(found, ensure_ascii=False, indent=2) if as_json else _shown(found))


@click.command(cls=Command)
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--base", help="The adapters' base: model folder or Hub id; the embedded cdvft-tiny if left out.")
@click.option("--json", "as_json", is_flag=True, envvar="CDVFT_JSON", help="Print JSON.")
def compare(folders: tuple[Path, ...], base: str | None, as_json: bool) -> None:
    """Adapters of one base side by side: parameters, bytes, FLOPs per token (as computed, and as the paper counts)."""
    with reported(CdvftError, OSError):
        info = _info(base)
        found = [{"folder": str(folder), **_inspect(folder, info)} for folder in folders]
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    rows = [
        (
            own["folder"],
            own["method"],
            len(own["sites"]),
            own["parameters"],
            own["head_parameters"],
            size(own["disk_bytes"]),
            size(own["device_bytes"]),
            size(own["shared_device_bytes"]) if own["shared_device_bytes"] else "-",
            round(own["flops_per_token"]),
            "-" if own["paper_flops_per_token"] is None else f"{own['paper_flops_per_token']:,.0f}",
        )
        for own in found
    ]
    click.echo(table(COLUMNS, rows))


def _info(base: str | None) -> "BaseInfo":
    from cdvft.backbone import load_backbone
    from transformers.utils import logging

    logging.disable_progress_bar()
    return load_backbone(base or str(demo.base_path())).info


def _inspect(folder: Path, info: "BaseInfo") -> dict[str, Any]:
    from cdvft.accounting import adapter_cost
    from cdvft.checkpoint import read_adapter, read_folder

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
        "shared_device_bytes": cost.shared_device_bytes,
        "flops_per_token": cost.flops,
        "paper_flops_per_token": cost.paper_flops,
        "sites": [
            {
                "name": part.site.name,
                "d_in": part.site.d_in,
                "d_out": part.site.d_out,
                "parameters": part.parameters,
                "flops_per_token": part.flops,
                "paper_flops_per_token": part.paper_flops,
                "device_bytes": part.device_bytes,
                "options": asdict(spec.sites[part.site]),
            }
            for part in cost.sites
        ],
    }


def _shown(found: dict[str, Any]) -> str:
    head = found["head"]
    counted = found["paper_flops_per_token"]
    paper = "" if counted is None else f" ({counted:,.0f} as arXiv 2505.00580 counts)"
    verified = "verified by its digest" if found["base_verified"] else "no digest in the config; fits by its shapes"
    facts = [
        ("digest", found["digest"]),
        ("method", f"{found['method']}, {len(found['sites'])} sites"),
        ("base", f"{found['base']} ({verified})"),
        ("task", found["task"] + (f": {', '.join(found['labels'])}" if found["labels"] else "")),
        ("head", f"{head['type']}, {head['pooling']} pooling, {head['outputs']} outputs" if head else "none"),
        ("parameters", f"{found['parameters']:,}, and {found['head_parameters']:,} in the head"),
        ("files", size(found["disk_bytes"])),
        ("on the device", f"{size(found['device_bytes'])}, and {size(found['head_device_bytes'])} for the head"),
        ("FLOPs per token", f"{found['flops_per_token']:,.0f}{paper}"),
    ]
    if found["shared_device_bytes"]:
        facts.insert(
            -1,
            ("shared", f"{size(found['shared_device_bytes'])} on the device, once for all adapters with the same seed"),
        )
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
