// @ts-check
// What a page asks of a run, and what it says where that was refused.
import { RequestError, route } from "./api.js";
import { t } from "./words.js";

/** @typedef {import("./host.js").Host} Host */

const ASKED_MS = 4000;

/**
 * Asks something of the run in a node, and says what comes of it.
 * @param {Host} host
 * @param {string} what stop, save, sample or pause
 * @param {string} node
 */
export async function askRun(host, what, node) {
  try {
    await host.postJson(route(what), { node });
    host.toast("info", t(`panel.asked_${what}`), ASKED_MS);
  } catch (error) {
    refused(host, /** @type {Error} */ (error));
  }
}

/**
 * Says why something could not be done: in the server's words where it has answered.
 * @param {Host} host
 * @param {Error} error
 */
export function refused(host, error) {
  if (error instanceof RequestError && error.status) host.toast("warn", error.message, ASKED_MS);
  else host.toast("error", t("panel.refused", { why: error.message }));
}
