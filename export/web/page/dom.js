// Shorthand for DOM elements.

/**
 * Return the element with an id.
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 */
export function find(id, kind) {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new Error(`the page has no ${kind.name} #${id}`);
  return element;
}

/**
 * Create an element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Partial<HTMLElementTagNameMap[Tag]>} [properties]
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

/** @param {number} p */
export function percent(p) {
  return p > 0 && p < 0.001 ? "<0.1%" : `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)}%`;
}

const LEVELS = 8; // shades each of blue and green

/**
 * Colour an element by a neuron, or remove its colour.
 * @param {HTMLElement} element
 * @param {number | undefined} activity -1 to 1
 */
export function paint(element, activity) {
  const level = Math.round((activity ?? 0) * LEVELS);
  delete element.dataset.level;
  if (!level) return;
  element.dataset.level = String(level);
  element.style.setProperty("--level", String(Math.abs(level)));
}
