// "Find in all": words or an example on every photograph of a folder, as suggestions to accept or reject.

import {ask, known} from "./api.js";
import {asExample, leastSure, things} from "./find.js";
import {isNew} from "./grouping.js";
import {go, isWaiting, nextOf, note, on as job, opening, photos} from "./job.js";
import {amend, changeObjects} from "./keeping.js";
import {forEach, patiently} from "./many.js";
import {$, say, some} from "./page.js";
import {words} from "./settings.js";
import {namesOf} from "./take.js";
import {needsObject, now, onChange, photo, push, selected} from "./work.js";

let work = null;  // the AbortController of the search in progress
let before = {what: "", ids: new Set()};  // the last search and the photographs it has covered: a cancelled one resumes

export const actions = {
  "find-all"() {
    const texts = words("sought");
    if (!texts.length) throw new Error("Type what to find, as in: a cat, a dog.");
    return search(texts.map(text => ({text})), texts);
  },
  async "find-alike"() {
    needsObject();
    const {label} = selected(), own = photo;
    if (!label) throw new Error("Name the object first: what is found like it will have its name.");
    const prompts = await asExample();
    return prompts && search(prompts, [label], own);
  },
  "stop-finding"() { work?.abort(); },
  accept: () => decide(accepted),
  reject: () => decide(rejected),
  "accept-all": () => decideAll(accepted, isSure, "accepted"),
  "reject-all": () => decideAll(rejected, () => true, "rejected"),
};

// ---------------------------------------------------------------- search

/** Ask about each photograph that can be read; `example`: the photograph of an example. */
async function search(prompts, names, example = null) {
  if (work) throw new Error("Another search of this folder is running: cancel it first.");
  const mine = work = new AbortController(), fields = {prompts, min_score: leastSure()}, what = JSON.stringify(fields);
  const readable = photos.filter(({broken}) => !broken);
  if (before.what !== what || readable.every(({id}) => before.ids.has(id))) before = {what, ids: new Set()};
  const {ids} = before, left = readable.filter(({id}) => !ids.has(id)), named = names.map(name => `“${name}”`).join(", ");
  const countLeft = () => readable.filter(({id}) => !ids.has(id)).length;
  let found = 0;
  const show = () => {
    const done = readable.length - countLeft();
    $("sought-done").value = done / readable.length;
    $("sought-count").textContent = `${done} of ${readable.length} searched for ${named}, ${found} suggested`;
  };
  show();
  $("seeking").hidden = false;
  try {
    await forEach(left, async each => {
      const more = await suggest(each, fields, names, example, mine.signal);
      found += more;
      ids.add(each.id);
      show();
    }, mine.signal);
  } catch (error) { if (error.name !== "AbortError") throw error; } finally {
    if (work === mine) { work = null; $("seeking").hidden = true; }
    mine.abort();
  }
  const rest = countLeft(), refused = left.filter(({refused}) => refused).length;
  say([`${found} suggested for ${named}.`, refused && `The service refused ${refused}: the list gives the reasons.`, rest && `${rest} photographs were not searched: press the button again to continue.`].filter(Boolean).join(" "));
}

/** Suggest what is found in one photograph; returns how many things are new. */
async function suggest(each, fields, names, example, signal) {
  const opened = await opening(each);
  if (!opened) return 0;
  each.refused = "";
  const answer = await patiently(() => askLike(opened, fields, example, {signal, bulk: true})).catch(error => {
    if (!error.status || error.status === 401) throw error;  // so would all others
    note(each, {refused: error.message});
  });
  if (!answer) return 0;
  const found = answer.results.flatMap((result, at) => things(result, names[at], !example)).sort((one, other) => other.score - one.score);
  let added = 0;
  await changeObjects(each.id, objects => {
    const all = found.reduce((all, thing) => isNew(thing, all) ? [...all, {...thing, suggested: true}] : all, objects);  // each thing with its likeliest name
    added = all.length - objects.length;
    return all;
  }, false);
  return added;
}

/** Ask about a photograph; the example is sent again if the service has forgotten it. */
async function askLike(opened, fields, example, options) {
  try { return await ask(opened, "/segment", fields, options); } catch (error) {
    if (error.status !== 409 || !example) throw error;
    await known(example, options, true);
    return ask(opened, "/segment", fields, options);
  }
}

job.leave = () => work?.abort();

// ---------------------------------------------------------------- decisions

const accepted = (object, others) => isNew(object, others) ? [{...object, suggested: false, named: true}] : [], rejected = () => [];
const least = () => Number($("accepted-least").value);
const isSure = score => Math.round(100 * score) >= Math.round(100 * least());  // as it is shown

/** Replace the suggestions that are `wanted` by what `made` makes of them, beside the objects that somebody has made meanwhile. */
function decided(objects, made, wanted) {
  const others = objects.filter(({suggested}) => !suggested);
  return objects.flatMap(object => object.suggested && wanted(object.score) ? made(object, others) : [object]);
}

/** Decide about the photograph that is open, which is done once its suggestions are accepted. */
function decide(made) {
  if (isWaiting()) return;
  const objects = decided(now().objects, made, () => true);
  push({...now(), objects, selected: objects.indexOf(selected())});
  if (made === accepted) amend(photo.id, record => ({...record, done: true}));
  const another = wanted => nextOf(each => each.id !== photo.id && wanted(each)), next = another(({suggested}) => suggested.length);
  if (next >= 0) return go(next);
  const left = another(({done, broken}) => !done && !broken), said = "No suggestions are left.";
  return left < 0 ? say(said) : go(left, 1, said);
}

async function decideAll(made, wanted, done) {
  const all = photos.filter(({suggested}) => suggested.some(wanted)), count = all.flatMap(({suggested}) => suggested.filter(wanted)).length;
  for (const {id} of all) await changeObjects(id, objects => decided(objects, made, wanted));
  say(`${count} suggestion${count === 1 ? " was" : "s were"} ${done}.`);
}

job.changed = () => {
  const scores = photos.flatMap(({suggested}) => suggested), sure = scores.filter(isSure).length;
  $("offered").hidden = !scores.length;
  $("accept-all").textContent = `Accept ${sure}`;
  $("reject-all").textContent = `Reject all ${scores.length}`;
  $("least-accepted").textContent = least().toFixed(2);
};
$("accepted-least").oninput = () => job.changed();

onChange(({objects}) => {
  const offered = objects.filter(({suggested}) => suggested);
  $("decide").hidden = !offered.length;
  $("suggested").textContent = `${some(namesOf(offered))}:`;
  $("accept").textContent = `Accept ${offered.length}`;
});
