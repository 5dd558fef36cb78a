// ComfyUI's two modules, which lie two folders above js/ where it serves them, made of a source given here.
import { register } from "node:module";

const RESOLVE = `
  const modules = ["/scripts/app.js", "/scripts/api.js"];
  let url;
  export const initialize = (source) => { url = "data:text/javascript," + encodeURIComponent(source); };
  export const resolve = (name, context, next) =>
    modules.some((module) => name.endsWith(module)) ? { url, shortCircuit: true } : next(name, context);
`;

/** From now on our files find `source` where ComfyUI's app and api are: it exports both. */
export function standInForComfyUI(source) {
  register(`data:text/javascript,${encodeURIComponent(RESOLVE)}`, { data: source });
}
