// @ts-check
// What ComfyUI's nodes of ours have beside a panel: the dataset editor, a report, "Stop and keep", marks of errors.
import { addElement, afterExecution, api, host, nodesAreElements, rootGraph } from "./comfyui.js";
import { queueCaptions } from "./comfyui_captions.js";
import { Editor } from "./dataset_editor.js";
import { findField, mark, unmark } from "./fields.js";
import { kindsAround, nodeById } from "./graph.js";
import { askRun } from "./panel_asks.js";
import { said, t } from "./words.js";

const STOPPABLE = [
  "LoraLoomTrainLora", "LoraLoomTrainEmbedding", "LoraLoomTrainBothExperts", "LoraLoomTrainSlider",
  "LoraLoomFindLearningRate", "LoraLoomZipLoras",
];
const ERROR_MS = 15000;
const EDITOR_HEIGHT = 420, EDITOR_SIZE = [640, 560]; // px
const REPORT_WIDTH = 360, LINE_HEIGHT = 16, HIGHEST_REPORT = 240, PICTURE_HEIGHT = 200; // px

const isOurs = (/** @type {string | undefined} */ kind) => Boolean(kind?.startsWith("LoraLoom"));

/**
 * A node at least as large as this.
 * @param {ComfyNode} node
 * @param {number} width
 * @param {number} height
 */
function enlarge(node, width, height) {
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

/** @type {ComfyExtension} */
const stopExtension = {
  name: "lora_loom.stop",
  getNodeMenuItems(node) {
    if (!STOPPABLE.includes(node.comfyClass ?? "")) return [];
    const id = () => node.loomPanel?.state?.node ?? String(node.id);
    return [{ content: t("panel.stop"), callback: () => askRun(host, "stop", id()) }];
  },
};

/** @type {ComfyExtension} */
const editorExtension = {
  name: "lora_loom.dataset_editor",
  nodeCreated(node) {
    if (node.comfyClass !== "LoraLoomDatasetEditor") return;
    const editor = new Editor(host, (order, choice) => queueCaptions(node, editor, order, choice));
    node.loomEditor = editor;
    addElement(node, "loom_editor", editor.root, () => EDITOR_HEIGHT);
    enlarge(node, EDITOR_SIZE[0], EDITOR_SIZE[1]);
    afterExecution(node, ({ loom_dataset: sessions }) => { // Nodes 2.0 lets a widget grow with its content
      if (sessions?.length) editor.open(sessions[0], nodesAreElements() ? "620px" : "");
    });
  },
};

/** @type {ComfyExtension} */
const reportExtension = {
  name: "lora_loom.report",
  nodeCreated(node) {
    if (!isOurs(node.comfyClass)) return;
    afterExecution(node, ({ text, loom_messages: messages, images }) => {
      const lines = messages?.map((message) => said(message, kindsAround(node))) ?? text ?? [];
      if (lines.length) showReport(node, lines.join("\n"), Boolean(images?.length));
    });
  },
};

/** The box for what a node says about its result, as selectable text. Made when there is something to say. */
function reportOf(/** @type {ComfyNode} */ node) {
  if (node.loomReport) return node.loomReport;
  const box = document.createElement("pre");
  Object.assign(box.style, {
    margin: 0, padding: "6px 8px", width: "100%", height: "100%", boxSizing: "border-box", borderRadius: "6px",
    overflow: "auto", whiteSpace: "pre-wrap", font: "11px/1.4 ui-monospace, monospace", userSelect: "text",
    color: "var(--input-text, #ddd)", background: "var(--comfy-input-bg, #222)",
  });
  addElement(node, "loom_report", box, () => {
    const lines = (box.textContent ?? "").split("\n").length;
    return Math.min(HIGHEST_REPORT, 30 + LINE_HEIGHT * lines);
  });
  node.loomReport = box;
  return box;
}

/**
 * @param {ComfyNode} node
 * @param {string} text
 * @param {boolean} hasPicture
 */
function showReport(node, text, hasPicture) {
  reportOf(node).textContent = text;
  const [width, height] = node.computeSize();
  enlarge(node, Math.max(width, REPORT_WIDTH), height + (hasPicture ? PICTURE_HEIGHT : 0));
  node.setDirtyCanvas?.(true, true);
}

/** Tells of errors, and marks the fields they are about until the next run. A node with a panel does so itself. */
export function watchErrors() {
  /** @type {Set<import("./fields.js").NodeField>} */
  const marked = new Set();
  /** @type {?import("./words.js").Message} */
  let latest = null; // of our own event, which comes before the host's
  api.addEventListener("lora_loom.error", ({ detail }) => { latest = detail; });
  api.addEventListener("execution_error", ({ detail }) => {
    if (!isOurs(detail?.node_type)) return;
    const node = nodeById(rootGraph(), detail.node_id);
    if (node?.loomPanel) return;
    const text = String(detail.exception_message ?? "").trim();
    const error = latest?.text === text ? latest : { text };
    host.toast("error", said(error, node ? kindsAround(node) : []), ERROR_MS);
    const field = node && findField(node, error);
    if (!field) return;
    mark(field);
    marked.add(field);
  });
  api.addEventListener("execution_start", () => {
    marked.forEach(unmark);
    marked.clear();
  });
}

export const nodeExtensions = [stopExtension, editorExtension, reportExtension];
