"""What can be wrong with an adapter, a base or a training file; messages name what was wrong and what is right."""

__all__ = ["CdvftError", "InvalidAdapter", "InvalidData", "TooLarge", "UnsupportedBase"]


class CdvftError(ValueError):
    """Base of the library's errors."""


class InvalidAdapter(CdvftError):
    """A checkpoint that can be read but not served: tensors, shapes, options, labels, another base."""


class TooLarge(InvalidAdapter):
    """A checkpoint beyond a stated limit; the message names the limit."""


class InvalidData(CdvftError):
    """Training or evaluation data, or text for a template, that cannot be used as it is."""


class UnsupportedBase(CdvftError):
    """A base model with a feature that the packed forward does not implement, or an incomplete one."""
