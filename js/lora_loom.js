// @ts-check
// LoRA Loom in ComfyUI's page. ComfyUI loads every file of this folder; this one alone does something when loaded.
import { speakTo } from "./api.js";
import { app, host } from "./comfyui.js";
import { dropExtension } from "./comfyui_drop.js";
import { foldExtension } from "./comfyui_fold.js";
import { nodeExtensions, watchErrors } from "./comfyui_nodes.js";
import { panelExtension } from "./comfyui_panels.js";
import { useRun } from "./comfyui_result.js";
import { Runs } from "./runs.js";
import { Settings } from "./settings.js";
import { t } from "./words.js";

await speakTo(host);
const settings = new Settings(host), runs = new Runs({ ...host, useRun });

app.registerExtension({ name: "lora_loom.settings", settings: settings.entries() });
app.registerExtension({
  name: "lora_loom.runs",
  setup() {
    app.extensionManager?.registerSidebarTab?.({
      id: "lora_loom_runs",
      icon: "pi pi-chart-line",
      title: "LoRA Loom",
      tooltip: t("runs.tooltip"),
      type: "custom",
      render: (place) => runs.mount(place), // called again whenever the page lays itself out anew
      destroy: () => runs.rest(),
    });
  },
});
app.registerExtension(foldExtension()); // before the panels, which stand below the fold
app.registerExtension(panelExtension(settings));
app.registerExtension(dropExtension);
for (const extension of nodeExtensions) app.registerExtension(extension);
watchErrors();
