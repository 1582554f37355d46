"""The multipart form of an upload: known parts, each at most once, and one of its two forms."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cdvft_server.bodies import content_type, limited, parse_json
from cdvft_server.config import ServeConfig
from cdvft_server.errors import ApiError, invalid, unavailable
from cdvft_server.service import UploadForm

__all__ = ["UPLOAD_SCHEMA", "upload_form"]

log = logging.getLogger(__name__)

FILES = ("config", "weights", "archive")
FIELDS = ("name", "alias", "public", "description", "labels")
MOST_PARTS = 32  # more than are known, so that the error can name the one that is not
MOST_FIELD_BYTES = 1 << 20

_BINARY = {"type": "string", "format": "binary"}
UPLOAD_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {
                        "name": {"type": "string"},
                        "config": {**_BINARY, "description": "adapter_config.json; together with weights"},
                        "weights": {**_BINARY, "description": "adapter_model.safetensors"},
                        "archive": {**_BINARY, "description": "zip or tar.gz, instead of config and weights"},
                        "alias": {"type": "string", "description": "Moved to this version"},
                        "public": {"type": "string", "enum": ["true", "false"]},
                        "description": {"type": "string"},
                        "labels": {"type": "string", "description": "JSON list, for a config without labels"},
                    },
                }
            }
        },
    }
}


@asynccontextmanager
async def upload_form(request: Request, config: ServeConfig) -> AsyncIterator[UploadForm]:
    """The form; its files are closed at the end. Raises ApiError for anything that is not one."""
    if content_type(request) != "multipart/form-data":
        sent = request.headers.get("content-type") or "none"
        raise ApiError("unsupported_media_type", f"content-type must be multipart/form-data, it is {sent[:100]}")
    _check_charset(request.headers["content-type"])
    parser = MultiPartParser(
        request.headers,
        limited(request, config.upload_bytes, "--max-weights-bytes"),
        max_files=MOST_PARTS,
        max_fields=MOST_PARTS,
        max_part_size=MOST_FIELD_BYTES,
    )
    try:
        yield _checked((await _parsed(parser)).multi_items(), config)
    finally:
        for file in parser._files_to_close_on_error:  # every file, also of a part that the body did not end
            file.close()


async def _parsed(parser: MultiPartParser) -> FormData:
    try:
        return await parser.parse()
    except MultiPartException as error:
        if "maximum size" in error.message:
            raise ApiError("too_large", f"a field of the form is larger than {MOST_FIELD_BYTES} bytes") from None
        raise invalid(f"the form cannot be read: {error.message}") from None
    except OSError as error:
        log.error("the files of an upload cannot be kept: %s", error)
        raise unavailable(
            "overloaded", "the server has no room for the files of an upload now", retry_after=5
        ) from None


def _check_charset(header: str) -> None:
    """Any other codec of Python's would be used to read the parts' names and texts."""
    charset = parse_options_header(header)[1].get(b"charset", b"utf-8")
    if charset.lower() not in (b"utf-8", b"utf8"):
        raise invalid(f"the form's charset is {charset[:40].decode('latin-1')!r}; it must be utf-8, or left out")


def _checked(items: list[tuple[str, UploadFile | str]], config: ServeConfig) -> UploadForm:
    parts: dict[str, UploadFile | str] = {}
    for name, value in items:
        if name not in (*FILES, *FIELDS):
            raise invalid(f"unknown part {name[:100]!r}; known are {', '.join((*FILES, *FIELDS))}", name[:100])
        if name in parts:
            raise invalid(f"the part {name!r} is there more than once", name)
        if (name in FILES) != isinstance(value, UploadFile):
            raise invalid(f"{name!r} must be a {'file (with a filename)' if name in FILES else 'text'} part", name)
        parts[name] = value
    if "name" not in parts:
        raise invalid("the part 'name' is missing", "name")
    _check_forms(parts.keys())
    texts = {name: value for name, value in parts.items() if isinstance(value, str)}
    files = {name: _file(name, value, config) for name, value in parts.items() if isinstance(value, UploadFile)}
    return UploadForm(
        name=texts["name"],
        alias=texts.get("alias"),
        public=_public(texts.get("public")),
        description=texts.get("description"),
        labels=_labels(texts.get("labels")),
        config=files.get("config"),
        weights=files.get("weights"),
        archive=files.get("archive"),
    )


def _check_forms(given: Any) -> None:
    pair = {"config", "weights"} & set(given)
    if "archive" in given and pair:
        raise invalid("give either archive, or config and weights, not both", "archive")
    if "archive" not in given and len(pair) < 2:
        missing = " and ".join(sorted({"config", "weights"} - pair))
        raise invalid(f"{missing} missing; give config and weights as files, or archive", missing.split(" ")[0])


def _file(name: str, part: UploadFile, config: ServeConfig) -> BinaryIO:
    limits = {"config": config.max_header_bytes, "weights": config.max_weights_bytes, "archive": config.expanded_bytes}
    if (part.size or 0) > limits[name]:
        raise ApiError("too_large", f"{name} has {part.size} bytes, at most {limits[name]} are accepted", name)
    return part.file


def _public(text: str | None) -> bool | None:
    if text not in (None, "true", "false"):
        raise invalid(f"public must be true or false, it is {text[:40]!r}", "public")
    return None if text is None else text == "true"


def _labels(text: str | None) -> list[str] | None:
    if text is None:
        return None
    try:
        labels = parse_json(text.encode("utf-8", "surrogatepass"))
    except ApiError as error:
        raise invalid(f"labels must be a JSON list of strings: {error.message}", "labels") from None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise invalid("labels must be a JSON list of strings, not empty", "labels")
    return labels
