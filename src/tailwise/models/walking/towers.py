"""The tower of a model that text goes through: of a composite model, what is beside its images and sounds."""

from __future__ import annotations

from typing import Any

from torch import nn


def text_config_of(config: Any) -> Any:
    """The config of the part that reads text: the config itself where the model has one part."""
    ask = getattr(config, "get_text_config", None)
    if ask is None or getattr(config, "is_encoder_decoder", False):
        return config
    try:
        return ask()
    except ValueError:  # several that might be
        return config


def is_composite(config: Any) -> bool:
    """Whether the model has a tower for text and others beside it."""
    return text_config_of(config) is not config


def vision_tower(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and module of the part that reads images, of a model that reads text beside; None where it has none."""
    config = getattr(model, "config", None)
    own = getattr(config, "vision_config", None)
    if own is None or not is_composite(config):
        return None
    for name, module in model.named_modules():
        if name and (getattr(module, "config", None) is own or type(getattr(module, "config", None)) is type(own)):
            return name, module
    return None


def text_tower(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the part that reads text: `""` and the model itself where it has one part."""
    config = getattr(model, "config", None)
    if config is None or not is_composite(config):
        return "", model
    text = text_config_of(config)
    for name, module in model.named_modules():
        own = getattr(module, "config", None)
        if name and (own is text or type(own) is type(text)):
            return name, module
    return "", model
