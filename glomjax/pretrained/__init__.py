"""Pretrained weights: where they come from and how they become ours."""

from glomjax.pretrained.conversion import convert_weights
from glomjax.pretrained.loading import LoadReport, load_weights
from glomjax.pretrained.native import write_weights
from glomjax.pretrained.reading import SourceInfo, read_weights
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
    "convert_weights",
    "default_source",
    "load_weights",
    "read_weights",
    "resolve",
    "write_weights",
]
