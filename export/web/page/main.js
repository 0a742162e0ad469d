// The page: brings together what a person sets, the engine, and the texts that come of it.

import { Bars } from "./bars.js";
import { Card } from "./card.js";
import { Engine } from "./client.js";
import { Controls } from "./controls.js";
import { find } from "./dom.js";
import { Neurons } from "./neurons.js";
import { keep } from "./offline.js";
import { Pane } from "./pane.js";
import { RANGES, toHash } from "./share.js";
import { Shelf, megabytes } from "./shelf.js";
import { Vocab } from "./vocab.js";
import { Writer } from "./writer.js";

const HINT = "The network reads as you type. Then it writes on.";

const form = find("form", HTMLFormElement);
const problem = find("problem", HTMLParagraphElement);
const status = find("status", HTMLParagraphElement);
const prompt = find("prompt", HTMLTextAreaElement);
const promptNote = find("prompt-note", HTMLParagraphElement);
const writeOrStop = find("write", HTMLButtonElement);
const goOn = find("on", HTMLButtonElement);

const engine = new Engine();
const card = new Card();
const bars = new Bars(find("bars", HTMLOListElement), choose);
const neurons = new Neurons(colour);
const shelf = new Shelf(open);
const controls = new Controls(changed);
const { settings } = controls;
const writers = [0, 1].map((text) => {
  const pane = new Pane(find("panes", HTMLDivElement), (at, span, key) => point(text, at, span, key));
  const now = () => ({ sampling: controls.sampling(text), seed: settings.seed, neuron: settings.neuron });
  return new Writer(engine, text, pane, now, ({ next }) => text === 0 && next.length && bars.show(next));
});

/** @type {Vocab} */
let vocab;
let ready = false; // a model is open
let writing = false;
let compared = false; // the second text goes with the first
let turns = 0; // of opening and of work: what an earlier one has still to say does not count

/** @param {unknown} error */
function fail(error) {
  problem.textContent = `${error instanceof Error ? error.message : error}.`;
  problem.hidden = false;
  status.textContent = "";
}

/** What can be done now. */
function enable() {
  for (const button of form.querySelectorAll("button")) button.disabled = !ready;
  goOn.disabled = !ready || writing || !settings.written;
  writeOrStop.textContent = writing ? "Stop" : "Write";
}

/** Shows what is set, and what follows from it. */
function changed() {
  controls.show();
  writers[1].pane.root.hidden = settings.beside === null;
  for (const [text, { pane }] of writers.entries()) pane.name(`Temperature ${controls.sampling(text).temperature}`);
  if (!ready || writing) return;
  engine.call("next", { text: 0, sampling: controls.sampling(0) }).then((next) => bars.show(next), fail);
  const before = compared;
  const [{ written }, right] = active();
  if (right && !before) work([begin(right, written)], written ? "Writing …" : "");
}

/**
 * Opens a model of the shelf, and has it read what is typed.
 * @param {string} name
 * @param {string} precision
 */
async function open(name, precision) {
  const turn = ++turns;
  const { model, file } = shelf.take(name, precision);
  if (settings.model && settings.model !== model.name) settings.chosen = [];
  Object.assign(settings, { model: model.name, precision: file.precision });
  for (const writer of writers) writer.stop();
  ready = writing = false;
  problem.hidden = true;
  enable();
  status.textContent = `Opening ${model.name}, ${file.precision}, ${megabytes(file.size)} …`;
  try {
    vocab = new Vocab(model.vocab);
    settings.chosen = settings.chosen.filter(([, id]) => id < vocab.size); // an address may say anything
    const { sha256, size } = file;
    const url = new URL(file.url, document.baseURI).href;
    const shape = await engine.call("open", { url, sha256, size, vocabulary: vocab.size, endId: vocab.endId });
    if (turn !== turns) return;
    const { neuron } = settings;
    if (neuron && (neuron.layer >= shape.layers || neuron.unit >= shape.units)) settings.neuron = null;
    neurons.open(shape, model.neurons.map((known) => ({ ...known, layer: known.layer - 1, unit: known.unit - 1 })));
    neurons.show(settings.neuron);
    bars.vocab = vocab;
    for (const { pane } of writers) pane.clear(vocab);
    ready = true;
    status.textContent = "Ready.";
    if (settings.written) write();
    else read();
  } catch (error) {
    if (turn === turns) fail(error);
  }
}

/**
 * Has a text begin with what is typed.
 * @param {Writer} writer
 * @param {number} length characters to write behind it
 */
async function begin(writer, length) {
  let wanted;
  try {
    wanted = vocab.promptIds(settings.prompt);
    promptNote.textContent = HINT;
    prompt.ariaInvalid = "false";
  } catch (error) {
    promptNote.textContent = `It cannot read this: ${/** @type {Error} */ (error).message}.`;
    prompt.ariaInvalid = "true";
    return;
  }
  const chosen = writer === writers[0] ? settings.chosen : []; // the bars are the first text's
  await writer.begin(wanted, chosen, length && wanted.ids.length + length);
}

/** The texts that are to be seen, and to be worked at. */
function active() {
  compared = settings.beside !== null;
  return compared ? writers : writers.slice(0, 1);
}

/** Reads what is typed. */
function read() {
  settings.chosen = [];
  settings.written = false;
  work(active().map((writer) => begin(writer, 0)), "");
}

/** Writes from the beginning. */
function write() {
  settings.written = true;
  work(active().map((writer) => begin(writer, settings.length)), "Writing …");
}

/**
 * Has a person's character be the next.
 * @param {number} id
 */
function choose(id) {
  const text = writers[0].choose(id);
  settings.chosen = writers[0].chosen;
  settings.written = true;
  work([text], writing ? "Writing …" : `${vocab.spoken(id)}, chosen.`);
}

/**
 * Waits for texts at work, and shows what has come of them.
 * @param {Promise<void>[]} texts
 * @param {string} told what is said meanwhile; nothing, where they only read
 */
async function work(texts, told) {
  const turn = ++turns;
  writing = told === "Writing …";
  if (told) status.textContent = told;
  problem.hidden = true;
  enable();
  controls.show();
  try {
    await Promise.all(texts);
    if (turn !== turns) return;
    for (const { pane } of writers) pane.flush();
    if (writing) status.textContent = writers[0].ended ? "The text has ended by itself." : "Done.";
    writing = false;
    enable();
    changed();
    neurons.rank(await engine.call("ranked", { text: 0 }));
  } catch (error) {
    if (turn === turns) fail(error);
  } finally {
    if (turn === turns) writing = false;
    enable();
  }
}

/** @param {import("./text.js").Neuron | null} neuron */
function colour(neuron) {
  settings.neuron = neuron;
  controls.show();
  for (const { text, pane } of writers) {
    if (neuron) engine.call("follow", { text, neuron }).then((activity) => pane.colour(activity), fail);
    else pane.colour(null);
  }
}

/**
 * Tells of the character that is pointed at.
 * @param {number} text
 * @param {number} at
 * @param {HTMLElement | null} span
 * @param {boolean} key
 */
async function point(text, at, span, key) {
  if (!span) return card.hide();
  const id = writers[text].pane.ids[at];
  const { expected, activity } = await engine.call("expected", { text, at, neuron: settings.neuron });
  if (span.classList.contains("here")) card.show(span, vocab, id, activity, expected, key); // else it is too late
}

/** The address that brings back what is set, with a text as long as this one has become. */
function link() {
  const [{ written, ended }] = writers;
  const reached = written && !ended ? written : Math.max(written, settings.length);
  const hash = toHash({ ...settings, length: Math.min(reached, RANGES.length[1]) });
  return new URL(hash || "#", location.href).href;
}

/**
 * @param {string} text
 * @param {string} what
 */
async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    status.textContent = `${what} is copied.`;
  } catch {
    status.textContent = `The browser does not let the page copy. ${what} can be selected and copied by hand.`;
  }
}

/** Opens what the address says: at the start, and where a person goes to another one, or back. */
async function follow() {
  controls.read();
  prompt.value = settings.prompt;
  await open(settings.model, settings.precision);
}

function listen() {
  addEventListener("hashchange", follow); // never of the page's own making: replaceState tells nobody
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (writing) for (const writer of writers) writer.stop();
    else if (ready) {
      settings.chosen = [];
      write();
    }
  });
  prompt.addEventListener("input", () => {
    settings.prompt = prompt.value;
    if (ready) read();
    else controls.show();
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  goOn.addEventListener("click", () => {
    work(active().map((writer) => writer.goOn(writer.length + settings.length)), "Writing …");
  });
  find("copy", HTMLButtonElement).addEventListener("click", () => copy(writers[0].pane.text, "The text"));
  find("share", HTMLButtonElement).addEventListener("click", () => copy(link(), "The link"));
}

async function start() {
  find("waiting", HTMLElement).hidden = true;
  if (typeof WebAssembly !== "object") throw new Error("This browser has no WebAssembly, or it is switched off; the models need it");
  await keep((text) => {
    find("offline", HTMLParagraphElement).textContent = text;
  });
  await shelf.fill();
  promptNote.textContent = HINT;
  listen();
  for (const id of ["models", "work"]) find(id, HTMLDivElement).hidden = false;
  await follow();
}

start().catch(fail);
