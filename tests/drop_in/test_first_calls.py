"""The first call of a cell in a process, below a transform, the compiler or a mode of torch."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from throughtime import Recurrent, cells

VMAP = """
from torch.func import functional_call, stack_module_state, vmap

class Own(Cell):
    gates, state = ("a",), ("h",)

    def step(self, a, U, s, p):
        return (torch.tanh(a.a + U.a @ s.h),)

def ensemble(make, x):
    nets = [make() for _ in range(3)]
    found = vmap(lambda p, b: first(functional_call(nets[0], (p, b), (x,))))(
        *stack_module_state(nets)
    )
    return found, torch.stack([first(net(x)) for net in nets])

def mapped(make, x):
    net, xs = make(), torch.stack([x, 2 * x])
    return vmap(lambda x: first(net(x)))(xs), torch.stack([first(net(x)) for x in xs])

# Each cell is called here for the first time.
checked = [
    ensemble(lambda: tt.LSTMCell(3, 4), row), mapped(lambda: tt.GRUCell(3, 4), row),
    mapped(lambda: tt.RNNCell(3, 4), row), ensemble(lambda: tt.GRU(3, 4, 2), steps),
    mapped(lambda: tt.Recurrent(cells.LEM(), 3, 4), steps),
    ensemble(lambda: tt.Recurrent(Own(), 3, 4), steps),
]
"""

COMPILE = """
import warnings
warnings.simplefilter("ignore")

def compiled(net, x):
    expected = torch.compile(net, backend="aot_eager", fullgraph=True)(x)
    return first(expected), first(net(x))

checked = [
    compiled(tt.LSTMCell(3, 4), row), compiled(tt.GRUCell(3, 4), row),
    compiled(tt.RNNCell(3, 4), row), compiled(tt.LSTM(3, 4, bidirectional=True), steps),
    compiled(tt.Recurrent(cells.LEM(), 3, 4), steps),
]
"""

LOADED = """
import pickle, warnings
warnings.simplefilter("ignore")
net = pickle.loads(open(sys.argv[1], "rb").read())
expected = torch.compile(net, backend="aot_eager", fullgraph=True)(steps)
checked = [(first(expected), first(net(steps)))]
"""

FAKE = """
from torch._subclasses.fake_tensor import FakeTensorMode

checked = []
for make, x in ((lambda: tt.LSTMCell(3, 4), row), (lambda: tt.Recurrent(cells.LEM(), 3, 4), steps)):
    with FakeTensorMode():
        shape = first(make()(torch.empty(x.shape))).shape
    checked.append((torch.tensor(shape), torch.tensor(first(make()(x)).shape)))
"""

BEGIN = """
import sys, torch, throughtime as tt
from throughtime import Cell, cells

def first(found):
    return found[0] if isinstance(found, tuple) else found

row, steps = torch.randn(2, 3), torch.randn(5, 2, 3)
"""

END = """
for found, expected in checked:
    torch.testing.assert_close(found, expected)
"""


def run(program: str, *arguments: str) -> None:
    command = [sys.executable, "-c", BEGIN + program + END, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", [VMAP, COMPILE, FAKE], ids=["vmap", "compile", "fake"])
def test_a_first_call_below_torchs_transforms_gives_what_a_later_one_gives(program: str) -> None:
    run(program)


def test_a_loaded_layer_may_first_be_called_by_the_compiler(tmp_path: Path) -> None:
    file = tmp_path / "layer.pickle"
    file.write_bytes(pickle.dumps(Recurrent(cells.MGU(), 3, 4)))
    run(LOADED, str(file))
