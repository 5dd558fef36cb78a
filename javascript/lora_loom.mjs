// @ts-check
// The page's side of the tab LoRA Loom: what this program has of its own. The rest is js/tab.js.
import { gradioHost, keepMounted } from "../js/tab.js";

/** The page's root: some versions keep it in a shadow tree. */
const page = () => (typeof gradioApp === "function" ? gradioApp() : document);

/** Puts a prompt into txt2img and goes there, as the host's own buttons do. */
function usePrompt(/** @type {string} */ prompt) {
  const field = /** @type {HTMLTextAreaElement | null} */ (page().querySelector("#txt2img_prompt textarea"));
  if (!field) return;
  field.value = prompt;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  if (typeof switch_to_txt2img === "function") switch_to_txt2img();
}

/** The host's own language, which its settings name by a file such as zh_CN.json. */
const language = () => (window.opts?.localization && window.opts.localization !== "None" ? window.opts.localization : null);

// The page may have been drawn before this module came, or be drawn long after it: some versions tell of neither.
keepMounted(page, gradioHost(page, { usePrompt, language }));
