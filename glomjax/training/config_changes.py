"""How a configuration differs from the one with which a run, or a cross-validation, has begun."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from glomjax.files import flatten
from glomjax.training.config import MAY_DIFFER, RunConfig

# Runs of the first versions stored no defaults: {field: its default then} of what changed since.
# Whoever changes a default adds a line here.
_OLD_DEFAULTS: dict[str, Any] = {
    "preprocessing": "imagenet",
    "learning_rate": 1e-3,
    "freeze.regime": "full",
}

# A configuration that comes with the package: its name with its mode, and what it gives.
ShippedConfig = tuple[str, ConfigDict]


def changes(
    before: RunConfig, stored: Any, requested: RunConfig, shipped: ShippedConfig | None
) -> tuple[dict[str, str], dict[str, str]]:
    """({field: what it was and is now}, the same of fields whose default alone has changed).

    Args:
      before: what was requested first.
      stored: the defaults of that time, as `defaults_of` gave them; None of the first versions.
      requested, shipped: as for `RunFolder.claim`.
    """
    was, now = (flatten(config.settle().to_dict()) for config in (before, requested))
    was_said, now_said = (flatten(config.to_dict()) for config in (before, requested))
    today = defaults_of(shipped)
    stored = stored if isinstance(stored, dict) else {"package": _OLD_DEFAULTS}
    pairs = [(flatten(stored.get("package", {})), flatten(today["package"]))]
    if shipped is not None and stored.get("configuration") == shipped[0]:
        pairs.append((flatten(stored.get("fields", {})), flatten(today["fields"])))
    changed, kept = dict[str, str](), dict[str, str]()
    for key in sorted(was.keys() | now.keys()):
        old, new = was.get(key, "nothing"), now.get(key, "nothing")
        if old == new or _is_demo_of(key, now):
            continue
        by_default = any(
            key in then and (then[key], default.get(key)) == (was_said.get(key), now_said.get(key))
            for then, default in pairs
        )
        (kept if by_default else changed)[key] = f"{key} was {old!r}, now {new!r}"
    return changed, kept


def updated(config: RunConfig, then: RunConfig, requested: RunConfig) -> RunConfig:
    """A configuration with what may differ between the parts of a run as it is requested now, where
    that has changed since then."""
    now, before = flatten(requested.to_dict()), flatten(then.to_dict())
    fields = config.to_dict()
    for key in MAY_DIFFER:
        if now[key] == before.get(key):
            continue
        *sections, field = key.split(".")
        part = fields
        for section in sections:
            part = part[section]
        part[field] = now[key]
    return RunConfig.from_dict(fields)


def defaults_of(shipped: ShippedConfig | None) -> dict[str, Any]:
    """As `config.json` has them: those of the package, and of the configuration in it."""
    defaults: dict[str, Any] = {"package": RunConfig().to_dict()}
    if shipped is not None:
        name, config = shipped
        fields = RunConfig.from_dict(config.to_dict()).to_dict()
        defaults |= {"configuration": name, "fields": fields}
    return defaults


def _is_demo_of(key: str, requested: Mapping[str, Any]) -> bool:
    """Whether a field is one of `demo` that tells nothing of this run: it trains on other data, or
    the field that it stands for says the same."""
    section, _, name = key.partition(".")
    if section != "demo" or name == "num_epochs":
        return False
    small = (requested["data.source"], requested["data.synthetic_size"]) == ("synthetic", "demo")
    return not small or requested[key] == requested[name]
