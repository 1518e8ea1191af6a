// Clicks, boxes and drawings: each makes an object at once, and the next clicks refine it.

import {ask} from "./api.js";
import {decoding, expected, offered} from "./decoding.js";
import {encode} from "./masks.js";
import {light, pointAt, renameAt} from "./objects.js";
import {$, abort, say, working} from "./page.js";
import {cutOut, paint} from "./paint.js";
import {canvas} from "./photo.js";
import {choiceRow, refill, share, sizesOf} from "./rows.js";
import {take} from "./take.js";
import {NOTHING, draft, draw, drop, giveUp, layers, maskOf, now, onChange, photo, push, question, remember, selected, sketch, stage, step} from "./work.js";

async function prompt(change) {
  const before = now(), object = selected();
  const own = object?.prompt ? before.selected : before.objects.length;
  const prompt = change(object?.prompt ?? {points: [], box: null});
  const objects = before.objects.toSpliced(own, 1, {...before.objects[own], prompt});
  const mine = sketch({...before, objects, selected: own});
  const candidates = await candidatesOf(prompt);
  if (!candidates || draft !== mine) return giveUp(mine);
  objects[own] = {...candidates[0], label: objects[own].label, named: objects[own].named, prompt, candidates, chosen: 0};
  push({...before, objects, selected: own});
  say(`${share(objects[own])} of the photograph. Click again to add to it, or remove a part.`);
}

/** The masks of a prompt, the best first, decoded here or by the service; null if another question has taken its place. */
async function candidatesOf({points, box, mask}) {
  const multimask = points.length === 1 && !box && !mask, fields = {prompts: [{points, ...(box && {box}), ...(mask && {mask})}], multimask};
  const decode = mask ? null : decoding(photo), asked = photo;
  if (decode) {
    abort();
    remember("/segment", fields);
    const found = await decode({points, box});
    if (found || asked !== photo) return asked === photo ? found : null;
  }
  const answer = await question("/segment", fields);
  return answer && answer.results[0].masks.map(maskOf);
}

const PEN = 0.01;  // width of a drawn line, as a share of the photograph's longer side

/** The mask of a line that is drawn round a thing, or to and fro over it. */
function rough(line) {
  const {copy, width, height} = photo, sheet = canvas(copy.width, copy.height), pen = sheet.getContext("2d");
  pen.scale(copy.width / width, copy.height / height);
  for (const {x, y} of line) pen.lineTo(x, y);
  pen.lineWidth = PEN * Math.max(width, height);
  pen.lineJoin = "round";
  pen.fill();
  pen.stroke();
  const pixels = pen.getImageData(0, 0, copy.width, copy.height).data;
  return encode(Uint8Array.from({length: pixels.length / 4}, (_, at) => pixels[4 * at + 3] > 127), copy, photo);
}

export function choose(index) {
  const state = now(), object = selected();
  if (draft || !object?.candidates?.[index]) return;
  push({...state, objects: state.objects.with(state.selected, {...object, ...object.candidates[index], label: object.label, chosen: index, named: object.named || object.found, example: false})});
  say(`${share(selected())} of the photograph.`);
}

onChange(() => {
  const object = selected(), {candidates, chosen} = object ?? {};
  $("about").hidden = !object?.mask;
  $("choices").hidden = !(candidates?.length > 1);
  const names = sizesOf(candidates ?? []);
  const choices = names.map((name, index) => choiceRow(candidates[index], index, name, index === chosen, choose, cutOut(candidates[index].mask, photo.copy, 28)));
  refill($("choices"), $("choices").firstElementChild, ...choices);
});

stage.on = {
  point(x, y, negative) { prompt(former => ({...former, points: [...former.points, {x, y, ...(negative && {negative})}]})); },
  box(box) { prompt(() => ({points: [], box})); },
  drawn(line) { prompt(() => ({points: [], box: null, mask: rough(line)})); },
  hover(x, y) { pointAt({x, y}); if ($("preview").checked) preview(x, y); },
  name: renameAt,
  outside() { if (selected()) actions.next(); },
  leave() { pointAt(null); layers.ghost = waiting = null; pointer = false; if (photo) draw(); },
};

// A preview is at most one at a time, and of the place where the pointer is then. Where the service makes it, it is bulk
// work, and stops by itself if the service is busy. Where it is decoded here, it is on from the start.
offered.then(here => { if (here) { $("preview").checked = true; stage.presses = true; } });
let waiting = null, asking = false, pointer = false;  // pointer: whether it is over the photograph
async function preview(x, y) {
  waiting = {x, y};
  pointer = true;
  if (asking || working() || selected()?.prompt) return;
  asking = true;
  while (waiting && $("preview").checked && !working()) {
    const point = waiting, asked = photo, decode = decoding(photo);
    if (!decode && expected()) break;  // the next move of the pointer may find it ready
    waiting = null;
    const [found] = await (decode ? decode({points: [point]}, {most: 1}) : previewed(asked, point)) ?? [];
    if (found && asked === photo && !working() && $("preview").checked && !selected()?.prompt && pointer) layers.ghost = paint([found], photo.copy, 0.35);
    draw();
    await new Promise(next => decode ? requestAnimationFrame(next) : setTimeout(next, 60));
  }
  asking = false;
}

/** The best mask of a point, as the service makes it; the preview ends where that is slow or fails. */
async function previewed(asked, point) {
  const start = performance.now();
  try {
    const {results: [{masks}]} = await ask(asked, "/segment", {prompts: [{points: [point]}]}, {bulk: true});
    if (performance.now() - start < 3000) return masks.map(maskOf);
  } catch { /* said below */ }
  $("preview").checked = false;
  say("The preview is off: the service is busy, or does not answer.");
  return null;
}

const undone = (way, text) => { abort(); step(way); say(text); };
export const actions = {
  next() {
    if (draft) return say("One moment: the answer is on its way.");  // it would be lost
    push({...now(), selected: -1}); say("Click the next object.");
  },
  cut() { return take("cutout", photo, [selected()]); },
  remove() { if (selected() && !draft) drop(now().selected); },
  clear() { abort(); push(NOTHING); say("Cleared."); },
  undo() { undone("undo", "Undone."); },
  redo() { undone("redo", "Done again."); },
  cancel() { abort(); sketch(null); say("Cancelled."); },
  fit() { stage.fit(); },
  larger() { stage.zoom(1.5); },
  smaller() { stage.zoom(1 / 1.5); },
};
$("preview").onchange = () => { layers.ghost = null; light(); if (photo) draw(); };
