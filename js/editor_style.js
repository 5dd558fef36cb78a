// @ts-check
// How the Dataset Editor looks.

export const STYLE = `
.loom-editor { gap: 6px; width: 100%; padding: 6px; }
.loom-editor .tools input[type=text] { flex: 1 1 90px; }
.loom-editor .notice { flex: 1 1 100%; }
.loom-editor .chips { display: flex; flex-wrap: wrap; gap: 4px; }
.loom-editor .chips button { border-radius: 11px; padding: 2px 9px; }
.loom-editor button[aria-pressed=true] { background: #2563b8; border-color: #2563b8; color: #fff; }
.loom-editor .main { flex: 1; min-height: 0; display: flex; gap: 8px; }
.loom-editor .tags { width: 190px; flex: none; display: flex; flex-direction: column; gap: 4px; min-height: 0; }
.loom-editor .tags .list { flex: 1; overflow-y: auto; min-height: 0; display: flex; flex-direction: column; gap: 1px; }
.loom-editor .tags .list button { display: flex; gap: 6px; justify-content: space-between; text-align: left;
  border-color: transparent; background: none; padding: 2px 6px; }
.loom-editor .tags .list button[aria-pressed=true] { background: #2563b8; }
.loom-editor .tags .list span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.loom-editor .tags .list small { opacity: .7; font-variant-numeric: tabular-nums; }
.loom-editor .grid { flex: 1; overflow-y: auto; display: grid; gap: 8px; align-content: start; min-width: 0;
  grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
.loom-editor .card { display: flex; flex-direction: column; gap: 3px; border-radius: 6px; padding: 5px; min-width: 0;
  background: rgba(127, 127, 127, .12); }
.loom-editor .card.out { opacity: .45; }
.loom-editor .card.changed { outline: 2px solid #e0a030; }
.loom-editor .card img { width: 100%; height: 130px; object-fit: contain; background: rgba(0, 0, 0, .2);
  border-radius: 4px; cursor: zoom-in; }
.loom-editor .pair { display: flex; gap: 3px; height: 130px; }
.loom-editor .pair .controls { flex: 0 0 38%; display: flex; flex-direction: column; gap: 3px; min-width: 0; }
.loom-editor .pair .controls img { flex: 1; min-height: 0; height: 0; cursor: default; }
.loom-editor .pair .controls .none { flex: 1; display: flex; align-items: center; justify-content: center;
  text-align: center; border: 1px dashed #e0a030; border-radius: 4px; font-size: 11px; padding: 2px; }
.loom-editor .pair > img { flex: 1; min-width: 0; }
.loom-editor .card .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; opacity: .75; }
.loom-editor .card textarea { resize: vertical; min-height: 48px; width: 100%; box-sizing: border-box; }
.loom-editor .card label { display: flex; gap: 4px; align-items: center; margin-top: auto; }
.loom-trained { font-size: 11px; opacity: .75; overflow-wrap: anywhere; display: -webkit-box; overflow: hidden;
  -webkit-box-orient: vertical; -webkit-line-clamp: 3; }
.loom-notes { display: flex; flex-direction: column; gap: 2px; font-size: 11px; line-height: 1.35; }
.loom-notes div { padding-left: 7px; border-left: 3px solid #8b93a1; overflow-wrap: anywhere; }
.loom-notes .look { border-color: #e0a030; }
.loom-notes .stop { border-color: #ff5f56; }
.loom-editor [hidden] { display: none !important; }
`;
