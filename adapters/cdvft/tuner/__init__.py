"""CDVFT inside PEFT: `get_peft_model(model, CDVFTConfig(...))`, and everything that follows from it there.

Importing this package registers the method; a saved adapter loads (`PeftModel.from_pretrained`, the `AutoPeftModel`
classes) once it was imported.
"""

from cdvft.tuner.config import CDVFTConfig
from cdvft.tuner.layer import CDVFTLinear
from cdvft.tuner.model import CDVFTModel
from cdvft.tuner.registry import register

__all__ = ["CDVFTConfig", "CDVFTLinear", "CDVFTModel"]

register("cdvft", CDVFTConfig, CDVFTModel)
