// @ts-check
// What 0 stands for in a widget where it is no amount. Made from the nodes by tests/reference/make_texts.py.

/** By node, by widget: a word of zero.* in js/locales. @type {Record<string, Record<string, string>>} */
export const ZEROS = {
  "LoraLoomLoadFolder": {
    "repeats": "auto",
    "frame_rate": "all",
    "clip_stride": "half",
    "scene_change": "off",
    "control_resolution": "target",
  },
  "LoraLoomTrainLora": {
    "steps": "auto",
    "rank": "auto",
    "learning_rate": "auto",
    "resolution": "auto",
    "alpha": "rank",
    "max_grad_norm": "off",
    "shift": "auto",
    "sample_every": "off",
    "multires_iterations": "off",
    "epochs": "steps",
    "sample_frames": "auto",
  },
  "LoraLoomConvertLora": {
    "approximate_rank": "off",
  },
  "LoraLoomMergeLoras": {
    "rank": "exact",
    "approximate_rank": "off",
  },
  "LoraLoomResizeLora": {
    "conv_rank": "rank",
  },
  "LoraLoomExtractLora": {
    "conv_rank": "rank",
  },
  "LoraLoomZipLoras": {
    "resolution": "auto",
  },
  "LoraLoomTrainEmbedding": {
    "steps": "auto",
    "learning_rate": "auto",
    "resolution": "auto",
    "sample_every": "off",
  },
  "LoraLoomCheck": {
    "resolution": "auto",
  },
  "LoraLoomFindLearningRate": {
    "resolution": "auto",
  },
  "LoraLoomLoadHubDataset": {
    "limit": "all",
  },
  "LoraLoomDatasetOptions": {
    "repeats": "auto",
    "min_side_px": "auto",
    "max_side_px": "no_limit",
    "limit": "all",
  },
  "LoraLoomDatasetFromImages": {
    "repeats": "auto",
  },
  "LoraLoomDatasetFromLatents": {
    "repeats": "auto",
  },
  "LoraLoomOptimizerSettings": {
    "ema_decay": "off",
    "beta2": "auto",
    "prodigy_beta3": "auto",
  },
  "LoraLoomAdapterSettings": {
    "conv_rank": "rank",
    "conv_alpha": "conv_rank",
    "max_norm": "off",
    "lokr_factor": "auto",
    "oft_constraint": "no_limit",
  },
  "LoraLoomTextEncoderSettings": {
    "lr": "learning_rate",
    "rank": "rank",
    "alpha": "rank",
  },
  "LoraLoomPivotalSettings": {
    "lr": "learning_rate",
  },
  "LoraLoomPriorSettings": {
    "weight": "off",
  },
  "LoraLoomLossNoiseSettings": {
    "shift": "auto",
    "multires_iterations": "off",
  },
  "LoraLoomValidationSettings": {
    "every": "off",
    "patience": "off",
  },
  "LoraLoomCompareCheckpoints": {
    "width": "samples",
    "height": "samples",
    "steps": "samples",
    "cfg": "samples",
  },
  "LoraLoomTrainBothExperts": {
    "steps": "auto",
    "rank": "auto",
    "learning_rate": "auto",
    "resolution": "auto",
    "alpha": "rank",
    "max_grad_norm": "off",
    "sample_every": "off",
    "boundary": "auto",
    "sample_frames": "auto",
  },
  "LoraLoomTrainSlider": {
    "steps": "auto",
    "rank": "auto",
    "learning_rate": "auto",
    "resolution": "auto",
    "guidance": "auto",
    "drawing_cfg": "auto",
    "alpha": "rank",
    "sample_every": "off",
  },
};
