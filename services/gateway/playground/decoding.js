// Masks that this browser decodes itself, where the service has brought what it needs for that: the decoder of the
// chosen model and the embedding of the photograph. Everything else, and all of it without them, is the service's.

import {bytes, embedding, model, service} from "./api.js";
import {Decoder} from "./decoder.js";
import {packed} from "./masks.js";
import {chosenName} from "./models.js";
import {$, say} from "./page.js";

const RUNTIME = "/playground/onnxruntime/";
let here = false;  // whether this service and this browser can
export const offered = service.then(({decoder}) => { here = Boolean(decoder && globalThis.WebAssembly && globalThis.DecompressionStream); return here; }, () => false);
let opened = null;  // the name of a model, and the promise of its decoder and of the digest that it belongs to
let current = null;  // a photograph with a model, and their decoder once it has the embedding

/** Whether masks of this photograph will be decoded here, soon or now. */
export const expected = () => here && !current?.failed;

/** The function that decodes a prompt about the photograph here, or null: it is got ready meanwhile. */
export function decoding(photo) {
  const name = model.get();
  if (here && (current?.photo !== photo || current.name !== name)) {
    const mine = current = {photo, name, decoder: null, failed: false};
    prepare(mine).catch(error => fail(mine, error));
  }
  const mine = current;
  return here && mine.decoder && (async (prompt, options) => {
    try {
      return (await mine.decoder.decode(prompt, options)).map(found => ({mask: packed(found), label: "", quality: found.quality}));
    } catch (error) { fail(mine, error); return null; }
  });
}

async function prepare(mine) {
  const encoded = await embedding(mine.photo), name = mine.name || await chosenName();
  let {decoder, digest} = await open(name);
  if (digest !== encoded.model) ({decoder, digest} = await open(name, true));  // the name has got another checkpoint
  if (digest !== encoded.model) throw new Error("the model is being replaced");
  if (current !== mine) return;
  await decoder.use(encoded);
  if (current === mine) mine.decoder = decoder;
}

/** Open the decoder of a model, unless it is open; the one before is closed. */
function open(name, again = false) {
  if (opened?.name === name && !again) return opened.promise;
  opened?.promise.then(({decoder}) => decoder.close(), () => {});
  opened = {name, promise: load(name)};
  return opened.promise;
}

async function load(name) {
  const reply = await bytes(`/models/${encodeURIComponent(name)}/decoder.onnx`);
  const decoder = await Decoder.open({model: await reply.arrayBuffer(), runtime: RUNTIME});
  return {decoder, digest: reply.headers.get("x-samclip-model")};
}

let told = new Set();
/** Leave the photograph's masks to the service, and say why, once for each model. */
function fail(mine, {message}) {
  mine.failed = true;
  mine.decoder = null;
  if (current !== mine) return;
  opened?.promise.then(({decoder}) => decoder.close(), () => {});
  opened = null;  // the next photograph asks again
  $("preview").checked = false;
  if (!told.has(mine.name)) say(`The service makes the masks, without a preview: ${message.charAt(0).toLowerCase()}${message.slice(1).replace(/\.$/, "")}.`);
  told.add(mine.name);
}
