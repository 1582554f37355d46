"""Adapters of several methods on one server: each answers as the base with its dW merged in, also side by side."""

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cdvft.adapter import Adapter
from cdvft.backbone import Backbone, load_backbone
from cdvft.checkpoint import AdapterFiles, adapter_files, read_adapter
from cdvft.formatting import encode_prompt
from cdvft.merge import merge
from cdvft.methods import METHODS

from tests.server.http.harness import Fleet
from tests.tiny import method_adapter

PROMPTS = ["the cat", "a dog sat on the mat and it was", "b"]


def adapters(base: Backbone) -> dict[str, Adapter]:
    """One of every method and one more of another shape."""
    named = [(method, which) for method in METHODS for which in (0, -1)]
    return {
        f"{method.name}-{which % 7}": method_adapter(base.info, method, which, seed)
        for seed, (method, which) in enumerate(named)
    }


def greedy(backbone: Backbone, adapter: Adapter, prompt: str, count: int) -> list[int]:
    assert backbone.lm_head is not None
    ids = encode_prompt(backbone.tokenizer, prompt)
    start = len(ids)
    with torch.no_grad(), merge(backbone.model, adapter):
        for _ in range(count):
            hidden = backbone.model(input_ids=torch.tensor([ids])).last_hidden_state
            ids.append(int(backbone.lm_head(hidden[0, -1]).argmax()))
    return ids[start:]


@pytest.mark.parametrize("together", [False, True])
def test_every_method_answers_as_merged_weights_do(together: bool, tiny_server: object, llama: Backbone) -> None:
    fleet: Fleet = tiny_server()  # type: ignore[operator]
    reference = load_backbone(str(Path(llama.path)))
    found = adapters(llama)
    for name, adapter in found.items():
        assert fleet.add(name, adapter)["method"] == adapter.spec.method
    asked = [(name, prompt) for name in found for prompt in PROMPTS]

    def ask(question: tuple[str, str]) -> str:
        answer = fleet.live.complete(*question, max_tokens=12, ignore_eos=True)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-adapter-digest"] == found[question[0]].digest
        text: str = answer.json()["choices"][0]["text"]
        return text

    with ThreadPoolExecutor(len(asked) if together else 1) as pool:
        answers = list(pool.map(ask, asked))
    texts = set()
    for (name, prompt), text in zip(asked, answers, strict=True):
        ids = greedy(reference, found[name], prompt, 12)
        prefix = encode_prompt(reference.tokenizer, prompt)
        whole = reference.tokenizer.decode([*prefix, *ids], skip_special_tokens=True)
        assert whole.endswith(text)
        assert text == whole[len(reference.tokenizer.decode(prefix, skip_special_tokens=True)) :]
        texts.add((prompt, text))
    assert len(texts) > len(PROMPTS)  # the adapters differ


def test_what_a_seed_drew_is_kept_as_it_was_drawn(
    tiny_server: object, llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet: Fleet = tiny_server()  # type: ignore[operator]
    for name, adapter in adapters(llama).items():
        files = adapter_files(adapter, llama.info)
        if files.frozen is None:
            continue
        answer = fleet.live.upload(name, replace(files, frozen=None))  # a checkpoint as PEFT writes it
        assert answer.status_code == 201, answer.text
        content = zipfile.ZipFile(io.BytesIO(fleet.live.get(f"/v1/adapters/{name}/download").content))
        kept = AdapterFiles.of({member: content.read(member) for member in content.namelist()})
        assert kept == files
        with monkeypatch.context() as patch:  # a torch whose generator draws other numbers
            patch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
            patch.setattr(torch.Tensor, "uniform_", lambda tensor, *_, **__: tensor.zero_())
            assert read_adapter(kept, llama.info).digest == adapter.digest == answer.json()["digest"]
            assert read_adapter(replace(kept, frozen=None), llama.info).digest != adapter.digest
