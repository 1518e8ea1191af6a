// The rows of the lists: scores, photographs found, objects, and the choice between masks.

import {decode, path} from "./masks.js";
import {colourOf} from "./paint.js";

const made = (name, ...children) => { const element = document.createElement(name); element.append(...children); return element; };

/** The share of the photograph that a mask covers. */
export const share = ({mask}) => {
  let inside = 0;
  for (let i = 0; i < mask.runs.length; i += 2) inside += mask.runs[i + 1] - mask.runs[i];
  return `${(100 * inside / mask.height / mask.width).toFixed(1)} %`;
};

export function scoreRow({label, score}) {
  const row = made("li", made("span", label), made("span", `${(100 * score).toFixed(1)} %`));
  row.style.setProperty("--share", `${100 * score}%`);
  return row;
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

/** A photograph that a search found; `more` searches on from its id. */
export function hitRow(hit, more) {
  const {id, score, metadata} = hit;
  const called = metadata?.name ?? id, button = made("button", "More like this"), row = made("li", ...pictures(hit));
  button.setAttribute("aria-label", `More like ${called}`);
  button.onclick = () => more(id);
  row.append(made("p", `${called}, ${score.toFixed(2)}`), button);
  return row;
}

export function choiceRow(candidate, index, chosen, choose) {
  const input = Object.assign(made("input"), {type: "radio", name: "choice", checked: chosen});
  input.onchange = () => choose(index);
  return made("label", input, `${index + 1} · ${share(candidate)}`);
}

/** An object, with buttons to pick, hide and drop it; `light` shows it alone while pointed at. */
export function objectRow(object, index, selected, {pick, hide, drop, light}) {
  const called = object.label || (object.score === undefined ? `object ${index + 1}` : "unnamed");
  const dot = made("i"), facts = [share(object), object.score?.toFixed(2)].filter(Boolean).join(" · ");
  const picks = made("button", dot, made("b", called), made("span", facts));
  const hides = made("button", object.hidden ? "show" : "hide"), drops = made("button", "×");
  const row = Object.assign(made("li", picks, hides, drops), {object});
  dot.style.background = `rgb(${colourOf(object, index).join(" ")})`;
  picks.className = "pick";
  picks.setAttribute("aria-pressed", selected);
  hides.setAttribute("aria-label", `${hides.textContent} ${called}`);
  drops.setAttribute("aria-label", `remove ${called}`);
  picks.onclick = pick;
  hides.onclick = hide;
  drops.onclick = drop;
  row.onmouseenter = picks.onfocus = () => light(object);
  row.onmouseleave = picks.onblur = () => light();
  return row;
}
