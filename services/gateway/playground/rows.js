// The rows of the lists: scores, photographs found, objects, and the choice between masks.

import {shareOf} from "./grouping.js";
import {decode} from "./masks.js";
import {path} from "./outlines.js";
import {colourOf} from "./paint.js";

export const made = (name, ...children) => { const element = document.createElement(name); element.append(...children); return element; };

/** Fill a list anew; a control keeps the focus. */
export function refill(list, ...rows) {
  const controls = () => [...list.querySelectorAll("button, input")], at = controls().indexOf(document.activeElement);
  list.replaceChildren(...rows);
  controls()[at]?.focus();
}

/** The share of the photograph that an object covers, in words. */
export const share = object => percent(shareOf(object));
export const percent = value => `${(100 * value).toFixed(value < 0.001 ? 2 : 1)} %`;

/** A label with its share; `use` takes it as a name. */
export function scoreRow({label, score}, use) {
  const called = use ? Object.assign(made("button", label), {title: `Name it “${label}”`, className: "link", onclick: () => use(label)}) : made("span", label);
  const row = made("li", called, made("span", `${(100 * score).toFixed(1)} %`));
  row.style.setProperty("--share", `${100 * score}%`);
  return row;
}

/** A label of a map with its colour and the share of the photograph that has it. */
export function legendRow(object, pressed, {pick, light}) {
  const dot = made("i"), button = made("button", dot, made("b", object.label), made("span", share(object)));
  dot.style.background = `rgb(${colourOf(object).join(" ")})`;
  button.onclick = pick;
  button.setAttribute("aria-pressed", pressed);
  button.onmouseenter = button.onfocus = () => light(object);
  button.onmouseleave = button.onblur = () => light();
  return made("li", button);
}

const drawn = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  return element;
};

/** The pictures of a hit: its thumbnail if it has one, and around its object if it has one, an outline. */
function pictures({metadata, mask}) {
  const src = metadata?.thumbnail?.startsWith("data:image/jpeg;base64,") && metadata.thumbnail;
  if (!mask) return src ? [Object.assign(made("img"), {src, alt: ""})] : [];
  const {width, height} = mask.rle, svg = drawn("svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "xMidYMid slice", "aria-hidden": true});
  if (src) svg.append(drawn("image", {href: src, width, height}));
  svg.append(drawn("path", {d: path(decode(mask.rle))}));
  return [svg];
}

/** A photograph that a search found: it opens, and `more` searches on from it. */
export function hitRow(hit, {open, more, drop}) {
  const {id, metadata} = hit, called = metadata?.name ?? id, shown = pictures(hit);
  const opens = made("button", ...(shown.length ? shown : [made("span", "no thumbnail")])), alike = made("button", "More like this");
  opens.className = "thumbnail";
  opens.title = `${called}, score ${hit.score.toFixed(2)}`;
  opens.setAttribute("aria-label", `Open ${called}`);
  alike.setAttribute("aria-label", `More like ${called}`);
  opens.onclick = open;
  alike.onclick = more;
  const caption = made("div", made("p", called), iconButton("bin", `delete ${called}`, drop));
  return Object.assign(made("li", opens, caption, alike), {name: id});
}

const counted = (number, what) => `${Number(number).toLocaleString("en")} ${what}${Number(number) === 1 ? "" : "s"}`;
/** What a collection holds, in words. */
export const factsOf = ({count, objects}) => [counted(count, "photograph"), Number(objects) && counted(objects, "object")].filter(Boolean).join(", ");

/** A collection with its counts. */
export function collectionRow(collection, pressed, pick, drop) {
  const {name} = collection, button = made("button", made("b", name), made("span", factsOf(collection)));
  button.onclick = pick;
  button.setAttribute("aria-pressed", pressed);
  return Object.assign(made("li", button, iconButton("bin", `delete ${name}`, drop)), {name});
}

/** The names of the sizes of an object, in the order of its candidates: the shares if there are many. */
export function sizesOf(candidates) {
  const shares = candidates.map(shareOf), names = {2: ["smaller", "larger"], 3: ["small", "medium", "large"]}[shares.length];
  const ascending = [...shares].sort((one, other) => one - other);
  return shares.map(value => names?.[ascending.indexOf(value)] ?? percent(value));
}

/** One of the sizes of an object, with its picture. */
export function choiceRow(candidate, index, name, chosen, choose, picture) {
  const input = Object.assign(made("input"), {type: "radio", name: "choice", checked: chosen});
  input.onchange = () => choose(index);
  return Object.assign(made("label", input, picture, name), {title: `${share(candidate)} of the photograph (key ${index + 1})`});
}

/**
 * A line of the list: a member, or a group of several with its count. `can` has what its buttons do:
 * fold, choose, pick, accept, rename, hide, only, drop and light. `state` says whether it is open, chosen (null:
 * in part), selected, hidden, alone and suggested.
 */
export function objectLine(name, members, {picture, facts, level, title, folds}, state, can) {
  const line = made("div"), several = members.length > 1, [{object, index}] = members;
  const fold = iconButton("fold", `${name}: ${folds}`, can.fold), chosen = Object.assign(made("input"), {type: "checkbox", checked: state.chosen === true, indeterminate: state.chosen === null});
  const dot = made("i", picture ?? ""), told = made("span", several ? `× ${members.length}` : facts), picks = made("button", dot, made("b", name), told);
  if (level !== undefined) told.dataset.sure = level;
  fold.hidden = !folds;
  fold.className = "fold";
  fold.setAttribute("aria-expanded", state.open);
  chosen.setAttribute("aria-label", `choose ${name}`);
  chosen.onchange = () => can.choose(chosen.checked);
  dot.style.background = several ? "none" : `rgb(${colourOf(object, index).join(" ")})`;
  Object.assign(picks, {className: "pick", title: title ?? ""});
  if (several) picks.setAttribute("aria-expanded", state.open); else picks.setAttribute("aria-pressed", state.selected);
  picks.onclick = several ? can.fold : can.pick;
  const only = iconButton("only", state.alone ? "show all" : `show only ${name}`, can.only), hide = iconButton(state.hidden ? "unseen" : "eye", `${state.hidden ? "show" : "hide"} ${name}`, can.hide);
  only.setAttribute("aria-pressed", state.alone);
  const shows = state.suggested ? [iconButton("done", `accept ${name}`, can.accept)] : [only, hide];
  line.append(fold, chosen, picks, iconButton("name", `rename ${name}`, can.rename), ...shows, ...(several ? [] : [iconButton("drop", `remove ${name}`, can.drop)]));
  line.className = `line${state.hidden ? " faint" : ""}`;
  line.onmouseenter = picks.onfocus = () => can.light(members);
  line.onmouseleave = picks.onblur = () => can.light();
  return Object.assign(line, {members});
}

function iconButton(name, title, onclick) {
  const svg = drawn("svg", {"aria-hidden": true});
  svg.append(drawn("use", {href: `/playground/icons.svg#${name}`}));
  const button = Object.assign(made("button", svg), {title, onclick});
  button.setAttribute("aria-label", title);
  return button;
}
