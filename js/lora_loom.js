// LoRA Loom in the browser: a "Stop and keep" entry in the menu of train nodes, errors as toasts, and the report of a node shown on the node.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { findField, mark, toast, unmark } from "./fields.js";
import { said, t } from "./words.js";

async function stopAndKeep(node) {
  const response = await api.fetchApi("/lora_loom/stop", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ node: node.loomPanel?.state?.node ?? String(node.id) }),
  });
  const answer = await response.json();
  toast(response.ok ? "success" : "warn", response.ok ? t("panel.asked_stop") : said(answer.error), 4000);
}

const STOPPABLE = ["LoraLoomTrainLora", "LoraLoomTrainEmbedding", "LoraLoomFindLearningRate", "LoraLoomZipLoras"];

app.registerExtension({
  name: "lora_loom.stop",
  getNodeMenuItems(node) {
    if (!STOPPABLE.includes(node.comfyClass)) return [];
    return [{ content: t("panel.stop"), callback: () => stopAndKeep(node) }];
  },
});

// The sentence of a node that failed as a toast, and its field marked until the next run. A node with a panel sees to that itself.
const marked = new Set();
api.addEventListener("execution_error", ({ detail }) => {
  if (!detail?.node_type?.startsWith("LoraLoom")) return;
  const path = String(detail.node_id).split(":");
  let graph = app.rootGraph ?? app.graph;
  for (const part of path.slice(0, -1)) graph = graph?.getNodeById(Number(part))?.subgraph;
  const node = graph?.getNodeById(Number(path.at(-1)));
  if (node?.loomPanel) return;
  const sentence = String(detail.exception_message ?? "").trim();
  toast("error", said(sentence), 15000);
  const found = node && findField(node, sentence);
  if (found) { mark(found); marked.add(found); }
});
api.addEventListener("execution_start", () => { marked.forEach(unmark); marked.clear(); });

// What a node says about its result (`ui.text`), as selectable text on the node. The widget is made when there is something to say.
function showReport(node, text, hasPicture) {
  if (!node.loomReport) {
    const box = document.createElement("pre");
    Object.assign(box.style, {
      margin: 0, padding: "6px 8px", width: "100%", height: "100%", boxSizing: "border-box", overflow: "auto", whiteSpace: "pre-wrap",
      font: "11px/1.4 ui-monospace, monospace", userSelect: "text", borderRadius: "6px",
      color: "var(--input-text, #ddd)", background: "var(--comfy-input-bg, #222)",
    });
    const widget = node.addDOMWidget("loom_report", "lora_loom_report", box, {
      serialize: false, hideOnZoom: false, getMinHeight: () => Math.min(240, 30 + 16 * box.textContent.split("\n").length), getValue: () => undefined, setValue() {},
    });
    widget.serialize = false;
    node.loomReport = box;
  }
  node.loomReport.textContent = text;
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, 360), Math.max(node.size[1], height + (hasPicture ? 200 : 0))]);
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "lora_loom.report",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("LoraLoom")) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (output?.text?.length) showReport(this, output.text.join("\n").split("\n").map(said).join("\n"), Boolean(output.images?.length));
    };
  },
});
