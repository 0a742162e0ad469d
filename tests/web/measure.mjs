// How fast a page writes: node measure.mjs ADDRESS MODEL PRECISION [CHARACTERS] prints one line of JSON. The whole page is at
// work, with its text, bars and a neuron's colours; the second of two texts counts, when the browser has compiled it all.

import { launch, says } from "./browser.mjs";

const [address, model, precision, length = "3000"] = process.argv.slice(2);
const browser = await launch();
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const settings = new URLSearchParams({ model, precision, length, temperature: "1", neuron: "1.1" });
  await page.goto(`${address}#${settings}`);
  await says(page, "Ready.");
  for (let turn = 0; turn < 2; turn++) {
    await page.click("#write");
    await says(page, "Done.");
  }
  const told = (await page.textContent(".told")).match(/([\d,]+) characters, ([\d,]+) a second/);
  const [characters, rate] = told.slice(1).map((number) => Number(number.replaceAll(",", "")));
  const about = { model, precision, browser: `Chromium ${browser.version()}` };
  console.log(JSON.stringify({ ...about, characters, characters_per_second: rate }));
} finally {
  await browser.close();
}
