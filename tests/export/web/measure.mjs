// Measure how fast a page writes: node measure.mjs ADDRESS MODEL PRECISION [CHARACTERS] prints one line of JSON.

import { pathToFileURL } from "node:url";

import { expectStatus, launch } from "./browser.mjs";

/**
 * Write two texts with text, bars and a neuron's colours on display, and time the second, when all code is compiled.
 * @param {import("playwright-core").Browser} browser
 * @param {string} address
 * @param {string} model
 * @param {string} precision
 * @param {number} length characters per text
 */
export async function measure(browser, address, model, precision, length) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  try {
    const settings = new URLSearchParams({ model, precision, length: String(length), temperature: "1", neuron: "1.1" });
    await page.goto(`${address}#${settings}`);
    await expectStatus(page, "Ready.");
    for (let turn = 0; turn < 2; turn++) {
      await page.click("#write");
      await expectStatus(page, "Done.");
    }
    const caption = (await page.textContent(".progress")).match(/([\d,]+) characters, ([\d,]+) per second/);
    const [characters, rate] = caption.slice(1).map((number) => Number(number.replaceAll(",", "")));
    return { model, precision, browser: `Chromium ${browser.version()}`, characters, characters_per_second: rate };
  } finally {
    await page.context().close();
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [address, model, precision, length = "3000"] = process.argv.slice(2);
  const browser = await launch();
  try {
    console.log(JSON.stringify(await measure(browser, address, model, precision, Number(length))));
  } finally {
    await browser.close();
  }
}
