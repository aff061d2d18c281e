"""`throughtime import FILE`: the recurrent layers of another's file as ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from throughtime.cli import Commands

READERS: Final = {
    ".onnx": "from_onnx", ".keras": "from_keras", ".h5": "from_keras", ".hdf5": "from_keras",
    ".msgpack": "from_flax", ".safetensors": "from_safetensors",
}  # fmt: skip
"""By how a file's name ends: the function of throughtime.export that reads it."""


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("import", import_layers)
    parser.add_argument(
        "file", type=Path, metavar="FILE",
        help="Of ONNX, Keras (.keras, .h5), safetensors, or Flax (.msgpack).",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="The folder.")


def import_layers(file: Path, out: Path) -> None:
    """Read the recurrent layers of a file: DIR/layers.py builds them, weights in DIR/weights.npz.

    Prints each layer as FILE.py:NAME, what `throughtime export` takes, and what it is.
    """
    from throughtime import export
    from throughtime.errors import OptionError
    from throughtime.export.operators import write_layers

    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise OptionError(f"file must end in one of {', '.join(READERS)}, got {file.name!r}")
    layers = getattr(export, reader)(file)
    names = write_layers(layers, out, file.name)
    for word, name in names.items():
        print(f"{out / 'layers.py'}:{name}\t{layers[word]!r}")
