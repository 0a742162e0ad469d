// The writer of one text: requests slices from the engine and appends them to its pane.

/**
 * @typedef {import("./client.js").Engine} Engine
 * @typedef {import("./pane.js").Pane} Pane
 * @typedef {import("./sample.js").Sampling} Sampling
 * @typedef {import("./text.js").Neuron} Neuron
 * @typedef {import("./engine.js").Slice} Slice
 */

/** Settings of a slice, read for each slice because the user may change them.
 * @typedef {{sampling: Sampling, seed: number, neuron: Neuron | null}} SliceSettings */

const SLICE = 40; // milliseconds: about one frame, since each slice costs a round trip of messages

export class Writer {
  /**
   * @param {Engine} engine
   * @param {number} text index of the engine's text
   * @param {Pane} pane
   * @param {() => SliceSettings} current
   * @param {(slice: Slice) => void} onSlice called with each slice
   */
  constructor(engine, text, pane, current, onSlice) {
    this.engine = engine;
    this.text = text;
    this.pane = pane;
    this.current = current;
    this.onSlice = onSlice;
    /** @type {[number, number][]} positions and the ids that the user placed there */
    this.chosen = [];
    this.until = 0;
    this.ended = false;
    this.start = { time: 0, length: 0 }; // when writing began, and the length then
    /** @type {Promise<void>} */
    this.edits = Promise.resolve();
    /** @type {Promise<void> | undefined} */
    this.running = undefined;
  }

  /** Length of the text, including the prompt. */
  get length() {
    return this.pane.ids.length;
  }

  /** Length of the text after the prompt. */
  get written() {
    return Math.max(this.length - this.pane.prompt, 0);
  }

  /**
   * Start the text from a prompt, discarding what followed an earlier one.
   * @param {{ids: number[], ahead: number}} prompt
   * @param {[number, number][]} chosen
   * @param {number} until
   */
  begin({ ids, ahead }, chosen, until) {
    this.chosen = chosen;
    this.until = until;
    return this.#edit(async () => {
      const length = await this.engine.call("begin", { text: this.text, prompt: ids });
      const kept = ahead === this.pane.ahead ? Math.min(length, this.pane.prompt) : 0; // the rest is marked again
      this.pane.prompt = ids.length;
      this.pane.ahead = ahead;
      this.pane.chosen = new Set(chosen.map(([at]) => at));
      this.pane.cut(kept);
    });
  }

  /**
   * Place an id at the end of the visible text, replacing anything written there since.
   * @param {number} id
   */
  choose(id) {
    const at = this.length;
    this.chosen = [...this.chosen.filter(([other]) => other < at), [at, id]];
    this.until = Math.max(this.until, at + 1);
    return this.#edit(async () => {
      const length = await this.engine.call("cut", { text: this.text, length: at });
      this.pane.chosen = new Set(this.chosen.map(([other]) => other));
      this.pane.cut(length);
    });
  }

  /**
   * Continue until the text is `until` ids long.
   * @param {number} until
   */
  extend(until) {
    this.until = until;
    return this.#edit(async () => {});
  }

  /** Stop writing and keep the text. */
  stop() {
    this.until = 0;
  }

  /** @param {() => Promise<void>} change */
  #edit(change) {
    this.ended = false;
    this.edits = this.edits.catch(() => {}).then(change).then(() => {
      this.start = { time: performance.now(), length: this.length };
    });
    this.running ??= this.#run().finally(() => {
      this.running = undefined;
    });
    return this.running;
  }

  async #run() {
    for (let more = true; more; ) {
      const edits = this.edits;
      await edits; // the next slice starts after them
      if (edits !== this.edits) continue;
      const { sampling, seed, neuron } = this.current();
      const request = { text: this.text, from: this.length, until: this.until, millis: SLICE, seed, sampling };
      const slice = await this.engine.call("advance", { ...request, chosen: this.chosen, neuron });
      this.pane.add(slice);
      this.ended = slice.ended;
      this.onSlice(slice);
      this.#report(slice);
      more = edits !== this.edits || slice.unread > 0 || (!slice.ended && this.length < this.until);
    }
  }

  /** Report length and speed below the text. @param {Slice} slice */
  #report({ ids, unread }) {
    if (unread) this.start = { time: performance.now(), length: this.length };
    const { written } = this;
    const rate = (this.length - this.start.length) / (performance.now() - this.start.time);
    if (ids.length) this.pane.report(written ? `${written.toLocaleString("en")} characters, ${Math.round(1000 * rate)} per second` : "");
  }
}
