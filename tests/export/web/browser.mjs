// Headless Chromium, and the values that tests read from the page.

import { createRequire } from "node:module";

const require = createRequire(new URL("../../../export/web/package.json", import.meta.url));
const { chromium } = require("playwright-core");

export const axe = require.resolve("axe-core/axe.min.js");

const QUIET = ["quic", "gpu", "background-networking", "component-update", "sync"].map((feature) => `--disable-${feature}`);

/** Launch a browser; as root, without its sandbox. */
export function launch() {
  const args = ["--no-first-run", ...QUIET, ...(process.getuid() === 0 ? ["--no-sandbox"] : [])];
  return chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args });
}

/**
 * Wait for a status of the page.
 * @param {import("playwright-core").Page} page
 * @param {string} status the expected status
 */
export async function expectStatus(page, status) {
  const shown = page.locator("#status", { hasText: status });
  await shown.waitFor({ timeout: 60_000 }).catch(async () => {
    throw new Error(`the page shows “${await page.textContent("#status")}” and “${await page.textContent("#problem")}”`);
  });
}

/**
 * The text on the page.
 * @param {import("playwright-core").Page} page
 * @param {number} [pane]
 */
export function text(page, pane = 0) {
  return page.locator(".text").nth(pane).textContent();
}

/** @param {import("playwright-core").Page} page */
export async function bars(page) {
  const shown = page.locator("#bars button:visible");
  return shown.evaluateAll((buttons) => buttons.map((button) => [Number(button.dataset.id), button.children[2].textContent]));
}

/**
 * Retry a check until it passes: the worker answers asynchronously.
 * @param {() => Promise<unknown>} check
 */
export async function eventually(check) {
  for (const end = performance.now() + 30_000; performance.now() < end; await new Promise((resolve) => setTimeout(resolve, 50))) {
    try {
      return await check();
    } catch {}
  }
  return check();
}

/**
 * The rows of a table: the first cell, then the numbers in the others.
 * @param {import("playwright-core").Page} page
 * @param {string} id
 */
export async function numbers(page, id) {
  const rows = await page.locator(`#${id} tbody tr`).evaluateAll((all) => all.map((row) => Array.from(row.children, (cell) => cell.textContent)));
  return rows.map(([name, ...cells]) => [name, ...cells.map((cell) => Number(cell.replace("−", "-")))]);
}
