// @ts-check
// Keeps the panels of a page up to date.

/** @typedef {import("./host.js").Host} Host */
/** @typedef {import("./train_panel.js").PanelEvent} PanelEvent */
/** @typedef {import("./train_panel.js").TrainPanel} TrainPanel */

const CHECK_MS = 1000; // of the server
const IDLE_CHECKS = 4; // where a panel polls and nothing runs, it asks at every fourth time

/**
 * Keeps the panels of a page up to date: by events, and by questions where these may be lost or the host has none.
 * @param {Host} host
 * @param {() => Iterable<TrainPanel>} panels of the open workflow
 * @param {(id: string) => TrainPanel | undefined} panelOf the node that runs under an id
 * @returns {{ refreshAll: () => void, end: () => void }} what asks for every panel now, and what ends the watch
 */
export function watchPanels(host, panels, panelOf) {
  const visible = () => document.visibilityState === "visible";
  const refreshAll = () => [...panels()].forEach((panel) => panel.refresh());
  const whenSeen = () => visible() && refreshAll();
  const ends = [host.onEvent("reconnected", refreshAll), host.onEvent("panel", (/** @type {PanelEvent} */ event) => {
    const panel = panelOf(event.node), workflow = panel?.seat.workflow();
    if (!panel?.suits(event.kind)) return;
    const foreign = event.workflow !== workflow;
    if (!foreign || panel.state?.session === event.session) panel.take(event);
  })];
  document.addEventListener("visibilitychange", whenSeen);
  let checks = 0;
  const timer = setInterval(() => { // an event may be lost, and a tab that does not read can hold up those of all
    if (!visible()) return;
    checks += 1;
    for (const panel of panels()) {
      const due = host.pollMs && (panel.active() || checks % IDLE_CHECKS === 0);
      if (due || panel.silent()) panel.refresh();
    }
  }, host.pollMs || CHECK_MS);
  const end = () => {
    clearInterval(timer);
    document.removeEventListener("visibilitychange", whenSeen);
    ends.forEach((stop) => stop());
  };
  return { refreshAll, end };
}
