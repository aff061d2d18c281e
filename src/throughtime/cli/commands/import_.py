"""`throughtime import FILE.onnx`: the recurrent layers of another's file as ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughtime.cli.app import Commands


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("import", import_layers)
    parser.add_argument("file", type=Path, metavar="FILE.onnx", help="A file of ONNX.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="The folder.")


def import_layers(file: Path, out: Path) -> None:
    """Read the recurrent layers of a file: DIR/layers.py builds them, weights in DIR/weights.npz.

    Prints each layer as FILE.py:NAME, what `throughtime export` takes, and what it is.
    """
    from throughtime.export import from_onnx
    from throughtime.export.folder import write_layers

    layers = from_onnx(file)
    names = write_layers(layers, out, file.name)
    for word, name in names.items():
        print(f"{out / 'layers.py'}:{name}\t{layers[word]!r}")
