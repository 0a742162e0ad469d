// The next character's distribution: one button per likely character, with a bar as wide as its probability.

import { make, percent } from "./dom.js";
import { perFrame } from "./frame.js";

/** @typedef {{id: number, p: number}[]} Likely */

export class Bars {
  /**
   * @param {HTMLElement} list
   * @param {(id: number) => void} choose called with the id of a clicked button
   */
  constructor(list, choose) {
    this.list = list;
    this.choose = choose;
    /** @type {import("./vocab.js").Vocab | undefined} */
    this.vocab = undefined;
    /** @type {HTMLButtonElement[]} */
    this.buttons = [];
    this.show = perFrame((/** @type {Likely} */ likely) => this.#draw(likely));
  }

  /** @param {Likely} likely */
  #draw(likely) {
    while (this.buttons.length < likely.length) this.#add();
    for (const [index, button] of this.buttons.entries()) {
      const item = /** @type {HTMLElement} */ (button.parentElement);
      item.hidden = !(likely[index]?.p > 0); // excluded by top-k or top-p
      if (!item.hidden) this.#fill(button, likely[index]);
    }
  }

  #add() {
    const button = make("button", { type: "button" }, make("b", { ariaHidden: "true" }), make("i"), make("span"));
    button.append(make("span", { className: "unseen" }));
    button.addEventListener("click", () => this.choose(Number(button.dataset.id)));
    this.list.append(make("li", {}, button));
    this.buttons.push(button);
  }

  /**
   * @param {HTMLButtonElement} button
   * @param {{id: number, p: number}} likely
   */
  #fill(button, { id, p }) {
    if (!this.vocab) return;
    const [label, , share, spoken] = button.children;
    button.dataset.id = String(id);
    label.textContent = this.vocab.label(id);
    share.textContent = percent(p);
    spoken.textContent = this.vocab.spoken(id);
    button.style.setProperty("--p", String(p));
  }
}
