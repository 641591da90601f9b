"""Which format a weight file really has: a name can lie, and a pickle can run code."""

import pathlib
import re
import zipfile

from glomjax.errors import UserError, named

# The ways out.
_TORCH = (
    ", which can run code when it is read: where you trust it, load it with PyTorch and convert it "
    "to .safetensors (safetensors.torch.save_file of the network's state_dict)"
)
KERAS_3 = (
    ", which numbers its layers and does not hold their names, by which weights are matched: load "
    "it with Keras and save the whole model as .h5 (model.save('NAME.h5'))"
)
_EXPORT = (
    ", which holds a program and not the tensors under their names: save the weights of the "
    "network that it was made from as .safetensors, or a Keras model as .h5"
)
_UNPACK = ": unpack it, and name the weight file in it"
_AGAIN = "; fetch it again, or name another"

# How files begin, as regular expressions, and what they are.
_BEGINNINGS = {
    rb"version https://git-lfs": "is a Git LFS pointer, which stands in for the file: fetch the "
    "file itself with `git lfs pull`",
    rb"\S*/annex/objects/": "is a git-annex pointer, which stands in for the file: fetch the file "
    "itself with `git annex get`",
    rb"(?i)\s*(<!doctype|<html|<head|<\?xml|<error)": "is a web page, as a server sends in "
    "place of a file that it does not give: download the file itself",
    rb"\s*[{\[]\s*[\"{\[\]}\d]": "is a JSON text (a configuration, or the index of weights in "
    "several files): name the weight file itself, with all weights in it",
    rb"\x80[\2-\5]": f"is a pickle (a PyTorch checkpoint or the like){_TORCH}",
    rb"[\x81-\x8f][\xa1-\xbf\xd9]|\xde..[\xa1-\xbf\xd9]": "is a MessagePack file (of Flax or the "
    "like): load it there, and save its tensors as .safetensors (safetensors.numpy.save_file)",
    rb"\x93NUMPY": "is a NumPy array, one tensor without its name: save all of them, each under "
    "its name, as .safetensors (safetensors.numpy.save_file)",
    rb"....TFL3": f"is a TensorFlow Lite model{_EXPORT}",
    rb"GGUF": "is a GGUF file: name a .safetensors or .h5 file of the network",
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!": f"is a compressed file{_UNPACK}",
    rb".{257}ustar": f"is a tar archive{_UNPACK}",
}
# Formats that nothing at the beginning tells for certain.
_SUFFIXES = {
    ".onnx": f"is named as an ONNX model{_EXPORT}",
    ".pb": f"is named as a TensorFlow model{_EXPORT}",
    ".index": "is named as a part of a TensorFlow checkpoint: load it with Keras and save the "
    "whole model as .h5 (model.save('NAME.h5'))",
}


def format_of(path: pathlib.Path) -> str:
    """ "hdf5" or "safetensors".

    Raises:
      UserError: it has another format; the message says which, and the way out.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    header = int.from_bytes(head[:8], "little")
    # A text may have a brace there, too, but no zero before it.
    if head[8:9] == b"{" and b"\0" in head[:8]:
        if header > size - 8:
            raise UserError(
                f"weight file {path} is damaged or incomplete (its header claims {header} bytes, "
                f"the file has {size}); fetch it again"
            )
        return "safetensors"
    raise UserError(f"weight file {path} {_what_else(path, head)}")


def _what_else(path: pathlib.Path, head: bytes) -> str:
    """What a file is that is neither, and the way out."""
    if not head.strip(b"\0"):
        return ("holds zeros alone" if head else "is empty") + _AGAIN
    if head.startswith(b"PK"):
        return _what_zip(path)
    for pattern, what in _BEGINNINGS.items():
        if re.match(pattern, head, re.DOTALL):
            return what
    suffix = ".index" if ".data-0" in path.name else path.suffix.lower()
    return _SUFFIXES.get(suffix, f"is neither an HDF5 nor a safetensors file{_AGAIN}")


def _what_zip(path: pathlib.Path) -> str:
    """The same of a ZIP archive: PyTorch, Keras and NumPy write such files."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return f"is a damaged or incomplete ZIP archive{_AGAIN}"
    parts = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in parts:
        return f"is a pickle in a ZIP archive (a PyTorch checkpoint){_TORCH}"
    if {"config.json", "model.weights.h5"} <= parts:
        return f"is a Keras model in the format .keras{KERAS_3}"
    if names and all(name.endswith(".npy") for name in names):
        return (
            "is a NumPy archive (.npz): load it with numpy.load, and save its arrays as "
            ".safetensors (safetensors.numpy.save_file)"
        )
    listed = f" of {named(names)}" if names else ""
    return f"is a ZIP archive{listed}{_UNPACK}"
