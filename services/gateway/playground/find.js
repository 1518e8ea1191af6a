// Find by words, or more like an object: the results as cut-outs, each with how sure it is.

import {known} from "./api.js";
import {forget} from "./keeping.js";
import {light} from "./objects.js";
import {tiles} from "./closely.js";
import {byHand} from "./naming.js";
import {$, busy, grey, inEnglish, levelOf, say, some, sure} from "./page.js";
import {cutOut} from "./paint.js";
import {Recent} from "./recent.js";
import {made, share} from "./rows.js";
import {turnTo, words} from "./settings.js";
import {draft, isExample, maskOf, needsObject, now, onChange, photo, push, question, selected} from "./work.js";

const phrases = new Recent("phrases", $("phrases"));

export const actions = {
  async find() {
    if (!words("phrase").length) throw new Error("Type what to find, as in: a cat, a dog.");
    phrases.add($("phrase").value.trim());
    if (matchMedia("(pointer: coarse)").matches) $("phrase").blur();  // its keyboard would cover the results
    if (await find()) turnTo($("tab-find"));
  },
  async alike() {
    needsObject();
    const {mask: {height, width, counts}, label} = selected(), own = photo, sent = await busy(signal => known(own, {signal}));
    if (!sent || own !== photo) return;
    const found = await search([{examples: [{image: {key: sent.key}, mask: {height, width, counts}}]}], [label ? `like “${label}”` : "like this"]);
    if (found) turnTo($("tab-find"));
  },
  async forget() { Recent.forget(); await forget(); say("Your words, names and objects are forgotten."); },
  "default-least"() { delete $("least").dataset.touched; $("least-shown").textContent = "the default"; },
};

/** Find the words of the first sample; on a phone, the photograph keeps its place. */
export async function first() {
  if (await find(true) && $("panels").hidden && matchMedia("(min-width: 60rem)").matches) turnTo($("tab-find"));
}

function find(example = false) {
  const texts = words("phrase"), not = words("unwanted");
  return search(texts.map(text => ({text, ...(not.length && {not_texts: not})})), texts, example);
}

/** Add what is found, in place of what the same words or only an example found before; true if there is an answer. */
async function search(prompts, names, example = false) {
  const answer = await question("/segment", {prompts, min_score: leastSure(), ...tiles()});
  if (!answer) return false;
  const objects = answer.results.flatMap((result, at) => things(result, names[at], Boolean(prompts[at].text))).map(object => ({...object, example}));
  const missing = names.filter((_, at) => !answer.results[at].masks.length);
  const kept = now().objects.filter(object => byHand(object) || (object.mask && object.colour === undefined && !object.example && !names.includes(object.sought)));
  const counts = some => new Set(some.map(({mask}) => mask.counts)), [made, found] = [counts(kept.filter(byHand)), counts(objects)];
  // A mask that is found by other words has these; one that somebody has named keeps its name.
  push({objects: [...kept.filter(object => byHand(object) || !found.has(object.mask.counts)), ...objects.filter(({mask}) => !made.has(mask.counts))], missing});
  say([objects.length && `${objects.length} found.`, missing.length && `Not there: ${some(missing.map(name => `“${name}”`))}.${inEnglish(missing)}`].filter(Boolean).join(" "));
  return true;
}

/** What an answer has found: each thing once, with its sizes as candidates, the best first. */
export function things({masks, things}, name, asText) {
  const sizes = masks.map(mask => ({...maskOf(mask), label: mask.label || name, score: mask.label_score, found: true, sought: name, asText}));
  return [...new Set(things)].map(thing => sizes.filter((_, at) => things[at] === thing))
    .map(candidates => ({...candidates[0], candidates, chosen: 0}));
}

onChange(({objects, missing}) => {
  const found = objects.filter(object => object.mask && (object.found || object.prompt));
  $("filter").hidden = isExample();
  $("unasked").hidden = found.length + missing.length > 0;
  const at = [...$("results").children].indexOf(document.activeElement.closest("#results > li"));
  $("results").replaceChildren(...found.map(object => resultRow(object, objects.indexOf(object))), ...missing.map(absentRow));
  $("results").children[at]?.querySelector("button")?.focus();
});

function resultRow(object, index) {
  const {score, candidates = [], suggested} = object, known = score === undefined ? share(object) : sure(score, object.asText);
  const fact = suggested ? `suggested, ${score.toFixed(2)}` : known;
  const told = made("span", fact);
  if (score !== undefined) told.dataset.sure = levelOf(score);
  const sizes = candidates.length > 1 ? [made("span", `${candidates.length} sizes`)] : [];
  const pick = made("button", cutOut(object.mask, photo.copy), made("b", object.label || `object ${index + 1}`), told, ...sizes), row = made("li", pick);
  pick.setAttribute("aria-pressed", index === now().selected);
  pick.title = score === undefined ? "" : `score ${score.toFixed(2)}`;
  grey(pick, draft ? "One moment: the answer is on its way." : "");
  pick.onclick = () => push({...now(), selected: index === now().selected ? -1 : index});
  row.onmouseenter = pick.onfocus = () => light(object);
  row.onmouseleave = pick.onblur = () => light();
  return row;
}

/** Words that are not there; in a large photograph, they may be too small to be seen at once. */
function absentRow(name) {
  const more = $("closely").hidden || $("close").checked ? [] : [Object.assign(made("button", "Search closely"), {onclick() { $("close").checked = true; $("find").requestSubmit(); }})];
  return Object.assign(made("li", made("b", name), made("span", "not there"), ...more), {className: "absent"});
}

/** The score below which the user wants nothing; undefined: the model's. */
export const leastSure = () => $("least").dataset.touched ? Number($("least").value) : undefined;
$("least").oninput = () => { $("least").dataset.touched = "yes"; $("least-shown").textContent = Number($("least").value).toFixed(2); };
