// Find by words, or more like an object: what is found joins the list of objects.

import {known} from "./api.js";
import {isNew} from "./grouping.js";
import {forget} from "./keeping.js";
import {tiles} from "./closely.js";
import {byHand, staying} from "./naming.js";
import {$, busy, inEnglish, say, some} from "./page.js";
import {Recent} from "./recent.js";
import {made} from "./rows.js";
import {turnTo, words} from "./settings.js";
import {area, isExample, maskOf, needsObject, onChange, photo, push, question, selected} from "./work.js";

const phrases = new Recent("phrases", $("phrases"));

export const actions = {
  async find() {
    if (!words("phrase").length) throw new Error("Type what to find, as in: a cat, a dog.");
    phrases.add($("phrase").value.trim());
    if (matchMedia("(pointer: coarse)").matches) $("phrase").blur();  // its keyboard would cover the results
    if (await find()) turnTo($("tab-objects"));
  },
  async alike() {
    const own = photo, {label} = selected() ?? {}, prompts = await asExample();
    if (prompts && own === photo && await search(prompts, [label ? `like “${label}”` : "like this"], label && {label})) turnTo($("tab-objects"));
  },
  async forget() { Recent.forget(); await forget(); say("Your words, names and objects are forgotten."); },
  "default-least"() { delete $("least").dataset.touched; $("least-shown").textContent = "the default"; },
};

/** The selected object as what to find more of, once the service has its photograph; null if the user has cancelled. */
export async function asExample() {
  needsObject();
  const {rle: mask} = area(), own = photo, sent = await busy(signal => known(own, {signal}));
  return sent && [{examples: [{image: {key: sent.key}, mask}]}];
}

/** Find the words of the first sample; on a phone, the photograph keeps its place. */
export async function first() {
  if (await find(true) && $("panels").hidden && matchMedia("(min-width: 60rem)").matches) turnTo($("tab-objects"));
}

function find(example = false) {
  const texts = words("phrase"), not = words("unwanted");
  return search(texts.map(text => ({text, ...(not.length && {not_texts: not})})), texts, {example});
}

/** Add what is found, in place of what the same words found before and nobody has touched; true if there is an answer. */
async function search(prompts, names, given) {
  const answer = await question("/segment", {prompts, min_score: leastSure(), ...tiles()});
  if (!answer) return false;
  const all = answer.results.flatMap((result, at) => things(result, names[at], Boolean(prompts[at].text))).map(object => ({...object, ...given})), kept = staying(...names);
  const found = prompts[0].examples ? all.filter(thing => isNew(thing, kept)) : all, missing = names.filter((_, at) => !answer.results[at].masks.length);
  const [touched, fresh] = [kept.filter(byHand).flatMap(object => [object, ...object.candidates ?? []]), found].map(some => new Set(some.map(({mask}) => mask.counts)));
  // A mask that is found by other words has these; one that somebody has touched stays as it is.
  push({objects: [...kept.filter(object => byHand(object) || !fresh.has(object.mask.counts)), ...found.filter(({mask}) => !touched.has(mask.counts))], missing});
  say([found.length ? `${found.length} found.` : all.length && "Nothing more was found: the list has it already.", missing.length && `Not there: ${some(missing.map(name => `“${name}”`))}.${inEnglish(missing)}`].filter(Boolean).join(" "));
  return true;
}

/** What an answer has found: each thing once, with its sizes as candidates, the best first. */
export function things({masks, things}, name, asText) {
  const sizes = masks.map(mask => ({...maskOf(mask), label: mask.label || name, score: mask.label_score, found: true, sought: name, asText}));
  return [...new Set(things)].map(thing => sizes.filter((_, at) => things[at] === thing))
    .map(candidates => ({...candidates[0], candidates, chosen: 0}));
}

onChange(({objects, missing}) => {
  $("filter").hidden = isExample();
  $("unasked").hidden = objects.length + missing.length > 0;
  $("missing").replaceChildren(...missing.map(absentRow));
});

/** Words that are not there; in a large photograph, they may be too small to be seen at once. */
function absentRow(name) {
  const more = $("closely").hidden || $("close").checked ? [] : [Object.assign(made("button", "Search closely"), {onclick() { $("close").checked = true; $("find").requestSubmit(); }})];
  return made("li", made("b", name), made("span", "not there"), ...more);
}

/** The score below which the user wants nothing; undefined: the model's. */
export const leastSure = () => $("least").dataset.touched ? Number($("least").value) : undefined;
$("least").oninput = () => { $("least").dataset.touched = "yes"; $("least-shown").textContent = Number($("least").value).toFixed(2); };
