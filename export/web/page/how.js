// The tab that shows a step of the model in numbers, character by character.

import { find, make, paint, percent } from "./dom.js";
import { PLAIN, likeliest, probabilities } from "./sample.js";

/**
 * @typedef {import("./client.js").Engine} Engine
 * @typedef {import("./explain.js").Explained} Explained
 * @typedef {import("./vocab.js").Vocab} Vocab
 * @typedef {{layers: number, units: number, cells: boolean}} Shape
 */

const LENGTH = 60; // characters of a word: each step reads it from the start
const [UNITS, LIKELY] = [8, 8]; // rows of the tables

export class How {
  /**
   * @param {Engine} engine
   * @param {(error: unknown) => void} fail
   */
  constructor(engine, fail) {
    this.engine = engine;
    this.fail = fail;
    this.word = find("word", HTMLInputElement);
    this.word.maxLength = LENGTH;
    this.layer = find("how-layer", HTMLSelectElement);
    this.status = find("how-status", HTMLParagraphElement);
    this.back = find("back", HTMLButtonElement);
    this.forward = find("forward", HTMLButtonElement);
    /** @type {Vocab | undefined} */
    this.vocab = undefined;
    /** @type {Shape} */
    this.shape = { layers: 0, units: 0, cells: false };
    /** @type {number[]} */
    this.ids = [];
    this.at = 0; // position of the id that is being read
    this.next = 0; // the likeliest id after it
    /** @type {Explained | undefined} undefined while it is being read */
    this.step = undefined;
    this.turns = 0; // counts requests, so that answers to earlier ones are ignored
    this.word.addEventListener("input", () => this.#begin());
    this.layer.addEventListener("change", () => this.#memory());
    this.back.addEventListener("click", () => this.#move(this.at - 1));
    find("how-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#forward();
    });
  }

  /**
   * Explain another model. For another snapshot or precision of the same model, stay at the same step.
   * @param {Vocab} vocab
   * @param {Shape} shape
   */
  open(vocab, shape) {
    if (vocab === this.vocab && this.ids.length) return this.#move(this.at);
    this.vocab = vocab;
    this.shape = shape;
    const options = Array.from({ length: shape.layers }, (_, layer) => make("option", { value: String(layer) }, `Layer ${layer + 1}`));
    this.layer.replaceChildren(...options);
    find("how-cell", HTMLParagraphElement).textContent = shape.cells
      ? "Each neuron has a memory c. A step keeps a share of it, adds something, and shows a share of the result to the rest of the network as h: c = forget × c before + added, then h = output × tanh(c). What is added is the input gate times a candidate; the model's file reveals only their product."
      : "Each neuron has a memory h. A plain RNN replaces it at each step; a GRU replaces a share of it, and keeps the rest.";
    this.#begin();
  }

  /** Read the word from its first character. */
  #begin() {
    const { vocab } = this;
    if (!vocab) return; // `open` begins once there is a model
    try {
      this.ids = vocab.promptIds(this.word.value).ids;
      this.word.ariaInvalid = "false";
    } catch (error) {
      this.ids = [];
      this.status.textContent = `Cannot read this: ${/** @type {Error} */ (error).message}.`;
      this.word.ariaInvalid = "true";
      this.forward.disabled = this.back.disabled = true;
      this.step = undefined;
      return;
    }
    this.#move(0);
  }

  /** Read the next character or, after the last, write the likeliest one. */
  #forward() {
    if (!this.step) return; // still reading
    if (this.at === this.ids.length - 1) this.ids.push(this.next);
    this.#move(this.at + 1);
  }

  /** @param {number} at */
  async #move(at) {
    const turn = ++this.turns;
    this.at = at;
    this.step = undefined;
    try {
      const step = await this.engine.call("explain", { ids: this.ids.slice(0, at + 1) });
      if (turn === this.turns) this.#show(step);
    } catch (error) {
      if (turn === this.turns) this.fail(error);
    }
  }

  /** @param {Explained} step */
  #show(step) {
    const vocab = /** @type {Vocab} */ (this.vocab);
    this.step = step;
    const id = this.ids[this.at];
    const letters = this.ids.map((other, at) => make("li", { className: at === this.at ? "here" : "" }, vocab.label(other)));
    find("letters", HTMLOListElement).replaceChildren(...letters);
    this.back.disabled = this.at === 0;
    const V = step.logits.length;
    find("how-input", HTMLParagraphElement).textContent =
      `“${vocab.label(id)}” is symbol ${id + 1} of ${V}: a list of ${V} numbers, all 0 but number ${id + 1}, which is 1. ` +
      `So it selects row ${id + 1} of the first matrix.`;
    find("one-hot", HTMLDivElement).style.setProperty("--at", String((id + 0.5) / V));
    this.#memory();
    this.#scores();
  }

  /** Show the units of the chosen layer. */
  #memory() {
    if (!this.step) return;
    const { before, after, gates } = this.step;
    const { units: H, cells } = this.shape;
    const layer = Number(this.layer.value);
    const first = layer * H * (cells ? 2 : 1);
    const [h, c] = [first, first + H];
    const units = Array.from({ length: H }, (_, unit) => unit);
    const change = (/** @type {number} */ unit) => Math.abs(after[h + unit] - before[h + unit]);
    const rows = units.sort((a, b) => change(b) - change(a)).slice(0, UNITS).map((unit) => {
      const at = layer * H + unit;
      const numbers = gates
        ? [before[c + unit], gates.forget[at], gates.added[at], after[c + unit], gates.output[at], after[h + unit]]
        : [before[h + unit], after[h + unit]];
      return row(`${layer + 1} · ${unit + 1}`, numbers.map(decimal));
    });
    const head = gates ? ["c before", "forget", "added", "c", "output", "h"] : ["h before", "h"];
    fill("how-units", ["Neuron", ...head], rows);
    const strip = Array.from(after.subarray(h, h + H), (value) => {
      const cell = make("i");
      paint(cell, value);
      return cell;
    });
    find("how-state", HTMLDivElement).replaceChildren(...strip);
  }

  /** Show the likeliest next characters. */
  #scores() {
    const vocab = /** @type {Vocab} */ (this.vocab);
    const { logits } = /** @type {Explained} */ (this.step);
    const p = probabilities(logits, PLAIN);
    const most = Math.max(...logits);
    const ranked = likeliest(p, LIKELY);
    this.next = ranked[0].id;
    const power = (/** @type {number} */ id) => Math.exp(logits[id] - most);
    const rows = ranked.map(({ id }) => row(vocab.label(id), [decimal(logits[id]), power(id).toFixed(3), percent(p[id])]));
    const sum = logits.reduce((total, _, id) => total + power(id), 0);
    rows.push(row(`all ${logits.length}`, ["", sum.toFixed(3), "100%"]));
    fill("how-scores", ["Character", "Score", "e^(score − highest)", "Probability"], rows);
    const actual = this.ids[this.at + 1]; // undefined at the end
    const last = actual === undefined;
    const bits = (-Math.log2(p[actual])).toFixed(2);
    const loss = last ? "" : ` The text has “${vocab.label(actual)}”: ${percent(p[actual])}, a loss of ${bits} bits.`;
    const read = `Step ${this.at + 1} of ${this.ids.length}: read ${vocab.spoken(this.ids[this.at])}.`;
    this.status.textContent = `${read} Likeliest next: ${vocab.spoken(this.next)}, ${percent(p[this.next])}.${loss}`;
    this.forward.textContent = last ? `Write ${vocab.label(this.next)}` : "Next step";
    this.forward.disabled = last && (this.next === vocab.endId || this.ids.length >= LENGTH);
  }
}

/**
 * Fill a table.
 * @param {string} id
 * @param {string[]} head
 * @param {HTMLTableRowElement[]} rows
 */
function fill(id, head, rows) {
  const cells = head.map((name) => make("th", { scope: "col" }, name));
  find(id, HTMLTableElement).replaceChildren(make("thead", {}, make("tr", {}, ...cells)), make("tbody", {}, ...rows));
}

/**
 * @param {string} name
 * @param {string[]} values
 */
function row(name, values) {
  return make("tr", {}, make("th", { scope: "row" }, name), ...values.map((value) => make("td", {}, value)));
}

/** @param {number} value */
function decimal(value) {
  return value.toFixed(3).replace("-", "−");
}
