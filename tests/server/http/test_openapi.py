"""The OpenAPI document is complete, and true of what is answered."""

from typing import Any

import pytest
from cdvft_server import answers
from cdvft_server.errors import CODES
from cdvft_server.schemas import ChatRequest, ClassifyRequest, CompletionRequest

from tests.server.http.harness import Fleet

ROUTES = {
    "/": ["get"],
    "/health": ["get"],
    "/ready": ["get"],
    "/metrics": ["get"],
    "/v1/models": ["get"],
    "/v1/models/{id}": ["get"],
    "/v1/completions": ["post"],
    "/v1/chat/completions": ["post"],
    "/v1/classify": ["post"],
    "/v1/usage": ["get"],
    "/v1/adapters": ["get", "post"],
    "/v1/adapters/{name}": ["delete", "get", "put"],
    "/v1/adapters/{name}/versions": ["get"],
    "/v1/adapters/{name}/download": ["get"],
    "/v1/adapters/{name}/aliases/{alias}": ["delete", "put"],
    "/v1/admin/tenants": ["get", "post"],
    "/v1/admin/tenants/{name}": ["delete", "get", "put"],
    "/v1/admin/keys": ["get", "post"],
    "/v1/admin/keys/{id}": ["delete", "get"],
    "/v1/admin/keys/{id}/rotate": ["post"],
}


@pytest.fixture(scope="module")
def document(decoder: Fleet) -> dict[str, Any]:
    return decoder.live.get("/openapi.json").json()


def test_every_route_is_there(document: dict[str, Any]) -> None:
    assert {path: sorted(methods) for path, methods in document["paths"].items()} == ROUTES


def test_the_index_names_routes_that_answer(decoder: Fleet) -> None:
    index = decoder.live.get("/").json()
    assert (index["name"], index["version"]) == ("CDVFT adapter server", "0.1.0")
    paths = [value for value in index.values() if value.startswith("/")]
    assert len(paths) == 7
    assert {decoder.live.get(path).status_code for path in paths} == {200}


def test_every_operation_says_what_it_does_and_answers(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["description"], where
            for status, response in operation["responses"].items():
                assert "HTTPValidationError" not in str(response), where
                assert "x-request-id" in response["headers"], where
                assert response["content"], where
                if int(status) >= 400:
                    assert "ErrorBody" in str(response), where
                    assert int(status) in CODES.values(), where


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: Any) -> set[str]:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        own = {node["$ref"]} if isinstance(node, dict) and "$ref" in node else set()
        return own.union(*(references(item) for item in inner))

    for reference in references(document):
        assert reference.rpartition("/")[2] in document["components"]["schemas"], reference


def test_the_upload_form_is_documented(document: dict[str, Any]) -> None:
    form = document["paths"]["/v1/adapters"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {
        "name", "config", "weights", "archive", "alias", "public", "description", "labels"
    }  # fmt: skip


@pytest.mark.parametrize("model", [CompletionRequest, ChatRequest, ClassifyRequest])
def test_every_request_field_is_in_it(document: dict[str, Any], model: Any) -> None:
    schema = document["components"]["schemas"][model.__name__]
    assert set(schema["properties"]) == set(model.model_fields)
    assert schema["additionalProperties"] is False


def test_answers_are_as_documented(decoder: Fleet) -> None:
    """No field that the document does not know, no other type."""
    live = decoder.live
    chat = {"model": "writer", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    answers.Completion.model_validate(live.complete("writer").json())
    answers.Chat.model_validate(live.post("/v1/chat/completions", chat).json())
    answers.Classification.model_validate(live.classify(["judge", "grader"], ["a", "b"]).json())
    answers.Classification.model_validate(live.classify("judge").json())
    answers.ModelList.model_validate(live.get("/v1/models").json())
    answers.ModelBody.model_validate(live.get("/v1/models/writer").json())
    answers.AdapterList.model_validate(live.get("/v1/adapters").json())
    answers.AdapterDetails.model_validate(live.get("/v1/adapters/writer").json())
    answers.UsageList.model_validate(live.get("/v1/usage").json())
    answers.ErrorBody.model_validate(live.get("/v1/adapters/nobody").json())
