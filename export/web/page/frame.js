// Rate-limited drawing: just often enough to look smooth, because it competes with the model for the processor.

const INTERVAL = 50; // milliseconds between frames

/**
 * Return a function that schedules `draw` for the next frame with its latest argument.
 * @template T
 * @param {(value: T) => void} draw
 * @returns {(value: T) => void}
 */
export function perFrame(draw) {
  /** @type {{value: T} | undefined} */
  let next;
  let drawn = 0;
  return (value) => {
    if (!next) {
      const delay = drawn + INTERVAL - performance.now(); // negative after a pause
      setTimeout(() => {
        requestAnimationFrame(() => {
          const { value } = /** @type {{value: T}} */ (next);
          next = undefined;
          drawn = performance.now();
          draw(value);
        });
      }, delay);
    }
    next = { value };
  };
}
