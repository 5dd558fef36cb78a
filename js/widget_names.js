// @ts-check
// Widgets of config fields that are not called like the field. Made from the nodes by tests/reference/make_texts.py.

/** @type {Record<string, string[]>} */
export const WIDGET_NAMES = {
  "embedding.init": ["init_text", "init"],
  "optimizer.lr": ["learning_rate"],
  "samples.cfg": ["sample_cfg"],
  "samples.every": ["sample_every"],
  "samples.prompt": ["sample_prompt"],
  "save.every": ["save_every", "every"],
  "schedule.name": ["scheduler"],
};
