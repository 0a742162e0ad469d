// The models that the page has, and the two lists to choose from.

import { find, make } from "./dom.js";

/**
 * A model as models.json has it.
 * @typedef {object} Listed
 * @property {string} name
 * @property {import("./vocab.js").VocabJson} vocab
 * @property {{precision: string, bits: number, url: string, size: number, sha256: string}[]} files
 * @property {{layer: number, unit: number, about: string}[]} neurons from 1
 */

export class Shelf {
  /** @param {(model: string, precision: string) => void} choose what a choice does */
  constructor(choose) {
    this.models = find("model", HTMLSelectElement);
    this.precisions = find("precision", HTMLSelectElement);
    /** @type {Listed[]} */
    this.listed = [];
    for (const list of [this.models, this.precisions]) {
      list.addEventListener("change", () => choose(this.models.value, this.precisions.value));
    }
  }

  /** Reads what there is. */
  async fill() {
    const response = await fetch("models.json");
    if (!response.ok) throw new Error(`models.json is not there (the server says ${response.status}): the page is not whole`);
    this.listed = (await response.json()).models;
    this.models.replaceChildren(...this.listed.map(({ name }) => make("option", { value: name }, name)));
  }

  /**
   * The model and the file of these names, or the first ones; the lists show them.
   * @param {string} model
   * @param {string} precision
   */
  take(model, precision) {
    const listed = this.listed.find(({ name }) => name === model) ?? this.listed[0];
    const file = listed.files.find((other) => other.precision === precision) ?? listed.files[0];
    this.models.value = listed.name;
    this.precisions.replaceChildren(
      ...listed.files.map((one) => {
        const label = `${one.precision}, ${megabytes(one.size)}, ${one.bits.toFixed(2)} bits`; // a byte or a character
        return make("option", { value: one.precision }, label);
      }),
    );
    this.precisions.value = file.precision;
    return { model: listed, file };
  }
}

/** @param {number} size bytes */
export function megabytes(size) {
  return `${(size / 1e6).toFixed(1)} MB`;
}
