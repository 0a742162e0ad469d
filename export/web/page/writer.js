// One text at work: asks the engine for slice after slice, and puts them on its pane.

/**
 * @typedef {import("./client.js").Engine} Engine
 * @typedef {import("./pane.js").Pane} Pane
 * @typedef {import("./sample.js").Sampling} Sampling
 * @typedef {import("./text.js").Neuron} Neuron
 * @typedef {import("./engine.js").Slice} Slice
 */

/** What a slice is asked with, read anew for each: a person may have changed it.
 * @typedef {{sampling: Sampling, seed: number, neuron: Neuron | null}} Now */

const SLICE = 40; // milliseconds: about one picture of the page, for each slice costs a message there and back

export class Writer {
  /**
   * @param {Engine} engine
   * @param {number} text which of the engine's texts
   * @param {Pane} pane
   * @param {() => Now} now
   * @param {(slice: Slice) => void} heard is told each slice
   */
  constructor(engine, text, pane, now, heard) {
    this.engine = engine;
    this.text = text;
    this.pane = pane;
    this.now = now;
    this.heard = heard;
    /** @type {[number, number][]} positions, and the ids that a person put there */
    this.chosen = [];
    this.until = 0;
    this.ended = false;
    this.since = { time: 0, length: 0 }; // when writing began, and with how much
    /** @type {Promise<void>} */
    this.edits = Promise.resolve();
    /** @type {Promise<void> | undefined} */
    this.running = undefined;
  }

  /** How long the text is, prompt and all. */
  get length() {
    return this.pane.ids.length;
  }

  /** How much of it was written behind the prompt. */
  get written() {
    return Math.max(this.length - this.pane.prompt, 0);
  }

  /**
   * Makes it the text that goes on from a prompt; what came behind an earlier one is gone.
   * @param {{ids: number[], ahead: number}} prompt
   * @param {[number, number][]} chosen
   * @param {number} until
   */
  begin({ ids, ahead }, chosen, until) {
    this.chosen = chosen;
    this.until = until;
    return this.#edit(async () => {
      const length = await this.engine.call("begin", { text: this.text, prompt: ids });
      this.pane.prompt = ids.length;
      this.pane.ahead = ahead;
      this.pane.chosen = new Set(chosen.map(([at]) => at));
      this.pane.cut(length);
    });
  }

  /**
   * Puts an id at the end of what is to be seen, in place of what may have come there.
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
   * Writes on until it is so long.
   * @param {number} until
   */
  goOn(until) {
    this.until = until;
    return this.#edit(async () => {});
  }

  /** Ends the writing; what is there stays. */
  stop() {
    this.until = 0;
  }

  /** @param {() => Promise<void>} change */
  #edit(change) {
    this.ended = false;
    this.edits = this.edits.catch(() => {}).then(change).then(() => {
      this.since = { time: performance.now(), length: this.length };
    });
    this.running ??= this.#run().finally(() => {
      this.running = undefined;
    });
    return this.running;
  }

  async #run() {
    for (let more = true; more; ) {
      const edits = this.edits;
      await edits; // the next slice begins where they leave off
      if (edits !== this.edits) continue;
      const { sampling, seed, neuron } = this.now();
      const wanted = { text: this.text, from: this.length, until: this.until, millis: SLICE, seed, sampling };
      const slice = await this.engine.call("goOn", { ...wanted, chosen: this.chosen, neuron });
      this.pane.add(slice);
      this.ended = slice.ended;
      this.heard(slice);
      this.#tell(slice);
      more = edits !== this.edits || slice.unread > 0 || (!slice.ended && this.length < this.until);
    }
  }
  /** Says below the text how long it is, and how fast it came. @param {Slice} slice */
  #tell({ ids, unread }) {
    if (unread) this.since = { time: performance.now(), length: this.length };
    const { written } = this;
    const rate = (this.length - this.since.length) / (performance.now() - this.since.time);
    if (ids.length) this.pane.tell(written ? `${written.toLocaleString("en")} characters, ${Math.round(1000 * rate)} a second` : "");
  }
}
