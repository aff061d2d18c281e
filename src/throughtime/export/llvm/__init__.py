"""Programs as machine code of many processors."""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import nn

from throughtime.errors import BackendError, OptionError
from throughtime.export.folder import (
    Exported,
    describe,
    format_limit,
    write_folder,
    write_header,
    write_self_test,
)
from throughtime.export.llvm.object_files import (
    allow_any_caller,
    link,
    list_undefined,
    measure_code,
)
from throughtime.export.pieces import check_block, prepare
from throughtime.export.program import Program, Values


def to_object(
    model: nn.Module, out: str | os.PathLike[str] = ".", *, target: str, name: str = "net",
    weights: str = "float32", block: int = 1,
) -> Exported:  # fmt: skip
    """Write a model as machine code that takes one time step a call.

    Args:
        model, out, name, weights, block: as of `to_c`.
        target: "x86-64-v3", "x86-64-v4", "aarch64", "cortex-m4f", "cortex-m55", "riscv64" or
            "wasm32".

    Returns:
        What was written, and its sizes.

    Raises:
        OptionError: the model, the name or an option cannot be taken; says why.
        BackendError: the target cannot compute the model without functions of others.
        OSError: the folder cannot be written.
    """
    if target not in TARGETS:
        raise OptionError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    check_block(block)
    from throughtime.export.llvm.module import Module  # and LLVM, which takes its time

    program, x, y = prepare(model, name, weights)
    lines = (a.size for a in program.arrays.values() if a.kind in ("state", "work"))
    processor = _narrow_vectors(TARGETS[target], max(lines, default=1))
    about = describe(program, weights)
    module = Module(program, processor, weights, about, block)
    image = _compile(module.module, processor)
    _check_needs(image, target)
    contents: dict[str, str | bytes] = {
        ".h": write_header(program, module.state, about), ".o": image,
        "_test.c": write_self_test(program, x, y),
    }  # fmt: skip
    if target == "wasm32":
        contents |= write_browser_files(program, x, y, image, (module.state, module.work))
    return write_folder(
        program, Path(out), weights, contents,
        code=measure_code(image), state=module.state, work=module.work,
    )  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A processor, its vectors, and what it has not.

    Attributes:
        name: what --target calls it.
        triple, cpu, features, abi: LLVM's words for it.
        lanes: float32 numbers of a vector.
        vectors: sums that registers hold at once, besides what goes into them.
        fused: whether it has fused multiply-adds.
        pointer: bits of an address.
        reloc: how code reaches its constants.
    """

    name: str
    triple: str
    cpu: str
    features: str
    lanes: int
    vectors: int
    fused: bool = True
    pointer: int = 64
    reloc: str = "pic"
    abi: str = ""


TARGETS: Final = {
    target.name: target
    for target in (
        Target("x86-64-v3", "x86_64-unknown-linux-gnu", "x86-64-v3", "", 8, 8),
        Target("x86-64-v4", "x86_64-unknown-linux-gnu", "x86-64-v4", "", 16, 16),
        Target("aarch64", "aarch64-unknown-linux-gnu", "generic", "+neon", 4, 16),
        Target("cortex-m4f", "thumbv7em-none-eabihf", "cortex-m4", "+vfp4d16sp", 1, 8,
               pointer=32, reloc="static"),
        Target("cortex-m55", "thumbv8.1m.main-none-eabihf", "cortex-m55", "", 4, 4,
               pointer=32, reloc="static"),
        Target("riscv64", "riscv64-unknown-linux-gnu", "generic-rv64", "+m,+a,+f,+d,+c", 1, 8,
               abi="lp64d"),
        Target("wasm32", "wasm32-unknown-unknown", "generic",
               "+simd128,+bulk-memory,+nontrapping-fptoint,+sign-ext,+mutable-globals", 4, 8,
               fused=False, pointer=32, reloc="static"),
    )
}  # fmt: skip
"""By name."""


_NARROWEST: Final = 4


def _narrow_vectors(target: Target, widest: int) -> Target:
    """The target with vectors that the longest line of a model fills at least by half."""
    while target.lanes > _NARROWEST and 2 * widest <= target.lanes:
        target = replace(target, lanes=target.lanes // 2)
    return target


def _compile(module: Any, target: Target) -> bytes:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    writer = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc=target.reloc,
        codemodel="default", abiname=target.abi,
    )  # fmt: skip
    parsed = llvm.parse_assembly(_write_text(module, target))
    parsed.triple = target.triple
    parsed.data_layout = str(writer.target_data)
    parsed.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(writer, tuning)
    builder.getModulePassManager().run(parsed, builder)
    image: bytes = writer.emit_object(parsed)
    return allow_any_caller(image) if target.triple.startswith("thumb") else image


def _write_text(module: Any, target: Target) -> str:
    """The module, with whole vector registers in every function."""
    bits = 32 * target.lanes
    text = str(module) if target.fused else _replace_fma(str(module), target.lanes)
    marked = re.sub(r"(?m)^(define .*?)\s*$", r"\1 #0", text)
    width = f'"prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}" '
    return f"{marked}\nattributes #0 = {{ nounwind {width if target.name[:3] == 'x86' else ''}}}\n"


def _replace_fma(text: str, lanes: int) -> str:
    """A module without fused multiply-adds of float32: x y + z in doubles, then rounded.

    The product of two float32 is exact there, so that only the sum is rounded twice.
    """
    one, two = f"<{lanes} x float>", f"<{lanes} x double>"
    name = f'@"llvm.fma.v{lanes}f32"'
    lines = [line for line in text.splitlines() if not line.startswith(f"declare {one} {name}")]
    wide = [f"  %{v}d = fpext {one} %{v} to {two}" for v in "xyz"]
    body = [f"define internal {one} @fused({one} %x, {one} %y, {one} %z) alwaysinline", "{", *wide,
            f"  %p = fmul {two} %xd, %yd", f"  %s = fadd {two} %p, %zd",
            f"  %r = fptrunc {two} %s to {one}", f"  ret {one} %r", "}"]  # fmt: skip
    return "\n".join([*lines, *body]).replace(name, "@fused")


_MAY_NEED: Final = frozenset({"memcpy", "memset"})


def _check_needs(image: bytes, target: str) -> None:
    """Nothing is left to others but copying and filling memory."""
    foreign = sorted(list_undefined(image) - _MAY_NEED)
    if foreign:
        raise BackendError(
            f"{target} cannot compute this model by itself, it would call {foreign[0]}; "
            f"write it as C, whose compiler brings such functions"
        )


LOADER: Final = """// The loader of @: `make = await load(bytes)`, then `net = make(64)`.
// Each net has a state of its own; what it gives are views of the module's memory.
export async function load(source) {
  const bytes = typeof source === "string" || source instanceof URL
    ? await (await fetch(source)).arrayBuffer() : source;
  const { instance } = await WebAssembly.instantiate(bytes, {});
  const e = instance.exports, inputs = e.inputs.value, outputs = e.outputs.value;
  let free = e.free.value;
  const take = (numbers) => {
    const at = free;
    free = (free + 4 * numbers + 15) & ~15;
    const more = free - e.memory.buffer.byteLength;
    if (more > 0) e.memory.grow(Math.ceil(more / 65536));
    return at;
  };
  const text = new Uint8Array(e.memory.buffer, e.about.value);
  const about = new TextDecoder().decode(text.subarray(0, text.indexOf(0)));
  const make = (block = 1) => {
    const state = take(e.state.value), x = take(block * inputs), y = take(block * outputs);
    const view = (at, numbers) => new Float32Array(e.memory.buffer, at, numbers);
    const net = {
      inputs, outputs, about,
      reset() { e.@_reset(state); },
      step(values) { // inputs numbers in, outputs numbers out
        view(x, inputs).set(values);
        e.@_step(state, x, y);
        return view(y, outputs);
      },
      run(values) { // at most `block` steps, one behind the other
        const steps = values.length / inputs;
        if (steps > block) throw new RangeError(`at most ${block} steps, got ${steps}`);
        view(x, values.length).set(values);
        e.@_run(state, x, y, steps);
        return view(y, steps * outputs);
      },
    };
    net.reset();
    return net;
  };
  return make;
}
"""

_TEST: Final = """// @ on its own recorded inputs in node: node @_test.mjs
import { readFile } from "node:fs/promises";
import { load } from "./@.mjs";

const inputs = Float32Array.from(INPUTS);
const outputs = Float32Array.from(OUTPUTS);
const make = await load(await readFile(new URL("./@.wasm", import.meta.url)));
const one = make(), two = make(7), I = one.inputs, O = one.outputs;
let error = 0, same = true;
for (let t = 0; t * I < inputs.length; t += 1) {
  const y = one.step(inputs.subarray(t * I, (t + 1) * I)).slice();
  const b = t % 7;
  if (b === 0) var block = two.run(inputs.subarray(t * I, (t + 7) * I)).slice();
  for (let i = 0; i < O; i += 1) {
    const d = Math.abs(y[i] - outputs[t * O + i]);
    if (!(d <= error)) error = d;
    same = same && y[i] === block[b * O + i];
  }
}
const right = same && error <= LIMIT;
const said = same ? "" : " blocks differ from steps";
const result = `error ${error} allowed LIMIT steps ${inputs.length / I}`;
console.log(`${right ? "PASS" : "FAIL"} ${result}${said}`);
process.exitCode = right ? 0 : 1;
"""

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>@</title>
<style>
  body { font: 16px/1.4 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; }
  label, output { display: grid; grid-template-columns: 9em 1fr 5em; gap: 1em; }
  meter { width: 100%; } button { margin: 1em 1em 1em 0; } small { color: #555; }
</style>
<h1>@</h1>
<small id="about"></small>
<h2>In</h2>
<form id="in"></form>
<button id="reset">Reset the state</button>
<button id="microphone" hidden>Microphone</button>
<h2>Out</h2>
<div id="out"></div>
<script type="module">
LOADER
const names = NAMES, bytes = Uint8Array.from(atob("WASM"), (c) => c.charCodeAt(0));
const make = await load(bytes), net = make(4096), place = (id) => document.getElementById(id);
place("about").textContent = net.about;
const sliders = names.slice(0, 32).map((name) => {
  const label = document.createElement("label"), input = document.createElement("input");
  const value = document.createElement("span");
  Object.assign(input, { type: "range", min: -1, max: 1, step: 0.01, value: 0 });
  label.append(name, input, value);
  place("in").append(label);
  return { input, value };
});
const shown = Array.from({ length: Math.min(net.outputs, 32) }, (_, k) => {
  const line = document.createElement("output"), meter = document.createElement("meter");
  const value = document.createElement("span");
  Object.assign(meter, { min: -1, max: 1, value: 0 });
  line.append(`y[${k}]`, meter, value);
  place("out").append(line);
  return { meter, value };
});
const show = (y) => shown.forEach(({ meter, value }, k) => {
  meter.value = y[k];
  value.textContent = y[k].toFixed(4);
});
let listening = false;
const tick = () => {
  const x = new Float32Array(net.inputs);
  sliders.forEach(({ input, value }, k) => { value.textContent = x[k] = Number(input.value); });
  if (!listening) show(net.step(x));
  document.body.dataset.steps = Number(document.body.dataset.steps ?? 0) + 1;
  setTimeout(tick, 50);
};
place("reset").onclick = () => net.reset();
place("microphone").hidden = net.inputs !== 1;
place("microphone").onclick = async () => {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const audio = new AudioContext(), code = `registerProcessor("tap", class extends
    AudioWorkletProcessor { process(ins) { if (ins[0][0]) this.port.postMessage(ins[0][0].slice());
    return true; } });`;
  await audio.audioWorklet.addModule(URL.createObjectURL(new Blob([code],
    { type: "text/javascript" })));
  const tap = new AudioWorkletNode(audio, "tap");
  audio.createMediaStreamSource(stream).connect(tap);
  listening = true;
  tap.port.onmessage = ({ data }) => show(net.run(data).subarray(-net.outputs));
};
tick();
</script>
</html>
"""


def write_loader(name: str) -> str:
    return LOADER.replace("@", name)


def write_browser_files(
    program: Program, x: Values, y: Values, image: bytes, sizes: tuple[int, int]
) -> dict[str, str | bytes]:
    """What a browser needs of a program, by the end of each file's name.

    Args:
        x, y: recorded inputs and outputs.
        image: the object.
        sizes: numbers of a state, and of what a step works with.
    """
    name, (state, work) = program.name, sizes
    numbers: dict[str, int | str] = {
        "state": state, "inputs": len(program.inputs), "outputs": program.outputs,
        "about": f"{name}_about",
    }  # fmt: skip
    functions = [f"{name}_{word}" for word in ("reset", "step", "run")]
    module = link(image, functions, numbers, 4 * work)
    return {
        ".wasm": module,
        ".mjs": write_loader(name),
        "_test.mjs": _write_test(program, x, y),
        ".html": _write_page(program, module),
    }


def _write_test(program: Program, x: Values, y: Values) -> str:
    """Recorded inputs and outputs in node; prints PASS or FAIL."""
    text = _TEST.replace("INPUTS", _list_numbers(x)).replace("OUTPUTS", _list_numbers(y))
    return text.replace("LIMIT", format_limit(y)).replace("@", program.name)


def _list_numbers(values: Values) -> str:
    return "[" + ",".join(f"{v:.9g}" for v in values.reshape(-1).tolist()) + "]"


def _write_page(program: Program, module: bytes) -> str:
    """The net in a browser, in one file that needs no server."""
    script = LOADER.replace("export async function", "async function")
    names = json.dumps(list(program.inputs)).replace("</", "<\\/")
    text = _PAGE.replace("LOADER", script).replace("NAMES", names)
    text = text.replace("WASM", base64.b64encode(module).decode())
    return text.replace("@", program.name)
