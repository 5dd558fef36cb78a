// @ts-check
// How the panel of a run looks.

const THUMBS = 58; // px, below the newest sample

export const STYLE = `
.loom-panel { gap: 5px; width: 100%; padding: 6px; overflow: hidden; line-height: 1.35; }
.loom-panel > * { flex: none; }
.loom-panel.idle > :not(.head):not(.loom-plan) { display: none; }
.loom-panel.empty > .chart, .loom-panel.empty > .legend { display: none; }
.loom-panel [hidden], .loom-plan.during { display: none !important; }
.loom-panel .head { display: flex; flex-wrap: wrap; gap: 3px 10px; align-items: center; }
.loom-panel .now { font-size: 17px; font-weight: 600; font-variant-numeric: tabular-nums; }
.loom-panel .doing { font-size: 13px; font-weight: 600; }
.loom-panel .line { flex: 1 1 100%; font-size: 11.5px; opacity: .85; overflow-wrap: anywhere; }
.loom-panel.idle .line, .loom-panel.idle .now { display: none; }
.loom-panel .status { padding: 1px 8px; border-radius: 9px; background: rgba(127, 127, 127, .25); font-weight: 600; }
.loom-panel .status.training { background: #2563b8; color: #fff; }
.loom-panel .status.finished, .loom-panel .status.stopped { background: #2b7a3d; color: #fff; }
.loom-panel .status.failed { background: #b3352b; color: #fff; }
.loom-panel .status.paused, .loom-panel .status.cancelled, .loom-panel .status.interrupted { background: #8a6414;
  color: #fff; }
.loom-panel .bar { height: 4px; border-radius: 2px; background: rgba(127, 127, 127, .25); overflow: hidden; }
.loom-panel .bar > div { height: 100%; background: #4ea1ff; }
.loom-panel .buttons { display: flex; flex-wrap: wrap; gap: 4px; }
.loom-panel .error { padding: 6px 8px; border-radius: 5px; border-left: 4px solid #ff5f56;
  background: rgba(255, 95, 86, .16); user-select: text; white-space: pre-wrap; overflow-wrap: anywhere; }
.loom-panel .chart { position: relative; flex: 1 1 130px; min-height: 120px; max-height: 220px; }
.loom-panel .chart canvas { position: absolute; inset: 0; width: 100%; height: 100%; cursor: crosshair; }
.loom-panel .chart .readout { position: absolute; left: 0; right: 0; bottom: -2px; text-align: center; font-size: 11px;
  opacity: .8; pointer-events: none; white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
  transform: translateY(100%); }
.loom-panel .legend { display: flex; flex-wrap: wrap; gap: 2px 10px; font-size: 12px; margin-top: 14px; }
.loom-panel .legend span::before { content: ""; display: inline-block; width: 8px; height: 8px; margin-right: 4px;
  border-radius: 50%; background: var(--c); }
.loom-panel .legend .saves::before { border-radius: 0; clip-path: polygon(50% 0, 100% 100%, 0 100%); }
.loom-panel .pictures { display: flex; flex-direction: column; gap: 6px; flex: 1 0 auto; }
.loom-panel .newest { flex: 1; min-height: 0; width: 100%; padding: 0; border: 0; border-radius: 6px; cursor: zoom-in;
  background: rgba(0, 0, 0, .28); }
.loom-panel .newest img { display: block; width: 100%; height: 100%; object-fit: contain; }
.loom-panel .small { display: flex; gap: 6px; flex: none; height: ${THUMBS}px; }
.loom-panel .strip { flex: 1; display: flex; gap: 6px; overflow-x: auto; align-items: flex-start; }
.loom-panel .pictures figure { position: relative; margin: 0; flex: none; width: 56px; text-align: center;
  cursor: pointer; }
.loom-panel .pictures figure.chosen img { outline: 2px solid #4ea1ff; outline-offset: -2px; }
.loom-panel .pictures figure img { width: 56px; height: 56px; object-fit: cover; object-position: left;
  border-radius: 4px; background: rgba(0, 0, 0, .25); }
.loom-panel .pictures figcaption { position: absolute; left: 0; right: 0; bottom: 0; padding: 1px 2px; font-size: 11px;
  color: #fff; background: rgba(0, 0, 0, .62); border-radius: 0 0 4px 4px; }
.loom-panel .messages { max-height: 64px; overflow-y: auto; font-size: 12px; user-select: text;
  overflow-wrap: anywhere; }
.loom-panel .messages div + div { border-top: 1px solid rgba(127, 127, 127, .2); }
`;
