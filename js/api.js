// @ts-check
// Questions to the server: JSON there and back, and one sentence for the reader where that fails.
import { said, speak, t } from "./words.js";

const PREFIX = "/lora_loom/";
const SELF = "http://own.invalid"; // stands for the server, whatever its address is

/** A question that got no good answer. `message` is in the reader's language; `status` is 0 where nobody answered. */
export class RequestError extends Error {
  /**
   * @param {string} message
   * @param {number} status
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * The path of one of our routes, as in route("runs/curve", { id: "a b" }) -> /lora_loom/runs/curve?id=a%20b
 * @param {string} name
 * @param {Record<string, string | number>} [query]
 */
export function route(name, query = {}) {
  const pairs = Object.entries(query).map(([key, value]) => `${key}=${encodeURIComponent(value)}`);
  return PREFIX + name + (pairs.length ? `?${pairs.join("&")}` : "");
}

/** `path`, which must be one of our routes on the server the page came from: nothing is ever asked of another. */
export function ownPath(/** @type {string} */ path) {
  const url = new URL(path, SELF);
  if (url.origin !== SELF || !url.pathname.startsWith(PREFIX)) throw new Error(`${path} is none of our routes`);
  return path;
}

/**
 * What the server answered.
 * @param {Promise<Response>} request
 * @throws {RequestError} with the server's sentence, or that it does not answer
 */
async function answerOf(request) {
  let response, answer;
  try {
    response = await request;
    answer = await response.json();
  } catch {
    throw new RequestError(t("runs.unreachable"), response && !response.ok ? response.status : 0);
  }
  if (!response.ok) throw new RequestError(answer.error ? said(answer.error) : response.statusText, response.status);
  return answer;
}

/**
 * What asks our routes through `send`, the host's way of asking its server.
 * @param {(path: string, options?: RequestInit) => Promise<Response>} send
 */
export function jsonClient(send) {
  return {
    /** @type {(path: string) => Promise<any>} */
    fetchJson: async (path) => answerOf(send(ownPath(path))),
    /** @type {(path: string, body: object) => Promise<any>} */
    postJson: async (path, body) => {
      const headers = { "Content-Type": "application/json" };
      return answerOf(send(ownPath(path), { method: "POST", headers, body: JSON.stringify(body) }));
    },
    /** @type {(path: string, body: Blob, signal?: AbortSignal) => Promise<any>} */
    postBytes: async (path, body, signal) => {
      const headers = { "Content-Type": "application/octet-stream" };
      return answerOf(send(ownPath(path), { method: "POST", headers, body, signal }));
    },
  };
}

/**
 * From now on texts are in the language of the host's reader. Called once, before anything is shown.
 * @param {Pick<import("./host.js").Host, "language" | "fetchJson" | "program">} host
 */
export async function speakTo(host) {
  await speak(await host.language(), (language) => host.fetchJson(route(`messages/${language}`)), host.program);
}
