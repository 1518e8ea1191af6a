// The list of objects: everything in the photograph, what points at a row or an object, and saving.

import {stream} from "./api.js";
import {$, busy, showModel} from "./page.js";
import {paint} from "./paint.js";
import {objectRow} from "./rows.js";
import {labels} from "./settings.js";
import {take} from "./take.js";
import {change, draft, draw, giveUp, layers, maskOf, needsPhoto, now, onChange, photo, push, remember, render, replaceBy, selected, sketch} from "./work.js";

let top = null, lit = null, pointed = null;

export const actions = {
  async everything() {
    needsPhoto();
    const names = $("names").value, found = new Map(), asked = photo;
    const fields = names === "labels" ? {labels: labels()} : {vocabulary: names};
    remember("/everything", fields);
    const objects = () => [...found.values()].sort((one, other) => other.area - one.area);
    let mine = draft;
    const answer = await busy(async signal => {
      for await (const {found: more, withdrawn, progress, model} of stream(asked, "/everything", fields, {signal})) {
        showModel(model);
        for (const id of withdrawn) found.delete(id);
        for (const {id, mask} of more) found.set(id, {...maskOf(mask), area: Number(mask.area), score: mask.label ? mask.label_score : undefined});
        $("progress").value = progress;
        if (more.length || withdrawn.length) mine = sketch({objects: objects()});
      }
    });
    if (!answer) return giveUp(mine);
    replaceBy(objects(), `${found.size} objects in ${(answer.ms / 1000).toFixed(1)} s.`);
  },
};

onChange(state => {
  list(state);
  repaint();
  const any = state.objects.some(object => object.mask);
  $("found").hidden = !any;
});

/** Show a row for each object, with what its buttons do. */
function list(state) {
  const rows = state.objects.flatMap((object, index) => object.mask ? [objectRow(object, index, index === state.selected, {
    pick() { push({...state, selected: index === state.selected ? -1 : index}); },
    hide() { change(index, {...object, hidden: !object.hidden}); },
    drop() { change(index); },
    light,
  })] : []);
  for (const button of rows.flatMap(row => [...row.querySelectorAll("button")])) button.disabled = Boolean(draft);
  $("objects").replaceChildren(...rows);
}

/** The pointer is at a place of the photograph, or has left it. */
export function pointAt(place) { pointed = place; light(place ? underPointer() : null); }

/** Show one object alone and mark its row; without one: all objects. */
export function light(object = null) {
  if (object === lit || !photo) return;
  lit = object;
  repaint();
}

function underPointer() {
  const {x, y} = pointed, {width, height} = photo.copy;
  if (!top || $("preview").checked || x < 0 || y < 0 || x >= photo.width || y >= photo.height) return null;
  return now().objects[top[Math.floor(y / photo.height * height) * width + Math.floor(x / photo.width * width)]] ?? null;
}

/** Paint the objects, or the lit one alone, and mark its row. */
function repaint() {
  const {objects} = now(), {width, height} = photo.copy, opacity = Number($("opacity").value);
  const all = paint(objects, width, height, opacity);
  top = all.top;
  if (pointed && !$("preview").checked) lit = underPointer();  // objects may have arrived under it
  else if (!objects.includes(lit)) lit = null;
  layers.painted = lit ? paint(objects.map(object => ({...object, hidden: object !== lit})), width, height, opacity).picture : all.picture;
  draw();
  for (const row of $("objects").children) row.classList.toggle("lit", row.object === lit);
}

for (const button of $("take").querySelectorAll("button")) {
  actions[button.id = `take-${button.dataset.take}`] = () => take(button.dataset.take, photo, now().objects, selected());
}
$("opacity").oninput = render;
