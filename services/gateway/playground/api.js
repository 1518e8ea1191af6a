// Requests to the service. A photograph is sent once; later requests name it by its key.

import {remembered} from "./remembered.js";

export class Failure extends Error {
  constructor(message, status = 0) { super(message); this.status = status; }
}

const BYTES = "application/octet-stream";
export const apiKey = remembered("samclip-api-key"), model = remembered("samclip-model");  // "": the service's default

/** GET what the service has at a path, as JSON. */
export const get = async path => (await reach(path, {headers: keyed("application/json")})).json().catch(away);

/** GET a file that the service has for the caller's key. */
export const bytes = path => reach(path, {headers: keyed(BYTES)});

/** POST fields as a form: files as they are, nested values as JSON. Bulk work yields to all other. */
export const post = async (path, fields, options) => (await send(path, fields, options)).json().catch(away);

function send(path, fields, {signal, bulk = false, accept = "application/json"} = {}) {
  const headers = keyed(accept);
  if (bulk) headers["x-samclip-priority"] = "bulk";
  return reach(path, {method: "POST", headers, body: form(fields), signal});
}

const keyed = accept => ({accept, ...(apiKey.get() && {"x-api-key": apiKey.get()})});

/** Fetch what the service has at a path; throws a Failure that says why it cannot be had. */
export async function reach(path, options) {
  const reply = await fetch(path, options).catch(away);
  if (reply.ok) return reply;
  throw new Failure(await reason(reply), reply.status);
}

/** What the service says of itself: the port of gRPC, the size that an item's metadata may have, and everyday words. */
export const service = reach("/playground/service.json").then(reply => reply.json());
service.catch(() => {});  // said where it is wanted

function away(error) {
  if (error.name === "AbortError") throw error;
  throw new Failure("The service does not answer. Check that it is running, then try again.");
}

/** POST about a photograph to the chosen model; sends the file again if the service has forgotten it. */
export async function ask(photo, path, fields, options) {
  const answer = await (await sendAbout(photo, path, fields, options)).json().catch(away);
  photo.key = (answer.image ?? answer.results?.[0]?.image)?.key ?? photo.key;
  return answer;
}

/** {key}, by which the service knows a photograph, which is sent if it has no key yet, or `again`. */
export async function known(photo, options, again = false) {
  if (again || !photo.key) await ask({...photo, key: null}, "/segment", {prompts: [{points: [{x: 0, y: 0}]}]}, options).then(({image}) => { photo.key = image.key; });
  return {key: photo.key};
}

/** The photograph's embedding for the decoder of masks, and the digest of the checkpoint that has made it. */
export async function embedding(photo) {
  const reply = await sendAbout(photo, "/embed", {outputs: ["SAM"]}, {accept: BYTES}), about = name => reply.headers.get(`x-samclip-${name}`);
  photo.key = reply.headers.get("etag").replace(/^W\//, "").replaceAll('"', "");  // a proxy may weaken it
  return {data: await reply.arrayBuffer().catch(away), shape: JSON.parse(about("shape")), geometry: JSON.parse(about("geometry")), model: about("model")};
}

/** POST about a photograph; yields the parts of the answer as they come. */
export async function* stream(photo, path, fields, options) {
  const reply = await sendAbout(photo, path, fields, {...options, accept: "application/x-ndjson"});
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  const next = () => reader.read().catch(away);
  for (let part = await next(); !part.done; part = await next()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const answer = JSON.parse(line);
      if (answer.detail) throw new Failure(sentence(answer.detail), answer.status);
      photo.key = answer.image?.key ?? photo.key;
      yield answer;
    }
  }
}

async function sendAbout(photo, path, fields, options) {
  const given = {model: model.get(), ...fields}, whole = fields.tiles && photo.tiled !== path;  // tiles are cut from the file
  photo.tiled = fields.tiles ? path : photo.tiled;
  try {
    return await send(path, {image: whole ? photo.file : photo.key ?? photo.file, ...given}, options);
  } catch (error) {
    if (error.status !== 409) throw error;
    return send(path, {image: photo.file, ...given}, options);
  }
}

function form(fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value === undefined || value === "") continue;
    const plain = Array.isArray(value) && value.every(item => typeof item === "string");
    for (const item of plain ? value : [value]) {
      body.append(name, typeof item === "object" && !(item instanceof Blob) ? JSON.stringify(item) : item);
    }
  }
  return body;
}

async function reason(reply) {
  if (reply.status === 429) return "The service is busy. Try again in a moment.";
  try {
    const {detail} = await reply.json();
    return sentence(detail);
  } catch {
    if (reply.status === 502 || reply.status === 503) return "The service is not ready yet. Try again in a moment.";
    return `The service answered with status ${reply.status} and no explanation.`;
  }
}

const sentence = detail => `${detail.charAt(0).toUpperCase()}${detail.slice(1)}.`;
