// The loader of @: `make = await load(bytes)`, then `net = make(64)`.
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
