"""Which keys an adapter_config.json may have: every one is read, known to be without effect, or refused by name."""

import re
from collections.abc import Mapping
from typing import Any

from cdvft.errors import InvalidAdapter
from cdvft.files import CONFIG_NAME
from cdvft.methods.values import short

__all__ = ["check_options"]

# read by cdvft.checkpoint, cdvft.targets and cdvft.headfile
READ = frozenset(
    "peft_type task_type target_modules exclude_modules layers_to_transform layers_pattern modules_to_save "
    "labels problem_type head max_length base_digest".split()
)
# PEFT's bookkeeping, and settings of options that are refused when they are used: they say nothing about the answer
BOOKKEEPING = frozenset("base_model_name_or_path revision inference_mode auto_mapping peft_version".split())
BOOKKEEPING |= {"megatron_core", "qalora_group_size"}
TRAINING_ONLY = re.compile(r"init_.*|d_initial|(.*_)?dropout(_.*)?")
# values that mean "not used" though they are not empty
NEUTRAL = {"bias": "none"}
UNSUPPORTED = {
    "use_dora": "DoRA is not supported; train without it",
    "use_qalora": "QALoRA is not supported; train without it",
    "use_bdlora": "block-diagonal LoRA is not supported; train without it",
    "fan_in_fan_out": "transposed layers (fan_in_fan_out, Conv1D) are not supported; it must be false",
    "bias": 'trained biases are not supported; it must be "none"',
    "target_parameters": "adapters on bare parameters are not supported; target linear layers",
    "layer_replication": "replicated layers are not supported; the base is served as it is",
    "trainable_token_indices": "trained tokens are not supported; adapters change linear layers only",
}


def check_options(config: Mapping[str, Any], method_keys: frozenset[str]) -> None:
    """Raises InvalidAdapter for a key that is neither known, nor training-only, nor empty (null, false, "", [], {})."""
    for key, value in config.items():
        if key in READ or key in BOOKKEEPING or key in method_keys:
            continue
        if _is_empty(value) or TRAINING_ONLY.fullmatch(key) or NEUTRAL.get(key) == value:
            continue
        if key in UNSUPPORTED:
            raise InvalidAdapter(f"{CONFIG_NAME}: {key} is {short(value)}: {UNSUPPORTED[key]}")
        known = ", ".join(sorted(READ | method_keys))
        raise InvalidAdapter(f"{CONFIG_NAME}: unknown option {key[:200]!r} = {short(value)}; known: {known}")
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise InvalidAdapter(f"{CONFIG_NAME}: base_model_name_or_path must be a string, it is {short(base)}")


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})
