// The models of the service: the user chooses one of several, and is told when it is loaded.

import {get, model, post} from "./api.js";
import {$, busy, on, say, showModel, working} from "./page.js";

let served = [];
const chosen = () => served.find(({name, default: usual}) => model.get() ? name === model.get() : usual);

/** Bring the list up to date; a choice that is no longer served is forgotten. */
async function list() {
  ({models: served} = await get("/models"));
  if (!chosen()) model.set("");
  $("which").hidden = served.length < 2;
  $("models").replaceChildren(...served.map(each => new Option(named(each), each.name, false, each === chosen())));
}
const named = ({name, state, alias_of: other}) => `${name}${other ? ` (now ${other})` : ""}${state === "loaded" ? "" : `, ${state}`}`;

async function show() {
  await list();
  showModel(chosen());
  return !chosen().without_masks;
}

/** The name of the chosen model, once the list is known. */
export const chosenName = async () => { await masks; return chosen()?.name ?? ""; };

/** Whether the model makes masks; without a key that is wanted, the first question says so. */
export const masks = show().catch(error => error.status === 401);

$("menu").addEventListener("toggle", ({newState}) => { if (newState === "open") list().catch(() => {}); });
$("key").addEventListener("change", () => show().catch(() => {}));

$("models").onchange = async () => {
  const {name, default: usual} = served.find(({name}) => name === $("models").value);
  model.set(usual ? "" : name);
  showModel(chosen());
  // A small question, so that the model is loaded when the user needs it.
  if (await busy(signal => post("/embed-text", {texts: ["a photograph"], model: name}, {signal}))) say(`${name} answers from now on.`);
};

on.slow = async () => {
  if (served.length < 2) return;
  await list();
  if (working() && ["idle", "loading"].includes(chosen()?.state)) say(`Loading ${chosen().name} …`);
};
