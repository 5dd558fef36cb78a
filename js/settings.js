// What a person may choose about the panel, in ComfyUI's settings. Nothing is counted and nothing is sent anywhere.
import { app } from "../../scripts/app.js";
import { t } from "./words.js";

const LOSS_AXIS = "LoraLoom.panel.lossAxis", SAMPLE_SIZE = "LoraLoom.panel.sampleSize";
const HEIGHTS = { small: 96, medium: 132, large: 220 }; // px of the newest sample
const listeners = new Set(), changed = {}; // the host tells of a change before it can be asked for it

const chosen = (id, standard) => changed[id] ?? app.extensionManager?.setting?.get(id) ?? standard;

function take(id, value) {
  changed[id] = value;
  listeners.forEach((listener) => listener());
}

export const logarithmicLoss = () => chosen(LOSS_AXIS, "linear") === "logarithmic";
export const sampleHeight = () => HEIGHTS[chosen(SAMPLE_SIZE, "medium")] ?? HEIGHTS.medium;
export const MEDIUM = HEIGHTS.medium;

/** Calls `listener` after each change; returns what ends that. */
export function onSettings(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

const combo = (id, name, values, standard) => ({
  id, name: t(`settings.${name}`), tooltip: t(`settings.${name}_tip`), type: "combo", defaultValue: standard, onChange: (value) => take(id, value),
  options: values.map((value) => ({ text: t(`settings.${value}`), value })), category: ["LoRA Loom", t("settings.panel"), t(`settings.${name}`)],
});

app.registerExtension({
  name: "lora_loom.settings",
  settings: [combo(LOSS_AXIS, "loss_axis", ["linear", "logarithmic"], "linear"), combo(SAMPLE_SIZE, "sample_size", ["small", "medium", "large"], "medium")],
});
