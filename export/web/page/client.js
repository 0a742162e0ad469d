// The page's side of the worker: calls as promises, answered in order.

/**
 * @typedef {typeof import("./engine.js").calls} Calls
 * @typedef {{resolve: (value: any) => void, reject: (error: Error) => void}} Waiting
 */

export class Engine {
  constructor() {
    this.worker = new Worker(new URL("worker.js", import.meta.url));
    /** @type {Map<number, Waiting>} */
    this.waiting = new Map();
    this.calls = 0;
    this.worker.onmessage = ({ data: { call, value, error } }) => {
      const { resolve, reject } = /** @type {Waiting} */ (this.waiting.get(call));
      this.waiting.delete(call);
      if (error === undefined) resolve(value);
      else reject(new Error(error));
    };
    this.worker.onerror = (event) => {
      for (const { reject } of this.waiting.values()) reject(new Error(event.message || "the page's worker did not start"));
      this.waiting.clear();
    };
  }

  /**
   * @template {keyof Calls} Name
   * @param {Name} name
   * @param {Parameters<Calls[Name]>[0]} argument
   * @returns {Promise<Awaited<ReturnType<Calls[Name]>>>}
   */
  call(name, argument) {
    return new Promise((resolve, reject) => {
      this.waiting.set(++this.calls, { resolve, reject });
      this.worker.postMessage({ call: this.calls, name, argument });
    });
  }
}
