// What the panel says, by language. A language is a table with the keys of `en`; a key it lacks is said in English.
import { app } from "../../scripts/app.js";

export const TABLES = {
  en: {
    idle: "Press Run: the course of the training appears here.",
    preparing: "Preparing",
    training: "Training",
    paused: "Paused",
    stopped: "Stopped, kept",
    finished: "Finished",
    cancelled: "Cancelled, kept",
    failed: "Failed",
    interrupted: "Interrupted",
    stop: "Stop and keep",
    save: "Save now",
    sample: "Sample now",
    pause: "Pause",
    go_on: "Go on",
    stop_tip: "End after this step and keep the result.",
    save_tip: "Save after this step and go on training. The file is in the LoRA lists at once.",
    sample_tip: "Draw the sample prompts after this step.",
    pause_tip: "Save, end this queue item and free the memory. Go on continues exactly there.",
    go_on_tip: "Queue this workflow again, continuing this run with its own settings.",
    asked_stop: "Stopping after this step; the result is kept.",
    asked_save: "Saving after this step.",
    asked_sample: "Drawing samples after this step.",
    asked_pause: "Pausing after this step.",
    step: "step {step}/{steps}",
    per_second: "{n} steps/s",
    per_step: "{n} s/step",
    left: "{time} left",
    memory: "{of} {used} of {total} GB",
    loss: "loss",
    smoothed: "smoothed",
    rate: "learning rate",
    rate_short: "lr",
    norm: "gradient",
    held_out: "held-out pictures",
    trained: "trained pictures",
    best: "best",
    saves: "saves",
    samples: "samples",
    zoom_hint: "drag: zoom · Ctrl or Alt + wheel: zoom · double click: all",
    before: "without",
    sample_of: "step {step}",
    messages: "Messages",
    made: "{files} is ready",
    trigger: "Trigger: {trigger}",
    in_comfyui: "ComfyUI: {prompt}",
    in_comfyui_lora: "ComfyUI: Load LoRA {file}, prompt: {prompt}",
    in_a1111: "A1111: {prompt}",
    refused: "It could not be done: {why}",
    field: "Look at {field}",
    server_gone: "The server does not answer; asking again.",
  },
};

export function say(key, values = {}) {
  const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  const text = TABLES[language]?.[key] ?? TABLES[language.split("-")[0]]?.[key] ?? TABLES.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}
