// The settings of a text, to and from the address's fragment.

/**
 * step: of a snapshot of the training; null: the trained model. chosen: positions and the ids that the user placed there.
 * written: whether to write a text at once.
 * @typedef {object} Settings
 * @property {string} model
 * @property {string} precision
 * @property {number | null} step
 * @property {string} prompt
 * @property {number} temperature
 * @property {number} top_k
 * @property {number} top_p
 * @property {number} seed
 * @property {number} length
 * @property {number | null} beside the second temperature, when two are compared
 * @property {import("./text.js").Neuron | null} neuron
 * @property {[number, number][]} chosen
 * @property {boolean} written
 */

/** @type {Readonly<Settings>} */
export const DEFAULTS = {
  model: "",
  precision: "",
  step: null,
  prompt: "",
  temperature: 0.8,
  top_k: 0,
  top_p: 1,
  seed: 1,
  length: 500,
  beside: null,
  neuron: null,
  chosen: [],
  written: false,
};

/** Valid numbers: minimum, maximum, whether integers only. @type {Record<string, [number, number, boolean]>} */
export const RANGES = {
  step: [0, 1e9, true],
  temperature: [0, 2, false],
  top_k: [0, 40, true],
  top_p: [0.05, 1, false],
  seed: [0, Number.MAX_SAFE_INTEGER, true],
  length: [1, 10000, true],
  beside: [0, 2, false],
};

/**
 * @param {Settings} settings
 * @returns {string} the fields that differ from the defaults; empty if none do
 */
export function toHash(settings) {
  const fields = new URLSearchParams();
  for (const name of /** @type {(keyof Settings)[]} */ (Object.keys(DEFAULTS))) {
    const value = format(settings[name]);
    if (value !== format(DEFAULTS[name])) fields.set(name, value);
  }
  return fields.size ? `#${fields}` : "";
}

/**
 * Parse the settings of an address. Missing and invalid fields get their defaults.
 * @param {string} hash
 * @returns {Settings}
 */
export function fromHash(hash) {
  const fields = new URLSearchParams(hash.replace(/^#/, ""));
  /** @type {Record<string, unknown>} */
  const settings = { ...DEFAULTS };
  for (const name of ["model", "precision", "prompt"]) settings[name] = fields.get(name) ?? "";
  for (const [name, [least, most, whole]] of Object.entries(RANGES)) {
    const value = Number(fields.get(name) || Number.NaN);
    if (value >= least && value <= most && (!whole || Number.isInteger(value))) settings[name] = value;
  }
  const [neuron] = pairs(fields.get("neuron"));
  if (neuron?.every((number) => number >= 1)) settings.neuron = { layer: neuron[0] - 1, unit: neuron[1] - 1 };
  settings.chosen = pairs(fields.get("chosen"));
  settings.written = fields.get("written") === "1";
  return /** @type {Settings} */ (settings);
}

/** @param {Settings[keyof Settings]} value */
function format(value) {
  if (value === null) return "";
  if (typeof value === "boolean") return value ? "1" : "";
  if (Array.isArray(value)) return value.map((pair) => pair.join(".")).join("-");
  return typeof value === "object" ? `${value.layer + 1}.${value.unit + 1}` : String(value);
}

/**
 * @param {string | null} text
 * @returns {[number, number][]}
 */
function pairs(text) {
  return Array.from((text ?? "").matchAll(/(\d+)\.(\d+)/g), ([, a, b]) => [Number(a), Number(b)]);
}
