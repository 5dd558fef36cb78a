// @ts-check
// A page that is not ComfyUI's as the host of our parts: the tab of a WebUI, a page of our own. It asks instead of
// waiting for events; a page that has some hands them on with `tell`.
import { jsonClient } from "./api.js";
import { make, style } from "./dom.js";

/** @typedef {import("./host.js").Host} Host */
/** @typedef {import("./host.js").HostEvent} HostEvent */

/**
 * What a page may say of itself; everything has a default.
 * @typedef {object} PageOptions
 * @property {string} [server] under which address our routes lie there, as "/lora-loom/v1"; "/lora_loom" otherwise
 * @property {(url: string, options?: RequestInit) => Promise<Response>} [fetch] the page's way of asking, with whatever
 *   it must send along
 * @property {number} [pollMs] how often a panel asks while a run goes on; 0: the page hands events on with `tell`
 * @property {() => ?string} [language] the one the reader chose; null: the browser's
 * @property {Host["theme"]} [theme]
 * @property {Host["toast"]} [toast]
 * @property {Host["refreshLists"]} [refreshLists] after a file was written where the page lists such files
 * @property {Host["openRun"]} [openRun]
 * @property {Host["usePrompt"]} [usePrompt]
 * @property {Host["takeOver"]} [takeOver]
 */

/** @typedef {Host & Required<Pick<Host, "tell" | "pollMs">>} PageHost */

const ROUTES = "/lora_loom"; // what the parts call the address of our routes
const POLL_MS = 750, TOAST_MS = 8000;

const STYLE = `
.loom-toasts { position: fixed; right: 16px; bottom: 16px; z-index: 9999; display: flex; flex-direction: column;
  gap: 8px; max-width: min(420px, 90vw); }
.loom-toasts div { padding: 8px 12px; border-radius: 6px; background: #2b2b2b; color: #fff; white-space: pre-wrap;
  overflow-wrap: anywhere; border-left: 4px solid #4ea1ff; font: 13px/1.4 system-ui, sans-serif; cursor: pointer;
  box-shadow: 0 2px 10px rgba(0, 0, 0, .4); }
.loom-toasts .success { border-color: #62c370; }
.loom-toasts .warn { border-color: #e0a030; }
.loom-toasts .error { border-color: #ff5f56; }
`;

/** @type {Host["toast"]} */
function ownToast(severity, text, lifeMs = TOAST_MS) {
  style("loom-toasts", STYLE);
  const place = document.getElementById("loom-toasts") ?? make("div", { id: "loom-toasts", className: "loom-toasts" });
  if (!place.isConnected) document.body.append(place);
  const toast = make("div", { className: severity, textContent: text, onclick: () => toast.remove() });
  place.append(toast);
  setTimeout(() => toast.remove(), lifeMs);
}

/** What the reader chose in an earlier visit, or undefined. */
function stored(/** @type {string} */ id) {
  try {
    return localStorage.getItem(id) ?? undefined;
  } catch {
    return undefined; // a page that may not store anything
  }
}

/**
 * The host of a page.
 * @param {PageOptions} [options]
 * @returns {PageHost}
 */
export function pageHost(options = {}) {
  const server = (options.server ?? ROUTES).replace(/\/+$/, "");
  const ask = options.fetch ?? ((url, request) => fetch(url, request));
  const address = (/** @type {string} */ path) => server + path.slice(ROUTES.length);
  /** @type {Map<HostEvent, Set<(detail: any) => void>>} */
  const listeners = new Map();
  const heard = (/** @type {HostEvent} */ event) => listeners.get(event) ?? new Set();
  return {
    program: "page",
    ...jsonClient((path, request) => ask(address(path), request)),
    imageUrl: address,
    pollMs: options.pollMs ?? POLL_MS,
    onEvent(event, listener) {
      listeners.set(event, heard(event).add(listener));
      return () => void heard(event).delete(listener);
    },
    tell: (event, detail) => heard(event).forEach((listener) => listener(detail)),
    toast: options.toast ?? ownToast,
    theme: options.theme,
    language: async () => options.language?.() ?? null,
    setting: stored,
    refreshLists: options.refreshLists ?? (async () => {}),
    openRun: options.openRun ?? (async () => null),
    usePrompt: options.usePrompt,
    takeOver: options.takeOver,
  };
}
