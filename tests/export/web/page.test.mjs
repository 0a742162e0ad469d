// The page in Chromium, used as people do; its text is compared with the checkpoint's.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";

import { axe, bars, eventually, expectStatus, launch, numbers, text } from "./browser.mjs";
import { measure } from "./measure.mjs";

const cases = JSON.parse(readFileSync(process.env.CASES, "utf8"));
const DESKTOP = { viewport: { width: 1280, height: 900 } };
const KEPT = { serviceWorkers: "allow" }; // the other tests need not wait for the service worker
const PHONE = { viewport: { width: 390, height: 844 }, hasTouch: true };

const DEFAULTS = { ...DESKTOP, serviceWorkers: "block", permissions: ["clipboard-read", "clipboard-write"] };

/** Tests that repeat another under different conditions; `make test-slow` runs them. */
const slow = process.env.SLOW ? test : test.skip;

/** @type {import("playwright-core").Browser} */
let browser;
/** @type {import("playwright-core").BrowserContext} */
let shared; // its cache keeps the compiled runtime from test to test
before(async () => {
  browser = await launch();
  shared = await browser.newContext(DEFAULTS);
});
after(() => browser.close());

/**
 * Run a test on a new page, and fail on any error that the page logs. context: options for a separate context.
 * @param {(page: import("playwright-core").Page) => Promise<void>} use
 * @param {{hash?: string, address?: string, context?: object, ready?: boolean, prepare?: (page: any) => Promise<unknown>}} [options]
 */
async function on(use, { hash = "", address = cases.url, context, ready = true, prepare } = {}) {
  const own = context && (await browser.newContext({ ...DEFAULTS, ...context }));
  const page = await (own ?? shared).newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => {
    // The runtime logs its progress as errors, so only the browser's own messages count.
    if (/Content.Security.Policy|Failed to load|Uncaught/.test(message.text())) errors.push(message.text());
  });
  try {
    await prepare?.(page);
    await page.goto(address + hash);
    if (ready) {
      await expectStatus(page, hash.includes("written") ? "Done." : "Ready.");
      assert.deepEqual(errors, []);
    }
    await use(page);
    if (ready) assert.deepEqual(errors, []);
  } finally {
    await (own ?? page).close();
  }
}

/** @param {Record<string, string | number>} settings */
function link(settings) {
  return `#${new URLSearchParams(settings)}`;
}

/**
 * Move a slider.
 * @param {import("playwright-core").Page} page
 * @param {string} id
 * @param {number} value
 */
async function slide(page, id, value) {
  await page.locator(`#${id}`).fill(String(value));
}

/**
 * Replace the prompt, and wait until it is read.
 * @param {import("playwright-core").Page} page
 * @param {string} typed
 */
async function type(page, typed) {
  await page.fill("#prompt", typed);
  await eventually(async () => assert.equal(await text(page), typed));
}

test("greedy text matches the checkpoint's over 500 characters", () =>
  on(async (page) => {
    await page.fill("#prompt", cases.greedy.prompt);
    await slide(page, "temperature", 0);
    await page.click("#write");
    await expectStatus(page, "Done.");
    assert.equal(await text(page), cases.greedy.text);
    assert.match(await page.textContent(".progress"), /^500 characters, \d+ per second$/);
  }));

test("a seed gives the same text as in the terminal, with temperature, top-k and top-p", () =>
  on(async (page) => {
    const { temperature, seed, top_k: k, top_p: p } = cases.sampled.options;
    await page.fill("#prompt", cases.greedy.prompt);
    await slide(page, "temperature", temperature);
    await slide(page, "top_k", k);
    await slide(page, "top_p", p);
    await page.fill("#seed", String(seed));
    await page.fill("#length", "300");
    await page.click("#write");
    await expectStatus(page, "Done.");
    assert.equal(await text(page), cases.sampled.text);
    assert.deepEqual(await page.locator(".settings output").allTextContents(), ["1.1", "12", "0.9", "1.2"]);
  }));

slow("the largest seed gives the same text as in the terminal", () =>
  on(async (page) => assert.equal(await text(page), cases.long), {
    hash: link({ prompt: "The ", temperature: 1, seed: 2 ** 53 - 1, length: 500, written: 1 }),
  }));

test("a model of characters ends its text where the document does", () =>
  on(
    async (page) => {
      await page.selectOption("#model", cases.odd);
      await expectStatus(page, "Ready.");
      for (const [seed, expected] of cases.names.entries()) {
        await page.fill("#seed", String(seed));
        await page.click("#write");
        await expectStatus(page, "The model ended the text.");
        assert.equal(await text(page), expected);
      }
      const named = { name: "1 · 3 the length of a name: layer 1, neuron 3", exact: true }; // starts with the visible label
      await page.getByRole("radio", named).check();
      assert.match(await page.textContent("#neurons-note"), /Colours show h\.$/);
    },
    { hash: link({ temperature: 1, length: 40 }) },
  ));

test("neurons colour the text as in NumPy", () =>
  on(async (page) => {
    await type(page, cases.text);
    const range = ([layer, unit]) => {
      const values = cases.held.map((all) => all[layer][unit]);
      return Math.max(...values) - Math.min(...values);
    };
    const all = [0, 1].flatMap((layer) => Array.from({ length: 24 }, (_, unit) => [layer, unit]));
    const [most, more] = all.sort((a, b) => range(b) - range(a));
    assert.ok(range(more) > 0.5, "the neurons vary");
    for (const [layer, unit] of [most, more, [0, 0], [1, 23]]) {
      await page.fill("#layer", String(layer + 1));
      await page.fill("#unit", String(unit + 1));
      await page.locator("#unit").press("Enter");
      await eventually(() => coloured(page, layer, unit));
    }
    await page.check("#neurons input[value='']");
    assert.equal(await page.locator(".text [data-level]").count(), 0);
  }));

/**
 * Compare each character's colour with the activity of the checkpoint's neuron.
 * @param {import("playwright-core").Page} page
 * @param {number} layer
 * @param {number} unit
 */
async function coloured(page, layer, unit) {
  const shown = await page.locator(".text span").evaluateAll((spans) =>
    spans.map((span) => [span.textContent, Number(span.dataset.level ?? 0), getComputedStyle(span).backgroundColor]),
  );
  let at = -1; // in bytes: a character has the colour of its last byte
  for (const [character, level, colour] of shown) {
    at += Buffer.byteLength(character);
    const exact = 8 * cases.held[at][layer][unit];
    assert.ok(Math.abs(level - exact) < 0.501, `${character}: ${level}, not ${exact}`);
    const [red, green, blue] = colour.match(/[\d.]+/g).map(Number);
    if (level) assert.deepEqual([green > blue, red < Math.max(green, blue)], [level > 0, true], "green is above 0, blue below");
  }
  assert.equal(at, cases.held.length - 1);
}

test("the most variable neurons come first", () =>
  on(async (page) => {
    await type(page, cases.text);
    const variance = (values) => {
      const mean = values.reduce((a, b) => a + b) / values.length;
      return values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
    };
    const expected = [0, 1]
      .flatMap((layer) => Array.from({ length: 24 }, (_, unit) => [`${layer}.${unit}`, variance(cases.held.map((all) => all[layer][unit]))]))
      .sort((a, b) => b[1] - a[1]);
    await eventually(async () => {
      const listed = await page.locator("#neurons input").evaluateAll((inputs) => inputs.map((input) => input.value));
      assert.deepEqual(listed.slice(0, 11), ["", ...expected.slice(0, 10).map(([name]) => name)]);
    });
  }));

/**
 * The probabilities on the card of the character that ends at byte `at`.
 * @param {number} at
 */
function five(at) {
  const ranked = cases.expected[at - 1].map((p, id) => [p, id]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  return ranked.map(([p]) => percent(p));
}

/** @param {number} p */
function percent(p) {
  return p > 0 && p < 0.001 ? "<0.1%" : `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)}%`;
}

test("hovering over a character shows the five likeliest ones", () =>
  on(async (page) => {
    await type(page, cases.text);
    await page.locator(".text span").nth(5).hover();
    const card = page.locator("#card");
    await card.waitFor();
    assert.deepEqual(await card.locator("li span").allTextContents(), five(5));
    await page.mouse.move(5, 5);
    await card.waitFor({ state: "hidden" });
    await page.locator(".text span").nth(5).hover();
    await card.waitFor();
    await page.fill("#prompt", "x");
    await card.waitFor({ state: "hidden" });
  }));

test("the keyboard shows the likeliest characters too, and a screen reader announces them", () =>
  on(async (page) => {
    await type(page, cases.text);
    await page.locator(".text").first().focus();
    for (const key of ["Home", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight", "ArrowRight"]) await page.keyboard.press(key);
    await eventually(async () => assert.match(await page.textContent("#spoken"), /^space; expected: .+ \d+%/));
    assert.equal(await page.locator(".text .here").textContent(), cases.text[3]);
    assert.deepEqual(await page.locator("#card li span").allTextContents(), five(3));
    await page.keyboard.press("End");
    assert.equal(await page.locator(".text .here").textContent(), cases.text.at(-1));
    await page.keyboard.press("Escape");
    await page.locator("#card").waitFor({ state: "hidden" });
  }));

test("everything works by keyboard alone", () =>
  on(async (page) => {
    const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.className || document.activeElement.value);
    await page.locator("#prompt").focus();
    await page.keyboard.type("The ");
    await page.keyboard.press("Control+Enter");
    await expectStatus(page, "Done.");
    const order = [];
    for (let presses = 0; presses < 12; presses++) {
      await page.keyboard.press("Tab");
      order.push(await focused());
    }
    assert.deepEqual(order, ["write", "on", "copy", "share", "text", "temperature", "top_k", "top_p", "seed", "length", "compare", ""]);
    await page.keyboard.press("Enter"); // on the first bar: the likeliest character
    await eventually(async () => assert.match(await page.textContent(".progress"), /^501 characters/));
    await page.locator("#neurons input").first().focus();
    await page.keyboard.press("ArrowDown");
    await page.locator(".text [data-level]").first().waitFor();
    await page.getByRole("slider", { name: "Temperature", exact: true }).press("ArrowRight");
    assert.equal(await page.textContent("#temperature-value"), "0.85");
  }));

test("the steps of a word match the checkpoint's to three decimals", () =>
  on(async (page) => {
    await page.locator("#tab-work").focus();
    await page.keyboard.press("ArrowRight");
    assert.equal(await page.locator("#work:visible").count(), 0);
    await page.fill("#word", cases.text);
    for (const layer of [0, 1]) {
      await page.selectOption("#how-layer", String(layer));
      for (const at of [0, 1, 2, 9]) {
        while (!(await page.textContent("#how-status")).startsWith(`Step ${at + 1} of ${cases.ids.length}:`)) {
          const before = await page.textContent("#how-status");
          await page.locator("#word").press("Enter");
          await eventually(async () => assert.notEqual(await page.textContent("#how-status"), before));
        }
        await stepped(page, layer, at);
      }
      await page.fill("#word", "");
      await page.fill("#word", cases.text);
      await eventually(async () => assert.match(await page.textContent("#how-status"), /^Step 1 of/));
    }
  }));

/**
 * Compare a step's tables of neurons and scores with the checkpoint's.
 * @param {import("playwright-core").Page} page
 * @param {number} layer
 * @param {number} at
 */
async function stepped(page, layer, at) {
  const { h, c, forget, added, output, logits } = cases.steps;
  const near = (shown, exact, name) => assert.ok(Math.abs(shown - exact) < 6e-4, `${name}: ${shown}, not ${exact}`);
  const rows = await numbers(page, "how-units");
  assert.equal(rows.length, 8);
  const before = (state, unit) => (at ? state[at - 1][layer][unit] : 0);
  const change = (unit) => Math.abs(h[at][layer][unit] - before(h, unit));
  const least = Array.from({ length: 24 }, (_, unit) => change(unit)).sort((a, b) => b - a)[7];
  for (const [name, ...shown] of rows) {
    const unit = Number(name.split(" · ")[1]) - 1;
    assert.ok(change(unit) > least - 1e-5);
    const exact = [before(c, unit), ...[forget, added, c, output, h].map((values) => values[at][layer][unit])];
    for (const [column, value] of exact.entries()) near(shown[column], value, `${name}, column ${column}, step ${at}`);
  }
  const scores = await numbers(page, "how-scores");
  const ranked = logits[at].toSorted((a, b) => b - a);
  for (const [index, [, score, power]] of scores.slice(0, 8).entries()) {
    near(score, ranked[index], "score");
    near(power, Math.exp(ranked[index] - ranked[0]), "power");
  }
  near(scores[8][2], ranked.reduce((sum, logit) => sum + Math.exp(logit - ranked[0]), 0), "sum");
  const next = cases.ids[at + 1];
  assert.match(await page.textContent("#how-status"), new RegExp(`: ${percent(cases.expected[at][next])}, a loss of`));
}

slow("after its last character, a word continues with the likeliest ones, and can step back", () =>
  on(
    async (page) => {
      await page.click("#tab-how");
      await page.fill("#word", "The ");
      for (let step = 0; step < 8; step++) {
        await eventually(async () => assert.match(await page.textContent("#how-status"), new RegExp(`^Step ${step + 1} `)));
        await page.evaluate(() => [0, 1].forEach(() => document.getElementById("forward").click())); // the second click comes too early
      }
      await eventually(async () => assert.match(await page.textContent("#how-status"), /^Step 9 of 9/));
      const letters = (await page.locator("#letters li").allTextContents()).join("").replaceAll("␣", " ");
      assert.equal(letters, cases.greedy.text.slice(0, 9).replace("é", "C3"));
      await page.click("#back");
      await eventually(async () => assert.match(await page.textContent("#how-status"), /^Step 8 of 9/));
      await page.selectOption("#model", cases.odd);
      await eventually(async () => assert.equal(await page.locator("#how-units thead th").count(), 3)); // a GRU: h before, h
      assert.match(await page.textContent("#how-cell"), /a GRU replaces a share of it, and keeps the rest\.$/);
      await page.fill("#word", "");
      await eventually(async () => assert.match(await page.textContent("#how-status"), /^Step 1 of 1: read/));
    },
    { hash: link({ temperature: 0 }) },
  ));

const TRAINING = { precision: "int8-dynamic", prompt: "The ", temperature: 0.9, seed: 3, length: 60, neuron: "2.3", written: 1 };

test("the slider shows text, guesses and a neuron as they were in training, by keyboard", () =>
  on(
    async (page) => {
      const slider = page.getByRole("slider", { name: "Training" });
      for (const [index, snapshot] of cases.training.entries()) {
        await slider.press(index ? "ArrowRight" : "Home");
        await eventually(() => trained(page, snapshot));
        assert.match(await slider.getAttribute("aria-valuetext"), new RegExp(`^step ${snapshot.step} of 150, \\d\\.\\d\\d bits$`));
      }
      await slider.press("ArrowLeft");
      await eventually(async () => assert.equal(new URLSearchParams(new URL(page.url()).hash.slice(1)).get("step"), "50"));
      await page.click("#tab-how");
      await page.click("#forward");
      await eventually(async () => assert.match(await page.textContent("#how-status"), /^Step 2 of 5/));
      const scores = await numbers(page, "how-scores");
      await slider.press("Home");
      await eventually(async () => assert.notDeepEqual(await numbers(page, "how-scores"), scores));
      assert.match(await page.textContent("#how-status"), /^Step 2 of 5/);
      await page.selectOption("#precision", "float32");
      await eventually(async () => assert.equal(await slider.inputValue(), "2"));
      await page.selectOption("#model", cases.odd);
      await slider.waitFor({ state: "hidden" });
    },
    { hash: link(TRAINING) },
  ));

/**
 * Compare text, bars and colours with those of a snapshot.
 * @param {import("playwright-core").Page} page
 * @param {{text: string, held: [string, number][], next: number[]}} snapshot
 */
async function trained(page, { text: expected, held, next }) {
  assert.equal(await text(page), expected);
  const ranked = next.toSorted((a, b) => b - a);
  for (const [rank, [id, share]] of (await bars(page)).entries()) {
    for (const p of [next[id], ranked[rank]]) assert.ok(Math.abs(Number.parseFloat(share) - 100 * p) < 0.6, `bar ${rank}: ${share}, not ${p}`);
  }
  const spans = await page.locator(".text span").evaluateAll((all) => all.map((span) => [span.textContent, Number(span.dataset.level ?? 0)]));
  const shown = spans.filter(([character]) => character.charCodeAt(0) < 128);
  assert.deepEqual(shown.map(([character]) => character), held.map(([character]) => character));
  for (const [index, [character, level]] of shown.entries()) {
    assert.ok(Math.abs(level - 8 * held[index][1]) < 0.6, `${character}: ${level}, not ${8 * held[index][1]}`);
  }
}

test("the bars follow temperature, top-k and top-p", () =>
  on(async (page) => {
    await type(page, cases.text);
    await slide(page, "temperature", 1);
    const ranked = cases.expected.at(-1).map((p, id) => [id, p]).sort((a, b) => b[1] - a[1]);
    const first = ranked.slice(0, 10).map(([id, p]) => [id, percent(p)]);
    await eventually(async () => assert.deepEqual(await bars(page), first));
    await slide(page, "top_k", 3);
    await eventually(async () => assert.equal((await bars(page)).length, 3));
    await slide(page, "temperature", 0);
    await eventually(async () => assert.deepEqual(await bars(page), [[ranked[0][0], "100%"]]));
  }));

test("a chosen bar is written, the text continues from it, and a link repeats it", async () => {
  let shared = "";
  let written = "";
  await on(async (page) => {
    await page.fill("#prompt", "The ");
    await page.fill("#length", "30");
    await page.click("#write");
    await expectStatus(page, "Done.");
    const before = await text(page);
    const label = await page.locator("#bars button").nth(2).evaluate((button) => Number(button.dataset.id));
    await page.locator("#bars button").nth(2).click();
    await page.locator(".text .chosen").waitFor();
    const chosen = (await text(page)).slice(before.length);
    assert.equal(chosen.charCodeAt(0), label);
    assert.equal(await page.locator(".text .chosen").textContent(), chosen);
    await page.click("#on");
    await expectStatus(page, "Done.");
    written = await text(page);
    assert.ok(written.startsWith(before + chosen));
    assert.equal(Array.from(written).length, Array.from(before).length + 31);
    await page.click("#share");
    await expectStatus(page, "Link copied.");
    shared = await page.evaluate(() => navigator.clipboard.readText());
  });
  await on(
    async (page) => {
      assert.equal(await text(page), written);
      assert.deepEqual(await page.locator(".pane").evaluateAll((panes) => panes.map((pane) => pane.querySelectorAll(".chosen").length)), [1, 0]);
    },
    { hash: `${new URL(shared).hash}&beside=0.8` },
  );
});

slow("the chosen characters of a link are written only by a model that has them", () =>
  on(
    async (page) => {
      const written = await text(page);
      assert.equal(await page.locator(".text .chosen").count(), 2);
      assert.equal(written.slice(0, 7), `${cases.greedy.text.slice(0, 5)}\nA`);
      await page.selectOption("#model", cases.odd);
      await eventually(async () => assert.notEqual(await text(page), written));
      await expectStatus(page, /Done|ended/);
      assert.equal(await page.locator(".text .chosen").count(), 0);
    },
    { hash: link({ prompt: "The ", temperature: 0, length: 20, chosen: "4.256-5.10-6.65", written: 1 }) },
  ));

test("another model keeps prompt, seed and settings, and shows its card", () =>
  on(
    async (page) => {
      assert.equal(await page.locator("#about:visible").count(), 0);
      await page.selectOption("#model", cases.odd);
      await expectStatus(page, /Done|ended/);
      const values = await page.evaluate((ids) => ids.map((id) => document.getElementById(id).value), ["prompt", "seed", "temperature", "length"]);
      assert.deepEqual(values, ["Ан", "7", "1.1", "20"]);
      assert.ok((await text(page)).startsWith("Ан"));
      assert.match(page.url(), /seed=7/);
      await page.click("#about summary");
      assert.equal(await page.locator("#model-card:visible").innerText(), "licence of the text\npublic domain");
      await page.selectOption("#model", "prose");
      await expectStatus(page, "Done.");
      assert.equal(await page.inputValue("#prompt"), "Ан");
    },
    { hash: link({ prompt: "Ан", seed: 7, temperature: 1.1, length: 20, written: 1 }) },
  ));

test("a character chosen while the text streams replaces the next one", () =>
  on(
    async (page) => {
      const id = await page.evaluate(
        () =>
          new Promise((resolve) => {
            document.getElementById("write").click();
            const choose = () => {
              if (document.querySelectorAll(".text span").length < 20) return setTimeout(choose, 5);
              const bar = document.querySelector("#bars button");
              resolve(Number(bar.dataset.id));
              bar.click();
            };
            choose(); // start and choose in the page: from outside, on a slow machine, the text would be complete
          }),
      );
      await expectStatus(page, "Done.");
      const chosen = await page.locator(".text .chosen").allTextContents();
      assert.equal(chosen.length, 1);
      assert.ok(chosen[0] === "\ufffd" || Buffer.from(chosen[0]).includes(id), `${chosen[0]} for ${id}`);
      assert.match(await page.textContent(".progress"), /^2,000 characters/);
    },
    { hash: link({ prompt: "The ", length: 2000 }) },
  ));

slow("a character is marked as chosen if any of its bytes is", () =>
  on(
    async (page) => {
      const [character] = Array.from((await text(page)).slice(4)); // valid or not, it begins with the chosen byte
      assert.ok(character > "\x7f");
      assert.deepEqual(await page.locator(".text .chosen").allTextContents(), [character]);
    },
    { hash: link({ prompt: "The ", temperature: 0, length: 8, chosen: `4.${0xe2}`, written: 1 }) },
  ));

test("a link restores all settings and the text", async () => {
  let [shared, written, colours] = ["", "", ""];
  const painted = (page) => page.locator(".text").nth(0).evaluate((pane) => Array.from(pane.children, (span) => span.dataset.level ?? "").join());
  await on(async (page) => {
    await page.fill("#prompt", "“naïve” &+#%\n");
    await slide(page, "temperature", 1.25);
    await slide(page, "top_k", 9);
    await slide(page, "top_p", 0.85);
    await page.fill("#seed", "123456789012");
    await page.fill("#length", "60");
    await page.check("#compare");
    await slide(page, "beside", 0.3);
    await page.locator("#neurons input").nth(3).check();
    await page.click("#write");
    await expectStatus(page, "Done.");
    await page.click("#share");
    await expectStatus(page, "Link copied.");
    shared = await page.evaluate(() => navigator.clipboard.readText());
    [written, colours] = [await text(page), await painted(page)];
    await eventually(async () => assert.equal(page.url(), shared)); // the address bar is updated
    assert.notEqual(await text(page, 1), written);
  });
  await on(
    async (page) => {
      assert.equal(page.url(), shared);
      assert.equal(await text(page), written);
      assert.equal(await painted(page), colours);
      const fields = ["prompt", "temperature", "top_k", "top_p", "seed", "length", "beside"];
      const values = await page.evaluate((ids) => ids.map((id) => document.getElementById(id).value), fields);
      assert.deepEqual(values, ["“naïve” &+#%\n", "1.25", "9", "0.85", "123456789012", "60", "0.3"]);
    },
    { hash: new URL(shared).hash },
  );
});

slow("editing the address of the open page, and going back, restore its settings", () =>
  on(
    async (page) => {
      const value = (id) => page.locator(`#${id}`).inputValue();
      await slide(page, "temperature", 0.5); // keeps the focus
      await eventually(async () => assert.match(page.url(), /temperature=0\.5/));
      const { options } = cases.sampled;
      await page.evaluate((hash) => location.assign(hash), link({ prompt: "The ", ...options, length: 300, beside: 0, written: 1 }));
      await eventually(async () => assert.equal(await text(page), cases.sampled.text));
      await eventually(async () => assert.equal(await text(page, 1), cases.greedy.text.slice(0, 304)));
      assert.deepEqual([await value("temperature"), await value("seed"), await value("prompt")], ["1.1", "77", "The "]);
      await page.goBack();
      await eventually(async () => assert.equal(await text(page), "The cat"));
      assert.deepEqual([await value("temperature"), await value("seed"), await value("prompt")], ["0.5", "1", "The cat"]);
      await eventually(async () => assert.match(page.url(), /temperature=0\.5/));
      assert.equal(await page.locator(".pane:visible").count(), 1);
    },
    { hash: link({ prompt: "The cat" }) },
  ));

slow("the page works if the browser blocks changes of the address", () =>
  on(
    async (page) => {
      for (let step = 0; step < 40; step++) await slide(page, "temperature", step / 20);
      await slide(page, "temperature", 0);
      await page.click("#write");
      await expectStatus(page, "Done.");
      assert.equal(await text(page), cases.greedy.text);
      await page.waitForFunction(() => window.tries >= 1);
      const tries = await page.evaluate(() => window.tries);
      assert.ok(tries < 15, `${tries} tries`);
    },
    {
      hash: link({ prompt: "The " }),
      prepare: (page) =>
        page.addInitScript(() => {
          window.tries = 0;
          history.replaceState = () => {
            window.tries += 1;
            throw new Error("refused");
          };
        }),
    },
  ));

test("two temperatures side by side write their own texts", () =>
  on(
    async (page) => {
      assert.deepEqual(await page.locator(".pane h2").allTextContents(), ["Temperature 1.1", "Temperature 0"]);
      assert.equal(await text(page), cases.sampled.text);
      assert.equal(await text(page, 1), cases.greedy.text.slice(0, 304));
      const [left, right] = await Promise.all([0, 1].map((pane) => page.locator(".pane").nth(pane).boundingBox()));
      assert.ok(right.x > left.x + left.width && right.y === left.y);
      await page.uncheck("#compare");
      assert.equal(await page.locator(".pane:visible").count(), 1);
    },
    { hash: link({ prompt: "The ", ...cases.sampled.options, length: 300, beside: 0, written: 1 }) },
  ));

slow("a text added for comparison has the same length and prompt", () =>
  on(
    async (page) => {
      await page.check("#compare");
      await eventually(async () => assert.equal(Array.from(await text(page, 1)).length, 34));
      await page.uncheck("#compare");
      await type(page, "The cat");
      await page.check("#compare");
      await eventually(async () => assert.equal(await text(page, 1), "The cat"));
    },
    { hash: link({ prompt: "The ", temperature: 1, top_k: 2, length: 30, written: 1 }) },
  ));

test("a stopped text continues as if it had not stopped", () =>
  on(
    async (page) => {
      await page.evaluate(() => {
        const button = document.getElementById("write");
        const stop = () => (document.querySelectorAll(".text span").length > 20 ? button.click() : setTimeout(stop, 5));
        button.click();
        stop(); // start and stop in the page: from outside, on a slow machine, the text would be complete
      });
      await expectStatus(page, "Done.");
      const stopped = await text(page);
      assert.ok(stopped.length < 9000);
      await page.fill("#length", "10");
      await page.click("#on");
      await page.waitForFunction((length) => document.querySelector(".text").textContent.length > length, stopped.length);
      const continued = await text(page);
      await page.fill("#length", String(Array.from(continued).length));
      await page.click("#write");
      await expectStatus(page, "Done.");
      assert.ok((await text(page)).startsWith(continued));
    },
    { hash: link({ prompt: "The ", length: 10000 }) },
  ));

test("the network reads the prompt while it is typed", () =>
  on(async (page) => {
    const empty = await bars(page);
    await page.locator("#neurons input").nth(1).check();
    await page.locator("#prompt").pressSequentially("The cat");
    await eventually(async () => assert.equal(await text(page), "The cat"));
    assert.ok(await page.locator(".text [data-level]").count(), "the neuron follows");
    await page.keyboard.press("Backspace");
    await page.keyboard.type("fé");
    await eventually(async () => assert.equal(await text(page), "The café"));
    assert.notDeepEqual(await bars(page), empty);
    await type(page, "");
    await eventually(async () => assert.deepEqual(await bars(page), empty)); // an empty text starts after a newline
    for (const typed of ["\n", "\nabc", "\n", ""]) await type(page, typed);
  }));

test("a chosen character that is typed again is part of the prompt", () =>
  on(async (page) => {
    await page.fill("#length", "30");
    await type(page, "The ");
    await page.locator("#bars button").first().click();
    await page.locator(".text .chosen").waitFor();
    const typed = `${await text(page)}x`;
    const written = [];
    for (const before of [typed, ""]) {
      await type(page, before);
      await type(page, typed);
      assert.deepEqual([await page.locator(".chosen").count(), await page.locator(".first").count()], [0, 0]);
      await page.click("#write");
      await expectStatus(page, "Done.");
      written.push(await text(page));
      assert.equal(await page.locator(".first").count(), 1);
    }
    assert.equal(written[0], written[1]);
  }));

test("a word is read once a model is open", () =>
  on(
    async (page) => {
      await page.click("#tab-how");
      await page.fill("#word", "The");
      assert.equal(await page.getAttribute("#word", "aria-invalid"), null);
      assert.equal(await page.textContent("#how-status"), "");
    },
    { ready: false, prepare: (page) => page.route("**/*.tflite", (route) => route.abort()) },
  ));

slow("an unknown character is named", () =>
  on(
    async (page) => {
      await page.route("**/models.json", async (route) => {
        const listed = await (await route.fetch()).json();
        for (const model of listed.models) delete model.vocab.unknown_id;
        await route.fulfill({ json: listed });
      });
      await page.reload();
      await expectStatus(page, "Ready.");
      await page.fill("#prompt", "Zoë €");
      assert.equal(await page.textContent("#prompt-note"), "Cannot read this: this model has never seen “ ” (U+0020).");
      assert.equal(await page.getAttribute("#prompt", "aria-invalid"), "true");
      await page.fill("#prompt", "Zoë");
      assert.equal(await page.getAttribute("#prompt", "aria-invalid"), "false");
    },
    { hash: link({ model: cases.odd }) },
  ));

test("the text is copied unchanged", () =>
  on(
    async (page) => {
      await page.click("#copy");
      await expectStatus(page, "Text copied.");
      assert.equal(await page.evaluate(() => navigator.clipboard.readText()), cases.greedy.text);
    },
    { hash: link({ prompt: "The ", temperature: 0, neuron: "2.3", written: 1 }) },
  ));

test("once opened, the page works offline, and reports it", () =>
  on(
    async (page) => {
      await page.evaluate(() => navigator.serviceWorker.ready);
      await page.reload(); // on a slow machine, the first visit is too early to be cached
      await expectStatus(page, "Done.");
      assert.equal(await page.textContent("#offline"), OFFLINE);
      const cached = await page.evaluate(async () => (await navigator.serviceWorker.getRegistration()).updateViaCache);
      assert.equal(cached, "none");
      const files = () => page.evaluate(async () => (await (await caches.open((await caches.keys())[0])).keys()).map(({ url }) => url));
      await eventually(async () => assert.equal((await files()).filter((url) => url.includes("/step-")).length, 2));
      await page.context().setOffline(true);
      await page.reload();
      await expectStatus(page, "Done.");
      assert.equal(await text(page), cases.greedy.text);
      await page.locator("#snapshot").press("Home");
      await expectStatus(page, "Done.");
      assert.notEqual(await text(page), cases.greedy.text);
      await page.selectOption("#model", cases.odd);
      await page.locator("#problem:visible").waitFor();
      assert.match(await page.textContent("#problem"), /^cannot load .*: there is no network, and this model has not been opened here before/);
    },
    { hash: link({ prompt: "The ", temperature: 0, written: 1 }), context: KEPT },
  ));

slow("a corrupted cached file is fetched and cached again", () =>
  on(
    async (page) => {
      const kept = (change) =>
        page.evaluate(async (change) => {
          const cache = await caches.open((await caches.keys())[0]);
          const request = (await cache.keys()).find(({ url }) => url.endsWith("/prose/float32.tflite"));
          if (change) await cache.put(request, new Response("damaged"));
          return (await (await cache.match(request)).arrayBuffer()).byteLength;
        }, change);
      const size = await kept(false);
      assert.equal(await kept(true), 7);
      await page.reload();
      await expectStatus(page, "Done.");
      assert.equal(await text(page), cases.greedy.text);
      assert.equal(await kept(false), size);
    },
    { hash: link({ prompt: "The ", temperature: 0, written: 1 }), context: KEPT },
  ));

/**
 * Run a test on a page from a static host, below a path. behind: code appended to the script of its service worker.
 * @param {(page: import("playwright-core").Page) => Promise<void>} use
 * @param {string} [behind]
 */
async function hosted(use, behind = "") {
  const types = { ".js": "text/javascript", ".html": "text/html", ".css": "text/css", ".wasm": "application/wasm", ".svg": "image/svg+xml" };
  const host = createServer((request, response) => {
    const [path] = decodeURIComponent(request.url).split("?");
    if (!path.startsWith("/a/b c/")) return response.writeHead(404).end();
    const file = join(cases.site, path.slice("/a/b c/".length) || "index.html");
    response.writeHead(200, { "Content-Type": types[extname(file)] ?? "application/octet-stream" });
    response.end(file.endsWith("sw.js") ? readFileSync(file, "utf8") + behind : readFileSync(file));
  });
  await new Promise((resolve) => host.listen(0, "localhost", resolve));
  try {
    const hash = link({ prompt: "The ", temperature: 0, written: 1 });
    await on(use, { address: `http://localhost:${host.address().port}/a/b%20c/`, hash, context: KEPT });
  } finally {
    host.close();
    host.closeAllConnections();
  }
}

slow("the page works on any static host and below any path", () => hosted(async (page) => assert.equal(await text(page), cases.greedy.text)));

/**
 * Visit a page twice with `script` appended to its service worker.
 * @param {string} script
 * @param {string} note the page's note on offline use at the second visit
 */
function failing(script, note) {
  return hosted(async (page) => {
    await eventually(async () => assert.notEqual(await page.textContent("#offline"), ""));
    await page.reload();
    await expectStatus(page, "Done.");
    assert.equal(await text(page), cases.greedy.text);
    await eventually(async () => assert.equal(await page.textContent("#offline"), note));
  }, script);
}

const rejecting = (method) => `${method} = () => Promise.reject(new Error("no room"));`;
const activated = (script) => `scope.addEventListener("activate", () => { ${script} });`;
const OFFLINE = "Works offline with the models you have opened.";
const [OPEN, PUT] = ["CacheStorage.prototype.open", "Cache.prototype.put"].map(rejecting);
const LATE = 'scope.addEventListener("install", (event) => event.waitUntil(new Promise((resolve) => setTimeout(resolve, 2000))));';

slow("a model that was opened before the page could cache it works offline from the next visit on", () =>
  hosted(async (page) => {
    const note = () => page.textContent("#offline");
    await eventually(async () => assert.equal(await note(), "Works offline from your next visit on."));
    await page.waitForFunction(() => navigator.serviceWorker.controller);
    await page.evaluate(() => new Promise((resolve) => setTimeout(resolve, 100))); // so that a premature note would show
    assert.equal(await note(), "Works offline from your next visit on.");
    await page.reload();
    await expectStatus(page, "Done.");
    assert.equal(await note(), OFFLINE);
    await page.context().setOffline(true);
    await page.reload();
    await expectStatus(page, "Done.");
    assert.equal(await text(page), cases.greedy.text);
  }, LATE));

slow("the page works without storage", () => failing(OPEN, "Not available offline: the browser has no room for it."));
slow("the page works when storage cannot be opened later", () => failing(activated(OPEN), OFFLINE));
slow("the page works when storage fills up later", () => failing(activated(PUT), OFFLINE));

/**
 * Return the problem that the page reports.
 * @param {(page: import("playwright-core").Page) => Promise<unknown>} prepare
 */
async function problemOf(prepare) {
  let problem = "";
  await on(
    async (page) => {
      await page.locator("#problem:visible").waitFor();
      problem = await page.textContent("#problem");
      assert.equal(await page.locator("#write:enabled:visible").count(), 0);
      assert.ok((await page.locator(".pane:visible").count()) < 2, "there is no second text before the model is open");
    },
    { ready: false, prepare },
  );
  return problem;
}

test("missing WebAssembly is reported", async () => {
  const problem = await problemOf((page) => page.addInitScript(() => delete window.WebAssembly));
  assert.match(problem, /^This browser has no WebAssembly, or it is disabled/);
});

test("a missing, truncated, changed or foreign file is named", async () => {
  const file = "**/models/prose/*.tflite";
  const answer = (change) => (page) =>
    page.route(file, async (route) => route.fulfill({ body: change(await (await route.fetch()).body()) }));
  const flip = (bytes) => {
    bytes[bytes.length >> 1] ^= 1;
    return bytes;
  };
  assert.match(await problemOf((page) => page.route(file, (route) => route.fulfill({ status: 404 }))), /\.tflite is missing \(the server answered 404\)/);
  assert.match(await problemOf(answer((bytes) => bytes.subarray(0, 1000))), /\.tflite is corrupted: received 1000 bytes of \d+/);
  assert.match(await problemOf(answer(flip)), /\.tflite is corrupted or belongs to another model: its checksum does not match/);
  const other = readFileSync(join(cases.site, "models", cases.odd, "float32.tflite"));
  assert.match(await problemOf(answer(() => other)), /\.tflite is corrupted: received \d+ bytes of \d+/);
  const padded = (bytes) => Buffer.concat([other, Buffer.alloc(bytes.length - other.length)]);
  assert.match(await problemOf(answer(padded)), /\.tflite is corrupted or belongs to another model/);
});

slow("after an engine error the page can write again", () =>
  on(
    async (page) => {
      await page.fill("#length", "900");
      await page.click("#write");
      await page.locator("#problem:visible").waitFor();
      assert.equal(await page.textContent("#problem"), "no memory is left.");
      assert.equal(await page.textContent("#write"), "Write");
      await page.fill("#prompt", "The c");
      await page.locator("#problem:visible").waitFor();
      await page.fill("#prompt", "The ");
      await page.fill("#length", "500");
      await page.click("#write");
      await expectStatus(page, "Done.");
      assert.equal(await text(page), cases.greedy.text);
      assert.equal(await page.locator("#problem:visible").count(), 0);
    },
    {
      hash: link({ prompt: "The ", temperature: 0 }),
      prepare: (page) =>
        page.route("**/text.js", async (route) => {
          const body = await (await route.fetch()).text();
          const when = (condition) => `$& if (${condition}) throw new Error("no memory is left");`;
          const writes = body.replace(/async write\(.*\) \{/, when("this.ids.length > 600"));
          const begins = writes.replace("begin(prompt) {", when("prompt.length === 5"));
          assert.ok(body !== writes && writes !== begins);
          await route.fulfill({ body: begins, contentType: "text/javascript" });
        }),
    },
  ));

slow("the vocabulary of another model is reported", async () => {
  const problem = await problemOf((page) =>
    page.route("**/models.json", async (route) => {
      const listed = await (await route.fetch()).json();
      listed.models[0].vocab = listed.models[1].vocab;
      await route.fulfill({ json: listed });
    }),
  );
  assert.match(problem, /^the file has 256 logits for a vocabulary of \d+ symbols: export the page again/i);
});

slow("a missing list of models, and a runtime that fails to load, are reported", async () => {
  const missing = (pattern) => (page) => page.route(pattern, (route) => route.fulfill({ status: 404 }));
  assert.match(await problemOf(missing("**/models.json")), /^models\.json is missing \(the server answered 404\)/);
  assert.match(await problemOf(missing("**/litert/*.wasm")), /^The runtime did not start: /i);
});

test("opened as a file, the page explains how to serve it", async () => {
  const page = await browser.newPage(DESKTOP);
  await page.goto(pathToFileURL(join(cases.site, "index.html")).href);
  await eventually(async () => {
    assert.match(await page.locator("#waiting").innerText(), /do not load JavaScript modules from file:\/\/… .*python3 -m http\.server/s);
  });
  await page.context().close();
});

/**
 * Check the accessibility of every state of the page.
 * @param {string} name
 * @param {object} context
 */
function inspect(name, context) {
  const hash = link({ prompt: "The ", length: 120, temperature: 0.9, neuron: "2.3", written: 1 });
  return on(
    async (page) => {
      await page.addScriptTag({ path: axe }).catch(() => page.evaluate(readFileSync(axe, "utf8")));
      const clean = async (state) => {
        await page.screenshot({ path: join(process.env.OUT, `${name}-${state}.png`), fullPage: true });
        const { violations } = await page.evaluate(() => window.axe.run());
        assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`), [], state);
      };
      await page.locator(".text span").nth(40).hover();
      await page.locator("#card").waitFor();
      await clean("neuron");
      await page.check("#compare");
      await eventually(async () => assert.match(await page.locator(".progress").nth(1).textContent(), /^120 characters/));
      await clean("compared");
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.equal(wide, 0, "nothing to scroll sideways");
      await page.click("#tab-how");
      await page.fill("#word", "The cat");
      for (let step = 0; step < 4; step++) {
        await eventually(async () => assert.match(await page.textContent("#how-status"), new RegExp(`^Step ${step + 1} `)));
        await page.click("#forward");
      }
      await clean("how");
      await page.click("#tab-work");
      await page.route("**/*.tflite", (route) => route.fulfill({ status: 500 }));
      await page.selectOption("#model", cases.odd);
      await page.locator("#problem:visible").waitFor();
      await clean("problem");
    },
    { hash, context: { ...context, bypassCSP: true } },
  );
}

slow("axe reports no violations: desktop, light", () => inspect("desktop-light", { ...DESKTOP, colorScheme: "light" }));
slow("axe reports no violations: desktop, dark", () => inspect("desktop-dark", { ...DESKTOP, colorScheme: "dark" }));
slow("axe reports no violations: phone, light", () => inspect("phone-light", { ...PHONE, colorScheme: "light" }));
test("axe reports no violations: phone, dark", () => inspect("phone-dark", { ...PHONE, colorScheme: "dark", reducedMotion: "reduce" }));

slow("the writing speed is measured", async () => {
  const figures = await measure(browser, cases.url, "prose", "int8-dynamic", 600);
  writeFileSync(join(process.env.OUT, "speed.json"), JSON.stringify(figures));
  assert.equal(figures.characters, 600);
  assert.ok(figures.characters_per_second > 50, JSON.stringify(figures)); // an idle machine reaches 1,000
});
