// @ts-check
// SHA-256 of a file of any size, a slice at a time. The browser's own digest takes whole buffers, and only on secure
// pages.

const SLICE = 1 << 22; // bytes read at once
const WHOLE = 1 << 24; // bytes up to which the browser's own digest is asked

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes, and of the square roots of the
// first 8 (FIPS 180-4, 4.2.2 and 5.3.3).
const primes = (() => {
  /** @type {number[]} */
  const list = [];
  for (let n = 2; list.length < 64; n += 1) if (list.every((prime) => n % prime)) list.push(n);
  return list;
})();

/**
 * The first 32 bits of the fractional part of the root of a prime, in whole numbers.
 * @param {number} prime
 * @param {bigint} power 2 or 3
 */
function fraction(prime, power) {
  const target = BigInt(prime) << (32n * power);
  let low = 0n, high = 1n << 40n;
  while (high - low > 1n) {
    const middle = (low + high) >> 1n;
    if (middle ** power <= target) low = middle;
    else high = middle;
  }
  return Number(low & 0xffffffffn) | 0;
}

const ROUNDS = Int32Array.from(primes, (prime) => fraction(prime, 3n));
const START = Int32Array.from(primes.slice(0, 8), (prime) => fraction(prime, 2n));

const turned = (/** @type {number} */ x, /** @type {number} */ n) => (x >>> n) | (x << (32 - n));

export class Sha256 {
  constructor() {
    this.state = START.slice();
    this.block = new Uint8Array(64);
    this.filled = 0; // bytes of the block
    this.bytes = 0; // of everything
    this.words = new Int32Array(64);
  }

  /** @param {Uint8Array} data */
  update(data) {
    this.bytes += data.length;
    let at = 0;
    while (at < data.length) {
      const count = Math.min(64 - this.filled, data.length - at);
      this.block.set(data.subarray(at, at + count), this.filled);
      this.filled += count;
      at += count;
      if (this.filled === 64) this.mix();
    }
    return this;
  }

  mix() {
    const { words: w, block, state } = this;
    this.filled = 0;
    for (let n = 0; n < 16; n += 1) {
      w[n] = (block[4 * n] << 24) | (block[4 * n + 1] << 16) | (block[4 * n + 2] << 8) | block[4 * n + 3];
    }
    for (let n = 16; n < 64; n += 1) {
      const x = w[n - 15], y = w[n - 2];
      const low = turned(x, 7) ^ turned(x, 18) ^ (x >>> 3), high = turned(y, 17) ^ turned(y, 19) ^ (y >>> 10);
      w[n] = (w[n - 16] + low + w[n - 7] + high) | 0;
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let n = 0; n < 64; n += 1) {
      const high = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25), chosen = (e & f) ^ (~e & g);
      const one = (h + high + chosen + ROUNDS[n] + w[n]) | 0;
      const low = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22), most = (a & b) ^ (a & c) ^ (b & c);
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + low + most) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((value, n) => { state[n] = (state[n] + value) | 0; });
  }

  /** The digest in hexadecimal; nothing can be added after it. */
  hex() {
    const length = this.bytes, rest = new Uint8Array(this.filled < 56 ? 64 - this.filled : 128 - this.filled);
    rest[0] = 0x80;
    const view = new DataView(rest.buffer);
    view.setUint32(rest.length - 8, Math.floor(length / 2 ** 29));
    view.setUint32(rest.length - 4, (length * 8) >>> 0);
    this.update(rest);
    return [...this.state].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }
}

/**
 * The digest of the first `count` bytes of a file.
 * @param {Blob} file
 * @param {number} [count]
 */
export async function digestOf(file, count = file.size) {
  if (count <= WHOLE && globalThis.crypto?.subtle) {
    const digest = await crypto.subtle.digest("SHA-256", await file.slice(0, count).arrayBuffer());
    return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }
  const hash = new Sha256();
  for (let at = 0; at < count; at += SLICE) {
    hash.update(new Uint8Array(await file.slice(at, Math.min(count, at + SLICE)).arrayBuffer()));
  }
  return hash.hex();
}
