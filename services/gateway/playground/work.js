// The open photograph, the objects over it, and the questions about them. Other files add what they show.

import {ask, model} from "./api.js";
import {History} from "./history.js";
import {decode} from "./masks.js";
import {$, busy, grey, showModel} from "./page.js";
import {Stage} from "./stage.js";

export const NOTHING = {objects: [], missing: [], selected: -1, heat: null, request: null};  // missing: words that are not there; request: what was asked last
export const stage = new Stage($("stage"));
export const layers = {painted: null, ghost: null};  // pictures over the photograph: objects, preview
export let photo = null, draft = null, last = null;
let history = new History(NOTHING);
const shown = [];  // called with the state after each change

export const now = () => draft ?? history.state;
export const selected = () => now().objects[now().selected];
/** Whether all that is shown is the answer with which the page begins: nobody has asked for it. */
export const isExample = () => now().objects.length > 0 && now().objects.every(({example}) => example);
export const onChange = show => shown.push(show);

/** Begin with another photograph, and the objects that it has: undo does not take them away. */
export function begin(opened, objects) {
  photo = opened;
  history = new History({...NOTHING, objects});
  draft = last = null;
  for (const id of ["undo", "redo"]) $(id).hidden = true;
  stage.show(photo);
  render();
}

/** Show a state that the user can undo; `sketch` shows one that an answer will replace. A heat map stays until a state has another. */
export function push(state) { const {heat} = now(); draft = null; history.push({...NOTHING, heat, ...state, request: last}); render(); }
export function sketch(state) { draft = state && {...NOTHING, heat: now().heat, ...state}; render(); return draft; }
/** Forget a draft, unless another one has taken its place. */
export function giveUp(mine) { if (draft === mine) sketch(null); }

/** Change every state, without a step that undo takes back; `render` shows it. */
export const rebase = change => history.rebase(change);

export function step(way) {
  if (!draft || way === "redo") history[way]();
  draft = null;
  last = history.state.request;
  render();
}

/** Bring all that is shown up to date with the state. */
export function render() {
  if (!photo) return;
  layers.ghost = null;
  for (const show of shown) show(now());
  $("undo").hidden &&= !history.canUndo || isExample();  // once shown, they stay
  $("redo").hidden &&= !history.canRedo;
  grey($("undo"), history.canUndo || draft ? "" : "There is nothing to undo.");
  grey($("redo"), history.canRedo ? "" : "There is nothing to do again.");
  draw();
}

export function draw() {
  const {heat} = now(), prompt = selected()?.prompt;
  stage.over([heat, layers.painted, layers.ghost].filter(Boolean), prompt?.points, prompt?.box);
}

/** Remove an object. */
export function drop(index) { push({...history.state, objects: history.state.objects.toSpliced(index, 1), selected: -1}); }

// ---------------------------------------------------------------- questions

/** Keep a request for "Use this answer in a program", without what was not given. */
export function remember(path, fields) {
  const given = Object.entries({model: model.get(), ...fields}).filter(([, value]) => value !== undefined && value !== "");
  last = {path, fields: Object.fromEntries(given), name: photo.name};
}

/** Ask the chosen model about the photograph, or the one in `fields`; null if the user has cancelled, or opened another. */
export async function question(path, fields) {
  needsPhoto();
  remember(path, fields);
  const asked = photo, answer = await busy(signal => ask(asked, path, fields, {signal}));
  if (!("model" in fields)) showModel(answer?.model);
  return asked === photo ? answer : null;
}

export const maskOf = mask => ({mask: decode(mask.rle), label: mask.label, quality: mask.predicted_iou});
export const area = () => { const {height, width, counts} = selected().mask; return {rle: {height, width, counts}}; };
export const needsPhoto = () => { if (!photo) throw new Error("Open a photograph first."); };
export const needsObject = () => { if (!selected()?.mask) throw new Error("Select an object first: click one in the photograph, or a row of the list."); };
