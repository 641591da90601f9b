"""Pretrained weights: where they come from and how they become ours."""

from glomjax.pretrained.loading import (
    LoadReport,
    SourceInfo,
    load_weights,
    read_weights,
)
from glomjax.pretrained.native import write_weights
from glomjax.pretrained.sources import (
    PUBLISHED,
    Published,
    WeightsUnavailable,
    default_source,
    resolve,
)

__all__ = [
    "PUBLISHED",
    "LoadReport",
    "Published",
    "SourceInfo",
    "WeightsUnavailable",
    "default_source",
    "load_weights",
    "read_weights",
    "resolve",
    "write_weights",
]
