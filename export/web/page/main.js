// The page: connects the form, the engine and the texts.

import { Bars } from "./bars.js";
import { Card } from "./card.js";
import { Chooser, megabytes } from "./chooser.js";
import { Engine } from "./client.js";
import { Controls } from "./controls.js";
import { find } from "./dom.js";
import { How } from "./how.js";
import { Neurons } from "./neurons.js";
import { enableOffline } from "./offline.js";
import { Pane } from "./pane.js";
import { RANGES, toHash } from "./share.js";
import { enableTabs } from "./tabs.js";
import { Vocab } from "./vocab.js";
import { Writer } from "./writer.js";

const HINT = "The network reads as you type, then continues your text.";

const form = find("form", HTMLFormElement);
const problem = find("problem", HTMLParagraphElement);
const status = find("status", HTMLParagraphElement);
const prompt = find("prompt", HTMLTextAreaElement);
const promptNote = find("prompt-note", HTMLParagraphElement);
const writeButton = find("write", HTMLButtonElement);
const continueButton = find("on", HTMLButtonElement);

const engine = new Engine();
const card = new Card();
const bars = new Bars(find("bars", HTMLOListElement), choose);
const neurons = new Neurons(colour);
const chooser = new Chooser(open);
const how = new How(engine, fail);
const controls = new Controls(changed);
const { settings } = controls;
const writers = [0, 1].map((text) => {
  const pane = new Pane(find("panes", HTMLDivElement), (at, span, key) => point(text, at, span, key));
  const current = () => ({ sampling: controls.sampling(text), seed: settings.seed, neuron: settings.neuron });
  return new Writer(engine, text, pane, current, ({ next }) => text === 0 && next.length && bars.show(next));
});

/** @type {import("./chooser.js").ModelEntry} */
let opened;
/** @type {Vocab} */
let vocab; // of `opened`
let ready = false; // whether a model is open
let writing = false;
let compared = false; // whether the second text is in use
let turns = 0; // counts openings and work, so that results of earlier ones are ignored

/** @param {unknown} error */
function fail(error) {
  problem.textContent = `${error instanceof Error ? error.message : error}.`;
  problem.hidden = false;
  status.textContent = "";
}

/** Enable the buttons that apply now. */
function enable() {
  for (const button of form.querySelectorAll("button")) button.disabled = !ready;
  continueButton.disabled = !ready || writing || !settings.written;
  writeButton.textContent = writing ? "Stop" : "Write";
}

/** Show one pane, or two named by temperature. */
function showPanes() {
  writers[1].pane.root.hidden = settings.beside === null;
  for (const [text, { pane }] of writers.entries()) pane.name(`Temperature ${controls.sampling(text).temperature}`);
}

/** Show the settings and update everything that depends on them. */
function changed() {
  controls.show();
  showPanes();
  if (!ready || writing) return;
  engine.call("next", { text: 0, sampling: controls.sampling(0) }).then((next) => bars.show(next), fail);
  const before = compared;
  const [{ written }, right] = active();
  if (right && !before) work([begin(right, written)], written ? "Writing …" : "");
}

/**
 * Open a model and read the prompt.
 * @param {string} name
 * @param {string} precision
 * @param {number | null} snapshot step of the training; null: the trained model
 */
async function open(name, precision, snapshot) {
  const turn = ++turns;
  const { model, file, ...selected } = chooser.select(name, precision, snapshot);
  if (settings.model && settings.model !== model.name) settings.chosen = [];
  Object.assign(settings, { model: model.name, ...selected });
  for (const writer of writers) writer.stop();
  ready = writing = false;
  problem.hidden = true;
  enable();
  status.textContent = `Opening ${model.name}, ${file.precision}, ${megabytes(file.size)} …`;
  try {
    if (model !== opened) vocab = new Vocab(model.vocab);
    opened = model;
    settings.chosen = settings.chosen.filter(([, id]) => id < vocab.size); // the address may hold any id
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
    how.open(vocab, shape);
    ready = true;
    status.textContent = "Ready.";
    if (settings.written) write();
    else read();
    preload(model.snapshots);
  } catch (error) {
    if (turn === turns) fail(error);
  }
}

/**
 * Cache files, so that the slider is quick, and works offline.
 * @param {{url: string}[]} files
 */
function preload(files) {
  for (const { url } of files) fetch(url, { cache: "force-cache" }).catch(() => {}); // the next opening retries
}

/**
 * Start a text from the prompt.
 * @param {Writer} writer
 * @param {number} length characters to write after it
 */
async function begin(writer, length) {
  let encoded;
  try {
    encoded = vocab.promptIds(settings.prompt);
    promptNote.textContent = HINT;
    prompt.ariaInvalid = "false";
  } catch (error) {
    promptNote.textContent = `Cannot read this: ${/** @type {Error} */ (error).message}.`;
    prompt.ariaInvalid = "true";
    return;
  }
  const chosen = writer === writers[0] ? settings.chosen : []; // the bars belong to the first text
  await writer.begin(encoded, chosen, length && encoded.ids.length + length);
}

/** Return the writers of the visible texts. */
function active() {
  compared = settings.beside !== null;
  return compared ? writers : writers.slice(0, 1);
}

/** Read the prompt. */
function read() {
  settings.chosen = [];
  settings.written = false;
  work(active().map((writer) => begin(writer, 0)), "");
}

/** Write from the start. */
function write() {
  settings.written = true;
  work(active().map((writer) => begin(writer, settings.length)), "Writing …");
}

/**
 * Place the character chosen by the user.
 * @param {number} id
 */
function choose(id) {
  const text = writers[0].choose(id);
  settings.chosen = writers[0].chosen;
  settings.written = true;
  work([text], writing ? "Writing …" : `${vocab.spoken(id)}, chosen.`);
}

/**
 * Wait for texts in progress and show the outcome.
 * @param {Promise<void>[]} texts
 * @param {string} message the status meanwhile; empty if they only read
 */
async function work(texts, message) {
  const turn = ++turns;
  writing = message === "Writing …";
  if (message) status.textContent = message;
  problem.hidden = true;
  enable();
  controls.show();
  try {
    await Promise.all(texts);
    if (turn !== turns) return;
    for (const { pane } of writers) pane.flush();
    if (writing) status.textContent = writers[0].ended ? "The model ended the text." : "Done.";
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
 * Show the card of the character under the pointer or cursor.
 * @param {number} text
 * @param {number} at
 * @param {HTMLElement | null} span
 * @param {boolean} key
 */
async function point(text, at, span, key) {
  if (!span) return card.hide();
  const id = writers[text].pane.ids[at];
  const { expected, activity } = await engine.call("expected", { text, at, neuron: settings.neuron });
  if (span.classList.contains("here")) card.show(span, vocab, id, activity, expected, key); // unless the pointer has left
}

/** Return an address that restores the settings and a text of the current length. */
function link() {
  const [{ written, ended }] = writers;
  const reached = written && !ended ? written : Math.max(written, settings.length);
  const hash = toHash({ ...settings, length: Math.min(reached, RANGES.length[1]) });
  return new URL(hash || "#", location.href).href;
}

/**
 * @param {string} text
 * @param {string} name
 */
async function copy(text, name) {
  try {
    await navigator.clipboard.writeText(text);
    status.textContent = `${name} copied.`;
  } catch {
    status.textContent = "The browser blocks copying: select and copy by hand.";
  }
}

/** Open the model of the address: at the start, and after navigation. */
async function follow() {
  controls.read();
  showPanes(); // before the model is open
  prompt.value = settings.prompt;
  await open(settings.model, settings.precision, settings.step);
}

function listen() {
  addEventListener("hashchange", follow); // replaceState does not fire it
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
  continueButton.addEventListener("click", () => {
    work(active().map((writer) => writer.extend(writer.length + settings.length)), "Writing …");
  });
  find("copy", HTMLButtonElement).addEventListener("click", () => copy(writers[0].pane.text, "Text"));
  find("share", HTMLButtonElement).addEventListener("click", () => copy(link(), "Link"));
}

async function start() {
  find("waiting", HTMLElement).hidden = true;
  if (typeof WebAssembly !== "object") throw new Error("This browser has no WebAssembly, or it is disabled; the models need it");
  await enableOffline((text) => {
    find("offline", HTMLParagraphElement).textContent = text;
  });
  await chooser.load();
  promptNote.textContent = HINT;
  listen();
  const tabs = find("tabs", HTMLDivElement);
  enableTabs(tabs);
  for (const shown of [tabs, find("models", HTMLDivElement)]) shown.hidden = false;
  await follow();
}

start().catch(fail);
