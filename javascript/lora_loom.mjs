// The page's side of the tab LoRA Loom: the panel of the run and the list of runs, in the places that the tab leaves for them.
import { mountPanel, mountRuns } from "../js/mount.js";
import { pageHost } from "../js/page_host.js";

const SERVER = "/lora-loom/v1";

/** The page's root: some versions keep it in a shadow tree. */
const page = () => (typeof gradioApp === "function" ? gradioApp() : document);

/** Below which address the host serves its page, as with --subpath. */
const base = () => (window.gradio_config?.root ?? "").replace(/\/+$/, "").replace(/^https?:\/\/[^/]+/, "");

const isDark = () => document.body.classList.contains("dark") || page().querySelector?.(".dark") != null;

/** Puts a prompt into txt2img and goes there, as the host's own buttons do. */
function usePrompt(prompt) {
  const field = page().querySelector("#txt2img_prompt textarea");
  if (!field) return;
  field.value = prompt;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  if (typeof switch_to_txt2img === "function") switch_to_txt2img();
}

async function mountWhereLeft(host) {
  const panel = page().querySelector("#lora_loom_panel"), runs = page().querySelector("#lora_loom_runs");
  if (!panel || panel.dataset.mounted) return;
  panel.dataset.mounted = "yes";
  panel.replaceChildren();
  const { refresh } = await mountPanel(panel, host);
  page().querySelector("#lora_loom_start")?.addEventListener("click", () => setTimeout(refresh, 500));
  if (runs) await mountRuns(runs, host);
}

/** The host's own language, which its settings name by a file such as zh_CN.json. */
const language = () => (window.opts?.localization && window.opts.localization !== "None" ? window.opts.localization : null);

const host = pageHost({ server: base() + SERVER, usePrompt, theme: () => (isDark() ? "dark" : "light"), language });
const began = () => mountWhereLeft(host).catch((error) => console.error("LoRA Loom", error));
if (typeof onUiLoaded === "function") onUiLoaded(began);
else began();
