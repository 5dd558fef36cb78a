// @ts-check
// The panels in ComfyUI's train nodes.
import { addElement, api, app, host, nodesAreElements, rootGraph } from "./comfyui.js";
import { actionsOf, queueMore } from "./comfyui_result.js";
import { findField, mark, unmark } from "./fields.js";
import { watchPlans } from "./comfyui_plans.js";
import { allNodes, executionIds, isUpstream, kindsAround, nodeById } from "./graph.js";
import { RunCard } from "./run_card.js";
import { watchPanels } from "./panel_watch.js";
import { TrainPanel } from "./train_panel.js";
import { t } from "./words.js";

const PANELS = [
  "LoraLoomTrainLora", "LoraLoomTrainEmbedding", "LoraLoomTrainBothExperts", "LoraLoomTrainSlider",
  "LoraLoomFindLearningRate",
];
const WIDTH = 440; // px, at least
const GROWTH = 1.4; // how far beyond its least height Nodes 2.0 may stretch a panel

/**
 * The place of a panel in a node.
 * @param {ComfyNode} node
 * @returns {import("./host.js").Seat}
 */
function seatIn(node) {
  return {
    kind: node.comfyClass ?? "",
    kinds: () => kindsAround(node),
    ids: () => executionIds(rootGraph(), node),
    workflow: () => String(rootGraph()?.id ?? ""),
    mark(error) {
      const field = findField(node, error);
      if (field) mark(field);
      return field;
    },
    unmark: (field) => unmark(/** @type {import("./fields.js").NodeField} */ (field)),
    grow(element, height) { // Nodes 2.0 gives a widget the room its content needs
      const elements = nodesAreElements(), [width, current] = node.size;
      element.style.minHeight = elements ? `${height}px` : "";
      element.style.maxHeight = elements ? `${GROWTH * height}px` : "";
      const needed = elements ? current : Math.max(current, node.computeSize?.()[1] ?? 0);
      node.setSize?.([Math.max(width, WIDTH), needed]);
      node.setDirtyCanvas?.(true, true);
    },
    goOn: (state) => queueMore(state),
  };
}

function* panels() {
  for (const node of allNodes(rootGraph())) if (node.loomPanel) yield node.loomPanel;
}

/** Says in a panel what its node waits for: the loader of its model, its dataset. */
function watchWaiting() {
  const tell = (/** @type {?ComfyNode} */ running) => {
    for (const node of allNodes(rootGraph())) {
      const waits = running !== null && running !== node && isUpstream(running, node);
      node.loomPanel?.awaiting(waits ? t("panel.first", { node: running.title ?? "" }) : "");
    }
  };
  api.addEventListener("executing", ({ detail }) => {
    const id = detail?.node ?? detail; // an id, or an object with one in newer hosts
    tell(typeof id === "string" || typeof id === "number" ? nodeById(rootGraph(), id) : null);
  });
  for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
    api.addEventListener(end, () => tell(null));
  }
}

/**
 * @param {import("./settings.js").Settings} settings
 * @returns {ComfyExtension}
 */
export function panelExtension(settings) {
  watchPlans();
  watchWaiting();
  const { refreshAll } = watchPanels(host, panels, (id) => nodeById(rootGraph(), id)?.loomPanel);
  return {
    name: "lora_loom.panel",
    nodeCreated(node) {
      if (!PANELS.includes(node.comfyClass ?? "")) return;
      const card = new RunCard(host, actionsOf(node)), seat = { ...seatIn(node), extraHeightPx: () => card.heightPx() };
      const panel = new TrainPanel(host, seat, settings);
      panel.onShow = (state) => card.show(state, panel.active());
      panel.place(card.root);
      node.loomPanel = panel;
      addElement(node, "loom_panel", panel.root, () => panel.minHeight());
      const widget = node.widgets?.find(({ name }) => name === "loom_panel");
      if (widget) widget.label = node.title; // what App mode writes above it
      panel.root.addEventListener("wheel", (event) => { // the classic renderer keeps it over a widget from the graph
        if (nodesAreElements() || !event.isTrusted) return;
        app.canvas?.canvas?.dispatchEvent(new WheelEvent("wheel", event));
      });
      const removed = node.onRemoved;
      node.onRemoved = function () {
        panel.dispose();
        removed?.call(this);
      };
    },
    afterConfigureGraph: refreshAll,
  };
}
