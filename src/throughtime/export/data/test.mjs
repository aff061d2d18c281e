// @ on its own recorded inputs in node: node @_test.mjs
import { readFile } from "node:fs/promises";
import { load } from "./@.mjs";

const inputs = Float32Array.from(INPUTS);
const outputs = Float32Array.from(OUTPUTS);
const make = await load(await readFile(new URL("./@.wasm", import.meta.url)));
const one = make(), two = make(7), I = one.inputs, O = one.outputs;
let error = 0, same = true;
for (let t = 0; t * I < inputs.length; t += 1) {
  const s = t % STRETCH, b = s % 7;
  if (s === 0) { one.reset(); two.reset(); }
  const y = one.step(inputs.subarray(t * I, (t + 1) * I)).slice();
  const end = t + Math.min(7, STRETCH - s);
  if (b === 0) var block = two.run(inputs.subarray(t * I, end * I)).slice();
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
