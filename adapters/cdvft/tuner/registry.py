"""PEFT's registry takes methods that its own PeftType enum knows; this makes one more known."""

from typing import Any

from peft.utils import PeftType, register_peft_method

__all__ = ["peft_type", "register"]


def peft_type(name: str) -> Any:
    """The enum member of this name, added where PEFT has none: plain strings as registry keys break elsewhere."""
    name = name.upper()
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_, member._value_ = name, name
        type.__setattr__(PeftType, name, member)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
    return PeftType[name]


def register(name: str, config_class: type, model_class: type) -> None:
    """Make PEFT's factories and loaders know the method. Raises KeyError where somebody else registered the name."""
    peft_type(name)
    register_peft_method(name=name, config_cls=config_class, model_cls=model_class)
