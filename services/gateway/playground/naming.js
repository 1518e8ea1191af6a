// The names of objects: typed, taken from an answer of Name, and asked for before they are saved.

import {$, really} from "./page.js";
import {Recent} from "./recent.js";
import {labels} from "./settings.js";
import {draft, now, onChange, photo, push, render, selected} from "./work.js";

const used = new Recent("names", $("used"));
let shown = -1;    // the index of the object whose name is in the field
let asked = null;  // the photograph whose nameless objects were asked about

/** Whether somebody has made an object or named it: it stays until somebody removes it. */
export const byHand = ({mask, prompt, named}) => mask && Boolean(prompt || named);

/** The objects that stay when some questions are answered again: those of others, and those that somebody has touched. */
export const staying = (...asked) => now().objects.filter(object => byHand(object) || (object.mask && !object.example && !asked.includes(object.sought)));

/** Give some objects a name; while an answer is on its way, it will have the name as well. */
export function rename(some, label) {
  const those = new Set(some.map(({mask}) => mask)), state = now();
  const objects = state.objects.map(object => those.has(object.mask) ? {...object, label, named: Boolean(label), suggested: false, example: false} : object);
  if (label) used.add(label);
  if (!draft) return push({...state, objects});
  draft.objects.splice(0, objects.length, ...objects);
  render();
}

/** Ask for another name of some objects. */
export async function askToRename(some, name) {
  const label = await really(`New name for “${name}”:`, "Rename", "Cancel", some[0].label ?? "");
  if (typeof label === "string") rename(some, label);
}

/** Ask once for a name of the objects that have none; false if the user would rather not save them. */
export async function askForNames(objects) {
  const nameless = objects.filter(({label}) => !label);
  if (!nameless.length || asked === photo) return true;
  const name = await askForName(nameless.length);
  if (!name) return false;
  asked = photo;
  rename(nameless, name);
  return true;
}

/** Ask for a name of so many objects that have none, before they are saved. */
export async function askForName(count) {
  const name = await really(count > 1 ? `${count} objects have no name. What are they?` : "One object has no name. What is it?", "Save", "Cancel", "object");
  return name === true ? "object" : name;
}

$("called").onchange = () => { if (selected()) rename([selected()], $("called").value.trim()); };
$("called").onkeydown = event => { if (event.key === "Enter") $("stage").focus(); };
onChange(({objects, selected: index}) => {
  if (document.activeElement !== $("called") || index !== shown) $("called").value = selected()?.label ?? "";  // else it is being typed
  shown = index;
  used.offer([...objects.map(({label}) => label), ...labels()].filter(Boolean));
});
