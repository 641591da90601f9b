"""Pretrained weights: where they come from and how they become ours."""

from glomjax.pretrained.conversion import convert_weights
from glomjax.pretrained.loading import LoadReport, load_weights, select_weights
from glomjax.pretrained.reading import SourceInfo, read_weights
from glomjax.pretrained.sources import (
    CITATION,
    PUBLISHED,
    Published,
    WeightsUnavailable,
    default_source,
    name_of,
    resolve,
)
from glomjax.pretrained.weight_file import write_weights

__all__ = [
    "CITATION",
    "PUBLISHED",
    "LoadReport",
    "Published",
    "SourceInfo",
    "WeightsUnavailable",
    "convert_weights",
    "default_source",
    "load_weights",
    "name_of",
    "read_weights",
    "resolve",
    "select_weights",
    "write_weights",
]
