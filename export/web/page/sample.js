// Drawing a character from logits: trainers/sampling/draw.py, for one row. Temperature, then top-k, then top-p among what is left.

/**
 * How a character is drawn.
 * temperature: 0 takes the likeliest; topK: 0 is all; topP: 1 is all.
 * @typedef {{temperature: number, topK: number, topP: number}} Sampling
 */

const GREEDY = 1e-3; // temperatures below this take the likeliest character, with nothing left to chance
const SHARPEST = 1e20; // what logits are multiplied by then

/** The model as it is, without anything changed. @type {Sampling} */
export const PLAIN = { temperature: 1, topK: 0, topP: 1 };

/**
 * The probability of each id, after temperature, top-k and top-p.
 * @param {Float32Array} logits
 * @param {Sampling} sampling
 */
export function probabilities(logits, { temperature, topK, topP }) {
  const sharpness = Math.fround(temperature >= GREEDY ? 1 / Math.fround(temperature) : SHARPEST);
  return softmax(narrowed(logits.map((logit) => logit * sharpness), topK, topP));
}

/**
 * The id on which `uniform`, in [0, 1), falls among the probabilities; at 0, the first that has any.
 * @param {Float64Array} probability
 * @param {number} uniform
 */
export function choose(probability, uniform) {
  const whole = probability.reduce((sum, p) => sum + p, 0);
  let [sum, likely] = [0, 0];
  for (const [id, p] of probability.entries()) {
    if (p > 0) likely = id;
    sum += p;
    if (sum > uniform * whole) return id;
  }
  return likely;
}

/**
 * Whether a temperature leaves anything to chance.
 * @param {number} temperature
 */
export function warm(temperature) {
  return temperature >= GREEDY;
}

/**
 * The likeliest ids, the likeliest first.
 * @param {Float64Array} probability
 * @param {number} count
 */
export function likeliest(probability, count) {
  const ids = Array.from(probability.keys()).sort((a, b) => probability[b] - probability[a] || a - b);
  return ids.slice(0, count).map((id) => ({ id, p: probability[id] }));
}

/** @param {Float32Array} scaled */
function softmax(scaled) {
  const most = scaled.reduce((a, b) => Math.max(a, b));
  const weights = Float64Array.from(scaled, (x) => Math.exp(x - most));
  const whole = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / whole);
}

/**
 * -Infinity where a logit is not among the `topK` largest, or not among the fewest that have `topP` of their probability
 * between them. What is as likely as the last that stays, stays.
 * @param {Float32Array} scaled
 * @param {number} topK
 * @param {number} topP
 */
function narrowed(scaled, topK, topP) {
  const few = Math.min(topK || scaled.length, scaled.length);
  if (few === scaled.length && topP >= 1) return scaled;
  const kept = scaled.slice().sort().reverse().subarray(0, few);
  let [enough, before] = [0, 0];
  for (const p of topP < 1 ? softmax(kept) : []) {
    if (before >= topP) break;
    enough += 1;
    before += p;
  }
  const last = kept[(topP < 1 ? Math.max(enough, 1) : few) - 1];
  return scaled.map((x) => (x >= last ? x : -Infinity));
}
