// LoRA Loom in the browser: a "Stop and keep" entry in the menu of train nodes.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

async function stopAndKeep(node) {
  const response = await api.fetchApi("/lora_loom/stop", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ node: String(node.id) }),
  });
  const answer = await response.json();
  app.extensionManager?.toast?.add({
    severity: response.ok ? "success" : "warn",
    summary: "LoRA Loom",
    detail: response.ok ? "Stopping after this step; the result is kept." : answer.error,
    life: 4000,
  });
}

app.registerExtension({
  name: "lora_loom.stop",
  getNodeMenuItems(node) {
    if (node.comfyClass !== "LoraLoomTrainLora") return [];
    return [{ content: "Stop and keep", callback: () => stopAndKeep(node) }];
  },
});
