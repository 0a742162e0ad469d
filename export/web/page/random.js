// The random numbers of trainers/sampling/draw.py, so that a seed writes the same text here and in the terminal: Philox4x32-10
// (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the seed as its key.

const MULTIPLIERS = [0xd2511f53n, 0xcd9e8d57n];
const WEYL = [0x9e3779b9, 0xbb67ae85]; // added to the key in each round
const ROUNDS = 10;

/**
 * Return number `index` of a seed's sequence, in [0, 1).
 * @param {number} seed a non-negative integer
 * @param {number} index
 */
export function uniform(seed, index) {
  const word = philox(BigInt(seed), Math.floor(index / 4))[index % 4];
  return (word & 0x7fffff) / 0x800000; // 23 bits, as in TensorFlow's float32
}

/**
 * Return four 32-bit words.
 * @param {bigint} seed
 * @param {number} counter below 2^32
 */
function philox(seed, counter) {
  let [key0, key1] = [Number(BigInt.asUintN(32, seed)), Number(BigInt.asUintN(32, seed >> 32n))];
  let words = [counter, 0, 0, 0];
  for (let round = 0; round < ROUNDS; round++) {
    const [high0, low0] = product(MULTIPLIERS[0], words[0]);
    const [high1, low1] = product(MULTIPLIERS[1], words[2]);
    words = [(high1 ^ words[1] ^ key0) >>> 0, low1, (high0 ^ words[3] ^ key1) >>> 0, low0];
    [key0, key1] = [(key0 + WEYL[0]) >>> 0, (key1 + WEYL[1]) >>> 0];
  }
  return words;
}

/**
 * @param {bigint} a
 * @param {number} b
 */
function product(a, b) {
  const full = a * BigInt(b);
  return [Number(full >> 32n), Number(full & 0xffffffffn)];
}
