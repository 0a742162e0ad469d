// The screen shows sixty pictures a second, however often something changes.

/**
 * Gives a function that has `draw` called once before the next picture, with what it was last given.
 * @template T
 * @param {(value: T) => void} draw
 * @returns {(value: T) => void}
 */
export function perFrame(draw) {
  /** @type {{value: T} | undefined} */
  let next;
  return (value) => {
    if (!next) {
      requestAnimationFrame(() => {
        const { value } = /** @type {{value: T}} */ (next);
        next = undefined;
        draw(value);
      });
    }
    next = { value };
  };
}
