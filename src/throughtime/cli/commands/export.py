"""`throughtime export WHAT --to FORM`: a trained model as native code, with its own test.

And `throughtime import FILE`: the recurrent layers of another's file as ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import nn

import throughtime
from throughtime.errors import OptionError
from throughtime.tasks.recipe import execute, one_of, report_line

if TYPE_CHECKING:
    from throughtime.cli import Commands, Parser

FORMS = ("c", "object", "onnx")
READERS: Final = {
    ".onnx": "from_onnx", ".keras": "from_keras", ".h5": "from_keras", ".hdf5": "from_keras",
    ".msgpack": "from_flax", ".safetensors": "from_safetensors",
}  # fmt: skip
"""By how a file's name ends: the function of throughtime.export that reads it."""


def register(commands: Commands) -> None:
    """Adds the commands."""
    parser = commands.add("export", export)
    parser.add_argument(
        "what", metavar="RUN|FILE.py:NAME",
        help="The folder of a finished run; or a model, or a function that gives one, in a file.",
    )  # fmt: skip
    parser.add_argument("--to", required=True, metavar="|".join(FORMS), help="What to write.")
    parser.add_argument(
        "--target", metavar="NAME",
        help="Of an object: x86-64-v3, x86-64-v4, aarch64, cortex-m4f, cortex-m55, riscv64 or "
        "wasm32.",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("."), metavar="DIR", help="The folder. Default: here."
    )
    parser.add_argument(
        "--name", default="net", metavar="NAME", help="What all names begin with. Default: net."
    )
    _add_ways(parser)
    parser = commands.add("import", import_layers)
    parser.add_argument(
        "file", type=Path, metavar="FILE",
        help="Of ONNX, Keras (.keras, .h5), safetensors, or Flax (.msgpack).",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="The folder.")


def _add_ways(parser: Parser) -> None:
    """How it is written."""
    parser.add_argument(
        "--weights", default="float32", metavar="KIND",
        help="float32, bfloat16 or int8; sums are float32 always. Default: float32.",
    )  # fmt: skip
    text = "Of C and objects: NAME_run multiplies the inputs of N steps at once. Default: 1."
    parser.add_number("--block", 1, text, "N")
    parser.add_number("--opset", 22, "Of ONNX's operators. Default: 22.", "N")
    parser.add_argument(
        "--no-libm", dest="libm", action="store_false", help="C that calls nothing of libm."
    )
    parser.add_argument(
        "--measure", action="store_true",
        help="Build the test with the compiler found, run it, and tell error, bytes and time.",
    )  # fmt: skip


def export(
    what: str, to: str, target: str | None, out: Path, name: str, weights: str, block: int,
    opset: int, libm: bool, measure: bool,
) -> None:  # fmt: skip
    """Write a trained model as code that takes one time step a call, with its own test."""
    one_of("to", to, FORMS)
    if (target is not None) != (to == "object"):
        raise OptionError("--target is asked of --to object, and of nothing else; see --help")
    file, _, member = what.rpartition(":")
    with report_line(Path(file) if file.endswith(".py") else None):
        model = _load_model(what, file, member)
        if block != 1 and to == "onnx":
            raise OptionError("--block is for --to c and --to object; ONNX has whole sequences")
        if to == "onnx":
            _check_onnx(weights, measure)
            out.mkdir(parents=True, exist_ok=True)
            print(throughtime.export.to_onnx(model, out / f"{name}.onnx", opset=opset))
            return
        if target is None:
            done = throughtime.export.to_c(
                model, out, name=name, weights=weights, libm=libm, block=block
            )
        else:
            done = throughtime.export.to_object(
                model, out, target=target, name=name, weights=weights, block=block
            )
    print("\n".join(str(done.folder / one) for one in done.files))
    if measure:
        show_measured(done)


def _check_onnx(weights: str, measure: bool) -> None:
    """A file of ONNX has float32 weights, and no test of its own."""
    if weights != "float32" or measure:
        option = "--measure" if measure else "--weights"
        raise OptionError(f"{option} is for --to c and --to object; a file of ONNX has none")


def show_measured(done: Any) -> None:
    """Prints what the export's own test says here."""
    figures = throughtime.export.measure(done)
    print(
        f"{'passed' if figures.passed else 'FAILED'}: largest error {figures.error:.3g}, "
        f"allowed {figures.allowed:.3g}\n"
        f"code {figures.code_bytes} bytes, weights {done.weight_bytes}, "
        f"a state {done.state_bytes}, stack {done.work_bytes}\n"
        f"{figures.step_nanoseconds:.1f} ns a step, built by {figures.compiler}"
    )


def _load_model(what: str, file: str, member: str) -> nn.Module:
    """The model of a run, or the one that a file defines."""
    if not file.endswith(".py"):
        return throughtime.load(what).model
    value: Any = getattr(execute(Path(file)), member, None)
    if callable(value) and not isinstance(value, nn.Module):
        value = value()
    if not isinstance(value, nn.Module):
        raise OptionError(
            f"{what} must name a torch.nn.Module, or a function that gives one, "
            f"got {type(value).__name__}"
        )
    return value


def import_layers(file: Path, out: Path) -> None:
    """Read the recurrent layers of a file: DIR/layers.py builds them, weights in DIR/weights.npz.

    Prints each layer as FILE.py:NAME, what `throughtime export` takes, and what it is.
    """
    from throughtime.export.operators import write_layers

    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise OptionError(f"file must end in one of {', '.join(READERS)}, got {file.name!r}")
    layers = getattr(throughtime.export, reader)(file)
    names = write_layers(layers, out, file.name)
    for word, name in names.items():
        print(f"{out / 'layers.py'}:{name}\t{layers[word]!r}")
