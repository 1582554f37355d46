"""Is a stored row still what an upload wrote? A database file can be damaged, or edited by hand."""

import logging
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cdvft_server.answers import SelfTest
from cdvft_server.exceptions import CorruptBlob
from cdvft_server.store import VersionRow

__all__ = ["Summary", "check_whole", "is_whole"]

log = logging.getLogger(__name__)


class Summary(BaseModel):
    """What an upload finds out about an adapter: `VersionRow.summary`."""

    model_config = ConfigDict(strict=True)

    method: str
    task: Literal["lm", "classification", "regression"]
    labels: list[str] | None
    max_length: int | None
    template: str | None
    num_parameters: int
    head_parameters: int
    sites: list[str]
    base_model: str
    base_verified: bool
    self_test: SelfTest
    ignored_files: list[str]


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, from_attributes=True)

    name: str
    version: int
    digest: str
    description: str | None
    created_at: int
    bytes: int
    summary: Summary
    form_labels: list[str] | None
    aliases: dict[str, int]
    hits: int
    last_used: int | None


def check_whole(row: VersionRow) -> None:
    """Raises CorruptBlob where a column is not of its kind, or the summary lacks something."""
    try:
        _Row.model_validate(row)
    except ValidationError as error:
        places = ", ".join(
            sorted({".".join(map(str, found["loc"][:2])) for found in error.errors(include_input=False)})
        )
        log.error(
            "the row of adapter %a@%a (%a) is damaged in the store: %s", row.name, row.version, row.digest, places
        )
        raise CorruptBlob(f"adapter {row.name}@{row.version} is damaged in the store; upload it again") from None


def is_whole(row: VersionRow) -> bool:
    try:
        check_whole(row)
    except CorruptBlob:
        return False
    return True
