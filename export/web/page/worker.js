// A classic worker, because the runtime loads its script with importScripts, which module workers lack.

/** @type {Promise<typeof import("./engine.js")>} */
const engine = import("./engine.js");

/** Calls are {call, name, argument}, answered in order by {call, value} or {call, error}. */
let queue = Promise.resolve();

self.onmessage = ({ data: { call, name, argument } }) => {
  queue = queue.then(async () => {
    try {
      const { calls } = await engine;
      const value = await calls[/** @type {keyof typeof calls} */ (name)](/** @type {never} */ (argument));
      self.postMessage({ call, value });
    } catch (error) {
      self.postMessage({ call, error: error instanceof Error ? error.message : String(error) });
    }
  });
};
