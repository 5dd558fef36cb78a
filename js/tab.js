// @ts-check
// The page LoRA Loom of a WebUI's tab and of `lora-loom ui`: our parts in the places that gradio leaves for them, and
// what its buttons do here. The server's side of it is nodes/page/tab.py. Loading this module does nothing.
import { route } from "./api.js";
import { style } from "./dom.js";
import { mountEditor, mountPanel, mountRuns } from "./mount.js";
import { pageHost } from "./page_host.js";

/** @typedef {import("./page_host.js").PageHost} PageHost */
/** @typedef {{ querySelector: (selector: string) => ?Element }} Place the page, in some gradios a shadow tree */

const SERVER = "/lora-loom/v1", LOOK_MS = 250, SOON_MS = 500, EDITOR_HEIGHT = "min(70vh, 720px)";
/**
 * Buttons after which something new is to be seen, and where they say that it comes.
 * @type {Record<string, string>}
 */
const STARTS = {
  start: "said", find_rate: "try_said", measure: "try_said", sweep: "try_said", zip: "zip_report",
};

const STYLE = `
#lora_loom_tabs .block:has(> .prose:empty), #lora_loom_tabs .block:has(> div > .prose:empty),
#lora_loom_tabs .block:has(#lora_loom_editor:empty), #lora_loom_tabs .block:has(#lora_loom_editor > noscript) {
  display: none; }
#lora_loom_taken, #lora_loom_tabs .form:has(> #lora_loom_taken:only-child) { display: none; }
#lora_loom_refresh { align-self: flex-end; max-width: 160px; margin-left: auto; }
#lora_loom_tabs [data-past] .lora_loom_info { display: none; }
.lora_loom_info, .lora_loom_error { margin: 2px 0; overflow-wrap: anywhere; }
.lora_loom_error { padding: 6px 10px; border-left: 4px solid #ff5f56; border-radius: 5px;
  background: rgba(255, 95, 86, .14); }
.lora_loom_report { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 420px; overflow-y: auto; margin: 4px 0;
  padding: 8px 10px; border-radius: 6px; background: rgba(127, 127, 127, .12); font: 12px/1.5 ui-monospace, monospace; }
.lora_loom_sheet { max-width: 100%; max-height: 640px; display: block; border-radius: 6px; }
#lora_loom_panel .loom-panel { padding: 8px 0; font-size: 13px; }
#lora_loom_panel .loom-panel .pictures { flex-direction: row; min-height: 240px !important; height: 240px; }
#lora_loom_panel .loom-panel .newest { flex: none; width: auto; max-width: 60%; background: none; }
#lora_loom_panel .loom-panel .newest img { width: auto; max-width: 100%; border-radius: 6px; }
#lora_loom_panel .loom-panel .small { flex: 1; min-width: 0; height: auto; align-items: flex-start; }
#lora_loom_panel .loom-panel .chart { min-height: 220px; }
#lora_loom_panel .loom-panel .messages { font-size: 12px; max-height: 110px; }
#lora_loom_panel .loom-panel.idle { min-height: 0 !important; }
#lora_loom_editor .loom-editor { border: 1px solid rgba(127, 127, 127, .3); border-radius: 8px; }
`;

/** The element of gradio's input that holds its value. */
function field(/** @type {Place} */ page, /** @type {string} */ id) {
  const found = page.querySelector(`#lora_loom_${id} textarea, #lora_loom_${id} input`);
  return /** @type {?(HTMLInputElement | HTMLTextAreaElement)} */ (found);
}

/**
 * Hands settings to the server's side of the page, which puts them into the fields: some gradios draw these only once
 * their section is open.
 * @param {Place} page
 * @param {Record<string, unknown>} settings by config path
 */
function takeOver(page, settings) {
  const input = field(page, "taken");
  if (!input) return;
  input.value = JSON.stringify(settings);
  for (const event of ["input", "change", "blur"]) input.dispatchEvent(new Event(event, { bubbles: true }));
}

/**
 * The caption editor for the folder that stands in the page's field; once more: it goes away.
 * @param {Place} page
 * @param {PageHost} host
 */
async function toggleEditor(page, host) {
  const place = /** @type {?HTMLElement} */ (page.querySelector("#lora_loom_editor"));
  if (!place) return;
  if (place.childElementCount && !place.querySelector("noscript")) return place.replaceChildren();
  try {
    const folder = field(page, "folder")?.value ?? "";
    const { session } = await host.postJson(route("dataset/open"), { folder });
    const editor = await mountEditor(place, host, session);
    editor.root.style.height = EDITOR_HEIGHT;
  } catch (error) {
    host.toast("error", /** @type {Error} */ (error).message);
  }
}

/**
 * Reads the list of runs anew when a reader comes to it: what ended while its tab was closed was not asked for.
 * @param {HTMLElement} place
 * @param {{ load: () => unknown }} runs
 */
function showRuns(place, runs) {
  new IntersectionObserver((seen) => void (seen.some((one) => one.isIntersecting) && runs.load())).observe(place);
}

/**
 * Draws the panel anew when the page turns from light to dark or back.
 * @param {HTMLElement} place
 * @param {{ colour: () => void, chart: { draw: () => void } }} run
 * @param {PageHost} host
 */
function followColours(place, run, host) {
  let last = host.theme?.();
  const follow = () => {
    if (!place.isConnected) return clearInterval(timer);
    if (host.theme?.() === last) return;
    last = host.theme?.();
    run.colour();
    run.chart.draw();
  };
  const timer = setInterval(follow, LOOK_MS);
}

/** Answers to clicks ("starts as soon as …"), until another job than at the click is shown: then the panel speaks. */
class Answers {
  constructor() {
    /** @type {Map<HTMLElement, unknown>} */
    this.asked = new Map(); // place of an answer -> what was shown when it was asked for
  }

  /** A click whose answer comes into `place`. */
  expect(/** @type {?HTMLElement} */ place, /** @type {unknown} */ shown) {
    if (!place) return;
    delete place.dataset.past;
    this.asked.set(place, shown);
  }

  /** The panel shows this job. */
  see(/** @type {unknown} */ shown) {
    for (const [place, before] of this.asked) {
      if (shown === before) continue;
      place.dataset.past = "yes";
      this.asked.delete(place);
    }
  }
}

/**
 * Does something at clicks on gradio's buttons, by their ids. Some gradios draw a button only once its section is open.
 * @param {Record<string, () => unknown>} actions
 */
function onClicks(actions) {
  document.addEventListener("click", (event) => {
    for (const part of event.composedPath()) if (part instanceof Element) actions[part.id]?.();
  });
}

/** A place left for us that nothing of ours is in yet. Some gradios draw a tab's places only once it is open. */
function emptyPlace(/** @type {Place} */ page, /** @type {string} */ id) {
  const place = /** @type {?HTMLElement} */ (page.querySelector(`#${id}`));
  if (!place || place.dataset.mounted) return null;
  place.dataset.mounted = "yes";
  place.replaceChildren();
  return place;
}

/**
 * Mounts everything once the page is there, and again when it is drawn anew.
 * @param {() => Place} page
 * @param {PageHost} host
 */
export function keepMounted(page, host) {
  style("loom-tab", STYLE);
  const answers = new Answers();
  /** @type {?Awaited<ReturnType<typeof mountPanel>>} */
  let mounted = null;
  const mount = async () => {
    const panel = emptyPlace(page(), "lora_loom_panel");
    if (panel) {
      mounted = await mountPanel(panel, host, {}, (state) => answers.see(state.session));
      followColours(panel, mounted.panel, host);
    }
    const runs = emptyPlace(page(), "lora_loom_runs");
    if (runs) showRuns(runs, await mountRuns(runs, host));
  };
  /** @type {Record<string, () => unknown>} */
  const actions = { lora_loom_captions: () => toggleEditor(page(), host) };
  for (const [button, said] of Object.entries(STARTS)) {
    actions[`lora_loom_${button}`] = () => {
      const place = /** @type {?HTMLElement} */ (page().querySelector(`#lora_loom_${said}`));
      answers.expect(place, mounted?.panel.state?.session);
      setTimeout(() => mounted?.refresh(), SOON_MS);
    };
  }
  onClicks(actions);
  setInterval(() => mount().catch((error) => console.error("LoRA Loom", error)), LOOK_MS);
}

/**
 * The page's host, in gradio. `more`: what the program around it does otherwise.
 * @param {() => Place} page
 * @param {import("./page_host.js").PageOptions} more
 */
export function gradioHost(page, more) {
  const config = /** @type {{ gradio_config?: { root?: string } }} */ (globalThis).gradio_config;
  const base = (config?.root ?? "").replace(/\/+$/, "").replace(/^https?:\/\/[^/]+/, "");
  const dark = () => document.body.classList.contains("dark") || page().querySelector(".dark") !== null;
  return pageHost({
    server: base + SERVER, theme: () => (dark() ? "dark" : "light"),
    takeOver: (settings) => takeOver(page(), settings), ...more,
  });
}

/** The page that stands alone: `lora-loom ui`. */
export function standAlone(/** @type {string} */ language) {
  keepMounted(() => document, gradioHost(() => document, { language: () => language }));
}
