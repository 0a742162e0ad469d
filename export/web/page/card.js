// The card of one character: the neuron's activity after it, and the characters that the network expected instead.

import { find, make, percent } from "./dom.js";

/**
 * came: probability of the actual character; five: the likeliest characters.
 * @typedef {{five: {id: number, p: number}[], came: number}} Expected
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
   * @param {boolean} aloud
   */
  show(span, vocab, id, activity, expected, aloud) {
    const held = activity === undefined ? "" : `neuron ${activity.toFixed(2).replace("-", "−")}`;
    const head = make("p", {}, make("b", {}, vocab.label(id)), expected ? ` ${percent(expected.came)} likely` : " first character");
    const rows = (expected?.five ?? []).map(({ id: other, p }) => {
      const row = make("li", { className: other === id ? "came" : "" }, make("b", {}, vocab.label(other)), make("i"));
      row.append(make("span", {}, percent(p)));
      row.style.setProperty("--p", String(p));
      return row;
    });
    this.root.replaceChildren(head, make("ol", { className: "likely" }, ...rows), ...(held ? [make("p", {}, held)] : []));
    this.root.hidden = false;
    this.#place(span);
    if (!aloud) return;
    const five = (expected?.five ?? []).map(({ id: other, p }) => `${vocab.spoken(other)} ${percent(p)}`).join(", ");
    this.spoken.textContent = [vocab.spoken(id), held, five && `expected: ${five}`].filter(Boolean).join("; ");
  }

  /** Place the card below the character, or above it if there is no room below. @param {HTMLElement} span */
  #place(span) {
    const at = span.getBoundingClientRect();
    const { offsetWidth, offsetHeight, style } = this.root;
    const below = at.bottom + GAP + offsetHeight < innerHeight;
    style.top = `${below ? at.bottom + GAP : Math.max(at.top - GAP - offsetHeight, GAP)}px`;
    style.left = `${Math.max(Math.min(at.left, document.documentElement.clientWidth - offsetWidth - GAP), GAP)}px`;
  }
}
