// What somebody has made of each photograph, kept in this browser: work survives a reload.

import {say} from "./page.js";
import {draft, now, onChange, photo, push} from "./work.js";

const RECORDS = "photographs", LAST = "last";  // stores: {objects, done} by photograph; what is open
const NOTHING = {objects: [], done: false};
const LONGEST = 2000;  // milliseconds that a photograph waits for its objects
let ready = null;   // the photograph whose objects are kept: those of another are being read
let kept = null;    // its objects as they are kept
let last = null;    // of which photograph the file is kept
let told = false;
const unkept = new Map();  // records that the browser would not keep: they last as long as the page
const pages = new BroadcastChannel("samclip-objects");

/** What hears of each change of a record, with its id and the record: the job sets it. */
export const on = {kept: () => {}};

const base = new Promise((done, failed) => {
  const opening = indexedDB.open("samclip-work", 1);
  opening.onupgradeneeded = () => { for (const name of [RECORDS, LAST]) opening.result.createObjectStore(name); };
  opening.onsuccess = () => { opening.result.onversionchange = () => opening.result.close(); done(opening.result); };  // else it blocks a page of another version
  opening.onerror = () => failed(opening.error);
  setTimeout(() => failed(new DOMException("", "TimeoutError")), LONGEST);  // such a page may block this one
});
base.catch(() => {});  // said when something is to be kept

const found = request => new Promise((done, failed) => { request.onsuccess = () => done(request.result); request.onerror = () => failed(request.error); });

/** Return what `act` finds in a store, once all that it puts there is kept. */
async function inStore(name, mode, act) {
  const work = (await base).transaction(name, mode);
  const [result] = await Promise.all([act(work.objectStore(name)), new Promise((done, failed) => {
    work.oncomplete = done;
    work.onabort = work.onerror = () => failed(work.error);
  })]);
  return result;
}

/** What was open when the page was closed: the "photograph", {file, path}, if somebody had worked on it, and the "job". */
export const lastOf = what => inStore(LAST, "readonly", store => found(store.get(what))).catch(() => null);
export const keepLast = (what, value) => inStore(LAST, "readwrite", store => found(store.put(value, what))).catch(() => {});

/** The record of a photograph. */
export const recordOf = async id => unkept.get(id) ?? await inStore(RECORDS, "readonly", store => found(store.get(id))).catch(() => null) ?? NOTHING;

/** Show the objects of the record of the photograph that has been opened, and keep its objects from now on. */
export function resume({objects}) {
  ready = photo;
  kept = objects;
  if (objects.length) push({objects});
}

/** Change the record of a photograph; nobody changes it meanwhile. Returns the new one. */
export async function amend(id, change) {
  let record = null;
  try {
    await inStore(RECORDS, "readwrite", async store => {
      record = change(unkept.get(id) ?? await found(store.get(id)) ?? NOTHING);
      await found(record.objects.length || record.done ? store.put(record, id) : store.delete(id));
    });
    unkept.delete(id);
    pages.postMessage(id);
  } catch (error) {
    record ??= change(unkept.get(id) ?? NOTHING);
    unkept.set(id, record);
    if (!told) say(`This browser cannot keep your work (${error.name}): save it before you close the page.`);
    told = true;
  }
  on.kept(id, record);
  return record;
}

const isOpen = id => Boolean(photo) && ready === photo && photo.id === id;

/** Change the objects of a photograph, whether it is open or not. */
export async function changeObjects(id, change) {
  while (draft && isOpen(id)) await new Promise(next => setTimeout(next, 100));  // the answer would undo it
  if (isOpen(id)) return push({...now(), objects: change(now().objects)});
  const record = await amend(id, former => ({...former, objects: change(former.objects)}));
  if (isOpen(id)) resume(record);  // it has been opened meanwhile
}

async function keep(objects) {
  const {id, source: file, path} = photo;
  kept = objects;
  await amend(id, former => ({...former, objects}));
  if (last === id || unkept.has(id)) return;
  last = id;
  await keepLast("photograph", {file, path});
}

onChange(({objects}) => {
  const own = objects.filter(({mask, example}) => mask && !example);
  if (draft || ready !== photo || (own.length === kept.length && own.every((object, at) => object === kept[at]))) return;
  keep(own);
});

// The same photograph in two pages: each shows what the other one has kept.
pages.onmessage = async ({data: id}) => {
  const record = await recordOf(id), asked = photo;
  on.kept(id, record);
  if (draft || !isOpen(id) || asked !== photo || JSON.stringify(marks(record.objects)) === JSON.stringify(marks(kept))) return;
  last = null;
  resume(record);
  if (!record.objects.length) push({objects: []});
  say("The objects were changed in another page: this one shows them too.");
};
const marks = objects => objects.map(({mask: {counts}, label, suggested}) => [counts, label, suggested]);

/** Forget all that is kept. What is on the page stays until it is closed. */
export async function forget() {
  last = null;
  for (const name of [RECORDS, LAST]) await inStore(name, "readwrite", store => found(store.clear())).catch(() => {});
}
