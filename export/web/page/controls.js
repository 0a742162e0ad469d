// The form fields for sampling, and their settings.

import { find } from "./dom.js";
import { DEFAULTS, fromHash, toHash } from "./share.js";

/** @type {("temperature" | "top_k" | "top_p" | "seed" | "length" | "beside")[]} */
const NUMBERS = ["temperature", "top_k", "top_p", "seed", "length", "beside"];
const BESIDE = 1.2; // default of the second temperature
const DELAY = 400; // milliseconds without a change before the address is updated: browsers limit the rate
const OFF = { top_k: 0, top_p: 1 }; // values without effect

export class Controls {
  /** @param {() => void} changed called after each change by the user */
  constructor(changed) {
    this.settings = { ...DEFAULTS };
    this.compare = find("compare", HTMLInputElement);
    this.timer = 0; // of the next update of the address
    for (const name of NUMBERS) {
      const field = find(name, HTMLInputElement);
      field.addEventListener("input", () => {
        if (field.checkValidity()) this.settings[name] = field.valueAsNumber;
        changed();
      });
    }
    this.compare.addEventListener("change", () => {
      this.settings.beside = this.compare.checked ? BESIDE : null;
      changed();
    });
  }

  /** Return the sampling settings of text 0 or 1. @param {number} text */
  sampling(text) {
    const { temperature, beside, top_k: topK, top_p: topP } = this.settings;
    return { temperature: text ? (beside ?? temperature) : temperature, topK, topP };
  }

  /** Load the settings from the address. */
  read() {
    Object.assign(this.settings, fromHash(location.hash));
    this.show(null);
  }

  /**
   * Show the settings in the fields and in the address.
   * @param {Element | null} focused the field to leave alone, so that typing is not interrupted
   */
  show(focused = document.activeElement) {
    const { settings } = this;
    for (const name of NUMBERS) {
      const field = find(name, HTMLInputElement);
      const value = settings[name] ?? BESIDE;
      if (field !== focused) field.value = String(value);
      const output = document.getElementById(`${name}-value`);
      if (output) output.textContent = name in OFF && OFF[/** @type {keyof typeof OFF} */ (name)] === value ? "off" : String(value);
    }
    this.compare.checked = settings.beside !== null;
    find("beside-field", HTMLLabelElement).hidden = settings.beside === null;
    document.body.classList.toggle("comparing", settings.beside !== null);
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.#updateAddress(), DELAY);
  }

  /** Update the page's address. */
  #updateAddress() {
    try {
      history.replaceState(null, "", toHash(this.settings) || location.pathname + location.search);
    } catch {} // the next change retries
  }
}
