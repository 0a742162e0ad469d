// Sampling from logits, as trainers/sampling/draw.py does for one row: temperature, top-k, then top-p among the rest.

/**
 * Sampling settings.
 * temperature: 0 is greedy; topK: 0 keeps all; topP: 1 keeps all.
 * @typedef {{temperature: number, topK: number, topP: number}} Sampling
 */

const GREEDY = 1e-3; // temperatures below this take the likeliest character
const SHARPEST = 1e20; // factor of the logits in that case

/** The model's own distribution. @type {Sampling} */
export const PLAIN = { temperature: 1, topK: 0, topP: 1 };

/**
 * Return the probability of each id under the settings.
 * @param {Float32Array} logits
 * @param {Sampling} sampling
 */
export function probabilities(logits, { temperature, topK, topP }) {
  const sharpness = Math.fround(temperature >= GREEDY ? 1 / Math.fround(temperature) : SHARPEST);
  return softmax(narrowed(logits.map((logit) => logit * sharpness), topK, topP));
}

/**
 * Return the id at which the cumulated probability exceeds `uniform`, in [0, 1).
 * @param {Float64Array} probability
 * @param {number} uniform
 */
export function choose(probability, uniform) {
  const total = probability.reduce((sum, p) => sum + p, 0);
  let [sum, likely] = [0, 0];
  for (const [id, p] of probability.entries()) {
    if (p > 0) likely = id;
    sum += p;
    if (sum > uniform * total) return id;
  }
  return likely;
}

/**
 * Return whether a temperature is not greedy.
 * @param {number} temperature
 */
export function warm(temperature) {
  return temperature >= GREEDY;
}

/**
 * Return the likeliest ids in descending order.
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
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/**
 * Set to -Infinity the logits outside the `topK` largest, and outside the smallest set with `topP` of the rest's probability.
 * Ties with the last one kept are kept.
 * @param {Float32Array} scaled
 * @param {number} topK
 * @param {number} topP
 */
function narrowed(scaled, topK, topP) {
  const count = Math.min(topK || scaled.length, scaled.length);
  if (count === scaled.length && topP >= 1) return scaled;
  const largest = scaled.slice().sort().reverse().subarray(0, count);
  let [enough, before] = [0, 0];
  for (const p of topP < 1 ? softmax(largest) : []) {
    if (before >= topP) break;
    enough += 1;
    before += p;
  }
  const last = largest[(topP < 1 ? Math.max(enough, 1) : count) - 1];
  return scaled.map((x) => (x >= last ? x : -Infinity));
}
