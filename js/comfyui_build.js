// @ts-check
// Nodes that our parts put into a graph.
import { widgetOf } from "./graph.js";

/**
 * A new node; null where the host does not know its kind.
 * @param {ComfyGraph} graph
 * @param {string} kind
 * @param {[number, number]} place
 * @param {[number, number]} [least] its size, at least
 */
export function made(graph, kind, place, least = [0, 0]) {
  const node = window.LiteGraph?.createNode?.(kind);
  if (!node || !graph.add) return null;
  node.pos = place;
  graph.add(node);
  node.setSize([Math.max(node.size[0], least[0]), Math.max(node.size[1], least[1])]);
  return node;
}

/**
 * Sets a widget as if it had been chosen by hand.
 * @param {ComfyNode} node
 * @param {string} name
 * @param {unknown} value
 */
export function choose(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget) return;
  const values = widget.options?.values;
  if (Array.isArray(values) && typeof value === "string" && !values.includes(value)) values.push(value);
  widget.value = value;
  widget.callback?.(value);
}
