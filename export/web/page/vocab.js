// Text to ids and back, as in pipeline/vocab.py.

/**
 * A vocabulary in model.json.
 * @typedef {{unit: "byte" | "char", symbols: string, end_id?: number, unknown_id?: number}} VocabJson
 */

/**
 * A run of ids as shown: one character, or empty for the end of a document.
 * @typedef {{text: string, ids: number}} Character
 */

const REPLACEMENT = "\ufffd";
const FIRST_LEAD = 0xc2; // the first byte of multi-byte UTF-8; below are ASCII and continuation bytes

export class Vocab {
  /**
   * @param {VocabJson} json
   * @throws {Error} for an invalid vocabulary
   */
  constructor(json) {
    this.unit = json.unit;
    /** @type {(number | string)[]} bytes or characters, by id */
    this.symbols = json.unit === "byte" ? bytesOfHex(json.symbols) : Array.from(json.symbols);
    this.endId = json.end_id;
    this.unknownId = json.unknown_id;
    this.size = this.symbols.length + (this.endId === this.symbols.length ? 1 : 0);
    this.idOf = new Map(this.symbols.map((symbol, id) => [symbol, id]));
    if (!["byte", "char"].includes(this.unit) || !this.size || this.idOf.size < this.symbols.length) {
      throw new Error("invalid vocabulary in models.json");
    }
  }

  /** The id before an empty prompt: the end of a document, else the newline, else 0. */
  get startId() {
    return this.endId ?? this.idOf.get(this.unit === "byte" ? 10 : "\n") ?? 0;
  }

  /**
   * Encode a text.
   * @param {string} text
   * @throws {Error} naming the first character outside the vocabulary
   */
  encode(text) {
    /** @type {(number | string)[]} */
    const symbols = this.unit === "byte" ? [...new TextEncoder().encode(text)] : [...text];
    return symbols.map((symbol) => {
      const id = this.idOf.get(symbol) ?? this.unknownId;
      if (id === undefined) throw new Error(`this model has never seen ${describe(symbol)}`);
      return id;
    });
  }

  /**
   * Return the ids that a model reads for a prompt, and the count of those before its text.
   * @param {string} text
   */
  promptIds(text) {
    const start = text && this.endId === undefined ? [] : [this.startId];
    return { ids: [...start, ...this.encode(text)], ahead: start.length };
  }

  /**
   * Return the visible name of an id: a character, or a byte in hexadecimal.
   * @param {number} id
   */
  label(id) {
    const symbol = this.symbols[id];
    if (symbol === undefined) return "end";
    const visible = { "\n": "↵", "\t": "⇥", " ": "␣", "\r": "␍" };
    const text = typeof symbol === "string" ? symbol : String.fromCharCode(symbol);
    if (text in visible) return visible[/** @type {keyof typeof visible} */ (text)];
    if (typeof symbol === "number" && (symbol < 0x20 || symbol > 0x7e)) return hex(symbol);
    return /\p{C}|\p{Z}/u.test(text) ? `U+${hex(/** @type {number} */ (text.codePointAt(0)))}` : text;
  }

  /**
   * Return the name of an id for screen readers.
   * @param {number} id
   */
  spoken(id) {
    const names = { "↵": "new line", "⇥": "tab", "␣": "space", "␍": "carriage return", end: "end of the document" };
    const label = this.label(id);
    return names[/** @type {keyof typeof names} */ (label)] ?? label;
  }
}

/** Decoder of ids into whole characters, one id at a time. Bytes are held back until their character is complete. */
export class Decoder {
  /** @param {Vocab} vocab */
  constructor(vocab) {
    this.vocab = vocab;
    this.utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    this.pending = 0;
  }

  /**
   * @param {number} id
   * @returns {Character[]} the characters completed, in order
   */
  push(id) {
    const symbol = this.vocab.symbols[id];
    if (symbol === undefined) return [...this.end(), { text: "", ids: 1 }];
    if (typeof symbol === "string") return [{ text: symbol, ids: 1 }];
    const [first, second] = this.utf8.decode(Uint8Array.of(symbol), { stream: true });
    const before = this.pending;
    this.pending += 1;
    if (first === undefined) return [];
    this.pending = 0;
    if (second !== undefined) return [{ text: first, ids: before }, { text: second, ids: 1 }];
    // One character: of all pending bytes or, if this byte begins another, an invalid one of the bytes before it.
    if (before && first === REPLACEMENT && symbol >= FIRST_LEAD) {
      this.pending = 1;
      return [{ text: first, ids: before }];
    }
    return [{ text: first, ids: before + 1 }];
  }

  /** @returns {Character[]} the pending bytes as an invalid character */
  end() {
    const ids = this.pending;
    this.pending = 0;
    return Array.from(this.utf8.decode(), (text) => ({ text, ids }));
  }
}

/** @param {string} text */
function bytesOfHex(text) {
  return Array.from(text.matchAll(/../g), ([pair]) => Number.parseInt(pair, 16));
}

/** @param {number} code */
function hex(code) {
  return code.toString(16).toUpperCase().padStart(2, "0");
}

/** @param {number | string} symbol */
function describe(symbol) {
  if (typeof symbol === "number") return `the byte 0x${hex(symbol).toLowerCase()}`;
  return `“${symbol}” (U+${hex(/** @type {number} */ (symbol.codePointAt(0))).padStart(4, "0")})`;
}
