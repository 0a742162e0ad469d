// The choice of a model and its precision, in two lists.

import { find, make } from "./dom.js";

/**
 * A model in models.json.
 * @typedef {object} ModelEntry
 * @property {string} name
 * @property {import("./vocab.js").VocabJson} vocab
 * @property {{precision: string, bits: number, url: string, size: number, sha256: string}[]} files
 * @property {{layer: number, unit: number, about: string}[]} neurons numbered from 1
 * @property {[string, string][]} card names and values; empty without MODEL_CARD.md
 */

export class Chooser {
  /** @param {(model: string, precision: string) => void} choose called with each choice */
  constructor(choose) {
    this.models = find("model", HTMLSelectElement);
    this.precisions = find("precision", HTMLSelectElement);
    /** @type {ModelEntry[]} */
    this.listed = [];
    for (const list of [this.models, this.precisions]) {
      list.addEventListener("change", () => choose(this.models.value, this.precisions.value));
    }
  }

  /** Load the list of models. */
  async load() {
    const response = await fetch("models.json");
    if (!response.ok) throw new Error(`models.json is missing (the server answered ${response.status}): export the page again`);
    this.listed = (await response.json()).models;
    this.models.replaceChildren(...this.listed.map(({ name }) => make("option", { value: name }, name)));
  }

  /**
   * Select the model and the file of these names, or else the first ones.
   * @param {string} model
   * @param {string} precision
   */
  select(model, precision) {
    const listed = this.listed.find(({ name }) => name === model) ?? this.listed[0];
    const file = listed.files.find((other) => other.precision === precision) ?? listed.files[0];
    this.models.value = listed.name;
    this.precisions.replaceChildren(
      ...listed.files.map((entry) => {
        const label = `${entry.precision}, ${megabytes(entry.size)}, ${entry.bits.toFixed(2)} bits`; // per byte or per character
        return make("option", { value: entry.precision }, label);
      }),
    );
    this.precisions.value = file.precision;
    const rows = listed.card.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
    find("model-card", HTMLDListElement).replaceChildren(...rows);
    find("about", HTMLDetailsElement).hidden = !rows.length;
    return { model: listed, file };
  }
}

/** @param {number} size bytes */
export function megabytes(size) {
  return `${(size / 1e6).toFixed(1)} MB`;
}
