"""Kernels for torch's dispatcher and for Python: their programs, and what they leave to Python."""

from __future__ import annotations

import _thread
import ctypes
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.cpu.short import ShortRegion
from throughtime.compiler.llvm.abi import (
    ASKED,
    GRADIENT_STACK,
    IN_PYTHON,
    MAGIC,
    OBJECTS,
    PROGRAM,
    STACK,
)
from throughtime.compiler.llvm.library import dispatcher_kernels
from throughtime.compiler.runtime import machine
from throughtime.torch_private import HAS_NODE, handles_of, has_kernel, stolen

OPERATOR: Final = "miopen_rnn"
GRADIENT: Final = f"{OPERATOR}_backward"

VERSION: Final = 2 << 56 | 13 << 48
"""The torch for whose stable interface this is written: 2.13."""

KERNELS: Final = (
    ("CPU", OPERATOR, "forward"), ("CPU", GRADIENT, "backward"),
    ("AutogradCPU", GRADIENT, "backward"),
)  # fmt: skip
"""Keys of the dispatcher, operators, and the kernels they get.

torch's own kernel for AutogradCPU says that there is no derivative of the gradient; here is one.
"""

WATCHED: Final = "Batched", "FuncTorchDynamicLayerFrontMode"
"""Keys of many gradients at once and of transforms of torch.func, where Python computes."""

_TENSORS: Final = "input", "weight_buf", "hx", "output", "reserve"
_OPTIONALS: Final = "cx", "grad_output", "grad_hy", "grad_cy", "dropout_state"
_LISTS: Final = "weight", "batch_sizes", "output_mask"

CUT_OFF: Final = "the backward pass of a layer was cut off in Python; call it again"
NOT_OURS: Final = (
    "aten::miopen_rnn carries calls of throughtime's layers on the processor, and nothing else; "
    "call torch.nn.LSTM, GRU or RNN, or throughtime's"
)

Carry = Callable[..., tuple[Tensor, ...] | None]
"""Carries calls of one shape: of x, weights and states it gives outputs and final states, of one
step without the first; None where one of them is not as it was when this was made."""

Gradients = Callable[..., tuple[Any, ...]]
"""Carries the operator's gradient in Python: its arguments, and what it gives."""

_FASTCALL: Final = 0x80
"""METH_FASTCALL: arguments come as an array."""

_lock = threading.Lock()
_threads = threading.local()  # the text of the last error, which a kernel is reading
_methods: Final[list[_Method]] = []  # the kernel that Python calls
_held: Final[list[Any]] = []  # what machine code reads, for the rest of the process


class _Method(ctypes.Structure):
    """Python's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int),
        ("text", ctypes.c_char_p),
    )  # fmt: skip


class Strided(NamedTuple):
    """How a tensor lies: its sizes, and from number to number along each, in numbers."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def like(cls, v: Tensor) -> Strided:
        """As this one does."""
        return cls(tuple(v.shape), v.stride())

    @classmethod
    def contiguous(cls, sizes: Sequence[int]) -> Strided:
        """One number behind the other."""
        strides: list[int] = []
        step = 1
        for size in reversed(sizes):
            strides.insert(0, step)
            step *= size
        return cls(tuple(sizes), tuple(strides))

    def spec(self, bytes: int) -> list[int]:
        """As kernels read it, in numbers of so many bytes."""
        steps = zip(self.sizes, self.strides, strict=True)
        extent = 1 + sum((size - 1) * step for size, step in steps)
        rest = [0] * (3 - len(self.sizes))
        extent = 0 if 0 in self.sizes else extent * bytes
        return [len(self.sizes), *self.sizes, *rest, *self.strides, *rest, extent]


class CallProgram(np.ndarray):
    """The program of a call; a subclass, to hold what it needs."""

    held: Any = None


class Address(int):
    """That of a program, which it holds."""

    program: CallProgram

    def __new__(cls, program: CallProgram) -> Address:
        self = super().__new__(cls, int(program.ctypes.data))
        self.program = program
        return self


def write_program(
    region: ShortRegion, number: Callable[[int], int], inputs: Sequence[Strided],
    outputs: Sequence[Strided], head: Mapping[str, int], kinds: int = 0,
) -> CallProgram:  # fmt: skip
    """The program of a region's call.

    Args:
        region: to be called.
        number: that of a tensor, inputs first, by its number among those that the region takes.
        inputs, outputs: how each lies.
        head: more numbers of the head, `bytes` of one number among them.
        kinds: room for so many programs of backward passes.
    """
    parts = region.parts()
    bytes = head["bytes"]
    lists = {
        "words": parts.words,
        "in_arena": parts.in_arena,
        "in_block": parts.in_block,
        "places": [v for place, i, first in parts.places for v in (place, number(i), first)],
        "inputs": [v for one in inputs for v in one.spec(bytes)],
        "outputs": [v for one in outputs for v in one.spec(bytes)],
        "backward": [0] * kinds,
    }
    whole = dict.fromkeys(PROGRAM, 0) | dict.fromkeys(("d_x", "d_hx", "d_cx", "d_weights"), -1)
    whole |= {name: len(lists[name]) for name in ("words", "in_arena", "in_block")}
    whole |= {"places": len(parts.places), "inputs": len(inputs), "outputs": len(outputs)}
    whole |= {"magic": MAGIC, "region": parts.function, "arena": parts.arena, **head}
    whole["on_team"], whole["call"] = parts.team
    numbers = [0] * len(PROGRAM)
    for name, values in lists.items():
        whole[f"{name}_at"] = len(numbers)
        numbers += values
    program = np.array(numbers, np.int64).view(CallProgram)
    whole["self"] = int(program.ctypes.data)
    program[: len(PROGRAM)] = [whole[name] for name in PROGRAM]
    program.held = region
    return program


def register(gradients: Gradients) -> bool:
    """Give torch's dispatcher the kernels, once a process; whether it has them.

    Args:
        gradients: carries what the kernels leave to Python.
    """
    with _lock:
        return _registered(gradients)


@functools.cache
def _registered(gradients: Gradients) -> bool:
    target = machine.host()
    if target is None or torch.version.hip or not (HAS_NODE and _suit()):
        return False
    in_python = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 2)(partial(_carry, gradients))
    texts = [ctypes.create_string_buffer(text.encode()) for text in (CUT_OFF, NOT_OURS)]
    parts = [*map(_function, ASKED), in_python, *texts]
    objects = [] if None in parts else _objects()
    if not objects:
        return False
    addresses = [ctypes.cast(part, ctypes.c_void_p).value or 0 for part in parts] + objects
    table, kernels = (ctypes.c_int64 * len(addresses))(*addresses), dispatcher_kernels(target)
    ctypes.c_int64.from_address(kernels["table"]).value = ctypes.addressof(table)
    library = torch.library.Library("aten", "IMPL")
    for key in WATCHED:
        library.impl(GRADIENT, gradients, key)
    _methods.append(_Method(b"carry", kernels["carry"], _FASTCALL, None))
    _held.extend([in_python, *texts, table, library])
    for key, operator, kernel in KERNELS:
        _give(key, operator, kernels[kernel])
    return True


def _objects() -> list[int]:
    """What is known of objects (OBJECTS), seen from torch's own handles; [] if they do not tell."""
    v = torch.empty(1, device="cpu")
    samples = v, torch.nn.Parameter(v, requires_grad=False), v[:]
    handles = list(map(_handle, samples))
    places = _place(samples, [ctypes.c_int64.from_address(handle).value for handle in handles])
    places += _place(samples, [id(type(one)) for one in samples])
    for handle in handles:
        _call("aoti_torch_delete_tensor_object", handle)
    known = [*places, *map(id, (Tensor, torch.nn.Parameter, None))]
    return known if len(known) == len(OBJECTS) else []


def _place(samples: Sequence[Tensor], words: Sequence[int]) -> list[int]:
    """Bytes from an object to its word, if each has it there and nowhere else."""
    found = set()
    for one, word in zip(samples, words, strict=True):
        held = (ctypes.c_int64 * (Tensor.__basicsize__ // 8)).from_address(id(one))
        found.add(tuple(8 * i for i, value in enumerate(held) if value == word))
    return list(found.pop()) if len(found) == 1 else []


def function_of(program: CallProgram) -> Carry:
    """Carries calls of a program in machine code, of the tensors it reads: gives those it makes.

    None: one is no plain tensor, or does not lie as it must; or there is no memory.
    """
    new, object = ctypes.pythonapi.PyCFunction_NewEx, ctypes.py_object
    new.restype, new.argtypes = object, [ctypes.c_void_p, object, ctypes.c_void_p]
    return new(ctypes.addressof(_methods[0]), Address(program), None)  # type: ignore[no-any-return]


def _suit() -> bool:
    """Whether torch's operators are as the kernels were written for, and have none yet."""
    for name, wanted in ((OPERATOR, STACK), (GRADIENT, GRADIENT_STACK)):
        schema = getattr(torch.ops.aten, name).default._schema
        if tuple(v.name for v in schema.arguments) != wanted or has_kernel(f"aten::{name}", "CPU"):
            return False
    return True


def _give(key: str, operator: str, kernel: int) -> None:
    """One kernel, by its address."""
    handle, file = ctypes.c_void_p(), __file__.encode()
    _call("aoti_torch_library_init_impl", b"aten", key.encode(), file, 1, ctypes.byref(handle))
    _call("torch_library_impl", handle, operator.encode(), ctypes.c_void_p(kernel), VERSION)


@functools.cache
def _libraries() -> list[ctypes.CDLL]:
    folder = Path(torch.__file__).parent / "lib"
    names = [folder / f"lib{name}.so" for name in ("torch_cpu", "c10", "torch_python")]
    own = [ctypes.CDLL(str(name)) for name in names if name.exists()]
    return [*own, ctypes.CDLL(None)]  # the last for functions of the C library


def _function(name: str) -> Any:
    """A function of torch's libraries; None where they have none of this name."""
    return next((getattr(lib, name) for lib in _libraries() if hasattr(lib, name)), None)


def _call(name: str, *arguments: Any) -> int:
    """What it returns; whole numbers are given as long ones."""
    values = [ctypes.c_int64(v) if isinstance(v, int) else v for v in arguments]
    return int(_function(name)(*values))


def _ask(name: str, *arguments: Any) -> int:
    """What it writes where its last argument points to."""
    out = ctypes.c_int64(0)
    _call(name, *arguments, ctypes.byref(out))
    return out.value


@functools.cache
def number_of(dtype: torch.dtype) -> int:
    """torch's number of a dtype."""
    return _call(f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")


def _carry(gradients: Gradients, stack: int, left: int) -> int:
    """The gradient in Python, for a kernel, which keeps the arguments and raises what is raised.

    It may be cut off anywhere, by a signal or for want of stack: the status comes last.
    """
    said = (ctypes.c_int64 * len(IN_PYTHON)).from_address(left)
    try:
        *three, weights = gradients(*_arguments(stack))
        out = _ask("torch_new_list_reserve_size", len(weights))
        for v in weights:
            _call("torch_list_push_back", out, _handle(v))
        for i, result in enumerate((*map(_handle, three), out), 1):
            said[i] = result
        said[0] = 1
    except BaseException as error:
        _threads.text = ctypes.create_string_buffer(f"{type(error).__name__}: {error}".encode())
        said[-1] = ctypes.addressof(_threads.text)
        if isinstance(error, KeyboardInterrupt):  # whoever catches the kernel's error is told again
            _thread.interrupt_main()
    return 0


def _arguments(stack: int) -> list[Any]:
    """The operator's arguments, of which the kernel keeps its own handles; numbers are not read."""
    words = (ctypes.c_int64 * len(GRADIENT_STACK)).from_address(stack)
    given: dict[str, Any] = dict(zip(GRADIENT_STACK, words, strict=True))
    for name in _LISTS:
        at = given[name]
        values = [_ask("torch_list_get_item", at, i) for i in range(_ask("torch_list_size", at))]
        given[name] = _tensors(values) if name == "weight" else list(map(bool, values))
    given |= zip(_TENSORS, _tensors([given[name] for name in _TENSORS]), strict=True)
    for name in _OPTIONALS:
        at = given[name]
        handle = ctypes.c_int64.from_address(at).value if at else 0
        (given[name],) = _tensors([handle]) if handle else (None,)
    return list(given.values())


def _tensors(handles: Sequence[int]) -> list[Tensor | None]:
    """The tensors of handles."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
    own = [_ask("aoti_torch_new_tensor_handle", handle) for handle in handles]
    return list(stolen([new(handle, None, None) for handle in own]))


def _handle(v: Tensor | None) -> int:
    """A new handle of a tensor, or of none."""
    if v is None:
        return _ask("aoti_torch_new_uninitialized_tensor")
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_void_p]
    return int(read(handles_of([v])[0], None))
