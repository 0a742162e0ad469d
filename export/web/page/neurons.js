// The choice of the neuron that colours the text: a ranked list, and number fields for any other.

import { find, make } from "./dom.js";

/**
 * A neuron in the list. about: the feature that it follows, if known; variance: over the text.
 * @typedef {{layer: number, unit: number, about?: string, variance?: number}} Ranked
 * @typedef {import("./text.js").Neuron} Neuron
 */

export class Neurons {
  /** @param {(neuron: Neuron | null) => void} choose called with each choice */
  constructor(choose) {
    this.choose = choose;
    this.list = find("neurons", HTMLFieldSetElement);
    this.note = find("neurons-note", HTMLParagraphElement);
    this.layer = find("layer", HTMLInputElement);
    this.unit = find("unit", HTMLInputElement);
    /** @type {Neuron | null} */
    this.chosen = null;
    this.list.addEventListener("change", ({ target }) => {
      if (target instanceof HTMLInputElement) this.#select(parsed(target.value));
    });
    for (const field of [this.layer, this.unit]) {
      field.addEventListener("change", () => {
        const neuron = { layer: this.layer.valueAsNumber - 1, unit: this.unit.valueAsNumber - 1 };
        if (this.layer.checkValidity() && this.unit.checkValidity() && neuron.layer >= 0 && neuron.unit >= 0) this.#select(neuron);
      });
    }
  }

  /**
   * Show a model's neurons.
   * @param {{layers: number, units: number, cells: boolean}} model
   * @param {Ranked[]} known those of neurons.json, if any
   */
  open({ layers, units, cells }, known) {
    this.layer.max = String(layers);
    this.unit.max = String(units);
    this.known = known.length > 0;
    const value = cells ? "tanh(c)" : "h";
    this.note.textContent = this.known
      ? `Neurons and the features they follow. Colours show ${value}.`
      : `Those that vary most over this text come first. Colours show ${value}.`;
    this.rank(known, true);
  }

  /**
   * Fill the list in order.
   * @param {Ranked[]} ranked
   * @param {boolean} [known] whether they are those of neurons.json, which are kept
   */
  rank(ranked, known = false) {
    const focused = this.list.contains(document.activeElement); // the list must not change under the keyboard focus
    if (!known && (this.known || focused)) return;
    const most = Math.max(...ranked.map(({ variance }) => variance ?? 0), 1e-9);
    const rows = ranked.map(({ layer, unit, about, variance }) => {
      const row = this.#row({ layer, unit }, about ?? "");
      row.style.setProperty("--p", String((variance ?? 0) / most));
      return row;
    });
    this.list.replaceChildren(this.list.children[0], this.#row(null, ""), ...rows);
    this.#mark();
  }

  /** @param {Neuron | null} neuron */
  show(neuron) {
    this.chosen = neuron;
    this.#mark();
  }

  /** @param {Neuron | null} neuron */
  #select(neuron) {
    this.show(neuron);
    this.choose(neuron);
  }

  #mark() {
    for (const input of this.list.querySelectorAll("input")) input.checked = input.value === key(this.chosen);
    this.layer.value = this.chosen ? String(this.chosen.layer + 1) : "";
    this.unit.value = this.chosen ? String(this.chosen.unit + 1) : "";
  }

  /**
   * @param {Neuron | null} neuron
   * @param {string} about
   */
  #row(neuron, about) {
    const input = make("input", { type: "radio", name: "neuron", value: key(neuron) });
    const name = neuron ? `${neuron.layer + 1} · ${neuron.unit + 1}` : "No colour";
    const label = make("label", {}, input, make("span", {}, name));
    if (neuron) input.ariaLabel = `${name}${about && ` ${about}`}: layer ${neuron.layer + 1}, neuron ${neuron.unit + 1}`;
    if (neuron) label.append(about ? make("em", {}, about) : make("i", {}));
    return label;
  }
}

/** @param {Neuron | null} neuron */
function key(neuron) {
  return neuron ? `${neuron.layer}.${neuron.unit}` : "";
}

/** @param {string} value */
function parsed(value) {
  const [layer, unit] = value.split(".").map(Number);
  return value ? { layer, unit } : null;
}
