// A .tflite on LiteRT.js: one step, (id, carry) -> (logits, carry).
// Legend: L layers, S states per cell (2 for an LSTM: h, c; else 1), H units, V vocabulary; the batch is 1.

import { Tensor, loadAndCompile, loadLiteRt } from "./litert/core.js";

/**
 * The result of a step: logits [V], and the carry [1, L, S, H], flat.
 * @typedef {{logits: Float32Array, carry: Float32Array}} Step
 */

const RUNTIME = new URL("litert/", import.meta.url);

/** @type {Promise<unknown> | undefined} */
let runtime;

/** Load the runtime once. */
function loadRuntime() {
  // By default the runtime looks for its wasm beside the worker.
  Object.assign(self, { Module: { locateFile: (/** @type {string} */ name) => new URL(name, RUNTIME).href } });
  runtime ??= loadLiteRt(RUNTIME.href).catch((error) => {
    runtime = undefined; // so that the next call retries
    throw new Error(`the runtime did not start: ${error instanceof Error ? error.message : error}`);
  });
  return runtime;
}

export class Model {
  /**
   * @param {Uint8Array} bytes the .tflite
   * @throws {Error} for an invalid file, or one without the signature `step`
   */
  static async open(bytes) {
    await loadRuntime();
    let compiled;
    try {
      compiled = await loadAndCompile(bytes, { accelerator: "wasm", cpuOptions: { numThreads: 1 } });
    } catch (error) {
      throw new Error(`the runtime cannot load the file: ${error instanceof Error ? error.message : error}`);
    }
    return new Model(compiled);
  }

  /** @param {import("./litert/core.js").CompiledModel} compiled */
  constructor(compiled) {
    this.compiled = compiled;
    this.runner = compiled.signatures.step;
    if (!this.runner) throw new Error("the file has no signature step");
    const shapes = Object.fromEntries(
      [...this.runner.getInputDetails(), ...this.runner.getOutputDetails()].map(({ name, shape }) => [name, shape]),
    );
    if (!shapes.token || !shapes.logits || shapes.carry?.length !== 4) {
      throw new Error("the file has no signature (token, carry) -> (logits, carry)");
    }
    this.shape = Array.from(shapes.carry);
    this.layers = this.shape[1];
    this.states = this.shape[2];
    this.units = this.shape[3];
    this.vocabulary = shapes.logits[1];
  }

  /** Return the carry at the start of a text: zeros. */
  initialCarry() {
    return new Float32Array(this.layers * this.states * this.units);
  }

  /**
   * Read one id. Returns the logits of the next one and the new carry.
   * @param {number} id
   * @param {Float32Array} carry
   * @returns {Promise<Step>}
   */
  async step(id, carry) {
    const inputs = { token: new Tensor(Int32Array.of(id), [1]), carry: new Tensor(carry, this.shape) };
    const outputs = await this.runner.run(inputs);
    try {
      return {
        logits: /** @type {Float32Array} */ (outputs.logits.toTypedArray()),
        carry: /** @type {Float32Array} */ (outputs.carry.toTypedArray()),
      };
    } finally {
      for (const tensor of [...Object.values(inputs), ...Object.values(outputs)]) tensor.delete();
    }
  }

  delete() {
    this.compiled.delete();
  }
}
