// @ts-check
// In ComfyUI's classic renderer a node shows its first fields, the rest behind one fold, as Nodes 2.0 does by itself.
import { host, nodesAreElements } from "./comfyui.js";
import { t } from "./words.js";

const SHOW_ALL = "Comfy.Node.AlwaysShowAdvancedWidgets"; // the reader's choice for every node
const OPEN = "loom_all_fields"; // property of a node whose fold is open, kept in the workflow
const CHECK_MS = 1200;

/** @typedef {{ node: ComfyNode, button: ComfyWidget, state: string }} Fold */

/** Names of the widgets that a wire gives their value. */
function wiredNames(/** @type {ComfyNode} */ node) {
  return new Set((node.inputs ?? []).filter(({ link }) => link != null).map(({ name }) => name));
}

/** The widgets behind the fold; one that is wired stays in sight, one that moved to a settings node is not shown. */
export function folded(/** @type {ComfyNode} */ node) {
  const wired = wiredNames(node);
  return (node.widgets ?? []).filter(({ options, name, loomMoved }) =>
    options?.advanced && !wired.has(name) && !loomMoved?.unused);
}

/** Marks the widgets of a new node that stand on a settings node now: the schema says that they are hidden. */
function findMoved(/** @type {ComfyNode} */ node) {
  for (const widget of node.widgets ?? []) {
    if (widget.options?.hidden) widget.loomMoved = { usual: widget.value, unused: true };
  }
}

/** Shows those moved widgets that an older workflow has set or wired: its values count, so they can be seen. */
function showMoved(/** @type {ComfyNode} */ node) {
  const wired = wiredNames(node);
  for (const widget of node.widgets ?? []) {
    if (!widget.loomMoved?.unused || (widget.value === widget.loomMoved.usual && !wired.has(widget.name))) continue;
    widget.loomMoved.unused = false;
    widget.hidden = false;
    if (widget.options) widget.options.hidden = false;
  }
}

/**
 * Shows or hides what is behind the fold of a node, where anything about it has changed.
 * @param {Fold} fold
 */
function arrange(fold) {
  const { node, button } = fold, elements = nodesAreElements();
  const open = elements || Boolean(node.properties?.[OPEN]) || Boolean(host.setting(SHOW_ALL));
  showMoved(node);
  const rows = folded(node);
  const state = JSON.stringify([elements, open, rows.map(({ name }) => name)]);
  if (state === fold.state) return;
  const first = fold.state === "";
  fold.state = state;
  for (const widget of node.widgets ?? []) {
    if (widget.options?.advanced) widget.hidden = Boolean(widget.loomMoved?.unused);
  }
  for (const widget of rows) widget.hidden = !open;
  place(fold, !elements && !host.setting(SHOW_ALL));
  button.label = t(open ? "fold.fewer" : "fold.more", { count: rows.length });
  if (!elements && !(first && open)) fit(node);
}

/**
 * Puts the button into its node, above what else we put there, or takes it out.
 * @param {Fold} fold
 * @param {boolean} wanted
 */
function place({ node, button }, wanted) {
  const widgets = node.widgets ?? [], at = widgets.indexOf(button);
  if (wanted === (at >= 0)) return;
  if (!wanted) {
    widgets.splice(at, 1);
    return;
  }
  const ours = widgets.findIndex(({ name }) => name.startsWith("loom_"));
  widgets.splice(ours < 0 ? widgets.length : ours, 0, button);
}

/** Gives a node the height its fields need; a wider one keeps its width. */
function fit(/** @type {ComfyNode} */ node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, node.size[0]), height]);
  node.setDirtyCanvas?.(true, true);
}

/**
 * Opens or closes the fold of a node.
 * @param {ComfyNode} node
 * @param {boolean} open
 */
function turn(node, open) {
  node.properties = { ...node.properties, [OPEN]: open || undefined };
  if (node.loomFold) arrange(node.loomFold);
}

/** @returns {ComfyExtension} */
export function foldExtension() {
  /** @type {Set<Fold>} */
  const folds = new Set();
  setInterval(() => folds.forEach(arrange), CHECK_MS); // the renderer, a setting or a wire may have changed
  return {
    name: "lora_loom.fold",
    nodeCreated(node) {
      if (!node.comfyClass?.startsWith("LoraLoom")) return;
      findMoved(node);
      if (!folded(node).length) return;
      const button = node.addWidget?.("button", "loom_fold", null, () => turn(node, !node.properties?.[OPEN]));
      if (!button) return;
      button.serialize = false; // neither in the workflow
      button.options = { ...button.options, serialize: false }; // nor in what is queued
      /** @type {Fold} */
      const fold = { node, button, state: "" };
      node.loomFold = fold;
      node.loomUnfold = () => turn(node, true);
      folds.add(fold);
      arrange(fold);
      const configured = node.onConfigure, removed = node.onRemoved;
      node.onConfigure = function (...values) {
        configured?.apply(this, values);
        fold.state = "";
        arrange(fold);
      };
      node.onRemoved = function () {
        folds.delete(fold);
        removed?.call(this);
      };
    },
  };
}
