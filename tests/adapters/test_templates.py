import json
import subprocess
import sys

import pytest
from cdvft.errors import InvalidData
from cdvft.templates import PLAIN_TEMPLATE, check_template, render
from hypothesis import given
from hypothesis import strategies as st

HELLO = [{"role": "user", "content": "hello"}]


def rendered(source: str, messages: list[dict[str, object]] = HELLO, **options: bool) -> str:
    return render(source, messages, bos_token="<s>", eos_token="</s>", **options)


def test_plain_template_writes_bos_and_role_lines() -> None:
    chat = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": " hi "}]
    assert rendered(PLAIN_TEMPLATE, chat) == "<s>system: Be brief.\nuser: hello\nassistant: hi\nassistant:"
    assert rendered(PLAIN_TEMPLATE, HELLO, add_generation_prompt=False) == "<s>user: hello\n"
    assert render(PLAIN_TEMPLATE, HELLO, bos_token=None, eos_token=None) == "user: hello\nassistant:"


@given(st.text())
def test_json_filter_does_not_escape_for_html(text: str) -> None:
    message = {"role": "user", "content": text}
    assert json.loads(rendered("{{ messages[0].content | tojson }}", [message])) == text
    assert rendered("{{ '<é>' | tojson }}") == '"<é>"'


def test_whitespace_and_loop_controls_as_hugging_face_has_them() -> None:
    source = (
        "{% for m in messages %}\n    {% if loop.index > 1 %}\n{% break %}\n{% endif %}\n{{ m.content }}\n{% endfor %}"
    )
    assert rendered(source, [*HELLO, *HELLO]) == "hello\n"
    assert rendered("a{% generation %}b{{ eos_token }}{% endgeneration %}") == "ab</s>"
    assert rendered("{{ 'none' if tools is none and documents is none else 'some' }}") == "none"


def test_a_template_may_refuse_messages() -> None:
    with pytest.raises(InvalidData, match="roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}")


def test_time_is_not_there_and_templates_that_ask_first_work() -> None:
    assert rendered("{% if strftime_now is defined %}now{% else %}26 Jul 2024{% endif %}") == "26 Jul 2024"
    with pytest.raises(InvalidData, match="strftime_now"):
        rendered("{{ strftime_now('%d') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ range(1000000000) }}",
        "{{ messages[0].content.missing.deeper }}",
        "{{ 1 // 0 }}",
        "{% include 'other' %}",
    ],
)
def test_what_a_template_may_not_do_is_a_clear_error(source: str) -> None:
    check_template(source)
    with pytest.raises(InvalidData, match="cannot take these messages"):
        rendered(source)


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("ok\n{% for %}", "line 2"),
        ("{% generation %}open", "line 1"),
        ("{{" + "(" * 5000, "compiled"),
    ],
)
def test_what_is_not_a_template_is_a_clear_error(source: str, where: str) -> None:
    with pytest.raises(InvalidData, match=where):
        check_template(source)


def test_an_unknown_filter_is_found_when_it_is_rendered() -> None:
    with pytest.raises(InvalidData, match="line 1"):
        rendered("{{ x | nofilter }}")


@pytest.mark.timeout(20)
def test_checking_a_template_evaluates_nothing() -> None:
    """Compiling would: Jinja folds constants."""
    check_template("{{ 9 ** (9 ** 9) }}")


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": "hello"}]
    rendered("{% set messages = messages[1:] %}{{ messages | length }}", messages)
    assert messages == [{"role": "user", "content": "hello"}]


def test_importing_templates_loads_nothing_heavy() -> None:
    code = "import sys, cdvft.templates; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
