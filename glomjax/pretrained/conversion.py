"""Any weight source as one file of ours.

print(convert_weights("runs/davit", "davit.safetensors"))
"""

import os
import pathlib

from glomjax.errors import UserError, named
from glomjax.pretrained.reading import read_weights
from glomjax.pretrained.sources import name_of
from glomjax.pretrained.weight_file import write_weights


def convert_weights(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> str:
    """Writes the weights of `source`, all of them and bit for bit, as our `.safetensors` file.

    Args:
      source: what `load_weights` takes.
      out: the file to write; it must not exist.

    Returns:
      One line on what was written; its sha256 is that of the file.

    Raises:
      UserError: a source that cannot be read or holds tensors that are none of ours, or an `out`
        that exists, has another suffix or cannot be written.
      WeightsUnavailable: a published id that is not cached and cannot be downloaded.
    """
    target = pathlib.Path(out).expanduser()
    # Before the source is read, which may mean a download.
    if target.suffix != ".safetensors":
        raise UserError(f"output {str(out)!r} must end in .safetensors")
    if not os.path.isdir(target.parent):
        raise UserError(
            f"output {str(out)!r} cannot be written: the folder '{target.parent}' does not exist"
        )
    if os.path.lexists(target):
        raise UserError(f"output {str(out)!r} exists already; remove it or name another file")
    params, info = read_weights(source)
    if info.unknown:
        raise UserError(
            f"{source} holds {len(info.unknown)} tensors that are none of ours "
            f"({named(info.unknown)}), so '{out}' was not written: a part of a network is no "
            "network; name the file of one that glomjax has"
        )
    write_weights(
        target,
        params,
        info.spec,
        source=name_of(source, info.sha256),
    )
    written = read_weights(target)[1]
    count = sum(value.size for value in params.values())
    return (
        f"wrote {out}: {len(params)} tensors, {count:,} parameters of {source} "
        f"(model {info.model or 'unnamed'}, preset {info.preset or 'unnamed'}, "
        f"sha256 {written.sha256[:12]})"
        + (f"; {info.unfinished} were written" if info.unfinished else "")
    )
