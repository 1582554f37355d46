"""PEFT-format files to an adapter of a given base and back: everything is taken by a site or the head, or refused."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from cdvft.adapter import Adapter, AdapterSpec
from cdvft.baseinfo import BaseInfo
from cdvft.digest import adapter_digest
from cdvft.errors import InvalidAdapter, InvalidData
from cdvft.files import CONFIG_NAME, FROZEN_NAME, TEMPLATE_NAME, WEIGHTS_NAME, AdapterFiles, read_folder, write_folder
from cdvft.headfile import HEAD_MODULES, head_config, read_head
from cdvft.methods import Method, method_for_peft_type, method_named
from cdvft.methods.values import short
from cdvft.options import check_options
from cdvft.site import Site
from cdvft.strictjson import parse_object
from cdvft.targets import target_names, targeted_sites
from cdvft.templates import check_template
from cdvft.tensorfile import MAX_HEADER_BYTES, read_tensors, tensor_names, write_tensors

__all__ = [
    "MAX_CONFIG_BYTES",
    "MAX_LABELS",
    "MAX_TEMPLATE_BYTES",
    "AdapterFiles",
    "adapter_digest",
    "adapter_files",
    "freeze",
    "make_adapter",
    "read_adapter",
    "read_folder",
    "write_folder",
]

MAX_LABELS = 512
MAX_CONFIG_BYTES = 1 << 20
MAX_TEMPLATE_BYTES = 16 * 1024
PREFIX = "base_model.model."
ROOT = "base_model."  # before the names of tensors that belong to no module
EMBEDDINGS = re.compile(r"(.*\.)?(lora_embedding_[AB]|trainable_tokens\w*|embed_tokens|\w*embeddings|lm_head)(\..*)?")

SiteTensors = dict[str, dict[str, Tensor]]


def read_adapter(
    files: AdapterFiles,
    base: BaseInfo,
    labels: Sequence[str] | None = None,
    *,
    max_header_bytes: int = MAX_HEADER_BYTES,
    max_labels: int = MAX_LABELS,
) -> Adapter:
    """The adapter in these files, checked against the base. `labels` are the upload form's, for configs without.

    Raises InvalidAdapter naming what is wrong and what would be right, TooLarge for a limit.
    """
    if len(files.config) > MAX_CONFIG_BYTES:
        raise InvalidAdapter(
            f"{CONFIG_NAME} is {len(files.config)} bytes long, at most {MAX_CONFIG_BYTES} are accepted"
        )
    config = parse_object(files.config, CONFIG_NAME)
    method = method_for_peft_type(config.get("peft_type"))
    check_options(config, method.config_keys)
    base_verified = _check_base(config, base)
    tensors, head_tensors, frozen = _assign(read_tensors(files.weights, max_header_bytes), base, method.frozen_names)
    if files.frozen is not None:
        frozen |= read_tensors(files.frozen, max_header_bytes, FROZEN_NAME)
    _check_saved_modules(config.get("modules_to_save"))
    _check_targets(config, tensors, base)
    sites = {base.sites[name]: method.spec(config, base.sites[name]) for name in sorted(tensors)}
    reading = read_head(config, head_tensors, base, labels, max_labels)
    spec = AdapterSpec(
        method=method.name,
        sites=sites,
        task=reading.task,
        head=reading.head,
        labels=reading.labels,
        max_length=reading.max_length,
        template=_read_template(files.template),
    )
    return make_adapter(spec, tensors, head_tensors, base, base_verified=base_verified, frozen=frozen)


def freeze(files: AdapterFiles, adapter: Adapter) -> AdapterFiles:
    """The files from which `adapter` was read, with the frozen tensors that they left to a seed."""
    names = adapter.method.frozen_names
    saved = any(full.rpartition(".")[2] in names for full in tensor_names(files.weights))
    if not adapter.frozen or saved or files.frozen is not None:
        return files
    return replace(files, frozen=write_tensors(adapter.frozen))


def make_adapter(
    spec: AdapterSpec,
    tensors: Mapping[str, Mapping[str, Tensor]],
    head: Mapping[str, Tensor],
    base: BaseInfo,
    *,
    base_verified: bool = True,
    frozen: Mapping[str, Tensor] | None = None,
) -> Adapter:
    """An adapter with its digest; tensors are copied to fp32 on the CPU. Raises InvalidAdapter for what does not fit.

    `tensors[site.name][name]`; `base_verified` False says that nobody knows whether it was trained on this base.
    `frozen` empty or None: drawn from the spec, by the methods that can.
    """
    method = method_named(spec.method)
    if not spec.sites:
        raise InvalidAdapter("the adapter changes no site")
    own: SiteTensors = {}
    for site, options in sorted(spec.sites.items()):
        if base.sites.get(site.name) != site:
            raise InvalidAdapter(f"the base {base.name} has no linear layer {site.name} [{site.d_out}, {site.d_in}]")
        own[site.name] = {
            name: _own(f"{site.name}.{name}", tensor) for name, tensor in sorted(tensors.get(site.name, {}).items())
        }
        _check_site(method, site, options, own[site.name])
    for name in sorted(tensors.keys() - own.keys()):
        raise InvalidAdapter(f"tensors for {name}, which is not among the adapter's sites")
    own_head = {name: _own(name, tensor) for name, tensor in sorted(head.items())}
    own_frozen = _frozen(method, spec.sites, frozen or {})
    digest = adapter_digest(spec, own, own_head, own_frozen)
    return Adapter(spec, own, own_head, digest, base_verified, own_frozen)


def adapter_files(adapter: Adapter, base: BaseInfo, extra: Mapping[str, Any] | None = None) -> AdapterFiles:
    """Files that `read_adapter` reads as the same adapter, same digest; `extra` are more config keys (training's)."""
    spec = adapter.spec
    config: dict[str, Any] = {
        "peft_type": adapter.method.peft_type,
        "base_model_name_or_path": base.name,
        "base_digest": base.digest if adapter.base_verified else None,
        "inference_mode": True,
        "target_modules": target_names(spec.sites, base),
        **head_config(spec),
        **adapter.method.config(spec.sites),
        **(extra or {}),
    }
    if spec.head is not None:
        config["modules_to_save"] = sorted({name.split(".")[0] for name in adapter.head})
    prefix = PREFIX + base.family.prefixes[0]
    tensors = {f"{prefix}{site}.{name}": t for site, own in adapter.tensors.items() for name, t in own.items()}
    tensors |= {PREFIX + name: tensor for name, tensor in adapter.head.items()}
    with_weights = bool(adapter.method.frozen_names)
    for name, tensor in adapter.frozen.items() if with_weights else ():
        tensors[(prefix if "." in name else ROOT) + name] = tensor
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    template = None if spec.template is None else spec.template.encode()
    frozen = None if with_weights or not adapter.frozen else write_tensors(adapter.frozen)
    return AdapterFiles(text.encode(), write_tensors(tensors), template, frozen)


def _own(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise InvalidAdapter(f"{WEIGHTS_NAME}: {name} has dtype {tensor.dtype}; accepted: F64, F32, F16, BF16")
    own = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    if not math.isfinite(float(own.sum())) and not bool(torch.isfinite(own).all()):  # the sum of such values is one
        raise InvalidAdapter(f"{WEIGHTS_NAME}: {name} has NaN or infinite values in fp32")
    return own


def _frozen(method: Method[Any], specs: Mapping[Site, Any], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = dict(given)
    if not found and method.frozen_in_config:
        found = method.frozen(specs, Generator())
    own = {
        name: _own(name, tensor)
        if tensor.is_floating_point()
        else tensor.detach().to("cpu", torch.int64, copy=True).contiguous()
        for name, tensor in sorted(found.items())
    }
    method.check_frozen(own, specs)
    return own


def _check_site(method: Method[Any], site: Site, options: Any, tensors: Mapping[str, Tensor]) -> None:
    shapes = method.shapes(site, options)
    for name in sorted(shapes.keys() - tensors.keys()):
        raise InvalidAdapter(f"{WEIGHTS_NAME}: {site.name} lacks {name} {list(shapes[name])}")
    for name in sorted(tensors.keys() - shapes.keys()):
        raise InvalidAdapter(
            f"{WEIGHTS_NAME}: {site.name}.{name} is not a tensor of {method.peft_type}; {', '.join(shapes)}"
        )
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise InvalidAdapter(
                f"{WEIGHTS_NAME}: {site.name}.{name} has the shape {list(tensors[name].shape)}, it must be "
                f"{list(shape)} (linear [{site.d_out}, {site.d_in}] with the options of {CONFIG_NAME})"
            )


def _check_base(config: Mapping[str, Any], base: BaseInfo) -> bool:
    stated = config.get("base_digest")
    if stated is None:
        return False
    if stated != base.digest:
        named = config.get("base_model_name_or_path")
        raise InvalidAdapter(
            f"{CONFIG_NAME}: the adapter was trained on another base"
            f"{f' ({short(named)})' if named else ''}, give that one: base_digest is {str(stated)[:100]}, "
            f"this base ({base.name}) is {base.digest}"
        )
    return True


def _assign(
    tensors: Mapping[str, Tensor], base: BaseInfo, frozen_names: frozenset[str]
) -> tuple[SiteTensors, dict[str, Tensor], dict[str, Tensor]]:
    """Every tensor to its site, to the head or to the frozen ones. Raises InvalidAdapter for one that none takes."""
    sites: SiteTensors = {}
    head: dict[str, Tensor] = {}
    frozen: dict[str, Tensor] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix(PREFIX)
        if (root := full.removeprefix(ROOT)) in frozen_names:
            frozen[root] = tensor
            continue
        if name == full:
            raise InvalidAdapter(f"{WEIGHTS_NAME}: {full[:200]} does not start with {PREFIX}")
        if name.split(".")[0] in HEAD_MODULES:
            head[name] = tensor
            continue
        site, rest = _split(name, base)
        if rest in frozen_names:
            frozen[f"{site}.{rest}"] = tensor
            continue
        if rest in sites.setdefault(site, {}):
            raise InvalidAdapter(f"{WEIGHTS_NAME}: {site}.{rest} is there twice, with and without the family prefix")
        sites[site][rest] = tensor
    if not sites:
        raise InvalidAdapter(f"{WEIGHTS_NAME} has no tensor for any layer of the base")
    return sites, head, frozen


def _split(name: str, base: BaseInfo) -> tuple[str, str]:
    """(site, tensor name): the longest beginning that is a site of the base; tensor names may contain dots."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        site = base.family.strip(".".join(parts[:end]))
        if site in base.sites:
            return site, ".".join(parts[end:])
    if EMBEDDINGS.fullmatch(name):
        raise InvalidAdapter(
            f"{WEIGHTS_NAME}: {name[:200]}: only linear layers can be adapted, not embeddings, "
            "the lm_head or trained tokens"
        )
    raise InvalidAdapter(
        f"{WEIGHTS_NAME}: {name[:200]} belongs to no linear layer of the base {base.name} and to no head; "
        f"layers are named like {min(base.sites, default='(none)')}"
    )


def _check_saved_modules(value: Any) -> None:
    """`modules_to_save` may name the head alone; its tensors are checked as the head's."""
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidAdapter(f"{CONFIG_NAME}: modules_to_save must be a list of names, it is {str(value)[:100]}")
    for name in names:
        if name.split(".")[0] not in HEAD_MODULES:
            raise InvalidAdapter(
                f"{CONFIG_NAME}: modules_to_save has {name[:200]!r}; only a head can be saved "
                f"({', '.join(HEAD_MODULES)})"
            )


def _check_targets(config: Mapping[str, Any], tensors: SiteTensors, base: BaseInfo) -> None:
    for site in sorted(targeted_sites(config, base)):
        if site.name not in tensors:
            raise InvalidAdapter(
                f"{WEIGHTS_NAME}: {CONFIG_NAME} targets {site.name}, but there are no tensors for it; name the layers "
                "that were trained in target_modules, or give the base that it was trained on"
            )


def _read_template(data: bytes | None) -> str | None:
    if data is None:
        return None
    if len(data) > MAX_TEMPLATE_BYTES:
        raise InvalidAdapter(f"{TEMPLATE_NAME} is {len(data)} bytes long, at most {MAX_TEMPLATE_BYTES} are accepted")
    try:
        source = data.decode("utf-8")
        check_template(source)
    except UnicodeDecodeError as error:
        raise InvalidAdapter(f"{TEMPLATE_NAME} is not UTF-8 (byte {error.start})") from None
    except InvalidData as error:
        raise InvalidAdapter(f"{TEMPLATE_NAME}: {error}") from None
    return source
