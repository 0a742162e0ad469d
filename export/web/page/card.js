// The card of one character: the neuron's activity after it, and the characters that the network expected instead.

import { find, make, percent } from "./dom.js";

/**
 * actual: probability of the actual character; likeliest: the likeliest characters.
 * @typedef {{likeliest: {id: number, p: number}[], actual: number}} Expected
 */

const GAP = 8; // pixels between a character and its card

export class Card {
  constructor() {
    this.root = find("card", HTMLDivElement);
    this.spoken = find("spoken", HTMLParagraphElement);
  }

  hide() {
    this.root.hidden = true;
  }

  /**
   * @param {HTMLElement} span
   * @param {import("./vocab.js").Vocab} vocab
   * @param {number} id
   * @param {number | undefined} activity
   * @param {Expected | undefined} expected undefined for the first character
   * @param {boolean} announced
   */
  show(span, vocab, id, activity, expected, announced) {
    const reading = activity === undefined ? "" : `neuron ${activity.toFixed(2).replace("-", "−")}`;
    const head = make("p", {}, make("b", {}, vocab.label(id)), expected ? ` ${percent(expected.actual)} likely` : " first character");
    const rows = (expected?.likeliest ?? []).map(({ id: other, p }) => {
      const row = make("li", { className: other === id ? "actual" : "" }, make("b", {}, vocab.label(other)), make("i"));
      row.append(make("span", {}, percent(p)));
      row.style.setProperty("--p", String(p));
      return row;
    });
    this.root.replaceChildren(head, make("ol", { className: "likely" }, ...rows), ...(reading ? [make("p", {}, reading)] : []));
    this.root.hidden = false;
    this.#place(span);
    if (!announced) return;
    const likeliest = (expected?.likeliest ?? []).map(({ id: other, p }) => `${vocab.spoken(other)} ${percent(p)}`).join(", ");
    this.spoken.textContent = [vocab.spoken(id), reading, likeliest && `expected: ${likeliest}`].filter(Boolean).join("; ");
  }

  /** Place the card below the character, or above it if there is no room below. @param {HTMLElement} span */
  #place(span) {
    const box = span.getBoundingClientRect();
    const { offsetWidth, offsetHeight, style } = this.root;
    const below = box.bottom + GAP + offsetHeight < innerHeight;
    style.top = `${below ? box.bottom + GAP : Math.max(box.top - GAP - offsetHeight, GAP)}px`;
    style.left = `${Math.max(Math.min(box.left, document.documentElement.clientWidth - offsetWidth - GAP), GAP)}px`;
  }
}
