// The worker's side: the model, the texts, and the calls that the page may make. Each call works for a short time, so that the
// next one never waits long; the page calls again for more.

import { explain } from "./explain.js";
import { Model } from "./model.js";
import { likeliest, probabilities } from "./sample.js";
import { Text } from "./text.js";

/**
 * @typedef {import("./sample.js").Sampling} Sampling
 * @typedef {import("./text.js").Neuron} Neuron
 */

/**
 * A file to open. size, sha256: of its bytes; vocabulary: symbols; endId: the id that ends a document.
 * @typedef {{url: string, size: number, sha256: string, vocabulary: number, endId?: number}} File
 */

/**
 * The result of a slice: the ids from position `from` on, the neuron's activity at each, the likeliest next ids, the count
 * of unread ids, and whether the document has ended.
 * @typedef {object} Slice
 * @property {number} from
 * @property {number[]} ids
 * @property {Float32Array} activity
 * @property {{id: number, p: number}[]} next
 * @property {number} unread
 * @property {boolean} ended
 */

const BARS = 10;
const RANKED = 24;

/** @type {Model | undefined} */
let model;
/** @type {Text[]} */
let texts = [];

export const calls = {
  /**
   * Open a model in place of the previous one.
   * @param {File} file
   */
  async open(file) {
    const bytes = await fetchFile(file);
    model?.delete();
    model = undefined;
    model = await Model.open(bytes);
    if (model.vocabulary !== file.vocabulary) {
      throw new Error(`the file has ${model.vocabulary} logits for a vocabulary of ${file.vocabulary} symbols: export the page again`);
    }
    const opened = model;
    texts = [0, 1].map(() => new Text(opened, file.endId));
    return { layers: model.layers, units: model.units, cells: model.states === 2 };
  },

  /**
   * Start a text from a prompt. Returns the length of the part that is already read.
   * @param {{text: number, prompt: number[]}} argument
   */
  async begin({ text, prompt }) {
    texts[text].begin(prompt);
    return texts[text].ids.length;
  },

  /**
   * Truncate a text to `length`. Returns its length.
   * @param {{text: number, length: number}} argument
   */
  async cut({ text, length }) {
    texts[text].cut(length);
    return texts[text].ids.length;
  },

  /**
   * Continue a text for some milliseconds: read its prompt, then write until it is `until` ids long.
   * from: the length of the caller's copy. chosen: positions and the ids to place there.
   * @param {{text: number, from: number, until: number, millis: number, seed: number, sampling: Sampling,
   *   chosen: [number, number][], neuron: Neuron | null}} argument
   * @returns {Promise<Slice>}
   */
  async advance({ text: index, from, until, millis, seed, sampling, chosen, neuron }) {
    const text = texts[index];
    const choice = new Map(chosen);
    const end = performance.now() + millis;
    let ended = false;
    while (!ended && performance.now() < end) {
      if (!text.read) await text.readNext();
      else if (text.ids.length >= until) break;
      else ended = !(await text.write(sampling, seed, choice.get(text.ids.length)));
    }
    return {
      from,
      ids: text.ids.slice(from),
      activity: neuron ? text.follow(neuron, from) : new Float32Array(),
      next: text.read ? next(text, sampling) : [],
      unread: Math.max(text.prompt.length - text.ids.length, 0),
      ended,
    };
  },

  /**
   * Return the likeliest next ids under the sampling settings.
   * @param {{text: number, sampling: Sampling}} argument
   */
  async next({ text, sampling }) {
    return next(texts[text], sampling);
  },

  /**
   * Return a neuron's activity at each id of a text.
   * @param {{text: number, neuron: Neuron}} argument
   */
  async follow({ text, neuron }) {
    return texts[text].follow(neuron, 0);
  },

  /**
   * Return the distribution before an id and a neuron's activity after it.
   * @param {{text: number, at: number, neuron: Neuron | null}} argument
   */
  async expected({ text, at, neuron }) {
    const activity = neuron ? texts[text].follow(neuron, at)[0] : undefined;
    return { expected: texts[text].expected(at), activity };
  },

  /**
   * Explain the step that reads the last of some ids, from the start of a text.
   * @param {{ids: number[]}} argument
   */
  async explain({ ids }) {
    if (!model) throw new Error("no model is open");
    return explain(model, ids, texts[0].endId);
  },

  /**
   * Return the neurons that vary most over a text.
   * @param {{text: number}} argument
   */
  async ranked({ text }) {
    return texts[text].ranked(RANKED);
  },
};

/**
 * @param {Text} text
 * @param {Sampling} sampling
 */
function next(text, sampling) {
  return text.logits ? likeliest(probabilities(text.logits, sampling), BARS) : [];
}

/**
 * Fetch a file and check it against the page. A corrupted copy may come from a cache, so it is fetched once more without it.
 * @param {File} file
 * @param {RequestCache} cache
 */
async function fetchFile(file, cache = "default") {
  const { url } = file;
  const name = url.split("/").at(-1);
  const response = await fetch(url, { cache }).catch(() => undefined);
  if (!response) throw new Error(`cannot load ${name}: there is no network, and this model has not been opened here before`);
  if (!response.ok) throw new Error(`${name} is missing (the server answered ${response.status})`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  const problem = await corruption(bytes, file);
  if (!problem) return bytes;
  if (cache === "reload") throw new Error(`${name} is corrupted${problem}`);
  return fetchFile(file, "reload");
}

/**
 * Describe the corruption of a file; empty if it is intact.
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {File} file
 */
async function corruption(bytes, { size, sha256 }) {
  if (bytes.length !== size) return `: received ${bytes.length} bytes of ${size}`;
  // Browsers offer hashing on https and localhost only.
  const differs = crypto.subtle && hexadecimal(await crypto.subtle.digest("SHA-256", bytes)) !== sha256;
  return differs ? " or belongs to another model: its checksum does not match this page" : "";
}

/** @param {ArrayBuffer} buffer */
function hexadecimal(buffer) {
  return Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
