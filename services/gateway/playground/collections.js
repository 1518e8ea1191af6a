// The panel of collections: photographs are added, and found by words, by a photograph or by an object.

import {addAll, itemOf} from "./adding.js";
import {ask, model, post} from "./api.js";
import {chosen} from "./files.js";
import {staying} from "./naming.js";
import {$, busy, grey, inEnglish, really, say, some} from "./page.js";
import {encoded} from "./photo.js";
import {collectionRow, factsOf, hitRow} from "./rows.js";
import {turnTo} from "./settings.js";
import {area, maskOf, needsObject, needsPhoto, photo, push} from "./work.js";

/** What opens a photograph, runs an action, and is told of another search: the page sets them. */
export const on = {open: null, run: null, searched: null};
export let searched = null;  // the request whose hits are shown
const files = new Map();  // by collection and id: the service keeps no photographs
let pending = null;       // a hit that waits for the folder of its photograph

const name = () => $("collection").value.trim();
const place = (collection, id) => `${collection}/${id}`;

export const actions = {
  async index() {
    needsPhoto();
    const of = photo, {name: id, key, file} = of, collection = name(), objects = $("with-objects").checked;
    const send = image => busy(async signal => post("/index", {collection, items: [await itemOf(id, image, of)], objects, model: await modelFor(collection)}, {signal}));
    let answer = await send(key ? {key} : await encoded(file));
    if (key && answer?.errors.length) answer = await send(await encoded(file)); // the key is forgotten, or of another task
    if (answer?.errors.length) throw new Error(answer.errors[0].message);
    if (!answer) return;
    files.set(place(collection, id), file);
    await list();
    say(`${id} ${answer.replaced ? "replaced the photograph of that name in" : "was added to"} ${collection}.`);
  },
  search() { return search({text: $("query").value}); },
  similar() { needsPhoto(); return search({with_text: words()}, photo); },
  "similar-object"() { needsObject(); return search({with_text: words(), area: area()}, photo); },
};

// ---------------------------------------------------------------- collections and their photographs

/** Add many images to a collection: the one that is named in the field. */
export async function receive(images, collection = name()) {
  turnTo($("tab-search"));
  $("collection").value = collection;
  for (const {id, file} of images) files.set(place(collection, id), file);
  try {
    const refused = await addAll(images, {collection, objects: $("with-objects").checked, model: await modelFor(collection)});
    $("more-photographs").open = refused.length > 0;
    say(`${images.length - refused.length} of ${images.length} photographs were added to ${collection}.${refused.length ? ` Not added: ${some(refused)}.` : ""}`);
  } finally { await list(); }
}

/** The model for photographs that are added: a new collection is the chosen one's, another keeps its own. */
async function modelFor(collection) {
  if (!model.get()) return "";
  const {collections} = await post("/describe", {collection: ""});
  return collections.some(each => each.name === collection) ? "" : model.get();
}

/** Show all collections; the one that is named in the field is marked. */
async function list() {
  $("collections").ariaBusy = true;  // what stands below moves when it is filled
  const {collections} = await post("/describe", {collection: ""}).finally(() => { $("collections").ariaBusy = false; });
  $("collections").replaceChildren(...collections.map(each => collectionRow(each, each.name === name(), () => {
    $("collection").value = each.name;
    mark(collections);
  }, () => on.run(remove, each.name, {all: true}, `Delete the collection “${each.name}” with ${factsOf(each)}? The files of its photographs stay where they are.`))));
  $("none").hidden = collections.length > 0;
  $("search").hidden = !collections.length;
  if (!collections.length) $("more-photographs").open = true;
  else if (name() === $("collection").defaultValue && !collections.some(each => each.name === name())) $("collection").value = collections[0].name;
  mark(collections);
}

/** Ask once more, then delete photographs of a collection, or all of it. */
async function remove(collection, which, text) {
  if (!await really(text, "Delete", "Keep")) return say("Nothing was deleted.");
  const answer = await post("/delete", {collection, ...which});  // another question does not stop it
  const isShown = collection === $("searched").textContent;
  if (isShown && which.all) clear();
  for (const row of isShown ? document.querySelectorAll(".hits li") : []) if (which.ids.includes(row.name)) row.remove();
  if (which.all && collection === name()) $("collection").value = $("collection").defaultValue;
  await list();
  say(`${answer.deleted} photograph${answer.deleted === 1 ? " was" : "s were"} deleted from ${collection}.`);
}

function mark(collections) {
  const found = collections.find(each => each.name === name());
  if ($("searched").textContent !== name()) clear();
  $("searched").textContent = name();
  for (const row of $("collections").children) {
    row.firstChild.setAttribute("aria-pressed", row.name === name());
    if (row.name === name()) $("collections").scrollTop = row.offsetTop - $("collections").offsetTop;
  }
  const none = !Number(found?.objects);
  grey($("by-objects"), none ? `No photograph of ${name()} was added with its objects.` : "");
  if (none) $("by-objects").checked = false;
}

/** Show a hit's photograph; where its file is not known yet, the user names the folder. */
async function openHit(collection, hit) {
  const file = files.get(place(collection, hit.id));
  if (file) return reveal(file, hit);
  pending = {collection, hit};
  say(`Choose the folder with the photographs of ${collection}: the service keeps none, and they open from there.`);
  $("root").click();
}

/** Open a hit's photograph; where the hit is an object, it is outlined and selected. */
async function reveal(file, {mask, label}) {
  if (!await on.open(file) || !mask) return;
  const others = staying("/search").filter(object => object.mask.counts !== mask.rle.counts);
  push({objects: [...others, {...maskOf(mask), label, found: true, sought: "/search"}], selected: others.length});
  say(`${photo.name}: the object that was found is outlined.`);
}

for (const id of ["many", "folder"]) {
  $(id).onchange = () => { const images = chosen($(id)); $(id).value = ""; on.run(receive, images); };
}
$("root").onchange = () => on.run(() => {
  const {collection, hit} = pending, {id} = hit, images = chosen($("root"));
  $("root").value = "";
  for (const image of images) files.set(place(collection, image.id), image.file);
  const file = files.get(place(collection, id)) ?? images.find(image => image.file.name === id.split("/").at(-1))?.file;
  if (!file) throw new Error(`That folder has no ${id}: choose the folder that was indexed.`);
  return reveal(file, hit);
});
$("tab-search").addEventListener("click", () => on.run(list));
$("collection").onchange = () => on.run(list);

// ---------------------------------------------------------------- search

/** The words that results of a search by photograph must also match; empty unless the box is ticked. */
const words = () => $("both").checked ? $("query").value : "";

/** Search the collection that is named; `like` is a photograph to search by. */
async function search(given, like = null) {
  const fields = {...asked(), ...given}, request = {path: "/search", fields: Object.fromEntries(Object.entries(fields).filter(([, value]) => value)), name: like?.name};
  const answer = await busy(signal => like ? ask(like, "/search", fields, {signal}) : post("/search", fields, {signal}));
  if (!answer || fields.collection !== name()) return;  // or another collection has been chosen
  hits(answer, fields);
  found(request);
}

function found(request) { searched = request; on.searched(); }
const asked = () => ({collection: name(), model: "", top_k: 24, objects: $("by-objects").checked, filter: filter()});

/** The pairs that a photograph's metadata must have, as the user typed them: owner=ann, year=2024. */
function filter() {
  const pairs = $("where").value.split(",").map(pair => pair.trim()).filter(Boolean).map(pair => {
    const [, key, value] = pair.match(/^([^=]+)=(.*)$/) ?? [];
    if (!key) throw new Error(`“${pair}” is no pair: write NAME=VALUE, as in owner=ann.`);
    return [key.trim(), value.trim()];
  });
  return pairs.length ? Object.fromEntries(pairs) : undefined;
}

/** Remove what was found: it is of another collection. */
function clear() {
  for (const id of ["hits", "others"]) $(id).replaceChildren();
  for (const id of ["unlikely", "nothing"]) $(id).hidden = true;
  found(null);
}

function hits(answer, {collection, text}) {
  const least = answer.likely_score || -1;  // 0: unknown
  const row = hit => hitRow(hit, {
    open: () => on.run(openHit, collection, {...hit, label: text}),
    more: () => on.run(search, {id: hit.id, with_text: words()}),
    drop: () => on.run(remove, collection, {ids: [hit.id]}, `Delete “${hit.id}” from ${collection}? Its file stays where it is.`),
  });
  const [likely, others] = [true, false].map(is => answer.hits.filter(({score}) => score >= least === is));
  $("hits").replaceChildren(...likely.map(row));
  $("others").replaceChildren(...others.map(row));
  $("unlikely").hidden = !others.length;
  $("unlikely").open = !likely.length;  // of a thing that is there, they may be right
  $("nothing").hidden = likely.length > 0;
  $("nothing").textContent = text ? `Nothing clearly like “${text}” in ${collection}.${inEnglish([text])}` : `No photograph in ${collection} fits.`;
  ($("hits").firstChild ?? $("nothing")).scrollIntoView({block: "nearest"});
  const unknown = answer.likely_score ? "" : " The score from which results fit is unknown: the nearest come first.";
  say(likely.length ? `${likely.length} found.${unknown}` : $("nothing").textContent);
}
