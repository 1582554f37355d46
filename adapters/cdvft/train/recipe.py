"""What differs between methods when they train: their options, their learning rates, and who trains them."""

import math
from collections.abc import Mapping
from typing import Any

from cdvft.backbone import Backbone
from cdvft.errors import CdvftError
from cdvft.methods import method_named
from cdvft.methods.cdvft import fresh_partition_size
from cdvft.site import Site
from cdvft.train.config import TrainConfig
from cdvft.train.native import MethodTrainee
from cdvft.train.tasks import Prepared
from cdvft.train.trainee import Trainee

__all__ = ["check_method", "learning_rates", "make_trainee", "method_specs", "site_specs"]

# method: {option of the command line: (option of the method, default)}; a default of None is chosen by the method
OPTIONS: Mapping[str, Mapping[str, tuple[str, Any]]] = {
    "cdvft": {
        "partition_size": ("partition_size", None),
        "num_factors": ("num_factors", 2),
        "alpha": ("alpha", 1.0),
    },
    "lora": {"rank": ("r", 8), "alpha": ("lora_alpha", None)},
    "fourierft": {"n_frequency": ("n_frequency", 1000), "alpha": ("scaling", 100.0)},
    "sdctft": {"n_frequency": ("n_frequency", 1000), "alpha": ("alpha", 1.0)},
    "waveft": {"n_frequency": ("n_frequency", 1000), "alpha": ("scaling", 25.0)},
    "vera": {"rank": ("r", 256)},
    "lamda": {"rank": ("r", 32), "alpha": ("lora_alpha", None)},
    "c3a": {"partition_size": ("block_size", None)},
}
# peak learning rates for (classify, lm); docs/decisions.md has the sweep
RATES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "cdvft": {"circulant": (1e-2, 3e-2), "diagonal": (1e-2, 3e-2)},
    "lora": {"adapter": (2e-3, 5e-3)},
    "fourierft": {"adapter": (5e-2, 5e-2)},
    "sdctft": {"adapter": (3e-2, 3e-2)},
    "waveft": {"adapter": (5e-4, 5e-4)},
    "vera": {"adapter": (2e-2, 2e-2)},
    "lamda": {"adapter": (6e-3, 6e-3), "early": (6e-4, 6e-4)},
    "c3a": {"adapter": (1e-1, 1e-1)},
}
HEAD_RATE = 3e-3
OURS = frozenset({"cdvft", "sdctft", "lamda"})  # trained by the library itself; the others by PEFT


def check_method(config: TrainConfig) -> None:
    """Raises CdvftError for a method that is not known, and for an option of another method."""
    if config.method not in OPTIONS:
        raise CdvftError(f"--method {config.method} is not known; known: {', '.join(OPTIONS)}")
    every = {name for options in OPTIONS.values() for name in options}
    for name in sorted(every - OPTIONS[config.method].keys()):
        if getattr(config, name) is not None:
            whose = ", ".join(method for method, options in OPTIONS.items() if name in options)
            raise CdvftError(f"--{name.replace('_', '-')} is an option of {whose}, not of --method {config.method}")
    if config.method != "cdvft" and (config.lr_circulant is not None or config.lr_diagonal is not None):
        raise CdvftError(f"--lr-circulant and --lr-diagonal are for cdvft; --method {config.method} has --lr")


def learning_rates(config: TrainConfig) -> dict[str, float]:
    """By kind of vector (`Trainee.kind`), and for the head."""
    given = {"circulant": config.lr_circulant, "diagonal": config.lr_diagonal}
    rates = {}
    for kind, (classify, lm) in RATES[config.method].items():
        default = lm if config.task == "lm" else classify
        own = config.lr if given.get(kind) is None else given[kind]
        if kind == "early" and own is not None:
            own /= 10  # LaMDA's B has singular vectors to lose, sigma begins at zero
        rates[kind] = default if own is None else own
    return rates | {"head": HEAD_RATE if config.lr_head is None else config.lr_head}


def site_specs(config: TrainConfig, sites: set[Site]) -> dict[Site, Any]:
    """Each site's hyper-parameters; None for a method that PEFT trains."""
    return method_specs(config, sites) if config.method in OURS else dict.fromkeys(sorted(sites))


def method_specs(config: TrainConfig, sites: set[Site]) -> dict[Site, Any]:
    """Each site's hyper-parameters, whoever trains it."""
    method, options = method_named(config.method), _options(config, sites)
    if config.method == "cdvft" and config.partition_size is None:
        return {site: method.spec({**options, "partition_size": fresh_partition_size(site)}, site) for site in sites}
    return {site: method.spec(options, site) for site in sites}


def make_trainee(config: TrainConfig, backbone: Backbone, prepared: Prepared) -> Trainee:
    """The base with a fresh adapter of the config's method in its layers."""
    if config.method in OURS:
        return MethodTrainee(backbone, prepared.spec, config.seed, prepared.scale, prepared.shift)
    from cdvft.train.peft_methods import PeftTrainee

    options = _options(config, set(prepared.spec.sites))
    if config.method == "vera":
        options["save_projection"] = False  # drawn from the key, and frozen in a file of ours
    return PeftTrainee(backbone, prepared.spec, config.seed, options, scale=prepared.scale, shift=prepared.shift)


def _options(config: TrainConfig, sites: set[Site]) -> dict[str, Any]:
    chosen = {}
    for name, (option, default) in OPTIONS[config.method].items():
        value = getattr(config, name)
        chosen[option] = default if value is None else value
    if config.method == "lora" and chosen["lora_alpha"] is None:
        chosen["lora_alpha"] = 2 * chosen["r"]
    if config.method == "c3a" and chosen["block_size"] is None:
        chosen["block_size"] = math.gcd(*(size for site in sites for size in (site.d_in, site.d_out)))
    return chosen
