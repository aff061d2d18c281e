"""Programs in browsers: a module of WebAssembly, its loader, its test and a page to try it."""

from __future__ import annotations

import base64
import json
from typing import Final

from throughtime.export.folder import error_limit
from throughtime.export.llvm.object_files import link
from throughtime.export.program import Program, Values

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


def loader(name: str) -> str:
    """NAME.mjs."""
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
        ".mjs": loader(name),
        "_test.mjs": _write_test(program, x, y),
        ".html": _write_page(program, module),
    }


def _write_test(program: Program, x: Values, y: Values) -> str:
    """Recorded inputs and outputs in node; prints PASS or FAIL."""
    text = _TEST.replace("INPUTS", _list_numbers(x)).replace("OUTPUTS", _list_numbers(y))
    return text.replace("LIMIT", error_limit(y)).replace("@", program.name)


def _list_numbers(values: Values) -> str:
    return "[" + ",".join(f"{v:.9g}" for v in values.reshape(-1).tolist()) + "]"


def _write_page(program: Program, module: bytes) -> str:
    """The net in a browser, in one file that needs no server."""
    script = LOADER.replace("export async function", "async function")
    names = json.dumps(list(program.inputs)).replace("</", "<\\/")
    text = _PAGE.replace("LOADER", script).replace("NAMES", names)
    text = text.replace("WASM", base64.b64encode(module).decode())
    return text.replace("@", program.name)
