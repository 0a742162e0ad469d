// A text on the page: one span per character, coloured by a neuron, with a keyboard cursor.

import { make, paint } from "./dom.js";
import { perFrame } from "./frame.js";
import { Decoder } from "./vocab.js";

/**
 * @typedef {import("./engine.js").Slice} Slice
 * @typedef {import("./vocab.js").Vocab} Vocab
 */

const NEAR = 40; // a growing text scrolls along within this many pixels of its end

export class Pane {
  /**
   * @param {HTMLElement} parent
   * @param {(at: number, span: HTMLElement | null, key: boolean) => void} point called for the character under the pointer, or the cursor (key)
   */
  constructor(parent, point) {
    this.point = point;
    this.caption = make("h2");
    this.body = make("div", { className: "text", tabIndex: 0 });
    this.body.role = "textbox";
    this.body.ariaReadOnly = "true";
    this.body.ariaMultiLine = "true";
    this.progress = make("p", { className: "note progress" });
    this.root = make("section", { className: "pane" }, this.caption, this.body, this.progress);
    parent.append(this.root);
    /** @type {Vocab | undefined} */
    this.vocab = undefined;
    /** @type {Decoder | undefined} */
    this.decoder = undefined;
    /** @type {number[]} */
    this.ids = [];
    /** @type {{span: HTMLElement, from: number, to: number}[]} characters and their ranges of ids */
    this.characters = [];
    this.open = 0; // position of the first id of an incomplete character
    this.ahead = 0; // hidden ids before the text
    this.prompt = 0; // length of the prompt in ids
    /** @type {Set<number>} */
    this.chosen = new Set();
    this.fragment = document.createDocumentFragment();
    this.cursor = -1; // index into `characters`; -1: none
    this.scheduleFlush = perFrame(() => this.flush());
    this.#listen();
  }

  /**
   * Clear the pane for a new vocabulary.
   * @param {Vocab} vocab
   */
  clear(vocab) {
    this.cut(0);
    this.vocab = vocab;
    this.decoder = new Decoder(vocab);
  }

  /** The text for copying. */
  get text() {
    this.flush();
    return this.body.textContent ?? "";
  }

  /**
   * Append a slice.
   * @param {Slice} slice
   */
  add({ ids, activity }) {
    for (const [index, id] of ids.entries()) this.#push(id, activity[index]);
    this.scheduleFlush(undefined);
  }

  /**
   * Truncate to `length` ids.
   * @param {number} length
   */
  cut(length) {
    if (length >= this.ids.length) return;
    this.flush();
    const kept = this.ids.slice(0, length);
    const first = this.characters.findIndex(({ to }) => to > length);
    const removed = first < 0 ? [] : this.characters.splice(first);
    for (const { span } of removed) span.remove();
    this.ids.length = this.characters.at(-1)?.to ?? 0;
    this.open = this.ids.length;
    this.decoder = this.vocab && new Decoder(this.vocab);
    for (const id of kept.slice(this.ids.length)) this.#push(id, undefined);
    this.#leave();
    this.scheduleFlush(undefined);
  }

  /**
   * Colour the whole text, or remove its colours.
   * @param {Float32Array | null} activity at each id
   */
  colour(activity) {
    this.flush();
    for (const { span, to } of this.characters) paint(span, activity?.[to - 1]);
  }

  /** Set the heading, which shows when there are two panes, and the accessible name. @param {string} text */
  name(text) {
    this.caption.textContent = text;
    this.body.ariaLabel = `The text, ${text.toLowerCase()}`;
  }

  /** Set the note below. @param {string} text */
  report(text) {
    this.progress.textContent = text;
  }

  /**
   * @param {number} id
   * @param {number | undefined} activity
   */
  #push(id, activity) {
    const at = this.ids.push(id) - 1;
    for (const { text, ids } of this.decoder?.push(id) ?? []) {
      const [from, to] = [this.open, this.open + ids];
      this.open = to;
      const span = make("span", { textContent: at < this.ahead ? "" : text });
      if (text === "\n") span.className = "line";
      const contains = (/** @type {number} */ position) => from <= position && position < to;
      if ([...this.chosen].some(contains)) span.classList.add("chosen"); // any byte of a character may be chosen
      if (this.prompt > 0 && contains(this.prompt)) span.classList.add("first");
      paint(span, activity);
      this.characters.push({ span, from, to });
      this.fragment.append(span);
    }
  }

  /** Append pending characters now. */
  flush() {
    const { body } = this;
    const follow = body.scrollHeight - body.scrollTop - body.clientHeight < NEAR;
    body.append(this.fragment);
    if (follow) body.scrollTop = body.scrollHeight;
  }

  #listen() {
    const onPointer = (/** @type {Event} */ { target }) => {
      const index = this.characters.findIndex(({ span }) => span === target);
      if (index >= 0) this.#move(index, false);
    };
    this.body.addEventListener("pointerover", onPointer);
    this.body.addEventListener("click", onPointer);
    this.body.addEventListener("pointerleave", () => this.#leave());
    this.body.addEventListener("blur", () => this.#leave());
    this.body.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return this.#leave();
      const to = this.#target(event.key);
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.#move(to, true);
    });
  }

  /**
   * Return the index that a key moves to.
   * @param {string} key
   */
  #target(key) {
    const last = this.characters.length - 1;
    const first = Math.min(this.characters.findIndex(({ to }) => to > this.ahead), last);
    const clamp = (/** @type {number} */ index) => Math.max(Math.min(index, last), Math.max(first, 0));
    const here = this.cursor;
    if (last < 0) return undefined;
    switch (key) {
      case "ArrowRight":
        return clamp(here + 1);
      case "ArrowLeft":
        return here < 0 ? last : clamp(here - 1);
      case "ArrowDown":
        return clamp(this.#line(1));
      case "ArrowUp":
        return clamp(this.#line(-1));
      case "Home":
        return clamp(0);
      case "End":
        return last;
      default:
        return undefined;
    }
  }

  /**
   * Return the nearest character on the next or the previous line.
   * @param {1 | -1} direction
   */
  #line(direction) {
    const here = this.characters[this.cursor]?.span;
    if (!here) return direction > 0 ? 0 : this.characters.length - 1;
    let [nearest, distance, top] = [this.cursor, Number.POSITIVE_INFINITY, here.offsetTop];
    for (let index = this.cursor + direction; this.characters[index]; index += direction) {
      const { offsetTop, offsetLeft } = this.characters[index].span;
      if (offsetTop === here.offsetTop) continue;
      if (top !== here.offsetTop && offsetTop !== top) break;
      top = offsetTop;
      if (Math.abs(offsetLeft - here.offsetLeft) <= distance) {
        [nearest, distance] = [index, Math.abs(offsetLeft - here.offsetLeft)];
      }
    }
    return nearest;
  }

  /**
   * @param {number} index
   * @param {boolean} key
   */
  #move(index, key) {
    this.characters[this.cursor]?.span.classList.remove("here");
    this.cursor = index;
    const { span, from } = this.characters[index];
    span.classList.add("here");
    if (key) span.scrollIntoView({ block: "nearest" });
    this.point(from, span, key);
  }

  #leave() {
    this.characters[this.cursor]?.span.classList.remove("here");
    this.cursor = -1;
    this.point(-1, null, false);
  }
}
