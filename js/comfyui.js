// @ts-check
// ComfyUI as the host of our parts. The only file that imports ComfyUI's own modules.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { jsonClient } from "./api.js";
import { allNodes, trainNode, widgetOf } from "./graph.js";

export { api, app };

/** @type {Record<import("./host.js").HostEvent, string[]>} */
const EVENTS = {
  panel: ["lora_loom.panel"],
  runs: ["execution_start", "execution_success", "execution_error", "execution_interrupted"],
  reconnected: ["reconnected"],
};
const TOAST_MS = 8000;
/** @type {Record<string, string>} */
const TRAIN_NODES = {
  lora: "LoraLoomTrainLora",
  pivotal: "LoraLoomTrainLora",
  embedding: "LoraLoomTrainEmbedding",
  slider: "LoraLoomTrainSlider",
};

/** The open workflow. */
export const rootGraph = () => app.rootGraph ?? app.graph;

/** Whether ComfyUI draws nodes as elements of the page (Nodes 2.0) rather than on its canvas. */
export const nodesAreElements = () => Boolean(window.LiteGraph?.vueNodesMode);

/** @type {import("./host.js").Host} */
export const host = {
  program: "comfyui",

  ...jsonClient((path, options) => api.fetchApi(path, options)),

  imageUrl: (path) => api.apiURL(path),

  onEvent(event, listener) {
    const take = (/** @type {CustomEvent} */ { detail }) => listener(detail);
    for (const name of EVENTS[event]) api.addEventListener(name, take);
    return () => EVENTS[event].forEach((name) => api.removeEventListener(name, take));
  },

  toast(severity, detail, life = TOAST_MS) {
    app.extensionManager?.toast?.add({ severity, summary: "LoRA Loom", detail, life });
  },

  async language() {
    try {
      return await api.getSetting("Comfy.Locale"); // null until the reader has chosen one
    } catch {
      return null; // an older host without it
    }
  },

  setting: (id) => app.extensionManager?.setting?.get(id),

  async refreshLists() {
    await (app.reloadNodeDefs ?? app.refreshComboInNodes)?.call(app); // the first says nothing of its own
  },

  async openRun({ name, method, workflow }) {
    if (workflow) await app.loadGraphData(workflow, true, true, name);
    const node = trainNode([...allNodes(rootGraph())].filter((one) => one.comfyClass === TRAIN_NODES[method]), name);
    if (!node) return null;
    for (const [key, value] of [["name", name], ["resume", "continue last"]]) {
      const widget = widgetOf(node, key);
      if (!widget) continue;
      widget.value = value;
      widget.callback?.(value);
    }
    if (node.graph === app.canvas?.graph) app.canvas?.centerOnNode(node);
    app.canvas?.setDirty(true, true);
    return node.title ?? "";
  },
};

/**
 * Puts an element into a node, which the workflow does not store.
 * @param {ComfyNode} node
 * @param {string} name
 * @param {HTMLElement} element
 * @param {() => number} getMinHeight
 */
export function addElement(node, name, element, getMinHeight) {
  const options = { serialize: false, hideOnZoom: false, getMinHeight, getValue: () => undefined, setValue() {} };
  const widget = node.addDOMWidget(name, `lora_${name}`, element, options);
  widget.serialize = false;
}

/**
 * Calls `work` with what a node that was executed has put out.
 * @param {ComfyNode} node
 * @param {(output: ComfyOutput) => void} work
 */
export function afterExecution(node, work) {
  const executed = node.onExecuted;
  node.onExecuted = function (output, ...others) {
    executed?.call(this, output, ...others);
    if (output) work(output);
  };
}
