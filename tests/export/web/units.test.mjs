// The page's modules that need no browser, compared with Python's results from the same test run.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { explain } from "../../../export/web/page/explain.js";
import { uniform } from "../../../export/web/page/random.js";
import { choose, likeliest, probabilities } from "../../../export/web/page/sample.js";
import { DEFAULTS, fromHash, toHash } from "../../../export/web/page/share.js";
import { Text } from "../../../export/web/page/text.js";
import { Decoder, Vocab } from "../../../export/web/page/vocab.js";

const cases = JSON.parse(readFileSync(process.env.CASES, "utf8"));

test("a seed's random numbers match trainers.draw", () => {
  for (const { seed, first, numbers } of cases.uniforms) {
    assert.deepEqual(numbers.map((_, index) => uniform(seed, first + index)), numbers, `seed ${seed} from ${first}`);
  }
});

test("temperature, top-k, top-p and the draw match trainers.draw", () => {
  for (const { logits, sampling, uniform: random, probabilities: expected, id } of cases.draws) {
    const actual = probabilities(Float32Array.from(logits), sampling);
    for (const [index, p] of actual.entries()) assert.ok(Math.abs(p - expected[index]) < 1e-5, JSON.stringify(sampling));
    assert.deepEqual(Array.from(actual, (p) => p > 0), expected.map((p) => p > 0));
    assert.equal(choose(actual, random), id, JSON.stringify({ sampling, random }));
  }
});

test("characters of probability 0 are never drawn, and the likeliest come first", () => {
  assert.equal(choose(Float64Array.of(0, 0.5, 0, 0.5, 0), 0), 1);
  assert.equal(choose(Float64Array.of(0, 0.5, 0, 0.5, 0), 1 - 2 ** -23), 3);
  assert.deepEqual(likeliest(Float64Array.of(0.2, 0.3, 0.2, 0.3), 3).map(({ id }) => id), [1, 3, 0]);
});

test("texts are encoded as by pipeline.vocab", () => {
  for (const { vocab: json, text, prompt, empty } of cases.vocabs) {
    const vocab = new Vocab(json);
    const { ids, ahead } = vocab.promptIds(text);
    assert.deepEqual(ids, prompt);
    assert.deepEqual(ids.slice(ahead), vocab.encode(text));
    assert.deepEqual(vocab.promptIds(""), { ids: empty, ahead: 1 });
  }
});

test("ids are decoded into whole characters, whatever the bytes", () => {
  for (const { vocab: json, ids, decoded } of cases.vocabs) {
    const vocab = new Vocab(json);
    const decoder = new Decoder(vocab);
    const shown = [];
    let behind = 0;
    for (const [index, id] of ids.entries()) {
      shown.push(...decoder.push(id));
      behind = index + 1 - shown.reduce((sum, character) => sum + character.ids, 0);
      assert.ok(behind >= 0 && behind <= 3, "fewer bytes are pending than a character can have");
    }
    shown.push(...decoder.end());
    assert.equal(shown.map(({ text }) => text).join(""), decoded);
    assert.equal(shown.reduce((sum, character) => sum + character.ids, 0), ids.length, "each id belongs to one character");
    for (const { text } of shown) assert.ok(Array.from(text).length <= 1);
  }
});

test("an invalid vocabulary and an unknown character are named", () => {
  const vocab = new Vocab({ unit: "char", symbols: "ab" });
  assert.throws(() => vocab.encode("ab€"), /^Error: this model has never seen “€” \(U\+20AC\)$/);
  assert.throws(() => new Vocab({ unit: "byte", symbols: "616261" }), /invalid vocabulary/);
  assert.throws(() => new Vocab({ unit: "word", symbols: "ab" }), /invalid vocabulary/);
  const bytes = new Vocab({ unit: "byte", symbols: "0a2061e9" });
  assert.deepEqual([0, 1, 2, 3].map((id) => bytes.label(id)), ["↵", "␣", "a", "E9"]);
  assert.deepEqual([0, 1, 2, 3].map((id) => bytes.spoken(id)), ["new line", "space", "a", "E9"]);
});

test("settings survive a round trip through an address, and invalid ones become the defaults", () => {
  assert.equal(toHash({ ...DEFAULTS }), "");
  const settings = {
    model: "a b", precision: "int8-dynamic", step: 0, prompt: "“naïve”\n+&=#%", temperature: 0, top_k: 7, top_p: 0.35, seed: 2 ** 53 - 1,
    length: 9, beside: 1.5, neuron: { layer: 1, unit: 36 }, chosen: [[12, 101], [40, 0]], written: true,
  };
  assert.deepEqual(fromHash(toHash(settings)), settings);
  assert.deepEqual(fromHash("#step=-1&temperature=hot&top_k=-1&top_p=0&seed=1.5&length=1e9&neuron=0.1&chosen=x&written=yes"), DEFAULTS);
});

/** A model that counts its steps, and expects the id after the one that it read. */
function counter() {
  const model = { layers: 1, states: 2, units: 2, steps: 0, initialCarry: () => new Float32Array(4) };
  model.step = async (id, carry) => {
    model.steps += 1;
    const logits = new Float32Array(5).fill(-1e9);
    logits[(id + 1) % 5] = 1;
    return { logits, carry: Float32Array.from(carry, (value, index) => (index === 3 ? id / 4 : value)) };
  };
  return model;
}

const GREEDY = { temperature: 0, topK: 0, topP: 1 };

test("a text keeps its carries up to the first change", async () => {
  const model = counter();
  const text = new Text(model, undefined);
  text.begin([2, 3]);
  while (!text.read) await text.readNext();
  for (let n = 0; n < 3; n++) assert.equal(await text.write(GREEDY, 1), true);
  assert.deepEqual([text.ids, model.steps], [[2, 3, 4, 0, 1], 5]);
  text.begin([2, 3, 3]);
  assert.deepEqual([text.ids, text.read], [[2, 3], false]);
  await text.readNext();
  assert.equal(model.steps, 6, "only new ids were read");
  await text.write(GREEDY, 1, 0);
  await text.write(GREEDY, 1);
  assert.deepEqual([text.ids, [...text.chosen]], [[2, 3, 3, 0, 1], [3]]);
  text.begin([2, 3, 3, 0]);
  assert.deepEqual([text.ids, text.chosen.size], [[2, 3, 3, 0], 0], "what is typed was not chosen");
  await text.write(GREEDY, 1, 0);
  text.cut(3);
  assert.deepEqual([text.ids, text.steps.length, text.chosen.size], [[2, 3, 3], 3, 0]);
});

test("a long text keeps its last 1,000 carries: after a change before them, it is read from the start", async () => {
  const model = counter();
  const text = new Text(model, undefined);
  const read = async (prompt) => {
    text.begin(prompt);
    const kept = [text.ids.length, text.carries.length];
    while (!text.read) await text.readNext();
    return kept;
  };
  const [lively, still] = [Array.from({ length: 500 }, (_, index) => index % 5), Array(1000).fill(2)];
  await read([...lively, ...still]);
  assert.deepEqual([text.steps.length, text.carries.length], [1500, 1000]);
  assert.deepEqual(text.ranked(1), [{ layer: 0, unit: 0, variance: 0 }], "only the last 1,000 count");
  assert.deepEqual(await read([...lively, 2, 2]), [502, 2]);
  assert.deepEqual(await read(lively.slice(0, 400)), [0, 0]);
  assert.deepEqual([model.steps, text.steps.length, text.carries.length], [1900, 400, 400]);
});

test("a text ends with its document, unless it is continued", async () => {
  const text = new Text(counter(), 0);
  text.begin([3]);
  await text.readNext();
  assert.deepEqual([await text.write(GREEDY, 1), await text.write(GREEDY, 1)], [true, false]);
  assert.deepEqual(text.ids, [3, 4]);
  assert.equal(await text.write(GREEDY, 1, 0), true);
  assert.deepEqual(text.ids, [3, 4, 0]);
});

test("neurons are recorded, and ranked by their variance", async () => {
  const text = new Text(counter(), undefined);
  text.begin([0, 4, 2]);
  while (!text.read) await text.readNext();
  const held = Array.from(text.follow({ layer: 0, unit: 1 }, 1), (value) => value.toFixed(4));
  assert.deepEqual(held, [1, 0.5].map((value) => Math.tanh(value).toFixed(4)));
  assert.deepEqual(text.ranked(9).map(({ unit }) => unit), [1, 0]);
  assert.equal(text.expected(0), undefined);
  assert.deepEqual([text.expected(1).likeliest[0].id, text.expected(1).actual], [1, 0]);
});

/** An LSTM of 2 layers x 3 units with random weights, and its gates at the last step. */
function lstm() {
  const [L, H, V] = [2, 3, 4];
  const random = (count) => Array.from({ length: count }, () => 2 * Math.random() - 1);
  const weights = Array.from({ length: L }, (_, layer) => Array.from({ length: 4 * H }, () => random((layer ? H : V) + H)));
  const sigmoid = (z) => 1 / (1 + Math.exp(-z));
  const model = { layers: L, states: 2, units: H, initialCarry: () => new Float32Array(2 * L * H), gates: {} };
  model.step = async (id, carry) => {
    const after = carry.slice();
    const gates = { forget: [], added: [], output: [] };
    let x = Array.from({ length: V }, (_, index) => Number(index === id));
    for (let layer = 0; layer < L; layer++) {
      const [h, c] = [2 * layer * H, (2 * layer + 1) * H];
      const inputs = [...x, ...carry.slice(h, c)];
      const z = weights[layer].map((row) => row.reduce((sum, weight, index) => sum + weight * inputs[index], 0));
      for (let unit = 0; unit < H; unit++) {
        const [i, f, o] = [0, H, 2 * H].map((gate) => sigmoid(z[gate + unit]));
        const added = i * Math.tanh(z[3 * H + unit]);
        after[c + unit] = f * carry[c + unit] + added;
        after[h + unit] = o * Math.tanh(after[c + unit]);
        for (const [name, value] of Object.entries({ forget: f, added, output: o })) gates[name].push(value);
      }
      x = Array.from(after.slice(h, c));
    }
    model.gates[[id, ...carry]] = gates;
    return { logits: Float32Array.from([...x, 0]), carry: after };
  };
  return model;
}

test("the gates measured from a model's steps match those that it computed", async () => {
  const model = lstm();
  const { before, after, logits, gates } = await explain(model, [1, 3, 0, 2]);
  let read = model.initialCarry();
  for (const id of [1, 3, 0]) ({ carry: read } = await model.step(id, read));
  assert.deepEqual(before, read);
  const exact = model.gates[[2, ...before]];
  for (const name of ["forget", "added", "output"]) {
    for (const [at, value] of gates[name].entries()) assert.ok(Math.abs(value - exact[name][at]) < 1e-5, `${name} ${at}`);
  }
  const { carry, logits: own } = await model.step(2, before);
  assert.deepEqual([after, logits], [carry, own]);
  const plain = await explain({ ...model, states: 1 }, [1]);
  assert.equal(plain.gates, undefined);
  assert.equal((await explain(model, [1, 2], 2)).gates, undefined, "the step that ends a document");
  assert.notEqual((await explain(model, [2, 1], 2)).gates, undefined);
});
