// A folder is a job: its photographs one after another, what is done and what is left, and one data set of all.

import {asked, grouped, shareOf} from "./grouping.js";
import {amend, changeObjects, keepLast, on as keeping, lastOf, recordOf} from "./keeping.js";
import {inherit} from "./inherited.js";
import {askForName} from "./naming.js";
import {$, counted, really, say, some} from "./page.js";
import {idOf, open} from "./photo.js";
import {made} from "./rows.js";
import {turnTo} from "./settings.js";
import {coco, csv, namesOf, save} from "./take.js";
import {draft, onChange, photo} from "./work.js";
import {zip} from "./zip.js";

const CRUMB = 0.002, HELD_OUT = 5;  // a share of the photograph; one photograph in so many is for validation

/** What opens a photograph, adds some to a collection, leaves another folder, and is told of changes: others set them. */
export const on = {open: null, collect: null, leave: () => {}, changed: () => {}};
export let photos = [];  // {path, file, place: folder and path, id, row, done, settled: asked about former labels, count, suggested: scores, broken, refused: why}
let folder = "", at = -1;
const pages = new BroadcastChannel("samclip-job");

export const actions = {
  previous: () => go(at - 1, -1),
  following: () => go(at + 1),
  async done() {
    const each = here(), done = !each?.done;
    if (!each || isWaiting()) return;
    const place = at;
    await amend(each.id, record => ({...record, done, size: {width: photo.width, height: photo.height}}));
    if (at !== place) return;  // somebody has gone on meanwhile
    if (!done) return say(`${each.path} is not done.`);
    const next = nextOf(({done, broken}) => !done && !broken);
    if (next < 0) return say("All photographs are done: save them below the list.");
    return go(next);
  },
  "job-coco": () => saveAll("coco.json", coco),
  "job-csv": () => saveAll("csv", csv),
  async "job-collection"() {
    const all = await named();
    if (!all) return;
    const text = `Add ${counted(all.length)} to a collection, each with the name of its largest object as its label:`;
    const collection = await really(text, "Add", "Cancel", folder.replace(/[^\w.-]+/g, "-").replace(/^[.-]+/, ""));
    if (collection) await on.collect(all.map(({name: id, file, objects}) => ({id, file, metadata: labelOf(objects)})), collection);
  },
  "choose-again"() { $("job-folder").click(); },
};

/** Begin, or go on, with a folder: images as {id, file, folder}. */
export async function begin(images) {
  if (!images.length) throw new Error("There are no photographs here: choose a folder with JPEG, PNG or WebP files.");
  on.leave();
  folder = images[0].folder || "photographs";
  at = -1;
  photos = images.map(({id: path, file}) => ({path, file, place: `${folder}/${path}`, id: idOf(file, `${folder}/${path}`), row: made("li"), done: false, count: 0, suggested: []}));
  await recall();
  $("job-list").replaceChildren(...photos.map(({row}) => row));
  $("job-name").textContent = folder;
  for (const id of ["job", "tab-job"]) $(id).hidden = false;
  $("job").classList.remove("closed");
  turnTo($("tab-job"));
  const said = images[0].folder ? await inherit(folder, photos, opening) : "", former = await lastOf("job"), last = former?.folder === folder ? photos.findIndex(({path}) => path === former.path) : -1;
  await go(last < 0 ? Math.max(0, nextOf(({done}) => !done)) : last, 1, said);
  pages.postMessage({ids: photos.map(({id}) => id)});
}

async function recall() { for (const each of photos) mark(each, await recordOf(each.id)); }

/** Whether an answer is on its way, which the user is told. */
export const isWaiting = () => draft && (say("One moment: the answer is on its way."), true);
/** The photograph of the job that is open, if it is one. */
const here = () => photos[at]?.id === photo?.id ? photos[at] : null;
/** The place of the next photograph that is `wanted`, after the last the first ones. */
export function nextOf(wanted) {
  const found = [...photos.keys()].map(step => (at + 1 + step) % photos.length).find(place => wanted(photos[place]));
  return found ?? -1;
}

/** Open the photograph at a place, or the next one that can be read; `said` is told with it. */
export async function go(to, way = 1, said = "") {
  if (isWaiting()) return;
  const from = at, skipped = [];
  for (; photos[to]; to += way) {
    const each = photos[to];
    at = to;
    const opened = await opening(each);
    if (at !== to) return;  // somebody has gone on meanwhile
    if (opened) return on.open(opened, {note: skipped.length ? `${said} Skipped, because this browser cannot read them: ${some(skipped)}.` : said});
    skipped.push(each.path);
  }
  at = from;
  say(`There is no ${way > 0 ? "next" : "former"} photograph${skipped.length ? ` that this browser can read: ${some(skipped)} cannot be opened` : ""}.`);
}

/** Open a photograph of the folder; undefined, and noted in the list, if it cannot be read. */
export async function opening(each) {
  try {
    const opened = await open(each.file, each.place);
    if (each.broken) note(each, {broken: ""});
    return opened;
  } catch ({message: broken}) { note(each, {broken}); }
}

/** Show in the list that a photograph is `broken`, and left out, or was `refused` by the service: why. */
export function note(each, why) {
  Object.assign(each, why);
  show(each);
}

// ---------------------------------------------------------------- what is shown

function mark(each, {objects, done, settled}) {
  Object.assign(each, {done, settled, count: objects.filter(({suggested}) => !suggested).length});
  each.suggested = objects.filter(({suggested}) => suggested).map(({score}) => score);
  show(each);
}

function show(each) {
  const {path, done, count, suggested, broken, refused, row} = each, button = row.firstChild ?? made("button");
  const facts = [refused && "refused", suggested.length && `${suggested.length} suggested`, count && `${count} object${count > 1 ? "s" : ""}`];
  button.replaceChildren(made("b", done ? "✓ " : "", path), made("span", broken ? "cannot be read" : facts.filter(Boolean).join(", ")));
  button.title = broken || refused || (done ? "done" : "");
  button.onclick = () => go(photos.indexOf(each));
  row.append(button);
  tally();
}

let due = false;
function tally() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    const done = photos.filter(each => each.done).length, broken = photos.filter(each => each.broken && !each.done).length;
    $("job-done").value = done / (photos.length - broken || 1);
    $("job-count").textContent = `${done} of ${photos.length} done, ${photos.length - done - broken} left${broken ? `, ${broken} cannot be read` : ""}`;
    place();
    on.changed();
  });
}

function place() {
  const each = here();
  $("place").textContent = each ? `${at + 1} of ${photos.length}` : `“${folder}”`;
  $("done").hidden = !each;
  $("done").setAttribute("aria-pressed", Boolean(each?.done));
  for (const button of $("job-list").querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
  if (!each) return;
  const list = $("job-list"), {row} = each, top = row.offsetTop - list.offsetTop;
  row.firstChild.setAttribute("aria-current", true);
  if (top < list.scrollTop || top + row.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 2;
  keepLast("job", {folder, path: each.path, done: photos.filter(each => each.done).length, count: photos.length});
}

let shown = null;
onChange(() => { if (photos.length && photo !== shown) { shown = photo; place(); } });
keeping.kept = (id, record) => { for (const each of photos) if (each.id === id) mark(each, record); };
keeping.answered = recall;

// The browser keeps no folder: after a reload, it is asked for once.
lastOf("job").then(former => {
  if (!former || photos.length) return;
  $("place").textContent = `“${former.folder}”: ${former.done} of ${former.count} done`;
  $("job").classList.add("closed");
  $("job").hidden = false;
});

keeping.forgotten = () => { for (const each of photos) mark(each, {objects: [], done: false}); };
$("forget").addEventListener("click", () => { $("job").hidden ||= !photos.length; });

pages.onmessage = ({data: {ids, heard}}) => {
  const others = new Set(ids);
  if (!photos.some(({id}) => others.has(id))) return;  // a folder of the same name may be another one
  say(`“${folder}” is open in another page too: what you do in one is shown in both.`);
  if (!heard) pages.postMessage({ids, heard: true});
};

// ---------------------------------------------------------------- one data set of all

/** The objects that a data set has: what was clicked, found or named, and of everything else whole things without crumbs. */
function taken(objects) {
  const some = objects.filter(({suggested}) => !suggested);
  const wholes = new Set(grouped(some, object => asked(object) || shareOf(object) >= CRUMB).flatMap(({members}) => members.map(({object}) => object)));
  return some.filter(object => wholes.has(object));
}

/** All labelled photographs, {id, file, name, width, height, objects}: those with objects, and those that are done without any. */
async function labelled() {
  const all = [];
  for (const {id, file, path: name} of photos) {
    const {done, size, objects} = await recordOf(id), some = taken(objects), {width, height} = some[0]?.mask ?? size ?? {};
    if (done || some.length) all.push({id, file, name, width, height, objects: some});
  }
  return all;
}

/** Ask once for a name of the objects that have none; null if the user would rather not save. */
async function named() {
  const all = await labelled();
  if (!all.length) throw new Error("There is nothing to save yet: label a photograph, or mark one as done.");
  const nameless = all.map(each => ({...each, objects: each.objects.filter(({label}) => !label)})).filter(({objects}) => objects.length);
  if (!nameless.length) return all;
  const label = await askForName(nameless.flatMap(({objects}) => objects).length);
  if (!label) return null;
  for (const {id, objects} of nameless) {
    const those = new Set(objects.map(({mask}) => mask.counts));
    await changeObjects(id, all => all.map(object => !object.label && those.has(object.mask.counts) ? {...object, label, named: true} : object));
  }
  return named();
}

/** The name of the largest object, as metadata. */
function labelOf(objects) {
  const [largest] = objects.toSorted((one, other) => shareOf(other) - shareOf(one));
  return largest && {label: largest.label};
}

/** Whether a photograph is for validation: the same ones, however many there are. */
const heldOut = ({name}) => ([...name].reduce((sum, letter) => Math.imul(sum ^ letter.codePointAt(0), 0x01000193), 0x811c9dc5) >>> 8) % HELD_OUT === 0;

async function saveAll(ending, make) {
  const all = await named();
  if (!all) return;
  const names = namesOf(all.flatMap(({objects}) => objects)), split = $("split").checked;
  const parts = split ? [["train.", all.filter(each => !heldOut(each))], ["val.", all.filter(heldOut)]] : [["", all]];
  const files = parts.filter(([, some]) => some.length).map(([part, some]) => [make(some, names), `${folder}.${part}${ending}`, some.length]);
  const archive = files.length > 1 && `${folder}.${ending.split(".")[0]}.zip`;
  if (archive) save(await zip(files), archive); else save(...files[0]);
  say(`Saved: ${files.map(([, name, count]) => `${name} with ${counted(count)}`).join(" and ")}${archive ? `, in ${archive}` : ""}.`);
}
