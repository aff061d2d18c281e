"""Two kernels in LLVM's language, for vectors as wide as this machine's."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from throughtime.errors import missing_extra

try:
    from llvmlite import binding
except ImportError:
    raise missing_extra("llvmlite", "bench") from None

FEATURES = binding.get_host_cpu_features()
WIDE = bool(FEATURES.get("avx512f"))
LANES = 16 if WIDE else 8 if FEATURES.get("avx") else 4

# Chains of multiply-adds in flight: enough to hide their latency, few enough to stay in registers.
ACCUMULATORS = 12 if LANES == 8 else 24
LOADS = 8  # vectors read in one turn of the loop

ATTRIBUTES = '"prefer-vector-width"="512" "min-legal-vector-width"="512"' if WIDE else ""


def source() -> str:
    """Both kernels: `multiply_adds(turns, sink)` and `reads(turns, blocks, data)`."""
    vector = f"<{LANES} x float>"
    return "\n".join(
        [
            f"declare {vector} @llvm.fma.v{LANES}f32({vector}, {vector}, {vector})",
            _multiply_adds(vector),
            _reads(vector),
            f"attributes #0 = {{ nounwind {ATTRIBUTES} }}",
        ]
    )


def _multiply_adds(V: str) -> str:
    """for turns: every accumulator a = a a' + a', a' the sink's own vector (zeros)."""
    phis = "\n".join(
        f"  %a{i} = phi {V} [ %start, %entry ], [ %n{i}, %loop ]" for i in range(ACCUMULATORS)
    )
    body = "\n".join(
        f"  %n{i} = call {V} @llvm.fma.v{LANES}f32({V} %a{i}, {V} %start, {V} %start)"
        for i in range(ACCUMULATORS)
    )
    return f"""
define void @multiply_adds(i64 %turns, ptr %sink) #0 {{
entry:
  %start = load {V}, ptr %sink, align 4
  br label %loop
loop:
  %t = phi i64 [ 0, %entry ], [ %t1, %loop ]
{phis}
{body}
  %t1 = add i64 %t, 1
  %more = icmp slt i64 %t1, %turns
  br i1 %more, label %loop, label %end
end:
{_sum(V, "n", ACCUMULATORS)}
  store {V} %sum, ptr %sink, align 4
  ret void
}}"""


def _reads(V: str) -> str:
    """for turns: for blocks: add LOADS vectors to as many sums; the sum goes into the data."""
    phis = "\n".join(
        f"  %a{i} = phi {V} [ zeroinitializer, %entry ], [ %n{i}, %turn ], [ %n{i}, %loop ]"
        for i in range(LOADS)
    )
    body = "\n".join(
        f"""  %p{i} = getelementptr {V}, ptr %q, i64 {i}
  %v{i} = load {V}, ptr %p{i}, align 64
  %n{i} = fadd {V} %a{i}, %v{i}"""
        for i in range(LOADS)
    )
    return f"""
define void @reads(i64 %turns, i64 %blocks, ptr %data) #0 {{
entry:
  br label %loop
loop:
  %t = phi i64 [ 0, %entry ], [ %t1, %turn ], [ %t, %loop ]
  %b = phi i64 [ 0, %entry ], [ 0, %turn ], [ %b1, %loop ]
{phis}
  %k = mul i64 %b, {LOADS}
  %q = getelementptr {V}, ptr %data, i64 %k
{body}
  %b1 = add i64 %b, 1
  %inside = icmp slt i64 %b1, %blocks
  br i1 %inside, label %loop, label %turn
turn:
  %t1 = add i64 %t, 1
  %more = icmp slt i64 %t1, %turns
  br i1 %more, label %loop, label %end
end:
{_sum(V, "n", LOADS)}
  store {V} %sum, ptr %data, align 64
  ret void
}}"""


def _sum(V: str, name: str, count: int) -> str:
    """%sum of all, so that none of them is left out."""
    lines = [f"  %s1 = fadd {V} %{name}0, %{name}1"]
    lines += [f"  %s{i} = fadd {V} %s{i - 1}, %{name}{i}" for i in range(2, count)]
    return "\n".join(lines).replace(f"%s{count - 1} =", "%sum =")


@cache
def _engine() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=FEATURES.flatten(), opt=3
    )
    module = binding.parse_assembly(source())
    module.verify()
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine


def compiled(name: str, *arguments: Any) -> Any:
    """The kernel as a function of Python."""
    return ctypes.CFUNCTYPE(None, *arguments)(_engine().get_function_address(name))
