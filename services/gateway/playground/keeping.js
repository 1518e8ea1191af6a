// The objects of each photograph, and the last photograph itself, kept in this browser: work survives a reload.

import {say} from "./page.js";
import {draft, onChange, photo, push} from "./work.js";

const OBJECTS = "objects", LAST = "last";  // stores: objects by photograph, the file that is open
let ready = null;   // the photograph whose objects are kept: those of another are being read
let kept = null;    // its objects as they are kept
let last = null;    // of which photograph the file is kept
let told = false;
const pages = new BroadcastChannel("samclip-objects");

const idOf = ({file}) => `${file.name} ${file.size} ${file.lastModified}`;

const base = new Promise((done, failed) => {
  const opening = indexedDB.open("samclip", 1);
  opening.onupgradeneeded = () => { for (const name of [OBJECTS, LAST]) opening.result.createObjectStore(name); };
  opening.onsuccess = () => done(opening.result);
  opening.onerror = () => failed(opening.error);
});
base.catch(() => {});  // said when something is to be kept

/** Run `act` with a store, and return what its request has found once all of it is kept. */
async function inStore(name, mode, act) {
  const work = (await base).transaction(name, mode), request = act(work.objectStore(name));
  await new Promise((done, failed) => { work.oncomplete = done; work.onabort = work.onerror = () => failed(work.error ?? request.error); });
  return request.result;
}

/** The file that was open when the page was closed, if somebody had worked on it. */
export const lastFile = () => inStore(LAST, "readonly", store => store.get(LAST)).catch(() => null);

/** The objects that are kept for a photograph. */
export const keptFor = async photo => await inStore(OBJECTS, "readonly", store => store.get(idOf(photo))).catch(() => null) ?? [];

/** Show the objects that were kept for the photograph that has been opened, and keep its objects from now on. */
export function resume(objects) {
  ready = photo;
  kept = objects;
  if (objects.length) push({objects});
}

async function keep(objects) {
  const id = idOf(photo), {file} = photo;
  kept = objects;
  try {
    await inStore(OBJECTS, "readwrite", store => objects.length ? store.put(objects, id) : store.delete(id));
    if (last !== id) await inStore(LAST, "readwrite", store => store.put(file, LAST));
    last = id;
    pages.postMessage(id);
  } catch (error) {
    if (!told) say(`This browser cannot keep your work (${error.name}): save it before you close the page.`);
    told = true;
  }
}

onChange(({objects}) => {
  const own = objects.filter(({mask, example}) => mask && !example);
  if (draft || ready !== photo || (own.length === kept.length && own.every((object, at) => object === kept[at]))) return;
  keep(own);
});

// The same photograph in two pages: each shows what the other one has kept.
pages.onmessage = async ({data: id}) => {
  if (!photo || draft || ready !== photo || id !== idOf(photo)) return;
  const asked = photo, objects = await keptFor(photo);
  if (asked !== photo || draft) return;
  kept = objects;
  last = null;
  push({objects});
  say("The objects were changed in another page: this one shows them too.");
};

/** Forget all that is kept. What is on the page stays until it is closed. */
export async function forget() {
  for (const name of [OBJECTS, LAST]) await inStore(name, "readwrite", store => store.clear()).catch(() => {});
}
