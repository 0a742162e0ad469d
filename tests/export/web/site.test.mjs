// The page with the repository's own models, by keyboard alone, online and then offline.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { axe, eventually, expectStatus, launch, numbers, text } from "./browser.mjs";

const cases = JSON.parse(readFileSync(process.env.CASES, "utf8"));
const { prompt, word } = cases;
const ENDED = /^(Done|The model ended the text)\.$/;

/** @type {import("playwright-core").Browser} */
let browser;
before(async () => {
  browser = await launch();
});
after(() => browser.close());

/**
 * Press Tab until an element has the focus.
 * @param {import("playwright-core").Page} page
 * @param {string} id
 */
async function tabTo(page, id) {
  for (let presses = 0; presses < 100; presses++) {
    if (await page.evaluate((expected) => document.activeElement?.id === expected, id)) return;
    await page.keyboard.press("Tab");
  }
  assert.fail(`Tab does not reach #${id}`);
}

/**
 * Compare the text with each snapshot's, and then the steps of a word with the trained model's.
 * @param {import("playwright-core").Page} page
 * @param {{name: string, texts: string[], steps: number, h: number[], logits: number[]}} model
 */
async function visit(page, { name, texts, steps, h, logits }) {
  await eventually(async () => assert.equal(await text(page), texts.at(-1), name));
  await expectStatus(page, ENDED);
  if (texts.length > 1) {
    await tabTo(page, "snapshot");
    for (const [index, expected] of texts.entries()) {
      await page.keyboard.press(index ? "ArrowRight" : "Home");
      await eventually(async () => assert.equal(await text(page), expected, `${name}, snapshot ${index}`));
    }
  }
  assert.equal(await page.locator("#training:visible").count(), texts.length > 1 ? 1 : 0);
  await tabTo(page, "tab-work");
  await page.keyboard.press("ArrowRight");
  await tabTo(page, "word");
  await page.keyboard.press("Control+a");
  await page.evaluate(() => document.getElementById("how-status").replaceChildren()); // otherwise the status of the previous reading of the same word would match
  await page.keyboard.type(word);
  for (let step = 1; step < steps; step++) {
    await eventually(async () => assert.match(await page.textContent("#how-status"), new RegExp(`^Step ${step} of ${steps}:`)));
    await page.keyboard.press("Enter");
  }
  await eventually(async () => assert.match(await page.textContent("#how-status"), new RegExp(`^Step ${steps} of ${steps}:`)));
  for (const [neuron, ...cells] of await numbers(page, "how-units")) {
    const unit = Number(neuron.split(" · ")[1]) - 1;
    assert.ok(Math.abs(cells.at(-1) - h[unit]) < 0.01, `${name}, neuron ${neuron}: ${cells.at(-1)}, not ${h[unit]}`);
  }
  const ranked = logits.toSorted((a, b) => b - a);
  for (const [rank, [, score]] of (await numbers(page, "how-scores")).slice(0, 8).entries()) {
    assert.ok(Math.abs(score - ranked[rank]) < 0.05, `${name}, score ${rank}: ${score}, not ${ranked[rank]}`);
  }
}

/**
 * Visit each model.
 * @param {import("playwright-core").Page} page
 * @param {(state: string) => Promise<void>} look
 */
async function tour(page, look) {
  for (const [index, model] of cases.models.entries()) {
    await tabTo(page, "model");
    await page.keyboard.press("Home");
    for (let presses = 0; presses < index; presses++) await page.keyboard.press("ArrowDown");
    await visit(page, model);
    await look(`${model.name}-how`);
    await tabTo(page, "tab-how");
    await page.keyboard.press("ArrowLeft");
    await look(`${model.name}-write`);
  }
}

/**
 * @param {string} name
 * @param {object} context
 */
async function toured(name, context) {
  const page = await browser.newPage({ ...context, serviceWorkers: "allow", bypassCSP: true });
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  const look = async (state) => {
    await page.screenshot({ path: join(process.env.OUT, `site-${name}-${state}.png`), fullPage: true });
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth), 0, "nothing to scroll sideways");
    const { violations } = await page.evaluate(() => window.axe.run());
    assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`), [], state);
  };
  const open = async () => {
    await page.goto("about:blank"); // otherwise a new fragment alone would not reload the page
    await page.goto(`${cases.url}#${new URLSearchParams({ ...cases.settings, prompt, written: 1 })}`);
    await expectStatus(page, ENDED);
    await page.evaluate(readFileSync(axe, "utf8"));
  };
  await open();
  await eventually(async () => assert.ok(await page.evaluate(() => navigator.serviceWorker.controller !== null)));
  await open(); // on a slow machine, files are fetched before the service worker can cache them
  await tour(page, look);
  const kept = () => page.evaluate(async () => (await (await caches.open((await caches.keys())[0])).keys()).length);
  const shell = await page.evaluate(async () => (await (await fetch("build.js")).text()).match(/": \[([^\]]+)/)[1].split(",").length);
  const models = cases.models.flatMap(({ texts }) => texts).length;
  await eventually(async () => assert.ok((await kept()) >= shell + models + 2)); // and the runtime's two files
  await page.context().setOffline(true);
  await open();
  await tour(page, async () => {});
  assert.deepEqual(errors, []);
  await page.context().close();
}

test("all models, wide", () => toured("wide", { viewport: { width: 1280, height: 900 } }));
test("all models, on a phone", () => toured("phone", { viewport: { width: 390, height: 844 }, hasTouch: true, colorScheme: "dark" }));
