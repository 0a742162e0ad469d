// Chromium for machines without a display.

import { createRequire } from "node:module";

const require = createRequire(new URL("../../export/web/package.json", import.meta.url));
const { chromium } = require("playwright-core");

export const axe = require.resolve("axe-core/axe.min.js");

const QUIET = ["quic", "gpu", "background-networking", "component-update", "sync"].map((what) => `--disable-${what}`);

/** Launch a browser, without a sandbox for root. */
export function launch() {
  const args = ["--no-first-run", ...QUIET, ...(process.getuid() === 0 ? ["--no-sandbox"] : [])];
  return chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args });
}

/**
 * Wait for a status of the page.
 * @param {import("playwright-core").Page} page
 * @param {string} status the expected status
 */
export async function says(page, status) {
  const said = page.locator("#status", { hasText: status });
  await said.waitFor({ timeout: 60_000 }).catch(async () => {
    throw new Error(`the page says “${await page.textContent("#status")}” and “${await page.textContent("#problem")}”`);
  });
}
