"""What cannot leave is refused by name, in one sentence with the reason."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.export.built import need, test_of
from throughtime import LSTM, Gate, Readout, Recurrent, cells, export
from throughtime.cli import main
from throughtime.errors import NotFiniteError, OptionError
from throughtime.export import to_c


class Own(nn.Module):
    """A module with code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = LSTM(1, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


class Changed(LSTM):
    """A layer with code of its own."""


def hooked() -> nn.Module:
    model = nn.Sequential(LSTM(1, 2))
    model[0].register_forward_hook(lambda *_: None)
    return model


def hooked_before() -> nn.Module:
    model = nn.Sequential(LSTM(1, 2))
    model[0].register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    return model


def not_a_number() -> nn.Module:
    model = LSTM(1, 2)
    with torch.no_grad():
        model.bias_ih_l0[1] = float("nan")
    return model


def sorted_units(x: torch.Tensor) -> torch.Tensor:
    return torch.sort(x).values


REFUSED: dict[str, tuple[Any, str]] = {
    "bidirectional": (
        lambda: nn.Sequential(LSTM(1, 2, bidirectional=True)),
        "0 is bidirectional and needs the whole sequence, and an exported program has one step at "
        "a time; build it with bidirectional=False",
    ),
    "dilated": (
        lambda: Recurrent(cells.GRU(), 1, 2, dilation=2),
        "the model is dilated and keeps no old states, so no exported program can run it; use "
        "dilation=1",
    ),
    "hook": (hooked, "0 has hooks, which no exported program runs; remove them first"),
    "hook before": (
        hooked_before, "0 has hooks, which no exported program runs; remove them first"
    ),
    "no numbers": (
        lambda: LSTM(1, 2, device="meta"),
        "a model to export must have its numbers, and weight_ih_l0 is on the device meta; load its "
        "weights first",
    ),
    "own": (
        Own,
        "the model is a Own with code of its own, which an export does not follow; build it of "
        "torch.nn.Sequential, or give it a method plain_stack() that returns its parts in order",
    ),
    "changed": (
        lambda: Changed(1, 2),
        "the model is a Changed with code of its own, which an export does not follow; use the "
        "layer it is built on",
    ),
    "double": (
        lambda: LSTM(1, 2).double(),
        "exported programs compute in float32, got torch.float64 in weight_ih_l0; convert the "
        "model with model.float()",
    ),
    "embedding late": (
        lambda: nn.Sequential(nn.Linear(1, 2), nn.Embedding(2, 2)),
        "1 is an embedding after other parts; an exported program looks up its input alone, so "
        "it must come first",
    ),
    "widths": (
        lambda: nn.Sequential(LSTM(1, 2), Readout(3, 1)),
        "1.network takes 3 numbers, and the part before it gives 2",
    ),
    "empty": (nn.Sequential, "a model to export must have at least one part, got an empty one"),
    "no width": (
        lambda: nn.Sequential(nn.Tanh(), LSTM(1, 2)),
        "0 comes first and does not say how many numbers it takes; let a layer or a linear part "
        "come first",
    ),
    "no rule": (
        lambda: nn.Sequential(LSTM(1, 2), Readout(2, 2, activation=sorted_units)),
        "sorted_units cannot be exported: sort has no rule",
    ),
    "a gate's network": (
        lambda: nn.Sequential(nn.Linear(1, 2), Gate(2, nn.Linear(2, 1))),
        "a gate's network must give 2 numbers, got 1",
    ),
    "direct inputs behind": (
        lambda: nn.Sequential(nn.Linear(1, 2), Recurrent(cells.GRUD(), 2, 3)),
        "1 reads direct inputs, so it must be the model's first layer",
    ),
    "a dimension from the front": (
        lambda: nn.Sequential(LSTM(1, 2), nn.Softmax(1)),
        "Softmax(dim=1) cannot be exported: it mixes steps or rows of a batch, or changes their "
        "shape; dimensions must be counted from the end, as in dim=-1",
    ),
    "a dimension that is none": (
        lambda: nn.Sequential(LSTM(1, 2), nn.Softmax(5)),
        "Softmax(dim=5) cannot be exported: it cannot be followed (Dimension out of range "
        "(expected to be in range of [-2, 1], but got 5))",
    ),
    "a norm of two dimensions": (
        lambda: nn.Sequential(LSTM(1, 2), nn.LayerNorm((3, 2))),
        "1 must normalise the units of a step alone, got LayerNorm((3, 2), eps=1e-05, "
        "elementwise_affine=True, bias=True)",
    ),
    "two orders": (
        lambda: nn.Sequential(LSTM(1, 2, batch_first=True), LSTM(2, 2)),
        "all layers of a model to export must have the same batch_first, got some with True and "
        "some with False",
    ),
    "no module": (lambda: 3, "model must be a torch.nn.Module, got int"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_leave(case: str, tmp_path: Path) -> None:
    make, said = REFUSED[case]
    with pytest.raises((OptionError, TypeError)) as found:
        to_c(make(), tmp_path)
    assert str(found.value) == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ["hook", "hook before", "no numbers", "own", "changed"])
@pytest.mark.parametrize("form", ["to_onnx", "to_keras", "to_flax"])
def test_other_forms_refuse_the_same(form: str, case: str, tmp_path: Path) -> None:
    make, said = REFUSED[case]
    pytest.importorskip("onnx" if form == "to_onnx" else "h5py")
    if form == "to_flax" and case in ("hook", "hook before", "own"):
        pytest.skip("it takes a layer alone")
    with pytest.raises(OptionError, match=re.escape(said)):
        getattr(export, form)(make(), tmp_path / "net.keras")


def test_a_computed_weight_of_torchs_own_hook_is_taken(tmp_path: Path) -> None:
    import warnings

    layer = LSTM(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(layer, "weight_hh_l0")
    to_c(layer, tmp_path)
    assert test_of(tmp_path, need("gcc", "gcc"), "-O1").startswith("PASS")


def test_a_weight_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="bias_ih_l0 must be finite numbers, got NaN or inf"):
        to_c(not_a_number(), tmp_path)


@pytest.mark.parametrize("name", ["", "2net", "a-b", "int", "class", "a__b", "_x", "é", "n" * 41])
def test_a_name_that_is_no_identifier(name: str, tmp_path: Path) -> None:
    said = rf"name must be an identifier of C and C\+\+ .* got {re.escape(repr(name))}; say, net"
    with pytest.raises(OptionError, match=said):
        to_c(LSTM(1, 2), tmp_path, name=name)


def test_weights_of_another_kind(tmp_path: Path) -> None:
    said = "weights must be one of float32, bfloat16, int8, got 'int4'"
    with pytest.raises(OptionError, match=said):
        to_c(LSTM(1, 2), tmp_path, weights="int4")


FILE = """
import torch
from throughtime import LSTM, Readout

model = torch.nn.Sequential(LSTM(1, 4), Readout(4, 1))


def both():
    return LSTM(1, 2, bidirectional=True)


number = 3
"""


def test_the_command_writes_measures_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nets.py"
    file.write_text(FILE)
    words = ["export", f"{file}:model", "--to", "c", "--out", str(tmp_path / "c"), "--name", "knob"]
    assert main([*words, "--measure"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"passed: largest error \S+, allowed \S+\n"
        r"code \d+ bytes, weights 404, a state 32, stack \d+\n"
        r"\S+ ns a step, built by \S+\n$",
        said,
    )
    assert (tmp_path / "c" / "knob.h").exists()
    for what, to, wanted in (
        (f"{file}:both", "c", "the model is bidirectional"),
        (f"{file}:number", "c", "must name a torch.nn.Module, or a function that gives one"),
        (f"{file}:model", "pascal", "to must be one of c"),
    ):  # fmt: skip
        assert main(["export", what, "--to", to, "--out", str(tmp_path / "no")]) == 2
        assert wanted in capsys.readouterr().err
    pytest.importorskip("onnx", reason="no onnx here; pip install 'throughtime[export]'")
    assert main(["export", f"{file}:model", "--to", "onnx", "--out", str(tmp_path / "o")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'o' / 'net.onnx'}\n"
    words = ["export", f"{file}:model", "--to", "onnx", "--weights", "int8"]
    assert main(words) == 2 and "--weights is for --to c" in capsys.readouterr().err
    assert main([*words[:-2], "--block", "2"]) == 2
    assert "--block is for --to c and --to object" in capsys.readouterr().err
    (tmp_path / "taken").write_text("a file")
    assert main(["export", f"{file}:model", "--to", "c", "--out", str(tmp_path / "taken")]) == 2
    assert f"{tmp_path / 'taken'} cannot be used" in capsys.readouterr().err


def endless(x: torch.Tensor) -> torch.Tensor:
    return x * math.inf


def test_answers_without_end_cannot_be_tested_and_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="answers to normal numbers must be finite, so that"):
        to_c(Readout(2, 2, activation=endless), tmp_path)
    assert not [*tmp_path.iterdir()]
