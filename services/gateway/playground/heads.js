// Heads of one's own: a form made from a head's schema, and its answer as a table and over the photograph.

import {get} from "./api.js";
import {fieldsOf} from "./fields.js";
import {staying} from "./naming.js";
import {$, say} from "./page.js";
import {colourOf} from "./paint.js";
import {made, share} from "./rows.js";
import {turnTo} from "./settings.js";
import {last, maskOf, needsPhoto, push, question, render} from "./work.js";

const MOST_ROWS = 500, MOST_TEXT = 1000;  // rows of the table, and characters of one value
let served = [], fields = [];
const chosen = () => served.find(({name}) => name === $("heads").value);

export const actions = {
  async ask() {
    needsPhoto();
    const {name} = chosen(), values = fields.map(({name, read}) => [name, read()]).filter(([, value]) => value !== undefined);
    $("told").setAttribute("aria-busy", true);
    try {
      const asking = question(`/heads/${name}`, Object.fromEntries(values.map(([name, value]) => [name, sent(value)])));
      last.own = Object.fromEntries(values);
      const answer = await asking;
      if (answer) tell(name, answer);
    } finally { $("told").removeAttribute("aria-busy"); }
  },
};

/** A value as a form has it: a list in one part, so that none and one are lists too. */
const sent = value => Array.isArray(value) ? JSON.stringify(value) : value === "" ? [""] : value;

/** Bring the choice of heads up to date; the panel is there if there are some. */
async function list() {
  const former = $("heads").value, known = JSON.stringify(chosen());
  ({heads: served} = await get("/heads"));
  $("heads").replaceChildren(...served.map(({name}) => new Option(name, name, false, name === former)));
  if (JSON.stringify(chosen()) !== known) describe();
  const tab = $("tab-heads");
  tab.hidden = !served.length;
  if (tab.hidden && tab.ariaSelected === "true") turnTo(null);
}

/** Show the description and the form of the chosen head. */
function describe() {
  const {description = "", classes = [], reason = "", parameters = {}} = chosen() ?? {}, some = classes.slice(0, 12).join(", ");
  $("head-about").textContent = reason ? `It does not answer now: ${reason}.` : `${description.replaceAll("`", "")}${some && ` It tells apart: ${some}${classes.length > 12 ? ", …" : "."}`}`;
  fields = fieldsOf(parameters);
  $("parameters").replaceChildren(...fields.flatMap(({shown}) => shown));
}

$("heads").onchange = describe;
$("key").addEventListener("change", () => list().catch(() => {}));
$("tab-heads").addEventListener("click", () => { if (chosen()?.reason) list().catch(() => {}); });
list().catch(() => {});  // without a key that is wanted, there is no panel

// ---------------------------------------------------------------- answers

function tell(name, answer) {
  const rows = [...placed(answer.result)], sought = `/heads/${name}`, objects = answer.masks.map(mask => ({...maskOf(mask), sought})), table = made("table", made("caption", name));
  for (const [place, value] of rows) if (value?.$mask !== undefined) objects[value.$mask].label ||= place;
  for (const [place, value] of rows.slice(0, MOST_ROWS)) {
    const header = Object.assign(made("th", place), {scope: "row"});
    table.append(made("tr", header, made("td", shown(value, place, {...answer, objects}))));
  }
  const more = rows.length > MOST_ROWS && made("p", `${rows.length - MOST_ROWS} more values are not shown.`);
  $("told").replaceChildren(table, ...(more ? [more] : []));
  if (objects.length) push({objects: [...staying(sought), ...objects]}); else render();
  const drawn = objects.length ? ` ${objects.length} mask${objects.length > 1 ? "s are" : " is"} over the photograph.` : "";
  say(`The head ${name} has answered in ${(answer.ms / 1000).toFixed(1)} s.${drawn}`);
}

/** The places of an answer with their values: what is in objects and lists has a.b as its place. */
function* placed(value, place = []) {
  const inside = value !== null && typeof value === "object" ? Object.entries(value) : [], isList = Array.isArray(value);
  const whole = !inside.length || inside[0][0].startsWith("$") || (isList && value.every(item => item === null || typeof item !== "object")) || isRows(value);
  if (whole && place.length) yield [place.join("."), value];
  if (whole) return;
  if (!isList) inside.sort(([one], [other]) => one.localeCompare(other, "en", {numeric: true}));  // protobuf keeps no order
  for (const [name, inner] of inside) yield* placed(inner, [...place, name]);
}

/** Whether a value is a list of objects with the same names and plain values: a table. */
function isRows(value) {
  const plainly = item => item && typeof item === "object" && Object.values(item).every(inner => typeof inner !== "object");
  return Array.isArray(value) && value.length > 0 && value.every(item => plainly(item) && String(namesIn(item)) === String(namesIn(value[0])));
}
const namesIn = item => Object.keys(item).sort();

function rowsOf(value) {
  const names = namesIn(value[0]), cells = (kind, texts) => made("tr", ...texts.map(text => made(kind, text)));
  return made("table", cells("th", names), ...value.slice(0, MOST_ROWS).map(item => cells("td", names.map(name => plain(item[name])))));
}

/** What a row shows of a value. */
function shown(value, place, {objects, tensors, pictures}) {
  if (value?.$mask !== undefined) {
    const dot = made("i"), object = objects[value.$mask];
    dot.style.background = `rgb(${colourOf(object, value.$mask).join(" ")})`;
    return made("span", dot, ` ${share(object)} of the photograph`);
  }
  if (value?.$picture !== undefined) return Object.assign(made("img"), {src: `data:image/png;base64,${pictures[value.$picture]}`, alt: place});
  if (value?.$tensor !== undefined) return `${tensors[value.$tensor].dtype}, ${tensors[value.$tensor].shape.join(" × ")}`;
  if (isRows(value)) return rowsOf(value);
  if (value === "" && place.split(".").at(-1) === "class") return "none of these";
  const text = Array.isArray(value) && value.length ? value.map(plain).join(", ") : plain(value);
  return text.length > MOST_TEXT ? `${text.slice(0, MOST_TEXT)} …` : text;
}

const plain = value => typeof value === "string" ? value : Number.isInteger(value) || typeof value !== "number" ? JSON.stringify(value) : String(+value.toPrecision(7));
