// A text as a model reads and writes it, with all that is kept of each character: what the network held, what it expected.

import { uniform } from "./chance.js";
import { PLAIN, choose, likeliest, probabilities, warm } from "./sample.js";

/** @typedef {import("./sample.js").Sampling} Sampling */

/**
 * What steps; model.js, or a stand-in.
 * @typedef {object} Stepper
 * @property {number} layers
 * @property {number} states
 * @property {number} units
 * @property {() => Float32Array} initialCarry
 * @property {(id: number, carry: Float32Array) => Promise<{logits: Float32Array, carry: Float32Array}>} step
 */

/** One neuron: layer and unit, from 0. @typedef {{layer: number, unit: number}} Neuron */

export class Text {
  /**
   * @param {Stepper} model
   * @param {number | undefined} endId the id that ends a document, where one does
   */
  constructor(model, endId) {
    this.model = model;
    this.endId = endId;
    /** @type {number[]} */
    this.prompt = [];
    /** @type {number[]} what was read and written so far */
    this.ids = [];
    /** @type {{logits: Float32Array, carry: Float32Array}[]} after each id */
    this.steps = [];
    /** @type {Set<number>} positions whose id a person chose: they take no random number */
    this.chosen = new Set();
  }

  /**
   * Makes the text the one that goes on from `prompt`. What of that is read already is kept.
   * @param {number[]} prompt
   */
  begin(prompt) {
    this.prompt = prompt;
    const differs = this.ids.findIndex((id, index) => id !== prompt[index]); // what was written behind it does
    if (differs >= 0) this.cut(differs);
  }

  /**
   * Forgets all from position `length` on.
   * @param {number} length
   */
  cut(length) {
    this.ids.length = Math.min(this.ids.length, length);
    this.steps.length = this.ids.length;
    for (const at of this.chosen) if (at >= length) this.chosen.delete(at);
  }

  /** Whether the prompt is read. */
  get read() {
    return this.ids.length >= this.prompt.length;
  }

  /** The logits of the next character; none before anything is read. */
  get logits() {
    return this.steps.at(-1)?.logits;
  }

  /** Reads the next id of the prompt. */
  async readOn() {
    await this.#step(this.prompt[this.ids.length]);
  }

  /**
   * Draws the next character, or takes the one that a person chose, and reads it.
   * @param {Sampling} sampling
   * @param {number} seed
   * @param {number} [choice]
   * @returns {Promise<boolean>} false, and nothing is read, where the document ends here
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
    const chance = warm(sampling.temperature) ? uniform(seed, drawn) : 0;
    return choose(probabilities(/** @type {Float32Array} */ (this.logits), sampling), chance);
  }

  /** @param {number} id */
  async #step(id) {
    const { carry } = this.steps.at(-1) ?? { carry: this.model.initialCarry() };
    this.steps.push(await this.model.step(id, carry));
    this.ids.push(id);
  }

  /**
   * A neuron after each id from position `from` on, in -1 to 1: tanh(c), or h of a cell without c.
   * @param {Neuron} neuron
   * @param {number} from
   */
  follow(neuron, from) {
    return Float32Array.from(this.steps.slice(from), ({ carry }) => this.#activity(carry, neuron.layer, neuron.unit));
  }

  /**
   * The five likeliest ids ahead of position `at`, as the model has them, and what came.
   * @param {number} at
   */
  expected(at) {
    const logits = this.steps[at - 1]?.logits;
    if (!logits) return undefined;
    const probability = probabilities(logits, PLAIN);
    return { five: likeliest(probability, 5), came: probability[this.ids[at]] };
  }

  /**
   * The neurons that move most over the text, by variance, the liveliest first.
   * @param {number} count
   */
  ranked(count) {
    const { layers, units } = this.model;
    const found = [];
    for (let layer = 0; layer < layers; layer++) {
      for (let unit = 0; unit < units; unit++) {
        found.push({ layer, unit, variance: variance(this.follow({ layer, unit }, 0)) });
      }
    }
    return found.sort((a, b) => b.variance - a.variance).slice(0, count);
  }

  /**
   * @param {Float32Array} carry
   * @param {number} layer
   * @param {number} unit
   */
  #activity(carry, layer, unit) {
    const { states, units } = this.model;
    const value = carry[(layer * states + states - 1) * units + unit]; // the last state: c of an LSTM
    return states === 2 ? Math.tanh(value) : value;
  }
}

/** @param {Float32Array} values */
function variance(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
  return values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length || 1);
}
