// Pictures of what changes, often enough to be seen to move, and no oftener: drawing takes the processor from the model.

const REST = 50; // milliseconds from one picture to the next

/**
 * Gives a function that has `draw` called once before the next picture, with what it was last given.
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
      const rest = drawn + REST - performance.now(); // none where nothing has changed for a while
      setTimeout(() => {
        requestAnimationFrame(() => {
          const { value } = /** @type {{value: T}} */ (next);
          next = undefined;
          drawn = performance.now();
          draw(value);
        });
      }, rest);
    }
    next = { value };
  };
}
