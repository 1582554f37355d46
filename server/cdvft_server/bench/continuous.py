"""transformers' own continuous batching, where this version has it for the base."""

from typing import Any

from transformers import GenerationConfig

from cdvft_server.bench.loads import Load
from cdvft_server.bench.padded import Plain

__all__ = ["Unavailable", "generate_continuously"]

PAGE = 256  # tokens of a block
NO_TOKEN = -1  # nothing ends an answer before its length


class Unavailable(RuntimeError):
    """It is not there, or it does not do this work."""


def generate_continuously(plain: Plain, load: Load) -> None:
    """The whole load by `generate_batch`, in a cache of its size; its thread starts and ends with each call.

    Raises Unavailable with the reason.
    """
    model = plain.wrapped
    if load.sampling is None or not hasattr(model, "generate_batch"):
        raise Unavailable("this version of transformers does not have it for this base")
    tokens = load.sampling.max_tokens
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=NO_TOKEN, pad_token_id=0)
    try:
        answers = model.generate_batch(list(load.prompts), config, continuous_batching_config=_sizes(load))
    except Exception as error:  # of many kinds: all mean that there is nothing to compare with
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    done = sum(len(answer.generated_tokens) == tokens for answer in answers.values())
    if done != len(load.prompts):
        raise Unavailable(f"{done} of {len(load.prompts)} answers came whole")


def _sizes(load: Load) -> Any:
    """Blocks for all requests at once."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    new = load.sampling.max_tokens if load.sampling else 0
    blocks = sum(-(-(len(ids) + new) // PAGE) for ids in load.prompts) + 1
    return ContinuousBatchingConfig(page_size=PAGE, num_blocks=blocks, max_batch_tokens=2048)
