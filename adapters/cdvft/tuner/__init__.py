"""CDVFT, sDCTFT and LaMDA inside PEFT: `get_peft_model(model, CDVFTConfig(...))`, and what follows from it there.

Importing this package registers the methods; a saved adapter loads (`PeftModel.from_pretrained`, the `AutoPeftModel`
classes) once it was imported.
"""

from cdvft.tuner.config import CDVFTConfig, LaMDAConfig, SDCTFTConfig
from cdvft.tuner.layer import CDVFTLinear, LaMDALinear, SDCTFTLinear
from cdvft.tuner.model import CDVFTModel, LaMDAModel, SDCTFTModel
from cdvft.tuner.registry import register

__all__ = [
    "CDVFTConfig",
    "CDVFTLinear",
    "CDVFTModel",
    "LaMDAConfig",
    "LaMDALinear",
    "LaMDAModel",
    "SDCTFTConfig",
    "SDCTFTLinear",
    "SDCTFTModel",
]

register("cdvft", CDVFTConfig, CDVFTModel)
register("sdctft", SDCTFTConfig, SDCTFTModel)
register("lamda", LaMDAConfig, LaMDAModel)
