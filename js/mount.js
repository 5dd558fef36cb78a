// @ts-check
// Our parts in a page that is not ComfyUI's, each by one call:
//
//   import { pageHost } from "./page_host.js";
//   import { mountPanel } from "./mount.js";
//   const { panel, end } = await mountPanel(document.querySelector("#run"), pageHost({ server: "/lora-loom/v1" }));
//
// What the server must answer to them stands in nodes/jobs/panel.py (`Panel.snapshot`) and CONTRIBUTING.md.
import { route, speakTo } from "./api.js";
import { Editor } from "./dataset_editor.js";
import { ResultCard } from "./result_card.js";
import { Runs } from "./runs.js";
import { Settings } from "./settings.js";
import { watchPanels } from "./panel_watch.js";
import { TrainPanel } from "./train_panel.js";

/** @typedef {import("./host.js").Host} Host */
/** @typedef {import("./host.js").Seat} Seat */
/** @typedef {import("./train_panel.js").PanelState} PanelState */

export const PAGE_NODE = "page"; // what the server calls the place of a page's runs, unless its seat says otherwise

/** @type {WeakMap<Host, Promise<void>>} */
const spoken = new WeakMap();

/** Texts are in the host's language from now on; asked for once, however many parts are mounted. */
async function speaking(/** @type {Host} */ host) {
  const begun = spoken.get(host) ?? speakTo(host);
  spoken.set(host, begun);
  await begun;
}

/**
 * The place of a panel in a page: it shows whatever runs under PAGE_NODE, and goes on with a run through
 * POST go_on {"node", "run"}.
 * @param {Host} host
 * @returns {Seat}
 */
function pageSeat(host) {
  return {
    kind: "",
    ids: () => [PAGE_NODE],
    workflow: () => "",
    grow: (element, heightPx) => { element.style.minHeight = `${heightPx}px`; },
    mark: () => null,
    unmark() {},
    goOn: async ({ node, run }) => { await host.postJson(route("go_on"), { node, run }); },
  };
}

/**
 * Puts the panel of a page's runs into an element: chart, samples, messages, buttons, and a card with the result.
 * @param {HTMLElement} place
 * @param {Host} host
 * @param {Partial<Seat>} [seat] where the page does something otherwise, as marking the field of an error
 * @param {(state: PanelState) => void} [onState] called with each state the panel shows
 * @returns {Promise<{ panel: TrainPanel, settings: Settings, refresh: () => void, end: () => void }>} `refresh`: asks
 *   the server now, as after a start; `end`: takes the panel out of the page and stops asking
 */
export async function mountPanel(place, host, seat = {}, onState = () => {}) {
  await speaking(host);
  const settings = new Settings(host), card = new ResultCard(host);
  const panel = new TrainPanel(host, { ...pageSeat(host), ...seat }, settings);
  let course = "";
  panel.onShow = (state) => {
    card.show(state);
    onState(state);
    if (course !== `${state.session} ${state.status}`) host.tell?.("runs"); // a list of runs in the same page
    course = `${state.session} ${state.status}`;
  };
  panel.root.append(card.root);
  place.replaceChildren(panel.root);
  const { refreshAll, end } = watchPanels(host, () => [panel], (id) => {
    return panel.seat.ids().includes(id) ? panel : undefined;
  });
  refreshAll();
  return {
    panel, settings, refresh: refreshAll,
    end() {
      end();
      panel.dispose();
      panel.root.remove();
    },
  };
}

/**
 * Puts the list of runs into an element: compare, resume, export, delete.
 * @param {HTMLElement} place
 * @param {Host} host
 * @returns {Promise<Runs>}
 */
export async function mountRuns(place, host) {
  await speaking(host);
  const runs = new Runs(host);
  runs.mount(place);
  return runs;
}

/**
 * Puts the caption editor into an element, for a dataset that the server has opened under the id `session`.
 * @param {HTMLElement} place
 * @param {Host} host
 * @param {string} session
 * @returns {Promise<Editor>}
 */
export async function mountEditor(place, host, session) {
  await speaking(host);
  const editor = new Editor(host);
  place.replaceChildren(editor.root);
  await editor.open(session);
  return editor;
}
