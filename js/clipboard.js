// @ts-check
// Text for the clipboard.
import { make } from "./dom.js";

/** Copies a text; false where the browser does not allow it. */
export async function copied(/** @type {string} */ text) {
  try {
    await navigator.clipboard.writeText(text); // not there on pages without https
    return true;
  } catch {
    return copiedByHand(text);
  }
}

/** Copies as pages without https can: through a selected text. */
function copiedByHand(/** @type {string} */ text) {
  const area = make("textarea", { value: text });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
