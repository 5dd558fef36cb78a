// @ts-check
// Widgets of config fields that are not called like the field. Made from the nodes by tests/reference/make_texts.py.

/** @type {Record<string, string[]>} */
export const WIDGET_NAMES = {
  "adapter.fixed": ["fixed_lora"],
  "embedding.init": ["init", "init_text"],
  "optimizer.lr": ["learning_rate"],
  "samples.cfg": ["sample_cfg"],
  "samples.every": ["sample_every"],
  "samples.frames": ["sample_frames"],
  "samples.prompt": ["sample_prompt"],
  "save.every": ["save_every", "every"],
  "schedule.name": ["scheduler"],
  "slider.cfg": ["drawing_cfg"],
};
