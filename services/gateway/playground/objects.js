// The list of objects: groups and parts, what points at a line or an object, and saving.

import {stream} from "./api.js";
import {tiles} from "./closely.js";
import {asked, grouped, nameOf, shareOf, withParts} from "./grouping.js";
import {askForNames, askToRename, rename, staying} from "./naming.js";
import {$, busy, grey, levelOf, really, say, showModel, sure} from "./page.js";
import {cutOut, paint, topmost} from "./paint.js";
import {made, objectLine, percent, share} from "./rows.js";
import {labels} from "./settings.js";
import {take} from "./take.js";
import {draft, draw, drop, giveUp, isExample, layers, maskOf, needsPhoto, now, onChange, photo, push, remember, render, selected, sketch} from "./work.js";

const NAMED = ["coco", "yolo", "csv"];  // what is saved with names
const WAIT = "One moment: more may arrive.", CRUMB = 1.3;  // on the slider: 0.2 %, as in pictures that the client draws
const pictures = new WeakMap();  // cut-outs by mask
let groups = [], top = null, lit = null, pointed = null, of = null;
let folded = new Set(), chosen = new Set();  // groups' names and masks that are not folded as usual; masks

export const actions = {
  async everything() {
    needsPhoto();
    const isMap = ({sought}) => sought === "/semantic", others = staying("/everything"), wished = others.filter(object => !isMap(object));
    const replace = wished.length && await really(`Keep the ${wished.length === 1 ? "object" : `${wished.length} objects`} that you clicked, named or found?`, "Replace", "Keep");
    const kept = replace ? others.filter(isMap) : others;
    const names = $("names").value, found = new Map(), asked = photo;
    const fields = names === "labels" ? {labels: labels()} : {vocabulary: names};
    Object.assign(fields, tiles());
    remember("/everything", fields);
    const objects = () => [...kept, ...[...found.values()].sort((one, other) => other.area - one.area)];
    let mine = draft;
    const answer = await busy(async signal => {
      for await (const {found: more, withdrawn, progress, model} of stream(asked, "/everything", fields, {signal})) {
        showModel(model);
        for (const id of withdrawn) found.delete(id);
        for (const {id, mask} of more) {
          found.set(id, {...maskOf(mask), area: Number(mask.area), score: mask.label ? mask.label_score : undefined, sought: "/everything"});
        }
        $("progress").value = progress;
        if (more.length || withdrawn.length) mine = sketch({objects: objects()});
      }
    });
    if (!answer) return giveUp(mine);
    push({objects: objects()});
    const all = members().length, parts = all - wholes().length;
    say(`${all} objects in ${(answer.ms / 1000).toFixed(1)} s${parts ? `, ${parts} of them parts of others` : ""}.`);
  },
  "show-all"() { const {objects} = now(); hide(objects, objects.some(wanted)); },
};

// ---------------------------------------------------------------- what is shown

/** The smallest share of the photograph that is shown: the slider's steps are powers of ten. */
const least = () => Number($("smallest").value) && 10 ** (Number($("smallest").value) - 4);
/** Whether an object is in the list. At first, only crumbs of everything are not: what was asked for is. */
const listed = object => object.mask && (shareOf(object) >= least() || (!object.area && Number($("smallest").value) <= CRUMB));
const wanted = object => listed(object) && !object.hidden;

/** The objects that are drawn: parts only if their whole is unfolded or selected. */
function inView() {
  const some = members => members.flatMap(member => [member.object, ...(isOpen(member) || member.object === selected() ? some(member.parts) : [])]);
  return some(wholes()).filter(wanted);
}

const wholes = () => groups.flatMap(({members}) => members);
const members = () => withParts(wholes());

function hide(some, hidden) {
  const state = now(), those = new Set(some);
  push({...state, objects: state.objects.map(object => those.has(object) ? {...object, hidden} : object)});
}

/** Show some objects and hide all others; if these are alone already, show all. */
function showOnly(some) {
  const state = now(), alone = isAlone(some), those = new Set(some);
  push({...state, objects: state.objects.map(object => ({...object, hidden: !alone && !those.has(object)}))});
}

function isAlone(some) {
  const shown = now().objects.filter(wanted), those = new Set(some);
  return shown.length < now().objects.length && shown.length > 0 && shown.every(object => those.has(object));
}

onChange(state => {
  if (of !== photo) { of = photo; folded = new Set(); chosen = new Set(); $("smallest").value = CRUMB; }
  groups = grouped(state.objects, listed);
  list();
  repaint();
  const objects = state.objects.filter(object => object.mask), some = toSave();
  for (const id of ["found", "take"]) $(id).hidden = !objects.length || isExample();
  $("names").hidden = isExample();
  $("objects").classList.toggle("example", isExample());
  $("smallest-shown").textContent = least() ? percent(least()) : "any size";
  $("show-all").textContent = objects.some(wanted) ? "Hide all" : "Show all";
  grey($("show-all"), draft ? WAIT : "");
  $("saved").textContent = `Save ${objects.some(({mask}) => chosen.has(mask)) ? "the chosen " : ""}${some.length === 1 ? "object" : `${some.length} objects`}`;
});

// ---------------------------------------------------------------- the list

function list() {
  const focus = document.activeElement, former = focus.closest("#objects .line"), at = lines().indexOf(former);
  $("objects").replaceChildren(...groups.map(group => group.members.length > 1 ? groupRow(group) : memberRow(group.members[0])));
  if (draft) for (const control of $("objects").querySelectorAll("button, input")) grey(control, WAIT);
  if (!former) return;
  const same = ({members}) => members.length === former.members.length && members[0].object.mask === former.members[0].object.mask;
  const line = lines().find(same) ?? lines()[at] ?? lines().at(-1);
  (line?.children[[...former.children].indexOf(focus)] ?? line?.querySelector(".pick"))?.focus();
}

const lines = () => [...$("objects").querySelectorAll(".line")];

function groupRow({name, members}) {
  const usual = groups.length === 1 || members.some(({object}) => asked(object));
  const unfolded = folded.has(name) !== usual || members.some(contains);
  const row = made("li", line(name, members, {folds: `${members.length} of them`}, name, unfolded));
  if (unfolded) row.append(made("ul", ...members.map(memberRow)));
  return row;
}

function memberRow(member) {
  const {object, name, parts} = member, unfolded = isOpen(member);
  const row = made("li", line(name, [member], {...factsOf(object), folds: parts.length ? `${parts.length} parts` : ""}, object.mask, unfolded));
  if (unfolded) row.append(made("ul", ...parts.map(memberRow)));
  return row;
}

/** What a line says of an object: its picture, how sure the model is of its name, or else its share of the photograph, and its sizes. */
function factsOf(object) {
  const {mask, score, found, suggested, asText, candidates = []} = object, known = (found || suggested) && score !== undefined;
  if (!pictures.has(mask)) pictures.set(mask, cutOut(mask, photo.copy, 64));
  const facts = [suggested ? `suggested, ${score.toFixed(2)}` : known ? sure(score, asText) : share(object), candidates.length > 1 && `${candidates.length} sizes`];
  return {picture: pictures.get(mask), facts: facts.filter(Boolean).join(", "), level: known ? levelOf(score) : undefined, title: known ? `score ${score.toFixed(2)}, ${share(object)} of the photograph` : ""};
}

const isOpen = ({object, parts}) => parts.length > 0 && (folded.has(object.mask) || parts.some(contains));
const contains = member => withParts([member]).some(({object}) => object === selected());

function line(name, members, facts, key, unfolded) {
  const all = withParts(members).map(({object}) => object), masks = all.map(({mask}) => mask), [{object, index}] = members;
  const ticked = masks.filter(mask => chosen.has(mask)).length, hidden = !all.some(wanted);
  const state = {open: unfolded, chosen: ticked === masks.length || (ticked ? null : false), selected: object === selected(), hidden, alone: isAlone(all), suggested: members.some(({object}) => object.suggested)};
  return objectLine(name, members, facts, state, {
    fold() { if (!folded.delete(key)) folded.add(key); render(); },
    choose(on) { for (const mask of masks) if (on) chosen.add(mask); else chosen.delete(mask); render(); },
    pick() { push({...now(), selected: object === selected() ? -1 : index}); },
    hide() { hide(all, !hidden); },
    only() { showOnly(all); },
    accept() { rename(members.map(({object}) => object).filter(({suggested}) => suggested), object.label); },
    rename() { askToRename(members.map(({object}) => object), name); },
    drop() { drop(index); },
    light: some => light(some?.map(({object}) => object)),
  });
}

// ---------------------------------------------------------------- pointing

/** The pointer is at a place of the photograph, or has left it. */
export function pointAt(place) { pointed = place; lightUp(place && underPointer()); }

/** Ask for a new name for the object at a place in the photograph. */
export function renameAt(place) {
  const object = objectAt(place);
  if (object) askToRename([object], nameOf(object, now().objects.indexOf(object)));
}

/** Show one object, or several, alone and mark their lines; without any: all objects. */
export function light(some = null) { pointed = null; lightUp(some); }

function lightUp(some) {
  some = some && [some].flat();
  if (!photo || (some?.length === lit?.length && (some ?? []).every(object => lit.includes(object)))) return;
  lit = some;
  repaint();
}

const underPointer = () => $("preview").checked ? null : objectAt(pointed);

function objectAt({x, y}) {
  const {width, height} = photo.copy;
  if (!top || x < 0 || y < 0 || x >= photo.width || y >= photo.height) return null;
  return now().objects[top[Math.floor(y / photo.height * height) * width + Math.floor(x / photo.width * width)]] ?? null;
}

/** Paint whole objects filled and the outlines of their parts, or the lit ones alone, and mark their lines. */
function repaint() {
  const drawn = new Set(inView()), whole = new Set(wholes().map(({object}) => object));
  const covered = object => now().heat && object.colour !== undefined, filled = object => object === selected() || (!object.suggested && whole.has(object));
  const shown = now().objects.map(object => ({...object, outlined: !filled(object), hidden: !drawn.has(object) || covered(object)}));
  top = topmost(shown, photo.copy);
  if (pointed && !$("preview").checked) lit = underPointer() && [underPointer()];  // objects may have arrived under it
  else lit = lit?.filter(object => now().objects.includes(object)) ?? null;
  const parts = new Set(members().flatMap(member => lit?.includes(member.object) ? member.parts.map(({object}) => object) : []).filter(wanted));
  const alone = now().objects.map(object => ({...object, outlined: !lit?.includes(object), hidden: !lit?.includes(object) && !parts.has(object)}));
  layers.painted = paint(lit?.length ? alone : shown, photo.copy, Number($("opacity").value));
  draw();
  for (const row of lines()) {
    row.classList.toggle("lit", withParts(row.members).some(({object}) => lit?.includes(object)));
  }
}

// ---------------------------------------------------------------- saving

/** The chosen objects, or else the selected one, or else all that are drawn. */
function toSave() {
  const {objects} = now(), ticked = objects.filter(({mask}) => chosen.has(mask));
  const some = ticked.length ? ticked : selected()?.mask ? [selected()] : inView().filter(({suggested}) => !suggested);
  return some.map(object => ({...object, colour: object.colour ?? objects.indexOf(object)}));
}

for (const button of $("take").querySelectorAll("button")) {
  const kind = button.dataset.take;
  actions[button.id = `take-${kind}`] = async () => {
    if (!NAMED.includes(kind) || await askForNames(toSave())) return take(kind, photo, toSave());
  };
}
$("opacity").oninput = $("smallest").oninput = render;
