// The worker's side: the model and the texts, and what the page may call. Work comes in slices, so that the next call is
// never far: who wants more asks again.

import { Model } from "./model.js";
import { likeliest, probabilities } from "./sample.js";
import { Text } from "./text.js";

/**
 * @typedef {import("./sample.js").Sampling} Sampling
 * @typedef {import("./text.js").Neuron} Neuron
 */

/**
 * A file to open. size, sha256: of its bytes; endId: of its vocabulary, whose size is `vocabulary`.
 * @typedef {{url: string, size: number, sha256: string, vocabulary: number, endId?: number}} File
 */

/**
 * What a slice came to: the ids from position `from` on, the neuron's activity at each, the likeliest next ids, how many
 * ids are still to be read, and whether the document has ended.
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
   * Opens a model, and forgets the one before it.
   * @param {File} file
   */
  async open(file) {
    const bytes = await fetched(file);
    model?.delete();
    model = undefined;
    model = await Model.open(bytes);
    if (model.vocabulary !== file.vocabulary) {
      throw new Error(`the file has ${model.vocabulary} symbols and its vocabulary ${file.vocabulary}: they are of two models`);
    }
    const opened = model;
    texts = [0, 1].map(() => new Text(opened, file.endId));
    return { layers: model.layers, units: model.units, cells: model.states === 2 };
  },

  /**
   * Makes a text the one that goes on from a prompt. Gives how much of what was read stays.
   * @param {{text: number, prompt: number[]}} wanted
   */
  async begin({ text, prompt }) {
    texts[text].begin(prompt);
    return texts[text].ids.length;
  },

  /**
   * Forgets a text from position `length` on. Gives how long it is.
   * @param {{text: number, length: number}} wanted
   */
  async cut({ text, length }) {
    texts[text].cut(length);
    return texts[text].ids.length;
  },

  /**
   * Goes on with a text for some milliseconds: reads its prompt, then writes until it is `until` ids long.
   * from: as much of it as the caller has. chosen: positions, and the ids to put there.
   * @param {{text: number, from: number, until: number, millis: number, seed: number, sampling: Sampling,
   *   chosen: [number, number][], neuron: Neuron | null}} wanted
   * @returns {Promise<Slice>}
   */
  async goOn({ text: index, from, until, millis, seed, sampling, chosen, neuron }) {
    const text = texts[index];
    const choice = new Map(chosen);
    const end = performance.now() + millis;
    let ended = false;
    while (!ended && performance.now() < end) {
      if (!text.read) await text.readOn();
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
   * The likeliest next ids, as they would be drawn.
   * @param {{text: number, sampling: Sampling}} wanted
   */
  async next({ text, sampling }) {
    return next(texts[text], sampling);
  },

  /**
   * A neuron's activity at each id of a text.
   * @param {{text: number, neuron: Neuron}} wanted
   */
  async follow({ text, neuron }) {
    return texts[text].follow(neuron, 0);
  },

  /**
   * What was expected where an id stands, and a neuron's activity after it.
   * @param {{text: number, at: number, neuron: Neuron | null}} wanted
   */
  async expected({ text, at, neuron }) {
    const activity = neuron ? texts[text].follow(neuron, at)[0] : undefined;
    return { expected: texts[text].expected(at), activity };
  },

  /**
   * The neurons that move most over a text.
   * @param {{text: number}} wanted
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
 * The bytes of a file, as they were when the page was made. Those that are not may have been kept so: they are fetched
 * once more, past all that is kept.
 * @param {File} file
 * @param {RequestCache} cache
 */
async function fetched(file, cache = "default") {
  const { url } = file;
  const name = url.split("/").at(-1);
  const response = await fetch(url, { cache }).catch(() => undefined);
  if (!response) throw new Error(`${name} did not come: there is no network, and it has not been opened here before`);
  if (!response.ok) throw new Error(`${name} is not there (the server says ${response.status})`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  const fault = await damage(bytes, file);
  if (!fault) return bytes;
  if (cache === "reload") throw new Error(`${name} is broken${fault}`);
  return fetched(file, "reload");
}

/**
 * What is wrong with the bytes of a file; nothing, where they are its own.
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {File} file
 */
async function damage(bytes, { size, sha256 }) {
  if (bytes.length !== size) return `: ${bytes.length} bytes came, it has ${size}`;
  // Browsers hash for pages of https and localhost only.
  const other = crypto.subtle && hexadecimal(await crypto.subtle.digest("SHA-256", bytes)) !== sha256;
  return other ? ", or of another model: its checksum is not the one that this page was made with" : "";
}

/** @param {ArrayBuffer} buffer */
function hexadecimal(buffer) {
  return Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
