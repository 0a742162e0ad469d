// Chromium, with what a machine without a screen or a desktop wants of it.

import { createRequire } from "node:module";

const require = createRequire(new URL("../../export/web/package.json", import.meta.url));
const { chromium } = require("playwright-core");

export const axe = require.resolve("axe-core/axe.min.js");

const QUIET = ["quic", "gpu", "background-networking", "component-update", "sync"].map((what) => `--disable-${what}`);

/** A browser; as root it has no sandbox. */
export function launch() {
  const args = ["--no-first-run", ...QUIET, ...(process.getuid() === 0 ? ["--no-sandbox"] : [])];
  return chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args });
}

/**
 * Waits until a text is written, or read.
 * @param {import("playwright-core").Page} page
 * @param {string} status what the page says then
 */
export async function says(page, status) {
  const said = page.locator("#status", { hasText: status });
  await said.waitFor({ timeout: 60_000 }).catch(async () => {
    throw new Error(`the page says “${await page.textContent("#status")}” and “${await page.textContent("#problem")}”`);
  });
}
