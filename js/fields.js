// Errors of our nodes name the field they are about ("adapter.rank: 1024 is larger than ..."). Here that field is found and marked.
import { app } from "../../scripts/app.js";

const NAMES = { // fields whose widget has another name
  "optimizer.lr": "learning_rate", "schedule.name": "scheduler", "samples.prompt": "sample_prompt", "samples.every": "sample_every", "samples.cfg": "sample_cfg",
  "save.every": "save_every", "embedding.init": "init_text",
};
const MARK = "#ff5f56";

export function fieldOf(sentence) {
  const path = /^([a-z_]+(?:\.[a-z_0-9]+)*): /.exec(sentence ?? "")?.[1];
  return path ? { path, name: NAMES[path] ?? path.split(".").pop() } : null;
}

function upstream(node) {
  return (node.inputs ?? []).map((input, slot) => (input.link != null ? node.getInputNode?.(slot) : null)).filter(Boolean);
}

// {node, name} of the widget or input: in the node itself, else in what is wired to it.
export function findField(node, sentence) {
  const field = fieldOf(sentence);
  if (!field) return null;
  const seen = new Set();
  for (let level = [node]; level.length && seen.size < 30; level = level.flatMap(upstream).filter((n) => !seen.has(n))) {
    for (const one of level) {
      seen.add(one);
      if (one.widgets?.some((w) => w.name === field.name) || one.inputs?.some((i) => i.name === field.name)) return { node: one, name: field.name };
    }
  }
  return null;
}

// The classic renderer draws the mark on the canvas; in Nodes 2.0 the row of the widget gets an outline.
export function mark(found) {
  const { node, name } = found;
  node.loomMarked = name;
  if (!node.loomMarks) {
    node.loomMarks = true;
    const draw = node.onDrawForeground;
    node.onDrawForeground = function (pen) {
      draw?.apply(this, arguments);
      if (!this.loomMarked || this.flags?.collapsed) return;
      const widget = this.widgets?.find((w) => w.name === this.loomMarked);
      const slot = this.inputs?.findIndex((i) => i.name === this.loomMarked) ?? -1;
      const y = widget?.last_y ?? widget?.y ?? (slot >= 0 ? this.getInputPos(slot)[1] - this.pos[1] - 10 : null);
      if (y === null) return;
      pen.save();
      pen.strokeStyle = MARK;
      pen.lineWidth = 2;
      pen.strokeRect(8, y - 1, this.size[0] - 16, (widget?.computedHeight ?? 20) + 2);
      pen.restore();
    };
  }
  const widget = node.widgets?.find((w) => w.name === name);
  if (window.LiteGraph?.vueNodesMode && (widget?.advanced ?? widget?.options?.advanced)) node.showAdvanced = true; // a mark on a hidden row is none
  for (const wait of [0, 300, 1000]) { // a row may be drawn anew, or later
    setTimeout(() => node.loomMarked === name && row(found)?.style.setProperty("outline", `2px solid ${MARK}`), wait);
  }
  node.setDirtyCanvas?.(true, true);
}

export function unmark(found) {
  found.node.loomMarked = null;
  row(found)?.style.removeProperty("outline");
  found.node.setDirtyCanvas?.(true, true);
}

function row({ node, name }) {
  const element = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"]`);
  if (!element) return null;
  const label = node.widgets?.find((w) => w.name === name)?.label ?? node.inputs?.find((i) => i.name === name)?.localized_name ?? name;
  const texts = [...element.querySelectorAll("*")].filter((e) => !e.children.length && [name, label].includes(e.textContent.trim()));
  return texts[0]?.closest("[data-testid='node-widget'], .lg-node-widget, .lg-slot") ?? texts[0]?.parentElement ?? null;
}

export function toast(severity, detail, life = 8000) {
  app.extensionManager?.toast?.add({ severity, summary: "LoRA Loom", detail, life });
}
