// @ts-check
// Errors of our nodes name the field they are about, such as adapter.rank. Here that field is found and marked.
import { WIDGET_NAMES } from "./widget_names.js";

/** @typedef {{ node: ComfyNode, name: string }} NodeField a widget or an input */

const MARK = "#ff5f56";

/**
 * What the widget of a field is called, on one node or another.
 * @param {string} field
 * @returns {string[]}
 */
export function widgetNames(field) {
  return WIDGET_NAMES[field] ?? [field.split(".").at(-1) ?? field];
}

/**
 * What is wired to a node.
 * @param {ComfyNode} node
 * @returns {ComfyNode[]}
 */
function upstream(node) {
  const nodes = (node.inputs ?? []).map((input, slot) => (input.link != null ? node.getInputNode?.(slot) : null));
  return nodes.filter((one) => one != null);
}

/**
 * The widget or input a message is about: in the node itself, else in what is wired to it.
 * @param {ComfyNode} node
 * @param {import("./words.js").Message} message
 * @returns {?NodeField}
 */
export function findField(node, message) {
  if (!message.field) return null;
  const names = widgetNames(message.field);
  const seen = new Set();
  for (let level = [node]; level.length && seen.size < 30;) {
    for (const one of level) {
      seen.add(one);
      const moved = new Set((one.widgets ?? []).filter(({ loomMoved }) => loomMoved?.unused).map(({ name }) => name));
      const parts = [...(one.widgets ?? []), ...(one.inputs ?? [])].filter(({ name }) => !moved.has(name));
      const part = parts.find(({ name }) => names.includes(name));
      if (part) return { node: one, name: part.name };
    }
    level = level.flatMap(upstream).filter((n) => !seen.has(n));
  }
  return null;
}

/**
 * The classic renderer draws the mark on the canvas; in Nodes 2.0 the row of the widget gets an outline.
 * @param {NodeField} found
 */
export function mark(found) {
  const { node, name } = found;
  node.loomMarked = name;
  if (!node.loomMarks) {
    node.loomMarks = true;
    const draw = node.onDrawForeground;
    node.onDrawForeground = function (pen, ...others) {
      draw?.call(this, pen, ...others);
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
  const advanced = widget?.advanced ?? widget?.options?.advanced;
  if (window.LiteGraph?.vueNodesMode && advanced) node.showAdvanced = true; // a mark on a hidden row is none
  else if (advanced) node.loomUnfold?.();
  for (const wait of [0, 300, 1000]) { // a row may be drawn anew, or later
    setTimeout(() => node.loomMarked === name && row(found)?.style.setProperty("outline", `2px solid ${MARK}`), wait);
  }
  node.setDirtyCanvas?.(true, true);
}

/** @param {NodeField} found */
export function unmark(found) {
  found.node.loomMarked = null;
  row(found)?.style.removeProperty("outline");
  found.node.setDirtyCanvas?.(true, true);
}

/**
 * The element of a widget or input in Nodes 2.0.
 * @param {NodeField} field
 * @returns {?HTMLElement}
 */
function row({ node, name }) {
  const element = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"]`);
  if (!element) return null;
  const widget = node.widgets?.find((w) => w.name === name), input = node.inputs?.find((i) => i.name === name);
  const names = [name, widget?.label, widget?.loomLabel, input?.localized_name]; // a label may say what "auto" means
  const leaves = [...element.querySelectorAll("*")].filter((e) => !e.children.length);
  const text = leaves.find((e) => names.includes(e.textContent.trim().replace(/ \([^)]*\)$/, "")));
  return text?.closest("[data-testid='node-widget'], .lg-node-widget, .lg-slot") ?? text?.parentElement ?? null;
}
