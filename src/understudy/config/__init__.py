"""The typed config of a run, written as a YAML file, as ``key=value`` arguments or as Python keywords.

Reading a config imports neither torch nor other parts of the package than ``text`` and ``errors``.
"""

from understudy.config.describing import commented_yaml
from understudy.config.distillation import DistillConfig, scale_of_teacher
from understudy.config.keys import (
    DataConfig,
    DetectorConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from understudy.config.left_open import LEFT_OPEN, filled_from, has, open_keys, value_of, with_values
from understudy.config.merging import Source, dump_config, load_config
from understudy.config.paths import flat

__all__ = [
    "LEFT_OPEN",
    "DataConfig",
    "DetectorConfig",
    "DistillConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "Source",
    "TrainConfig",
    "commented_yaml",
    "dump_config",
    "filled_from",
    "flat",
    "has",
    "load_config",
    "open_keys",
    "scale_of_teacher",
    "value_of",
    "with_values",
]
