"""Every setting of a run with its default, its bounds and its sentence, in one room. A TOML job file and the train node fill the same classes."""

from .data import DataConfig
from .job import AS_SET, BY_AUTO, BY_MEMORY, MEASURE, MEMORY, Recompute, TrainConfig
from .kept import CacheConfig, SampleConfig, SaveConfig, ValidationConfig
from .learning import ObjectiveConfig, OptimizerConfig, PriorConfig, ScheduleConfig
from .reading import as_dict, from_values, load, parse
from .settings import MAX_TEXT, ConfigError, check
from .slider import SliderConfig
from .trained import AdapterConfig, EmbeddingConfig, TextEncoderConfig

__all__ = [
    "AS_SET", "BY_AUTO", "BY_MEMORY", "MAX_TEXT", "MEASURE", "MEMORY", "AdapterConfig", "CacheConfig", "ConfigError",
    "DataConfig", "EmbeddingConfig", "ObjectiveConfig", "OptimizerConfig", "PriorConfig", "Recompute", "SampleConfig",
    "SaveConfig", "ScheduleConfig", "SliderConfig", "TextEncoderConfig", "TrainConfig", "ValidationConfig", "as_dict",
    "check", "from_values", "load", "parse",
]  # fmt: skip
