// A text that a model reads and writes, with the neurons and the logits after each character.

import { uniform } from "./random.js";
import { PLAIN, choose, likeliest, probabilities, warm } from "./sample.js";

/** @typedef {import("./sample.js").Sampling} Sampling */

/**
 * The interface of a model: model.js, or a test double.
 * @typedef {object} Stepper
 * @property {number} layers
 * @property {number} states
 * @property {number} units
 * @property {() => Float32Array} initialCarry
 * @property {(id: number, carry: Float32Array) => Promise<{logits: Float32Array, carry: Float32Array}>} step
 */

/**
 * The record of an id: the logits after it, and the neurons' activity [L, H], flat, times SCALE.
 * @typedef {{logits: Float32Array, activity: Int16Array}} Step
 */

const SCALE = 32767; // of `activity`
const RECENT = 1000; // number of last ids whose carries are kept and over which neurons are ranked

/** One neuron: layer and unit, from 0. @typedef {{layer: number, unit: number}} Neuron */

export class Text {
  /**
   * @param {Stepper} model
   * @param {number | undefined} endId the id that ends a document, if any
   */
  constructor(model, endId) {
    this.model = model;
    this.endId = endId;
    /** @type {number[]} */
    this.prompt = [];
    /** @type {number[]} ids read and written so far */
    this.ids = [];
    /** @type {Step[]} */
    this.steps = [];
    /** @type {Float32Array[]} after the last ids */
    this.carries = [];
    /** @type {Set<number>} positions whose id the user chose; they use no random number */
    this.chosen = new Set();
  }

  /**
   * Start the text from `prompt`, keeping the part that is already read.
   * @param {number[]} prompt
   */
  begin(prompt) {
    this.prompt = prompt;
    this.chosen.clear(); // what is kept is part of the prompt now
    const differs = this.ids.findIndex((id, index) => id !== prompt[index]); // true of anything written after it
    if (differs >= 0) this.cut(differs);
  }

  /**
   * Truncate to `length` ids, or to none if the carry at that point is no longer kept.
   * @param {number} length
   */
  cut(length) {
    const removed = Math.max(this.ids.length - length, 0);
    this.carries.length = Math.max(this.carries.length - removed, 0);
    this.ids.length = this.carries.length && this.ids.length - removed;
    this.steps.length = this.ids.length;
    for (const at of this.chosen) if (at >= this.ids.length) this.chosen.delete(at);
  }

  /** True once the whole prompt is read. */
  get read() {
    return this.ids.length >= this.prompt.length;
  }

  /** The logits of the next character; undefined before anything is read. */
  get logits() {
    return this.steps.at(-1)?.logits;
  }

  /** Read the next id of the prompt. */
  async readNext() {
    await this.#step(this.prompt[this.ids.length]);
  }

  /**
   * Draw the next character, or take the user's choice, and read it.
   * @param {Sampling} sampling
   * @param {number} seed
   * @param {number} [choice]
   * @returns {Promise<boolean>} false if the document ends here; nothing is read then
   */
  async write(sampling, seed, choice) {
    if (choice !== undefined) this.chosen.add(this.ids.length);
    const id = choice ?? this.#draw(sampling, seed);
    if (choice === undefined && id === this.endId) return false;
    await this.#step(id);
    return true;
  }

  /**
   * @param {Sampling} sampling
   * @param {number} seed
   */
  #draw(sampling, seed) {
    const drawn = this.ids.length - this.prompt.length - this.chosen.size;
    const random = warm(sampling.temperature) ? uniform(seed, drawn) : 0;
    return choose(probabilities(/** @type {Float32Array} */ (this.logits), sampling), random);
  }

  /** @param {number} id */
  async #step(id) {
    const { logits, carry } = await this.model.step(id, this.carries.at(-1) ?? this.model.initialCarry());
    this.ids.push(id);
    this.steps.push({ logits, activity: this.#activity(carry) });
    this.carries.push(carry);
    if (this.carries.length > RECENT) this.carries.shift();
  }

  /**
   * Return a neuron's activity after each id from position `from` on, in -1 to 1: tanh(c), or h for a cell without c.
   * @param {Neuron} neuron
   * @param {number} from
   */
  follow(neuron, from) {
    const at = neuron.layer * this.model.units + neuron.unit;
    return Float32Array.from(this.steps.slice(from), ({ activity }) => activity[at] / SCALE);
  }

  /**
   * Return the five likeliest ids at position `at`, and the probability of the actual one.
   * @param {number} at
   */
  expected(at) {
    const logits = this.steps[at - 1]?.logits;
    if (!logits) return undefined;
    const probability = probabilities(logits, PLAIN);
    return { likeliest: likeliest(probability, 5), actual: probability[this.ids[at]] };
  }

  /**
   * Return the neurons with the largest variance over the last RECENT ids, in descending order.
   * @param {number} count
   */
  ranked(count) {
    const { layers, units } = this.model;
    const rows = this.steps.slice(-RECENT);
    const length = rows.length || 1;
    const [sum, squares] = [new Float64Array(layers * units), new Float64Array(layers * units)];
    for (const { activity } of rows) {
      for (let at = 0; at < activity.length; at++) {
        sum[at] += activity[at];
        squares[at] += activity[at] ** 2;
      }
    }
    const variance = squares.map((square, at) => (square - sum[at] ** 2 / length) / length / SCALE ** 2);
    const order = Array.from(variance.keys()).sort((a, b) => variance[b] - variance[a]);
    return order.slice(0, count).map((at) => ({ layer: Math.floor(at / units), unit: at % units, variance: variance[at] }));
  }

  /**
   * Return the neurons' activity in a carry.
   * @param {Float32Array} carry
   */
  #activity(carry) {
    const { layers, states, units } = this.model;
    const activity = new Int16Array(layers * units);
    for (let at = 0; at < activity.length; at++) {
      const layer = Math.floor(at / units);
      const value = carry[at + (layer + 1) * (states - 1) * units]; // the last state: c of an LSTM
      activity[at] = Math.round(SCALE * (states === 2 ? Math.tanh(value) : value));
    }
    return activity;
  }
}
