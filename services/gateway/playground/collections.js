// The panel of collections: photographs are added, and found by words, by a photograph or by an object.

import {post} from "./api.js";
import {$, busy, say} from "./page.js";
import {encoded, thumbnail} from "./photo.js";
import {hitRow} from "./rows.js";
import {area, needsObject, needsPhoto, photo, question} from "./work.js";

/** What the service says of itself: the port of gRPC and the size that an item's metadata may have. */
export const service = await (await fetch("/playground/service.json")).json();

export const actions = {
  async index() {
    needsPhoto();
    const {name, key, file} = photo, metadata = {name}, room = service.max_metadata_bytes - new Blob(["name", name, "thumbnail"]).size;
    const small = thumbnail(photo, 112, room), collection = $("collection").value;
    if (small) metadata.thumbnail = small;
    const send = image => busy(signal => post("/index", {collection, items: [{id: name, image, metadata}], objects: $("by-objects").checked}, {signal}));
    let answer = await send(key ? {key} : await encoded(file));
    if (key && answer?.errors.length) answer = await send(await encoded(file)); // the key is forgotten, or of another task
    if (answer?.errors.length) throw new Error(answer.errors[0].message);
    if (answer) say(`${name} ${answer.replaced ? "replaced the photograph of that name" : "was added"}, ${answer.ms} ms.`);
  },
  search() { return search({text: $("query").value}); },
  similar() { return searchByPhoto({}); },
  "similar-object"() { needsObject(); return searchByPhoto({area: area()}); },
};

const searchByPhoto = async fields => hits(await question("/search", {...asked(), with_text: $("query").value, ...fields}));
const search = async fields => hits(await busy(signal => post("/search", {...asked(), ...fields}, {signal})));
const asked = () => ({collection: $("collection").value, top_k: 12, objects: $("by-objects").checked});

function hits(answer) {
  if (!answer) return;
  const more = id => search({id, with_text: $("query").value});
  $("hits").replaceChildren(...answer.hits.map(hit => hitRow(hit, more)));
  say(`${answer.hits.length} photographs found in ${answer.ms} ms.`);
}
