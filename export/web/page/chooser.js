// The choice of a model and its precision, in two lists, and of a snapshot of its training, by a slider.

import { find, make } from "./dom.js";

/**
 * A .tflite in models.json. step: of the training. bits: on held-out text.
 * @typedef {{precision: string, step: number, bits: number, url: string, size: number, sha256: string}} ModelFile
 */

/**
 * A model in models.json.
 * @typedef {object} ModelEntry
 * @property {string} name
 * @property {import("./vocab.js").VocabJson} vocab
 * @property {ModelFile[]} files
 * @property {ModelFile[]} snapshots of earlier steps, in order
 * @property {{layer: number, unit: number, about: string}[]} neurons numbered from 1
 * @property {[string, string][]} card names and values; empty without MODEL_CARD.md
 */

export class Chooser {
  /** @param {(model: string, precision: string, step: number | null) => void} choose called with each choice; null: the trained model */
  constructor(choose) {
    this.models = find("model", HTMLSelectElement);
    this.precisions = find("precision", HTMLSelectElement);
    this.slider = find("snapshot", HTMLInputElement);
    /** @type {ModelEntry[]} */
    this.listed = [];
    for (const list of [this.models, this.precisions]) {
      list.addEventListener("change", () => choose(this.models.value, this.precisions.value, null));
    }
    this.slider.addEventListener("input", () => {
      const step = this.#model(this.models.value).snapshots[this.slider.valueAsNumber]?.step ?? null;
      choose(this.models.value, this.precisions.value, step);
    });
  }

  /** Load the list of models. */
  async load() {
    const response = await fetch("models.json");
    if (!response.ok) throw new Error(`models.json is missing (the server answered ${response.status}): export the page again`);
    this.listed = (await response.json()).models;
    this.models.replaceChildren(...this.listed.map(({ name }) => make("option", { value: name }, name)));
  }

  /**
   * Return the model of a name, or else the first one.
   * @param {string} model
   */
  #model(model) {
    return this.listed.find(({ name }) => name === model) ?? this.listed[0];
  }

  /**
   * Select the model, precision and snapshot of these names and step, or else the first ones and the trained model.
   * @param {string} model
   * @param {string} precision
   * @param {number | null} step
   */
  select(model, precision, step) {
    const listed = this.#model(model);
    const trained = listed.files.find((other) => other.precision === precision) ?? listed.files[0];
    this.models.value = listed.name;
    this.precisions.replaceChildren(
      ...listed.files.map((entry) => {
        const label = `${entry.precision}, ${megabytes(entry.size)}, ${entry.bits.toFixed(2)} bits`; // per byte or per character
        return make("option", { value: entry.precision }, label);
      }),
    );
    this.precisions.value = trained.precision;
    const rows = listed.card.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
    find("model-card", HTMLDListElement).replaceChildren(...rows);
    find("about", HTMLDetailsElement).hidden = !rows.length;
    const file = listed.snapshots.find((snapshot) => snapshot.step === step) ?? trained;
    this.#slide(listed.snapshots, file, trained);
    return { model: listed, precision: trained.precision, file, step: file === trained ? null : step };
  }

  /**
   * Show a file's place in the training.
   * @param {ModelFile[]} snapshots
   * @param {ModelFile} file
   * @param {ModelFile} trained
   */
  #slide(snapshots, file, trained) {
    const [at, of] = [file.step, trained.step].map((step) => step.toLocaleString("en"));
    const place = `step ${at} of ${of}, ${file.bits.toFixed(2)} bits`;
    find("training", HTMLLabelElement).hidden = !snapshots.length;
    find("training-value", HTMLOutputElement).textContent = place;
    this.slider.max = String(snapshots.length);
    this.slider.value = String(file === trained ? snapshots.length : snapshots.indexOf(file));
    this.slider.ariaValueText = place;
  }
}

/** @param {number} size bytes */
export function megabytes(size) {
  return `${(size / 1e6).toFixed(1)} MB`;
}
