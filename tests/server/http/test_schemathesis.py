"""What the OpenAPI document says is what the server does, for requests that it allows and for ones that it does not."""

from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.http.harness import WAIT, Fleet

SHORT, SOAK = 3, 400  # requests of each operation and kind
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
)


def check(fleet: Fleet, examples: int) -> Counter[int]:
    """Every operation with requests that fit its schema, and with ones that break it."""
    document = schemathesis.openapi.from_url(f"{fleet.live.url}/openapi.json", timeout=WAIT)
    answers: Counter[int] = Counter()
    for found in document.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            ask(operation, mode, examples, answers)
    return answers


def ask(operation: Any, mode: GenerationMode, examples: int, answers: Counter[int]) -> None:
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), phases=[Phase.generate], deadline=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        answer = case.call(timeout=WAIT)
        answers[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    try:
        one()
    except Unsatisfiable:
        assert mode == GenerationMode.NEGATIVE  # an operation that takes nothing: no request can break its schema


def test_the_document_is_kept(decoder: Fleet) -> None:
    with decoder.unharmed():
        answers = check(decoder, SHORT)
    assert answers[200] > 0
    assert answers[400] > 0


@pytest.mark.soak
def test_the_document_is_kept_for_long(decoder: Fleet) -> None:
    with decoder.unharmed():
        print(f"{dict(check(decoder, SOAK))}")
