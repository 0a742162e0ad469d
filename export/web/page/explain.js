// One step of a model in numbers: the state before and after it, an LSTM's gates, and the logits.

/**
 * gates: of an LSTM, [L, H] each, flat: forget f, added i g, output o. before, after: the carry [L, S, H], flat.
 * @typedef {{forget: Float32Array, added: Float32Array, output: Float32Array}} Gates
 * @typedef {{before: Float32Array, after: Float32Array, logits: Float32Array, gates: Gates | undefined}} Explained
 * @typedef {import("./text.js").Stepper} Stepper
 */

/**
 * Read ids from the start of a text, and explain the step of the last one.
 * @param {Stepper} model
 * @param {number[]} ids
 * @param {number} [endId] the id that ends a document: its step starts from zeros, which hides the gates
 * @returns {Promise<Explained>}
 */
export async function explain(model, ids, endId) {
  let before = model.initialCarry();
  for (const id of ids.slice(0, -1)) ({ carry: before } = await model.step(id, before));
  const id = ids[ids.length - 1];
  const { logits, carry: after } = await model.step(id, before);
  return { before, after, logits, gates: model.states === 2 && id !== endId ? await gates(model, id, before, after) : undefined };
}

/**
 * Return the gates, which a .tflite does not output. Because c' = f c + i g, and f, i and g do not depend on c, repeating the
 * step with c + 1 adds f to c'. One layer at a time: the layers above read its output, which changes with its c.
 * @param {Stepper} model
 * @param {number} id
 * @param {Float32Array} before
 * @param {Float32Array} after
 * @returns {Promise<Gates>}
 */
async function gates(model, id, before, after) {
  const { layers: L, units: H } = model;
  const [forget, added, output] = [0, 1, 2].map(() => new Float32Array(L * H));
  for (let layer = 0; layer < L; layer++) {
    const [h, c] = [2 * layer * H, (2 * layer + 1) * H];
    const raised = before.map((value, at) => (at >= c && at < c + H ? value + 1 : value));
    const { carry } = await model.step(id, raised);
    for (let unit = 0; unit < H; unit++) {
      const f = carry[c + unit] - after[c + unit];
      forget[layer * H + unit] = f;
      added[layer * H + unit] = after[c + unit] - f * before[c + unit];
      output[layer * H + unit] = after[h + unit] / Math.tanh(after[c + unit]); // h' = o tanh(c')
    }
  }
  return { forget, added, output };
}
