"""The registry of adapter methods: a new method is one file and one line here."""

from typing import Any

from cdvft.errors import InvalidAdapter
from cdvft.methods.base import Method
from cdvft.methods.c3a import C3a
from cdvft.methods.cdvft import Cdvft
from cdvft.methods.fourierft import FourierFt
from cdvft.methods.lamda import Lamda
from cdvft.methods.lora import Lora
from cdvft.methods.sdctft import Sdctft
from cdvft.methods.vera import Vera
from cdvft.methods.waveft import WaveFt

__all__ = ["METHODS", "Method", "method_for_peft_type", "method_named"]

METHODS: tuple[Method[Any], ...] = (
    Cdvft(),
    Lora(),
    C3a(),
    FourierFt(),
    Sdctft(),
    Vera(),
    Lamda(),
    WaveFt(),
)


def method_named(name: str) -> Method[Any]:
    """The method of this name. Raises InvalidAdapter listing those that exist."""
    for method in METHODS:
        if method.name == name:
            return method
    raise InvalidAdapter(f"method {name!r} is not known; known: {', '.join(m.name for m in METHODS)}")


def method_for_peft_type(peft_type: object) -> Method[Any]:
    """The method of adapter_config.json's `peft_type`. Raises InvalidAdapter listing those that exist."""
    for method in METHODS:
        if method.peft_type == peft_type:
            return method
    known = ", ".join(m.peft_type for m in METHODS)
    raise InvalidAdapter(f"adapter_config.json: peft_type {peft_type!r} is not supported; supported: {known}")
