// @ts-check
// Sends dropped files to the server: small ones together, large ones in parts, and none whose bytes are there already.
import { route } from "./api.js";
import { digestOf } from "./sha256.js";

/** @typedef {import("./dropped.js").Drop} Drop */
/** @typedef {import("./host.js").Host} Host */

/**
 * What has come of an upload.
 * @typedef {object} Uploaded
 * @property {string} folder
 * @property {number} pictures
 * @property {number} captions pictures that have one
 * @property {import("./words.js").Message[]} notes
 */

/** @typedef {{ done: number, total: number, files: number, all: number, checking: boolean }} Progress bytes, files */
/** @typedef {[number, number, number]} Part number of a file, offset, length */

const MOST_BYTES = 8 << 20, MOST_PARTS = 400; // of one request
const MOST_CLAIMS = 200;
const TRIES = 4, WAIT_MS = 500; // where the server does not answer; doubled each time

/** An upload that its user has ended. */
export class Cancelled extends Error {}

/**
 * Requests in which every byte that is missing is sent once, in order.
 * @param {number[]} sizes of the files
 * @param {number[]} here how many bytes of each file the server has
 * @returns {Generator<Part[]>}
 */
export function* requests(sizes, here, mostBytes = MOST_BYTES, mostParts = MOST_PARTS) {
  /** @type {Part[]} */
  let parts = [];
  let room = mostBytes;
  for (const [n, size] of sizes.entries()) {
    for (let at = here[n]; at < size;) {
      const length = Math.min(room, size - at);
      parts.push([n, at, length]);
      at += length;
      room -= length;
      if (room > 0 && parts.length < mostParts) continue;
      yield parts;
      [parts, room] = [[], mostBytes];
    }
  }
  if (parts.length) yield parts;
}

/**
 * The body of a request: the length of a list of parts, the list, the bytes.
 * @param {Part[]} parts
 * @param {File[]} files
 */
export function body(parts, files) {
  const list = new TextEncoder().encode(JSON.stringify(parts)), length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, list.length);
  return new Blob([length, list, ...parts.map(([n, at, count]) => files[n].slice(at, at + count))]);
}

export class Upload {
  /**
   * @param {Pick<Host, "postJson" | "postBytes">} host
   * @param {Drop} drop
   * @param {(progress: Progress) => void} [onProgress]
   */
  constructor(host, drop, onProgress = () => {}) {
    this.host = host;
    this.drop = drop;
    this.onProgress = onProgress;
    this.ended = new AbortController();
    this.id = "";
    this.finishing = false; // the folder is being made, which cannot be ended any more
  }

  /**
   * Sends what is missing and makes the folder.
   * @returns {Promise<Uploaded>}
   * @throws {Cancelled}
   * @throws {import("./api.js").RequestError}
   */
  async send() {
    try {
      return await this.sent();
    } catch (error) {
      if (!this.ended.signal.aborted) throw error;
      await this.remove(); // of a request that was on its way when the user ended it
      throw new Cancelled();
    }
  }

  async sent() {
    const listed = this.drop.files.map(({ path, file }) => [path, file.size]);
    const plan = { name: this.drop.name, files: listed };
    const { id, wanted, have } = await this.host.postJson(route("upload/begin"), plan);
    this.id = id;
    await this.goOn();
    const files = wanted.map((/** @type {number} */ n) => this.drop.files[n].file);
    const here = await this.claimed(files, have);
    const sizes = files.map((/** @type {File} */ file) => file.size);
    const total = sum(sizes);
    let done = sum(here), whole = here.filter((count, n) => count === sizes[n]).length;
    const tell = () => this.onProgress({ done, total, files: whole, all: files.length, checking: false });
    tell();
    for (const parts of requests(sizes, here)) {
      const path = route("upload/part", { id }), { signal } = this.ended;
      await this.patiently(() => this.host.postBytes(path, body(parts, files), signal));
      done += sum(parts.map(([, , length]) => length));
      whole += parts.filter(([n, at, length]) => at + length === sizes[n]).length;
      tell();
      await this.goOn();
    }
    this.finishing = true;
    this.onProgress({ done: total, total, files: files.length, all: files.length, checking: false });
    return this.host.postJson(route("upload/finish"), { id });
  }

  /**
   * How many bytes of each file the server has for certain.
   * @param {File[]} files
   * @param {[number, number][]} have what it may have
   */
  async claimed(files, have) {
    /** @type {number[]} */
    const here = files.map(() => 0);
    for (let at = 0; at < have.length; at += MOST_CLAIMS) {
      const claims = [];
      for (const [n, count] of have.slice(at, at + MOST_CLAIMS)) {
        claims.push([n, count, await digestOf(files[n], count)]);
        this.onProgress({ done: at + claims.length, total: have.length, files: 0, all: files.length, checking: true });
        await this.goOn();
      }
      const answer = await this.host.postJson(route("upload/claim"), { id: this.id, files: claims });
      for (const [n, count] of answer.have) here[n] = count;
    }
    return here;
  }

  /**
   * Asks again where nobody answered.
   * @param {() => Promise<unknown>} ask
   */
  async patiently(ask) {
    for (let n = 1; ; n += 1) {
      try {
        return await ask();
      } catch (error) {
        const silent = /** @type {{ status?: number }} */ (error).status === 0;
        if (!silent || n === TRIES || this.ended.signal.aborted) throw error;
        await new Promise((done) => setTimeout(done, WAIT_MS * 2 ** n));
      }
    }
  }

  async goOn() {
    if (this.ended.signal.aborted) throw new Cancelled();
  }

  /** Ends the upload; what was sent is removed from the server. */
  async cancel() {
    this.ended.abort();
    await this.remove();
  }

  async remove() {
    if (this.id) await this.host.postJson(route("upload/cancel"), { id: this.id });
  }
}

const sum = (/** @type {number[]} */ numbers) => numbers.reduce((total, number) => total + number, 0);
