// What somebody has made of each photograph, kept in this browser: work survives a reload.

import {say} from "./page.js";
import {draft, now, onChange, photo, push, rebase, render} from "./work.js";

const RECORDS = "photographs", LAST = "last";  // stores: {objects, done, settled} by photograph; what is open
const NOTHING = {objects: [], done: false};
const LONGEST = {readonly: 2000, readwrite: 10_000};  // milliseconds until the page goes on without an answer of the storage
let ready = null;   // the photograph whose objects are kept: those of another are being read
let kept = null;    // its objects as they are kept
let last = null;    // of which photograph the file is kept
let stale = false;  // another page has changed its objects while an answer was awaited here
let told = false;
let stalled = false;       // the storage takes too long: until it answers, nothing else is asked of it
const unkept = new Map();  // records that the browser would not keep: they last as long as the page
const tried = new Set();   // the marks of all objects that these have had: what was removed since is not kept either
const pages = new BroadcastChannel("samclip-objects");

/** What hears of each change of a record, with its id and the record, that all are forgotten, and that late storage has answered: the job sets it. */
export const on = {kept: () => {}, forgotten: () => {}, answered: () => {}};
/** What to say while the storage does not answer, or the browser does not keep what was made. */
export const warning = () => stalled ? "What was kept could not be read in time: it appears when this browser’s storage answers."
  : unkept.size ? "This browser does not keep your work: save it before you close the page." : "";

const found = request => new Promise((done, failed) => { request.onsuccess = () => done(request.result); request.onerror = () => failed(request.error); });

let base = null;
/** Open the database. After an error the next use tries again. */
async function opened() {
  const opening = indexedDB.open("samclip-work", 1);
  opening.onupgradeneeded = () => { for (const name of [RECORDS, LAST]) opening.result.createObjectStore(name); };
  const database = await found(opening).catch(error => { base = null; throw error; });
  database.onversionchange = () => database.close();  // else it blocks a page of another version
  return database;
}

/** Return what `act` finds in a store, once all that it puts there is kept; a TimeoutError after LONGEST. What ends later counts all the same. */
function inStore(name, mode, act) {
  return new Promise((done, failed) => {
    const timedOut = () => failed(new DOMException("", "TimeoutError"));
    if (stalled) return timedOut();
    const timer = setTimeout(() => { stalled = true; timedOut(); }, LONGEST[mode]);
    transaction(name, mode, act).then(result => { done(result); if (stalled) catchUp(); }, failed).finally(() => { clearTimeout(timer); stalled = false; });
  });
}

async function transaction(name, mode, act) {
  const work = (await (base ??= opened())).transaction(name, mode);
  const [result] = await Promise.all([act(work.objectStore(name)), new Promise((done, failed) => {
    work.oncomplete = done;
    work.onabort = work.onerror = () => failed(work.error);
  })]);
  return result;
}

/** Keep what could not be kept so far, beside what was kept before, which the page has not seen yet. */
async function catchUp() {
  stalled = false;
  for (const [id, record] of [...unkept]) {
    unkept.delete(id);
    await amend(id, former => ({...former, ...record, done: record.done || former.done, objects: [...former.objects.filter(object => !tried.has(mark(object))), ...record.objects]}));
  }
  if (photo) await reread(photo.id);
  on.answered();
  if (stalled || unkept.size) return;
  tried.clear();
  told = false;
  say("This browser keeps your work now.");
}

/** What was open when the page was closed: the "photograph", {file, path}, if somebody had worked on it, and the "job". */
export const lastOf = what => inStore(LAST, "readonly", store => found(store.get(what))).catch(() => null);
export const keepLast = (what, value) => inStore(LAST, "readwrite", store => found(store.put(value, what))).catch(() => {});

/** The ids of all photographs that have a record. */
export const recorded = () => inStore(RECORDS, "readonly", store => found(store.getAllKeys())).catch(() => []);

/** The record of a photograph; where the browser does not say what it has, what the page knows of it. */
export const recordOf = async id => unkept.get(id) ?? await inStore(RECORDS, "readonly", store => found(store.get(id))).catch(() => known(id)) ?? NOTHING;
const known = id => isOpen(id) ? {...NOTHING, objects: kept} : NOTHING;

/** Keep the objects of the photograph that has been opened from now on; `kept` are those of its record. */
export function resume({objects}) {
  ready = photo;
  kept = objects;
  stale = false;
}

/** Change the record of a photograph; nobody changes it meanwhile. Returns the new one. */
export async function amend(id, change) {
  const seen = known(id);
  let record = null;
  try {
    await inStore(RECORDS, "readwrite", async store => {
      record = change(unkept.get(id) ?? await found(store.get(id)) ?? NOTHING);
      await found(record.objects.length || record.done || record.settled ? store.put(record, id) : store.delete(id));
    });
    unkept.delete(id);
    pages.postMessage(id);
  } catch (error) {
    record ??= change(unkept.get(id) ?? seen);
    unkept.set(id, record);
    for (const object of record.objects) tried.add(mark(object));
    const why = error.name === "TimeoutError" ? "yet, because its storage does not answer" : `(${error.name})`;
    if (!told) say(`This browser cannot keep your work ${why}: save it before you close the page.`);
    told = true;
  }
  on.kept(id, record);
  return record;
}

const isOpen = id => Boolean(photo) && ready === photo && photo.id === id;

/** Change the objects of a photograph, whether it is open or not; `undoable` if the user does it. */
export async function changeObjects(id, change, undoable = true) {
  const before = kept;
  adopt(id, await amend(id, former => ({...former, objects: change(former.objects)})), before, undoable);
}

/** Show what a record has, if its photograph is open and has not changed since `before`; returns whether that is new. */
function adopt(id, {objects}, before, undoable = false) {
  if (!isOpen(id) || kept !== before || same(objects, kept)) return false;  // a later change is merged when it is kept
  if (draft) { stale = true; return false; }
  const changed = state => {
    const some = merged(objects, before, state.objects);
    return {...state, objects: some, selected: some.indexOf(state.objects[state.selected])};
  };
  kept = changed(now()).objects.filter(isOwn);
  if (undoable) push(changed(now()));
  else { rebase(changed); render(); }
  return true;
}

const isOwn = ({mask, example}) => mask && !example;
const mark = ({mask: {counts}, label, suggested}) => JSON.stringify([counts, label, Boolean(suggested)]);
const marks = objects => new Set(objects.map(mark));
const same = (some, others) => some.length === others.length && some.every((object, at) => mark(object) === mark(others[at]));

/** Objects as this page has changed them from `before`, with what another page has done to the record meanwhile. */
function merged(recorded, before, objects) {
  const known = marks(before), there = marks(recorded);
  const gone = object => known.has(mark(object)) && !there.has(mark(object));
  return [...objects.filter(object => !gone(object)), ...recorded.filter(object => !known.has(mark(object)))];
}

async function keep(objects) {
  const {id, source: file, path} = photo, before = kept;
  const amending = amend(id, former => ({...former, objects: merged(former.objects, before, objects)}));
  kept = objects;
  const record = await amending;
  adopt(id, record, objects);
  if (last === id || unkept.has(id)) return;
  last = id;
  await keepLast("photograph", {file, path});
}

onChange(({objects}) => {
  const own = objects.filter(isOwn);
  if (draft || ready !== photo) return;
  const unchanged = own.length === kept.length && own.every((object, at) => object === kept[at]);
  if (!unchanged) keep(own);
  else if (stale) reread(photo.id);
  stale = false;
});

// The same photograph in two pages: each shows what the other one has kept.
pages.onmessage = async ({data: id}) => {
  on.kept(id, await recordOf(id));
  reread(id);
};

async function reread(id) {
  const before = kept;
  if (!adopt(id, await recordOf(id), before)) return;
  last = null;
  say("The objects were changed in another page: this one shows them too.");
}

/** Forget all that is kept. What is on the page stays until it is closed. */
export async function forget() {
  last = null;
  kept = [];
  for (const name of [RECORDS, LAST]) await inStore(name, "readwrite", store => found(store.clear())).catch(() => { if (stalled) throw new Error("What is kept cannot be forgotten yet, because the browser’s storage does not answer."); });
  unkept.clear();
  on.forgotten();
}
