"""Where glomjax keeps what it can make or download again."""

import os
import pathlib


def cache_dir(name: str) -> pathlib.Path:
    """The cache folder for `name`, such as "synthetic" or "weights"; it need not exist yet.

    It lies in the folder named by the environment variable GLOMJAX_CACHE, else in
    `$XDG_CACHE_HOME/glomjax`, else in `~/.cache/glomjax`.
    """
    own = os.environ.get("GLOMJAX_CACHE", "")
    if own:
        return pathlib.Path(own).expanduser() / name
    shared = os.environ.get("XDG_CACHE_HOME", "") or "~/.cache"
    return pathlib.Path(shared).expanduser() / "glomjax" / name
