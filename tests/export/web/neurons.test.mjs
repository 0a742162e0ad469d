// The page of a run's neurons, opened as a file.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";

import { axe, launch } from "./browser.mjs";

const cases = JSON.parse(readFileSync(process.env.CASES, "utf8"));

/** @type {import("playwright-core").Browser} */
let browser;
before(async () => {
  browser = await launch();
});
after(() => browser.close());

/**
 * Run a test on the page, and fail on any error, console message or network request.
 * @param {(page: import("playwright-core").Page) => Promise<void>} use
 * @param {object} [context]
 */
async function on(use, context = {}) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, ...context });
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => errors.push(message.text()));
  page.on("request", (request) => request.url().startsWith("file:") || errors.push(request.url()));
  try {
    await page.goto(pathToFileURL(cases.page).href);
    await use(page);
    assert.deepEqual(errors, []);
  } finally {
    await page.context().close();
  }
}

/**
 * The colours of the text: 0 to 1 towards green, to -1 towards blue.
 * @param {import("playwright-core").Page} page
 */
function colours(page) {
  return page.locator("#text b").evaluateAll((cells) =>
    cells.map(({ style }) => Number(style.getPropertyValue("--v")) * (style.getPropertyValue("--hue") === "var(--green)" ? 1 : -1)),
  );
}

/** @param {number[]} actual @param {number[]} expected */
function near(actual, expected) {
  assert.equal(actual.length, expected.length);
  for (const [k, value] of actual.entries()) assert.ok(Math.abs(value - expected[k]) < 0.01, `${k}: ${value}, not ${expected[k]}`);
}

test("the page colours the text by the best unit, and shows the predictions", () =>
  on(async (page) => {
    assert.equal((await page.locator("#text b").allTextContents()).join(""), cases.text);
    assert.deepEqual((await page.locator("#text span").nth(1).locator("i").allTextContents()).join(" "), cases.second.join(" "));
    near(await colours(page), cases.colours["1.2"]);
    assert.equal(await page.locator("#neurons input:checked").inputValue(), "1.2");
    assert.match(await page.locator("#neurons label").first().innerText(), /1 · 2\s+↓ inside <quotes>\s+AUC 0\.95/);
    await page.uncheck("#expected");
    assert.equal(await page.locator("#text i:visible").count(), 0);
  }));

test("another unit can be chosen from the list or by number", () =>
  on(async (page) => {
    await page.check('input[value="2.1"]');
    near(await colours(page), cases.colours["2.1"]);
    assert.equal(await page.inputValue("#layer"), "2");
    await page.fill("#unit", "3");
    await page.locator("#unit").blur();
    near(await colours(page), cases.colours["2.3"]);
    await page.fill("#unit", "4");
    await page.locator("#unit").blur();
    near(await colours(page), cases.colours["2.3"]); // there are only three units
  }));

test("a unit of low contrast is scaled to its own range, and any other on request", () =>
  on(async (page) => {
    assert.equal(await page.isChecked("#own"), false);
    await page.fill("#layer", "2");
    await page.locator("#layer").blur();
    assert.equal(await page.isChecked("#own"), true);
    near(await colours(page), cases.own);
    await page.uncheck("#own");
    assert.ok((await colours(page)).every((value) => value > 0.99));
    await page.fill("#unit", "3");
    await page.locator("#unit").blur();
    assert.equal(await page.isChecked("#own"), false);
    near(await colours(page), cases.colours["2.3"]);
    await page.check("#own");
    assert.equal(Math.max(...(await colours(page))), 1);
  }));

test("the keyboard moves by character and by line", () =>
  on(async (page) => {
    const status = () => page.textContent("#status");
    await page.focus("#text");
    await page.keyboard.press("ArrowRight");
    assert.match(await status(), /^a  layer 1, unit 2: c -?\d\.\d\d\. Next: /);
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("ArrowDown");
    assert.match(await status(), /^f /);
    await page.keyboard.press("ArrowUp");
    assert.match(await status(), /^é /);
    await page.keyboard.press("End");
    assert.match(await status(), /^g /);
    await page.keyboard.press("Home");
    assert.match(await status(), /^a /);
    assert.equal(await page.locator("#text .here").count(), 1);
  }));

/**
 * @param {string} name
 * @param {object} context
 */
function inspect(name, context) {
  return on(
    async (page) => {
      await page.locator("#text span").nth(2).hover();
      await page.screenshot({ path: join(process.env.OUT, `neurons-${name}.png`), fullPage: true });
      await page.evaluate(readFileSync(axe, "utf8"));
      const { violations } = await page.evaluate(() => window.axe.run());
      assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`), []);
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth), 0);
    },
    { ...context, bypassCSP: true },
  );
}

test("axe reports no violations: light", () => inspect("light", { colorScheme: "light" }));
test("axe reports no violations: phone, dark", () => inspect("dark", { colorScheme: "dark", viewport: { width: 390, height: 844 } }));

test("the tables need no scripts", () =>
  on(
    async (page) => {
      assert.match(await page.locator("noscript").innerText(), /needs JavaScript/);
      assert.match(await page.locator("table").innerText(), /quote\s+inside <quotes>\s+found/);
    },
    { javaScriptEnabled: false },
  ));
