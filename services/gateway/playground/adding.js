// Adds many photographs to a collection, a few at a time, while the page can be used.

import {post, service} from "./api.js";
import {forEach, patiently} from "./many.js";
import {$, say} from "./page.js";
import {encoded, open, thumbnail} from "./photo.js";
import {made} from "./rows.js";

let work = null;

/** An item of a request to add a photograph: its id, its content or key, and its metadata with a thumbnail. */
export async function itemOf(id, image, photo, metadata = {}) {
  const others = new TextEncoder().encode(Object.entries(metadata).join("")).length, small = thumbnail(photo, 112, (await service).max_metadata_bytes - others - "thumbnail".length);
  return {id, image, metadata: {...metadata, ...(small && {thumbnail: small})}};
}

/** Add images, {id, file, metadata} each, to a collection; returns the ids of those that were refused. `given`: the other fields of each request. */
export async function addAll(images, given) {
  if (work) throw new Error("Photographs are being added already: wait, or stop it first.");
  if (!images.length) throw new Error("There are no photographs here: choose JPEG, PNG or WebP files, or a folder with some.");
  const mine = work = new AbortController(), left = new Set(images.map(({id}) => id));
  let done = 0, failed = 0;
  const show = () => {
    $("added").value = done / images.length;
    $("added-count").textContent = `${done} of ${images.length} photographs${failed ? `, ${failed} not added` : ""}`;
    $("failed").hidden = !failed;
    $("failed-count").textContent = `${failed} not added`;
  };
  async function one({id, file, metadata}) {
    const error = await add(id, file, metadata, given, mine.signal);
    if (!error) left.delete(id);
    else { failed++; $("failures").append(made("li", `${id}: ${error.replace(file.name, "it")}`)); }
    done++;
    show();
  }
  $("failures").replaceChildren();
  $("failed").open = true;
  show();
  $("adding").hidden = false;
  $("adding").scrollIntoView({block: "nearest"});  // hits may stand above it
  try { await forEach(images, one, mine.signal); } finally { mine.abort(); work = null; $("adding").hidden = true; }
  if (failed) $("failed").scrollIntoView({block: "nearest"});
  return [...left];
}

/** Add one photograph; returns why it could not be, if so. Throws what would stop the next one, too. */
async function add(id, file, metadata, given, signal) {
  let item;
  try {
    const content = await encoded(file), photo = await open(file);
    item = await itemOf(id, photo.file === file ? content : await encoded(photo.file), photo, metadata);
  } catch (error) { return error.message; }
  try {
    const {errors} = await patiently(() => post("/index", {...given, items: [item]}, {signal, bulk: true}));
    return errors[0]?.message;
  } catch (error) {
    if (error.name === "AbortError") return "stopped";
    if (error.status === 413 || error.status === 504) return error.message;
    throw error;
  }
}

$("stop").onclick = () => { work?.abort(); say("Stopped. What was added stays."); };
